"""Points, voxels and pixels: the one place that says where a box has its origin.

The origin of an image or map of `box` pixels is the centre of pixel ``box // 2``. Points are x, y, z in A from there;
arrays are indexed [z, y, x]. See docs/conventions.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

# Either library's arrays: the result is of the kind that was given.
Array = TypeVar("Array", NDArray[np.floating[Any]], torch.Tensor)
Evaluator = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LinearEvaluator:
    """Displacements of fixed points that are linear in a few coefficients: offset + scale * sum_f w_f(z) b_f(x).

    Such displacements need one field for each coefficient, however many particles are added up.

    Parameters
    ----------
    coefficients
        returns w, (b, F), of (b, d) latents.
    basis
        (F, m, 3) b at the points, A.
    offset
        (m, 3) or one number, A, for every latent.
    """

    coefficients: Evaluator
    basis: torch.Tensor
    offset: torch.Tensor | float = 0.0

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (b, m, 3) displacements (A) of (b, d) latents."""
        displacements = (self.coefficients(latents) @ self.basis.flatten(1)).view(len(latents), -1, 3)
        return displacements if isinstance(self.offset, float) else displacements + self.offset


def scaled(evaluate: Evaluator, factor: torch.Tensor) -> Evaluator:
    """Return displacements times factors that broadcast with (b, m, 3)."""
    if isinstance(evaluate, LinearEvaluator):
        return replace(evaluate, basis=evaluate.basis * factor, offset=evaluate.offset * factor)
    return lambda latents: evaluate(latents) * factor


def shifted(evaluate: Evaluator, offset: torch.Tensor) -> Evaluator:
    """Return displacements plus an (m, 3) offset (A)."""
    if isinstance(evaluate, LinearEvaluator):
        return replace(evaluate, offset=evaluate.offset + offset)
    return lambda latents: offset + evaluate(latents)


def mixed(evaluate: Evaluator, latents: torch.Tensor, weights: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
    """Return (K, m, 3) sums over particles of (K, n) weights times their displacements, for (n, d) latents."""
    if isinstance(evaluate, LinearEvaluator):
        fields: torch.Tensor = torch.tensordot(weights @ evaluate.coefficients(latents), evaluate.basis, dims=1)
        return fields + weights.sum(1)[:, None, None] * evaluate.offset
    parts = zip(latents.split(batch_size), weights.split(batch_size, 1), strict=True)
    return sum((torch.tensordot(share, evaluate(part), dims=1) for part, share in parts), torch.zeros(()))


class Field(Protocol):
    """A deformation field: a decoder, a model, an inverse field, or the true one of a simulation."""

    def evaluator(self, points: torch.Tensor, /) -> Evaluator:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""


def pixel_axis(box: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the (box,) float32 coordinates of pixels along an axis, in pixels from the origin."""
    return torch.arange(box, device=device, dtype=torch.float32) - box // 2


def squared_radius(box: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the (box, box, box) float32 squared distance of voxels from the origin, voxels; exact."""
    squares = pixel_axis(box, device).square()
    return squares[:, None, None] + squares[:, None] + squares


def image_radius(box: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the (box, box) float32 distance of pixels from the origin, pixels."""
    coordinates = pixel_axis(box, device)
    return torch.hypot(coordinates[:, None], coordinates[None])


def grid_points(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n^3, 3) x, y, z of a cubic grid with (n,) coordinates on each axis, x running fastest."""
    points: NDArray[np.float64] = np.stack(np.meshgrid(*[coordinates] * 3, indexing="ij")[::-1], -1).reshape(-1, 3)
    return points


def to_points(voxels: Array, box: int, pixel_size: float) -> Array:
    """Return the points (A) of (..., 3) x, y, z in voxels, which may be fractions."""
    return (voxels - box // 2) * pixel_size


def to_voxels(points: Array, box: int, pixel_size: float) -> Array:
    """Return where (..., 3) points x, y, z (A) lie, in fractions of voxels from the centre of the first one."""
    return points / pixel_size + box // 2


def to_grid(points: torch.Tensor, size: int, extent: float) -> torch.Tensor:
    """Return where (..., 3) points (A) lie on a grid of `size` voxels over a box of `extent` (A), as `to_voxels` does.

    For grids coarser than the maps, whose spacing is ``extent / size``.
    """
    return points * (size / extent) + size // 2


def nearest_voxels(points: NDArray[np.floating[Any]], box: int, pixel_size: float) -> NDArray[np.int64]:
    """Return the (n, 3) indices z, y, x of the voxels nearest to (n, 3) points x, y, z (A); some may lie outside."""
    voxels: NDArray[np.int64] = np.rint(points / pixel_size).astype(np.int64)[:, ::-1] + box // 2
    return voxels


def inside_box(voxels: NDArray[np.int64], box: int) -> NDArray[np.bool_]:
    """Return (n,) whether (n, 3) voxels lie in the box."""
    inside: NDArray[np.bool_] = ((voxels >= 0) & (voxels < box)).all(1)
    return inside


def mask_points(mask: NDArray[np.bool_], pixel_size: float) -> NDArray[np.float64]:
    """Return the (n, 3) points x, y, z (A) of the voxels in a (box, box, box) mask."""
    return to_points(np.argwhere(mask)[:, ::-1].astype(np.float64), mask.shape[0], pixel_size)


def interpolate(volumes: torch.Tensor, points: torch.Tensor, extent: float, padding: str = "border") -> torch.Tensor:
    """Read volumes at points by trilinear interpolation.

    Parameters
    ----------
    volumes
        (c, m, m, m) over one box.
    points
        (n, 3) x, y, z in A.
    extent
        of the box, A.
    padding
        what is read outside: "border", the nearest voxel, or "zeros".

    Returns
    -------
    torch.Tensor
        (n, c). Differentiable with respect to volumes and points.
    """
    size = volumes.shape[-1]
    # grid_sample's -1 and 1 are the centres of the first and last voxel.
    grid = (to_grid(points, size, extent) * (2 / (size - 1)) - 1).reshape(1, 1, 1, -1, 3)
    return F.grid_sample(volumes[None], grid, align_corners=True, padding_mode=padding)[0, :, 0, 0].T
