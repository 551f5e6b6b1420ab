"""Half-maps of the molecule at one state: kernel regression over the particles near it, helped by the field.

Particles are weighted by a kernel of their distance to the state in the common coordinates, wider for particles whose
coordinates are uncertain (kernel regression, as in RECOVAR: Gilles & Singer, bioRxiv 2023.10.28.564422). Each is moved
by its remaining displacement from the state, or not at all: the trust in the field is 1 or 0, and between where maps
are blended. At the largest bandwidth all particles have the same weight, as in the map of the consensus.

Bandwidth and trust are chosen around each voxel by the other half-set: a candidate from one half is compared with the
narrowest kernel's map from the other, which has little blur and independent noise. Their correlation is the product of
the correlations of both with the truth, so that the best candidate has the largest, whatever its noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dynamight_core.image_series import images_of, per_image
from dynamight_core.imaging.backprojection import (
    BackprojectionSums,
    ParticleData,
    accumulate_groups,
    filter_volume,
    fourier_denominator,
    solve,
)
from dynamight_core.imaging.modes import Modes
from dynamight_core.model.motions import moving_points
from dynamight_core.reconstruction.deformation import deforming_region
from dynamight_core.reconstruction.frames import StateField, sampled_field
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION
from dynamight_core.reconstruction.local_filter import frequency_bands, window

TRUSTS = (0.0, 1.0)
# The narrowest kernel has this effective number of particles, and each next one as many times more as `_RATIO`, up to
# this fraction of all.
MIN_PARTICLES, _RATIO, _MAX_FRACTION = 100, 2.0, 0.7
# Particles of almost the same weights are summed together: as many as this fraction of those nearer to the state.
_FIRST, _GROWTH = 25, 0.5
# Narrowest bandwidth, A rms: particles of exact coordinates have finite weights.
_NARROWEST = 1e-3
# The moving part is this near (A) to Gaussians that move.
_MOVING_REACH = 6.0
# Standard deviations (A) of the window in which candidates are compared, and of the border between choices.
WINDOW, _SMOOTH = 16.0, 12.0


def kernel_weights(
    coordinates: torch.Tensor, variances: torch.Tensor, centre: torch.Tensor, bandwidth: float
) -> torch.Tensor:
    """Return (n,) weights N(c_i - c; 0, h^2 + variance_i), relative to the largest; 1 if h is infinite.

    Parameters
    ----------
    coordinates, variances
        (n, K) of the particles, A rms and A^2.
    centre
        (K,) c of the state, A rms.
    bandwidth
        h, A rms.
    """
    if bandwidth == float("inf"):
        return torch.ones(len(coordinates))
    total = variances.double() + bandwidth**2
    logarithm = -0.5 * ((coordinates - centre).double().square() / total + total.log()).sum(1)
    return (logarithm - logarithm.max()).exp().float()


def weights_at(
    coordinates: torch.Tensor, variances: torch.Tensor, centre: torch.Tensor, bandwidths: Sequence[float]
) -> torch.Tensor:
    """Return the (bandwidths, n) `kernel_weights` at each bandwidth."""
    return torch.stack([kernel_weights(coordinates, variances, centre, bandwidth) for bandwidth in bandwidths])


def effective_number(weights: torch.Tensor) -> float:
    """Return the number of particles of equal weight that have as little noise as particles of (n,) weights."""
    return float(weights.sum().square() / weights.square().sum())


def bandwidths_at(
    coordinates: torch.Tensor,
    variances: torch.Tensor,
    centre: torch.Tensor,
    narrowest: float = MIN_PARTICLES,
    ratio: float = _RATIO,
) -> list[float]:
    """Return the bandwidths (A rms) to choose from, narrow to wide; the last is infinite.

    Parameters
    ----------
    coordinates, variances, centre
        as for `kernel_weights`.
    narrowest, ratio
        effective number of particles of the narrowest kernel, and how many times as many each next one has.
    """

    def number(bandwidth: float) -> float:
        return effective_number(kernel_weights(coordinates, variances, centre, bandwidth))

    bandwidths: list[float] = []
    wanted = narrowest
    while wanted < _MAX_FRACTION * len(coordinates):
        low, high = _NARROWEST, 10 * float((coordinates - centre).norm(dim=1).max()) + 1
        for _ in range(30):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if number(middle) < wanted else (low, middle)
        # Uncertain coordinates alone may spread the weights farther than wanted.
        if not bandwidths or high > 1.05 * bandwidths[-1]:
            bandwidths.append(high)
        wanted *= ratio
    return [*bandwidths, float("inf")]


def nearness_groups(
    coordinates: torch.Tensor,
    variances: torch.Tensor,
    centre: torch.Tensor,
    first: int = _FIRST,
    growth: float = _GROWTH,
) -> list[torch.Tensor]:
    """Return groups of particles that have almost the same weights at all bandwidths, the nearest first.

    Parameters
    ----------
    coordinates, variances, centre
        as for `kernel_weights`.
    first, growth
        smallest number of particles of a group, and its number as a fraction of the particles nearer to the centre.
    """
    order = ((coordinates - centre).square() + variances).sum(1).argsort()
    bounds, size = [0], float(first)
    while bounds[-1] + size < len(order):
        bounds.append(int(bounds[-1] + size))
        size = max(first, growth * bounds[-1])
    return list(order.tensor_split(bounds[1:]))


def weighted_maps(sums: Sequence[BackprojectionSums], shares: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (box, box, box) maps without and with deformation of groups of particles with these weights."""
    kernel, rigid, deformed = (torch.zeros_like(sums[0].rigid) for _ in range(3))
    for share, summed in zip(shares, sums, strict=True):
        assert summed.kernel is not None
        kernel += share * summed.kernel
        rigid += share * summed.rigid
        deformed += share * summed.numerator
    denominator = fourier_denominator(kernel)
    return solve(rigid, denominator, MIN_REGULARISATION), solve(deformed, denominator, MIN_REGULARISATION)


def maps_by_bandwidth(sums: Sequence[BackprojectionSums], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the (bandwidths, trusts, box, box, box) maps of groups of particles.

    Parameters
    ----------
    sums
        of each group, with its kernel.
    weights
        (bandwidths, g) of the particles of each group.
    """
    volumes = torch.empty(len(weights[0]), len(TRUSTS), *sums[0].rigid.shape)
    for bandwidth, maps in enumerate(volumes):
        rigid, deformed = weighted_maps(sums, [float(of_group[bandwidth].mean()) for of_group in weights])
        maps[0], maps[1] = rigid, deformed
    return volumes


def mobile_points(modes: Modes, rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return (m,) bool: which of (m, 3) points (A) are the moving part, see `moving_points`."""
    shifts = torch.tensordot(modes.coordinates[rows].var(0), modes.field.fields(points).square().sum(-1), 1).sqrt()
    return moving_points(shifts)


def moving_part(points: torch.Tensor, mobile: torch.Tensor, box: int, pixel_size: float) -> torch.Tensor:
    """Return a (box, box, box) soft mask of the moving part of a molecule, 0 to 1.

    Parameters
    ----------
    points
        (m, 3) of the molecule in the frame of the mask, A.
    mobile
        (m,) bool, from `mobile_points`.
    box, pixel_size
        of the mask, voxels and A.
    """
    return deforming_region(points[mobile], box, pixel_size, _MOVING_REACH)


@dataclass
class Candidates:
    """Half-maps of one state by bandwidth and trust.

    Parameters
    ----------
    volumes
        (bandwidths, trusts, box, box, box).
    numbers
        (bandwidths,) effective numbers of particles.
    region, moving
        (box, box, box) where the molecule is in this state, and its moving part, 0 to 1.
    """

    volumes: torch.Tensor
    numbers: list[float]
    region: torch.Tensor
    moving: torch.Tensor


class LocalHalf:
    """The particles of a half-set, from which half-maps of states are made.

    Parameters
    ----------
    data
        images, transfer functions and poses.
    rows
        (p,) particles of the half-set.
    modes
        their deformations.
    coordinates, variances
        (n, K) of all particles, A rms and A^2.
    points
        (m, 3) of the molecule, consensus frame, A.
    region_radius
        voxels this near to the molecule (A) move.
    """

    def __init__(
        self,
        data: ParticleData,
        rows: torch.Tensor,
        modes: Modes,
        coordinates: torch.Tensor,
        variances: torch.Tensor,
        points: torch.Tensor,
        region_radius: float,
    ):
        self.data, self.rows, self.modes, self.points = data, rows, modes, points
        self.coordinates, self.variances = coordinates[rows], variances[rows]
        self.region_radius = region_radius
        self._field = sampled_field(modes.field, points, data.box * data.pixel_size)
        self._mobile = mobile_points(modes, rows, points)
        design = torch.cat([torch.ones(len(rows), 1), self.coordinates], 1).double()
        self._slopes = torch.linalg.lstsq(design, modes.coordinates[rows].double()).solution[1:].float()

    def state(self, centre: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the (M,) modal coordinates of a state from those of particles around it, of (p,) weights."""
        near = self.modes.coordinates[self.rows] - (self.coordinates - centre) @ self._slopes
        return (near * (weights / weights.sum())[:, None]).sum(0)

    def candidates(self, centre: torch.Tensor, bandwidths: Sequence[float], batch_size: int = 32) -> Candidates:
        """Return the half-maps of the state at (K,) `centre` (A rms)."""
        weights = weights_at(self.coordinates, self.variances, centre, bandwidths)
        state = self.state(centre, weights[0])
        field = StateField(self._field, state, self.points)
        box = self.data.box
        region = deforming_region(field.positions, box, self.data.pixel_size, self.region_radius)
        groups = nearness_groups(self.coordinates, self.variances, centre)
        sums = accumulate_groups(
            self.data,
            [images_of(self.data.series, self.rows[group]) for group in groups],
            field=field,
            latents=per_image(self.data.series, self.modes.coordinates - state),
            region=region,
            batch_size=batch_size,
        )
        volumes = maps_by_bandwidth(sums, [weights[:, group] for group in groups])
        moving = moving_part(field.positions, self._mobile, box, self.data.pixel_size)
        return Candidates(volumes, [effective_number(row) for row in weights], region, moving)


def smooth_choice(scores: torch.Tensor, pixel_size: float) -> torch.Tensor:
    """Return where each of (k, box, box, box) scores is the best, 0 to 1, with a smooth border; pixels in A."""
    chosen, smooth = scores.argmax(0), window(scores.shape[-1], pixel_size, _SMOOTH)
    return torch.stack([filter_volume((chosen == k).float(), smooth).clamp(min=0) for k in range(len(scores))])


def blend_weights(first: Candidates, second: Candidates, pixel_size: float) -> torch.Tensor:
    """Return (bandwidths, trusts, box, box, box) weights of the candidates, which add up to 1 at every voxel.

    Around each voxel of the region, the candidate of highest correlation with the other half-set's narrowest map is
    chosen, and both half-sets have the same choice. Beyond the region, all particles are used as they are.

    Parameters
    ----------
    first, second
        candidates of both half-sets for the same bandwidths.
    pixel_size
        A.
    """
    shape = first.volumes.shape
    box = shape[-1]
    around = window(box, pixel_size, WINDOW)
    score = torch.zeros(len(TRUSTS) * shape[0], box, box, box)
    for band in frequency_bands(box, pixel_size):
        for own, other in ((first, second), (second, first)):
            # The narrowest kernel, half with and half without what the field moves, so that it decides for neither.
            reference = filter_volume(other.volumes[0].mean(0), band)
            power = filter_volume(reference.square(), around).clamp(min=0)
            for to, volume in zip(score, own.volumes.flatten(0, 1), strict=True):
                part = filter_volume(volume, band)
                norm = (filter_volume(part.square(), around).clamp(min=0) * power).sqrt()
                to += filter_volume(part * reference, around) / norm.clamp(min=1e-6 * float(norm.max()))
    region = torch.maximum(first.region, second.region)
    weights = smooth_choice(score, pixel_size)
    weights *= region / weights.sum(0)
    weights[-1] += 1 - region
    return weights.view(shape)
