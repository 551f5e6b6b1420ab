"""How the Gaussians are initialised: threshold the consensus map, fill it, fit the model to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from dynamight_core.imaging.fourier import lowpass_volume, shells
from dynamight_core.imaging.geometry import squared_radius, to_points
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.graph import NeighbourGraph, edge_lengths, repulsion
from dynamight_core.parallel import check_stopped

# Low-pass filter of the map that is thresholded, A.
THRESHOLD_RESOLUTION = 15.0
# The threshold: multiples of the standard deviation of the noise, and at least this fraction of the strongest density.
THRESHOLD_DEVIATIONS, THRESHOLD_FRACTION = 4, 0.08
# Width of the Gaussians before they are fitted, as a multiple of their mean spacing.
START_WIDTH = 0.6


@dataclass(frozen=True)
class MolecularRegion:
    """The part of a map that holds the molecule.

    Parameters
    ----------
    mask
        (box, box, box) bool.
    threshold
        of the low-passed map, map units.
    warnings
        sentences about a map that looks unusable.
    """

    mask: NDArray[np.bool_]
    threshold: float
    warnings: tuple[str, ...]


def find_molecule(
    volume: torch.Tensor,
    pixel_size: float,
    threshold: float | None = None,
    resolution: float = THRESHOLD_RESOLUTION,
    percentile: float | None = None,
) -> MolecularRegion:
    """Find the molecule in a map.

    The map is low-pass filtered at `THRESHOLD_RESOLUTION` (15 A), where even weak flexible density exceeds the noise.
    The noise is measured outside 90 % of the inscribed sphere, robustly. The molecule is the density above
    `THRESHOLD_DEVIATIONS` (4) standard deviations of the noise and `THRESHOLD_FRACTION` (8 %) of the strongest density,
    without small pieces.

    Parameters
    ----------
    volume
        (box, box, box) consensus map, any grey scale, white molecule.
    pixel_size
        A.
    threshold
        of the low-passed map, map units; found automatically if None.
    resolution
        of the low-pass filter, A; 0 leaves the map as it is.
    percentile
        of the voxels, where the automatic threshold is; it follows from noise and strongest density if None.
    """
    box = volume.shape[-1]
    smooth = (lowpass_volume(volume, pixel_size, max(resolution, 3 * pixel_size)) if resolution else volume).numpy()
    radius = np.sqrt(squared_radius(box).double().numpy())
    solvent = smooth[radius > 0.45 * box]
    noise = 1.4826 * float(np.median(np.abs(solvent - np.median(solvent))))
    strongest = float(np.quantile(smooth[radius <= 0.45 * box], 0.999))
    warnings = []
    if strongest < 8 * noise:
        warnings.append(
            f"the strongest density is only {strongest / noise:.1f} times the noise of the solvent"
            f"{f' at {resolution:g} A' if resolution else ''}: "
            "check that this is the consensus map of these particles, or give a sharper one"
        )
    if threshold is None and percentile is not None:
        threshold = float(np.quantile(smooth, percentile / 100))
    if threshold is None:
        threshold = max(THRESHOLD_DEVIATIONS * noise, THRESHOLD_FRACTION * strongest)
    labels, n_pieces = ndimage.label((smooth > threshold) & (radius <= 0.5 * box - 1))
    if n_pieces == 0:
        raise ValueError(f"no density above the threshold {threshold:.3g}")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= max(0.02 * sizes.max(), (12.0 / pixel_size) ** 3)
    keep[sizes.argmax()] = True
    mask = keep[labels]
    fraction = mask.sum() / (radius <= 0.5 * box).sum()
    if fraction > 0.5:
        warnings.append(
            f"{100 * fraction:.0f} % of the particle's sphere lies above the threshold {threshold:.3g}: "
            "the map looks unmasked and noisy, or the threshold is too low"
        )
    return MolecularRegion(mask, float(threshold), tuple(warnings))


def fill_region(
    mask: NDArray[np.bool_], n: int, pixel_size: float, generator: torch.Generator, density: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (n, 3) random positions (A) inside a [z, y, x] mask.

    Evenly spread, voxels drawn without replacement as long as there are enough; or in proportion to the positive
    part of a (box, box, box) `density`, by systematic sampling. Then jittered within the voxel.
    """
    voxels = torch.from_numpy(np.argwhere(mask)[:, ::-1].copy()).float()
    if density is None:
        rounds = -(-n // len(voxels))
        order = torch.cat([torch.randperm(len(voxels), generator=generator) for _ in range(rounds)])[:n]
    else:
        upper = density[torch.from_numpy(mask)].clamp(min=0).double().cumsum(0)
        steps = (torch.arange(n) + torch.rand(n, generator=generator)) * (upper[-1] / n)
        order = torch.searchsorted(upper, steps).clamp(max=len(voxels) - 1)
    jitter = torch.rand(n, 3, generator=generator) - 0.5
    return to_points(voxels[order] + jitter, mask.shape[0], pixel_size)


def fit_to_map(
    positions: torch.Tensor,
    volume: torch.Tensor,
    pixel_size: float,
    n_classes: int = 1,
    steps: int = 80,
    generator: torch.Generator | None = None,
) -> GaussianModel:
    """Fit Gaussians to a map by gradient descent on amplitude, width and positions.

    The width starts at `START_WIDTH` (0.6) times the mean spacing of the Gaussians, the amplitude where the norms of
    model and map are equal (paper, Methods).

    Parameters
    ----------
    positions
        (n, 3) starting positions, A.
    volume
        (box, box, box) map, already filtered as wanted and zero in the solvent.
    """
    volume = _centre_of(volume)
    graph = NeighbourGraph.build(positions)
    model = GaussianModel(positions, START_WIDTH * graph.mean_spacing, 1.0, n_classes, generator).to(volume.device)
    groups = [
        {"params": [model.positions], "lr": 0.05 * graph.mean_spacing},
        {"params": [model.log_widths, model.log_amplitudes], "lr": 0.02},
        {"params": [model.composition], "lr": 0.02 if n_classes > 1 else 0.0},
    ]
    # Without it several Gaussians settle on one spot.
    return _descend(
        model,
        volume,
        pixel_size,
        steps,
        groups,
        lambda: 0.05 * repulsion(graph, edge_lengths(graph.edges, model.positions[None])) / graph.mean_spacing**2,
    )


def fit_scale(model: GaussianModel, volume: torch.Tensor, pixel_size: float, steps: int = 80) -> GaussianModel:
    """Fit amplitude and width alone of a model to a map, in place, and return it; see `fit_to_map`."""
    groups = [{"params": [model.log_widths, model.log_amplitudes], "lr": 0.02}]
    return _descend(model, _centre_of(volume, model.positions, pixel_size), pixel_size, steps, groups)


def _descend(
    model: GaussianModel,
    volume: torch.Tensor,
    pixel_size: float,
    steps: int,
    groups: list[dict[str, Any]],
    penalty: Callable[[], torch.Tensor] | None = None,
) -> GaussianModel:
    """Set the model's norm to that of a map, then fit the parameters in `groups` to it by Adam; return the model."""
    box = volume.shape[-1]
    # Only the transform inside the Nyquist sphere can be matched.
    inside = (shells(box, 3, volume.device) < box // 2).float()
    target = torch.fft.rfftn(volume) * inside
    with torch.no_grad():
        ratio = volume.norm() / model.render(box, pixel_size).norm()
        model.log_amplitudes.add_(torch.log(ratio))
    optimizer = torch.optim.Adam(groups)
    scale = target.abs().square().sum()
    for _ in range(steps):
        check_stopped()
        optimizer.zero_grad()
        residual = torch.view_as_real(model.transform(box, pixel_size) * inside - target)
        loss = residual.square().sum() / scale
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        optimizer.step()
    return model


def _centre_of(volume: torch.Tensor, positions: torch.Tensor | None = None, pixel_size: float = 1.0) -> torch.Tensor:
    """Return the smallest even central cube of a (box, box, box) map that holds what is not zero, and a margin.

    And (n, 3) `positions` (A), if they are given.
    """
    box = volume.shape[-1]
    farthest = int((volume.nonzero() - box // 2).abs().max())
    if positions is not None:
        farthest = max(farthest, int(positions.detach().abs().max() / pixel_size) + 1)
    # The margin lets Gaussians move and keeps opposite faces apart.
    reach = min(farthest + 4, box // 2)
    inside = slice(box // 2 - reach, box // 2 + reach)
    return volume[inside, inside, inside]
