"""Which density the map has around each voxel: that of particles near its conformation, corrected for motion, or rigid.

A field can be wrong where a part is missing in some particles, or where it turns too far. There, correction blurs what
a map without motion shows. Densities therefore compete in regions: all particles rigid, all particles corrected, and
the particles near the conformation of the map (kernels of several widths), rigid and corrected. A density from one
half-set is correlated with a reference from the other, which has independent noise: the map of the narrowest kernel
without correction, in which hardly anything moves and no field is used. The rigid density stays unless another one
correlates better by more than twice the error of that difference.

If coordinates are so uncertain that every kernel has most of the particles, the reference is blurred as the rigid
density is, and a correlation would favour that. All particles are then compared by their overlap with the reference,
in units of the rigid density's power: density at its right place adds to the overlap with a blurred reference too.

The error: two densities a and b, normalised in a window, differ by 2 (1 - r_ab), and the noise of a reference is 1 - r
of its power if it correlates by r with a second one. Its correlations with a and b therefore differ by chance with the
variance 2 (1 - r_ab) (1 - r) / n, where n is the number of independent values in the window and the band. (For an
overlap, the difference is the power of a - b over the rigid density's.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from dynamight_core.imaging.backprojection import BackprojectionSums, filter_volume
from dynamight_core.imaging.fourier import (
    fourier_to_volume,
    frequencies_3d,
    resample_volume,
    resize_fourier_3d,
    volume_to_fourier,
)
from dynamight_core.judging.errors import known_coordinates
from dynamight_core.reconstruction.deformation import conformation_coordinates
from dynamight_core.reconstruction.local import (
    MIN_PARTICLES,
    TRUSTS,
    WINDOW,
    bandwidths_at,
    effective_number,
    maps_by_bandwidth,
    nearness_groups,
    smooth_choice,
    weights_at,
)
from dynamight_core.reconstruction.local_filter import frequency_bands, window
from dynamight_core.run import Run

# Standard errors by which a density has to be better than the rigid one.
ERRORS = 2.0
# The narrowest kernel has this fraction of the particles, and each next one as many times more.
_FRACTION, _RATIO = 0.025, 2.5
# The nearest particles whose weights are almost the same are this fraction of the narrowest kernel's; further groups
# have as many particles as all that are nearer.
_NEAREST, _GROWTH = 0.25, 1.0
# Results vary slowly: they are computed on a grid of this spacing, A. A band ends where it falls below this.
_SPACING, _BAND_END = 8.0, 1e-3


@dataclass(frozen=True)
class Neighbourhood:
    """The particles around the conformation of a map.

    Parameters
    ----------
    coordinates, variances
        (n, K) of all particles along the motions that vary by more than their error, A rms and A^2.
    centre
        (K,) coordinates of the map.
    bandwidths
        of the kernels, A rms, narrow to wide; the last is infinite.
    """

    coordinates: torch.Tensor
    variances: torch.Tensor
    centre: torch.Tensor
    bandwidths: list[float]

    @classmethod
    def of(cls, run: Run, conformation: str) -> "Neighbourhood":
        """Return the neighbourhood of a conformation of the option `conformation` that is not "auto"."""
        coordinates, variances, known = known_coordinates(run)
        coordinates, variances = coordinates[:, known], variances[:, known]
        centre = conformation_coordinates(run, conformation).float()[known]
        if not known.any():
            return cls(coordinates, variances, centre, [float("inf")])
        narrowest = max(MIN_PARTICLES, _FRACTION * len(coordinates))
        return cls(coordinates, variances, centre, bandwidths_at(coordinates, variances, centre, narrowest, _RATIO))

    def weights(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (bandwidths, p) weights of (p,) particles, each relative to the largest."""
        return weights_at(self.coordinates[rows], self.variances[rows], self.centre, self.bandwidths)

    @cached_property
    def all_weights(self) -> torch.Tensor:
        """(bandwidths, n) weights of all particles, of both half-sets, each relative to the largest."""
        return weights_at(self.coordinates, self.variances, self.centre, self.bandwidths)

    def groups(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return groups of (p,) particles that have almost the same weights at every bandwidth."""
        narrowest = effective_number(self.weights(rows)[0])
        first = max(1, int(_NEAREST * narrowest))
        groups = nearness_groups(self.coordinates[rows], self.variances[rows], self.centre, first, _GROWTH)
        return [rows[group] for group in groups]

    def maps(self, groups: Sequence[torch.Tensor], parts: Sequence[BackprojectionSums]) -> torch.Tensor:
        """Return the (bandwidths, trusts, box, box, box) maps of groups of particles with these sums."""
        weights = self.weights(torch.cat(list(groups)))
        return maps_by_bandwidth(parts, weights.split([len(group) for group in groups], dim=1))


@dataclass(frozen=True)
class Density:
    """One of the densities that compete.

    Parameters
    ----------
    bandwidth
        index of its kernel; the last one has all particles.
    corrected
        whether particles are moved to the conformation of the map.
    near
        whether it is of the particles near the conformation alone.
    """

    bandwidth: int
    corrected: bool
    near: bool


def densities(n_bandwidths: int, near: bool = True) -> list[Density]:
    """Return the densities that compete, the rigid one first and that of all particles corrected second."""
    last = n_bandwidths - 1
    found = [Density(last, False, False), Density(last, True, False)]
    if near:
        found += [Density(k, bool(trust), True) for k in range(last) for trust in TRUSTS]
    return found


@dataclass(frozen=True)
class Choice:
    """The densities that the map has around each voxel.

    Parameters
    ----------
    neighbourhood
        of the conformation of the map.
    competing
        the densities.
    weights
        (densities, box, box, box) in the particles' box, adding up to 1 at every voxel.
    """

    neighbourhood: Neighbourhood
    competing: list[Density]
    weights: torch.Tensor

    @property
    def motion_used(self) -> torch.Tensor:
        """Weight of all densities but the rigid one, (box, box, box)."""
        return (1 - self.weights[0]).clamp(0, 1)

    def fractions(self, mask: torch.Tensor) -> dict[str, float]:
        """Return the fractions of a (box, box, box) mask that have the rigid, the corrected or a near density.

        `particles` is the effective number of particles of both half-sets, a mean on a logarithmic scale.
        """
        total = mask.sum()
        shares = [float((weight * mask).sum() / total) for weight in self.weights]
        numbers = torch.tensor([effective_number(row) for row in self.neighbourhood.all_weights])
        logarithms = numbers.log()[[each.bandwidth for each in self.competing]]
        return {
            "rigid": shares[0],
            "corrected": shares[1],
            "near": sum(shares[2:]),
            "particles": float((torch.tensor(shares) * logarithms).sum().exp()),
        }


@torch.no_grad()
def compete(
    first: torch.Tensor, second: torch.Tensor, competing: Sequence[Density], region: torch.Tensor, pixel_size: float
) -> torch.Tensor:
    """Return the (densities, box, box, box) weights of the densities, which add up to 1 at every voxel.

    Both half-maps get the same weights. Beyond the region, the rigid density is used.

    Parameters
    ----------
    first, second
        (bandwidths, trusts, box, box, box) maps of each half-set, from `Neighbourhood.maps`.
    competing
        from `densities`.
    region
        (box, box, box) where the molecule is, 0 to 1.
    pixel_size
        A.
    """
    box = first.shape[-1]
    coarse = _coarse(box, pixel_size)
    scores = torch.stack([torch.zeros((coarse,) * 3), *_scores(first, second, competing, pixel_size)])
    weights = smooth_choice(scores, pixel_size * box / coarse)
    weights = torch.stack([resample_volume(each, box).clamp(min=0) for each in weights])
    weights *= region / weights.sum(0)
    weights[0] += 1 - region
    return weights


def _scores(first: torch.Tensor, second: torch.Tensor, competing: Sequence[Density], pixel_size: float) -> torch.Tensor:
    """Return how much better each density but the rigid one is than that, minus `ERRORS` standard errors, on the grid.

    The difference of correlations, or of overlaps if there is no kernel but the widest, is a mean over both half-sets
    and over frequency.
    """
    box, wide = first.shape[-1], len(first) == 1
    gains = torch.zeros(len(competing) - 1, *(_coarse(box, pixel_size),) * 3)
    variances = torch.zeros_like(gains)
    halves = [
        [volume_to_fourier(half[each.bandwidth, int(each.corrected)]) for each in competing] for half in (first, second)
    ]
    references = [volume_to_fourier(half[0, 0]) for half in (second, first)]
    for band in frequency_bands(box, pixel_size):
        local = LocalCorrelation(band, box, pixel_size)
        # The mean over frequency, as in a mean over shells.
        share = float(band[0, 0, 1:].mean())
        others = [local.part(reference) for reference in references]
        noise = 1 - local(*others).clamp(0, 1)
        for transforms, reference in zip(halves, others, strict=True):
            rigid = local.part(transforms[0])
            least = local(rigid, reference)
            for gain, variance, transform in zip(gains, variances, transforms[1:], strict=True):
                part = local.part(transform)
                if wide:
                    gain += share / 2 * (local(part, reference, rigid) - least)
                    difference = local.power_ratio(part - rigid, rigid)
                else:
                    gain += share / 2 * (local(part, reference) - least)
                    difference = 2 * (1 - local(part, rigid)).clamp(min=0)
                variance += (share / 2) ** 2 * difference * noise / local.independent
    return gains - ERRORS * variances.sqrt()


class LocalCorrelation:
    """Correlation of volumes in a Gaussian window around each voxel and in a band of frequency.

    Parameters
    ----------
    band
        (box, box, box//2+1).
    box, pixel_size
        of the volumes.
    """

    def __init__(self, band: torch.Tensor, box: int, pixel_size: float):
        self._band, extent = band, box * pixel_size
        self._coarse = _coarse(box, pixel_size)
        self._window = window(self._coarse, extent / self._coarse, WINDOW)
        radius = frequencies_3d(box).norm(dim=-1)[band > _BAND_END].max()
        # Products have twice the frequency.
        self._size = min(box, max(self._coarse, 4 * int(radius * box + 1)))
        # Noise of power band^2 correlates by its transform; products of two noises by the square of that.
        correlation = fourier_to_volume(band.square().to(torch.complex64), box)
        around = fourier_to_volume(window(box, pixel_size, 2**0.5 * WINDOW).to(torch.complex64), box)
        ratio = (correlation / correlation.max()).square()
        self.independent = float(around.sum() / (around * ratio).sum())

    def part(self, transform: torch.Tensor) -> torch.Tensor:
        """Return the part in the band of a volume with this transform, on the coarsest grid that holds it."""
        return fourier_to_volume(resize_fourier_3d(transform * self._band, self._size), self._size)

    def __call__(self, one: torch.Tensor, other: torch.Tensor, unit: torch.Tensor | None = None) -> torch.Tensor:
        """Return the correlation of two parts around each point of the grid of the results.

        With a `unit`, it is the overlap: the power of `one` is replaced by that of the unit.
        """
        power = (self._power(one if unit is None else unit) * self._power(other)).sqrt()
        return self._mean(one * other) / _positive(power)

    def power_ratio(self, one: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """Return the power of a part around each point of the grid, over that of another part."""
        return self._power(one) / _positive(self._power(unit))

    def _power(self, part: torch.Tensor) -> torch.Tensor:
        return self._mean(part.square()).clamp(min=0)

    def _mean(self, volume: torch.Tensor) -> torch.Tensor:
        return filter_volume(resample_volume(volume, self._coarse), self._window)


def _positive(power: torch.Tensor) -> torch.Tensor:
    return power.clamp(min=1e-6 * float(power.max()) + 1e-30)


def _coarse(box: int, pixel_size: float) -> int:
    """Return the number of voxels along the grid of the results."""
    return min(box, 2 * math.ceil(box * pixel_size / _SPACING / 2))
