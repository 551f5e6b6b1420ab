"""Whether an atomic model is fitted to a map, and a local rigid-body fit that does it.

With a model of Gaussians of one width, M, its correlation with a map V is a sum over the Gaussians of V filtered by
one of them, read at their centres: a rigid motion changes no norm. So one filtered map gives the correlation of any
position and orientation, and its gradient, for the price of reading it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dynamight_core.errors import InputError
from dynamight_core.imaging.correlation import fourier_shell_correlation, resolution_at
from dynamight_core.imaging.fourier import lowpass_volume, resample_volume
from dynamight_core.imaging.geometry import interpolate, pixel_axis
from dynamight_core.imaging.poses import rotvec_to_rotmat
from dynamight_core.model.gaussians import GaussianModel

# Resolutions of the fit, A, one after the other; correlations are at the last.
_COARSE, _FINE = 24.0, 12.0
# Width of a Gaussian that stands for atoms at a resolution, as a fraction of it.
_WIDTH = 0.225
# Starts of a fit, within this rotation (degrees) and this shift (A) of where the model is, and steps at each
# resolution; starts of a mirror image, of which there are several.
_STARTS, _ROTATION, _REACH, _STEPS, _MIRROR_STARTS = 32, 40.0, 25.0, 60, 8
# Gaussians that a fit uses at each resolution: more do not place a molecule better.
_POINTS = (1000, 4000)
# A model that fits better elsewhere by more than this in correlation, and farther away than this, A rms, is not fitted.
_GAIN, _MISPLACED = 0.02, 5.0
# Below the first correlation it does not fit at all. A mirror image that fits as well as the second, and better than
# the model by the third, means the wrong hand.
_MIN_CORRELATION, _MIRROR_FITS, _MIRROR_GAIN = 0.6, 0.8, 0.03


@dataclass(frozen=True)
class Alignment:
    """How an atomic model lies in a map.

    Parameters
    ----------
    correlation
        of model and map where the model is, both at `resolution`.
    fitted
        the same after the fit.
    mirrored
        the same of the model's mirror image after a fit of its own.
    resolution
        at which these were taken, A.
    fsc_resolution
        where the FSC of model and map falls below 0.5, A; where the model is.
    centre_offset
        distance of the model's centre of mass from that of the molecule in the map, A.
    rotation, shift
        (3, 3) and (3,) A: the fit takes a point x (A, origin at the centre of the box) to R x + t.
    moved
        by how much it moves the Gaussians, A rms.
    """

    correlation: float
    fitted: float
    mirrored: float
    resolution: float
    fsc_resolution: float
    centre_offset: float
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    moved: float

    @property
    def angle(self) -> float:
        """Rotation of the model by the fit, degrees."""
        return float(np.rad2deg(Rotation.from_matrix(self.rotation).magnitude()))

    def describe(self) -> str:
        """Return a sentence on where the model is."""
        return (
            f"the atomic model correlates with the map to {self.correlation:.2f} at {self.resolution:.0f} A (its "
            f"mirror image, fitted, to {self.mirrored:.2f}), their FSC falls below 0.5 at {self.fsc_resolution:.1f} A, "
            f"and their centres are {self.centre_offset:.1f} A apart"
        )

    def refuse_misfit(self, model: str, consensus: str) -> None:
        """Raise a sentence where the model is not fitted, before a fit was asked for.

        Raises
        ------
        InputError
            if the model fits better elsewhere, fits nowhere near, or is of the other hand.
        """
        self.refuse_fit(model, consensus)
        if self.moved > _MISPLACED and self.fitted > self.correlation + _GAIN:
            raise InputError(
                f"the atomic model {model} is not fitted to {consensus}: it correlates to {self.correlation:.2f} where "
                f"it is and to {self.fitted:.2f} rotated by {self.angle:.0f} degrees with its Gaussians moved by "
                f"{self.moved:.1f} A rms; fit it, or give --fit to have it done, or --origin if its coordinates count "
                "from elsewhere"
            )

    def refuse_fit(self, model: str, consensus: str) -> None:
        """Raise a sentence where the model does not fit even after the fit.

        Raises
        ------
        InputError
            if the model fits nowhere near, or is of the other hand.
        """
        if self.mirrored > max(_MIRROR_FITS, self.fitted + _MIRROR_GAIN):
            raise InputError(
                f"the map {consensus} has the other hand than the atomic model {model}: the model's mirror image fits "
                f"to a correlation of {self.mirrored:.2f}, the model to {self.fitted:.2f}; flip the map, and take the "
                "particles' poses from a refinement with the right hand"
            )
        if self.fitted < _MIN_CORRELATION:
            raise InputError(
                f"the atomic model {model} does not fit {consensus}: no place near where it is gives a correlation "
                f"above {self.fitted:.2f} at {self.resolution:.0f} A, and their centres are {self.centre_offset:.0f} A "
                "apart; fit it to the map, and check that it is of this molecule"
            )


def align(
    positions: NDArray[np.float64],
    amplitudes: NDArray[np.float64],
    volume: torch.Tensor,
    mask: NDArray[np.bool_],
    pixel_size: float,
    seed: int,
) -> Alignment:
    """Compare a model with a map where it is, after a local rigid-body fit, and as its mirror image.

    Parameters
    ----------
    positions, amplitudes
        (n, 3) A, origin at the centre of the box, and (n,) weights of the model's Gaussians.
    volume
        (box, box, box) consensus map.
    mask
        (box, box, box) bool, where the molecule is.
    pixel_size
        A.
    seed
        of the fit's starts.
    """
    inside = lowpass_volume(torch.from_numpy(mask).float(), pixel_size, max(20.0, 3 * pixel_size)).clamp(0, 1)
    density = volume * inside
    points = torch.from_numpy(np.asarray(positions, dtype=np.float32))
    weights = torch.from_numpy(np.asarray(amplitudes, dtype=np.float32))
    centre = (weights @ points) / weights.sum()
    maps = [_FilteredMap(density, pixel_size, resolution) for resolution in (_COARSE, _FINE)]
    norm = [field.norm_of(points - centre, weights) for field in maps]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=generator)
    samples = [order[:number] for number in _POINTS]

    def fit(start_points: torch.Tensor, starts: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        middle = weights @ start_points / weights.sum()
        return _fit(start_points - middle, weights, samples, middle, maps, norm, starts, generator)

    here = maps[1].correlation(points[None], weights, norm[1])[0]
    rotation, shift, fitted = fit(points, _STARTS)
    if fitted < here:
        rotation, shift, fitted = torch.eye(3), torch.zeros(3), float(here)
    mirrored = max(fit(mirror, _MIRROR_STARTS)[2] for mirror in _mirror_images(points, centre))
    moved = (points - centre) @ rotation.T + centre + shift
    middle = _centre_of_mass(density, pixel_size)
    return Alignment(
        float(here),
        fitted,
        mirrored,
        maps[1].resolution,
        _fsc_resolution(points, weights, density, pixel_size),
        float((centre - middle).norm()),
        rotation.double().numpy(),
        (centre + shift - rotation @ centre).double().numpy(),
        float((moved - points).square().sum(1).mean().sqrt()),
    )


class _FilteredMap:
    """A map filtered by the model's Gaussian at a resolution, to be read where the Gaussians are."""

    def __init__(self, density: torch.Tensor, pixel_size: float, resolution: float):
        extent = density.shape[-1] * pixel_size
        self.resolution = resolution = max(resolution, 3 * pixel_size)
        # A third of the resolution holds all that is left, and is smooth enough to be read linearly.
        self.box = min(density.shape[-1], 2 * round(extent / max(pixel_size, resolution / 4) / 2))
        self.pixel_size = extent / self.box
        self.width = _WIDTH * resolution
        smooth = lowpass_volume(resample_volume(density, self.box), self.pixel_size, resolution)
        self.norm = smooth.norm()
        gaussian = GaussianModel(torch.zeros(1, 3), self.width, 1.0)
        with torch.no_grad():
            kernel = gaussian.transform(self.box, self.pixel_size)
            self.field: torch.Tensor = torch.fft.irfftn(torch.fft.rfftn(smooth) * kernel.abs(), s=smooth.shape)

    def norm_of(self, points: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the norm of the map of a model that lies inside the box."""
        norm: torch.Tensor = _rendered(points, weights, self.width, self.box, self.pixel_size).norm()
        return norm

    def correlation(self, points: torch.Tensor, weights: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Return the (b,) correlations of (b, n, 3) points (A) of (n,) weights, whose map has this norm."""
        values = interpolate(self.field[None], points.reshape(-1, 3), self.box * self.pixel_size, "zeros")
        correlations: torch.Tensor = (values.reshape(points.shape[:2]) @ weights) / (norm * self.norm)
        return correlations


@torch.no_grad()
def _rendered(points: torch.Tensor, weights: torch.Tensor, width: float, box: int, pixel_size: float) -> torch.Tensor:
    """Return the (box, box, box) map of Gaussians of one width (A) at (n, 3) points (A) with (n,) weights."""
    model = GaussianModel(points, width, 1.0)
    model.relative_amplitudes.copy_(weights)
    return model.render(box, pixel_size)


def _fit(
    arms: torch.Tensor,
    weights: torch.Tensor,
    samples: Sequence[torch.Tensor],
    centre: torch.Tensor,
    maps: Sequence[_FilteredMap],
    norms: Sequence[torch.Tensor],
    starts: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the (3, 3) rotation, (3,) shift (A) and correlation of the best fit of (n, 3) arms about a centre.

    By gradient ascent from many starts at a low resolution, then from the best quarter of them at the final one.
    """
    rotations, shifts = (
        torch.rand(starts, 1, generator=generator) * reach * F.normalize(torch.randn(starts, 3, generator=generator))
        for reach in (np.deg2rad(_ROTATION), _REACH)
    )
    rotations[0], shifts[0] = 0, 0
    for field, norm, sample in zip(maps, norms, samples, strict=True):
        scale = weights.sum() / weights[sample].sum()
        rotations, shifts = rotations.clone().requires_grad_(), shifts.clone().requires_grad_()
        optimizer = torch.optim.Adam([{"params": [rotations], "lr": 0.03}, {"params": [shifts], "lr": 1.0}])
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS, eta_min=0.0)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            placed = arms[sample] @ rotvec_to_rotmat(rotations).transpose(1, 2) + (centre + shifts)[:, None]
            loss = -field.correlation(placed, weights[sample] * scale, norm)
            loss.sum().backward()
            optimizer.step()
            decay.step()
        order = loss.detach().argsort()[: max(1, len(loss) // 4)]
        rotations, shifts = rotations.detach()[order], shifts.detach()[order]
    rotation, shift = rotvec_to_rotmat(rotations[0]), shifts[0]
    placed = arms @ rotation.T + centre + shift
    return rotation, shift, float(maps[-1].correlation(placed[None], weights, norms[-1])[0])


def _mirror_images(points: torch.Tensor, centre: torch.Tensor) -> list[torch.Tensor]:
    """Return mirror images that may fit the map as they are.

    Mirrored at the planes of their principal axes, which keep the shape, and at the box's xy plane, as maps are.
    """
    arms = points - centre
    axes = torch.linalg.svd(arms, full_matrices=False)[2]
    planes = [arms - 2 * (arms @ axis)[:, None] * axis + centre for axis in axes]
    return [*planes, points * torch.tensor([1.0, 1.0, -1.0])]


def _centre_of_mass(density: torch.Tensor, pixel_size: float) -> torch.Tensor:
    """Return the (3,) centre (A) of the positive part of a map."""
    positive = density.clamp(min=0)
    coordinates = pixel_axis(len(density)) * pixel_size
    along = [positive.sum(others) @ coordinates for others in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(along) / positive.sum()


def _fsc_resolution(points: torch.Tensor, weights: torch.Tensor, density: torch.Tensor, pixel_size: float) -> float:
    """Return where the FSC of the model and the masked map falls below 0.5, A."""
    box = len(density)
    rendered = _rendered(points, weights, max(1.0, 0.5 * pixel_size), box, pixel_size)
    return resolution_at(fourier_shell_correlation(rendered, density), box, pixel_size, 0.5)
