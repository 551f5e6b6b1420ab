"""Masks: circles and spheres, distances from a mask, and the raised-cosine edge that all soft masks have."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from dynamight_core.imaging.geometry import Array, image_radius, squared_radius

# Edge of a circular mask: A, but at least this many pixels.
_EDGE, _MIN_EDGE_PIXELS = 5.0, 3.0


def raised_cosine(fraction: Array) -> Array:
    """Return a soft edge: 1 where `fraction` of the edge's width is 0 or less, 0 where it is 1 or more."""
    angle = np.pi * fraction.clip(0, 1)
    edge: Array = 0.5 + 0.5 * (np.cos(angle) if isinstance(angle, np.ndarray) else angle.cos())
    return edge


def soft_circle(
    box: int, pixel_size: float, diameter: float, width: float | None = None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return a (box, box) mask: 1 inside a circle about the origin, 0 outside its soft edge.

    Parameters
    ----------
    box, pixel_size
        of the image, pixels and A.
    diameter
        of the circle, A.
    width
        of the edge, A; 5 A or 3 pixels, whichever is wider, if None.
    device
        of the mask.
    """
    width = max(_EDGE, _MIN_EDGE_PIXELS * pixel_size) if width is None else width
    return raised_cosine((image_radius(box, device) * pixel_size - diameter / 2) / width)


def sphere(box: int, radius: float | None = None, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return a (box, box, box) bool sphere about the origin.

    Parameters
    ----------
    box
        voxels.
    radius
        voxels; ``box // 2 - 1``, the largest sphere inside the box, if None.
    device
        of the mask.
    """
    return squared_radius(box, device) <= (box // 2 - 1 if radius is None else radius) ** 2


def distance_from(mask: NDArray[np.bool_], pixel_size: float) -> NDArray[np.float64]:
    """Return the distance (A) of each voxel from the nearest one in a mask; 0 inside."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~mask, sampling=pixel_size)
    return distance


def distance_from_voxels(voxels: NDArray[np.int64], box: int, pixel_size: float) -> NDArray[np.float64]:
    """Return the (box, box, box) distance (A) of each voxel from the nearest of (n, 3) voxels z, y, x."""
    mask = np.zeros((box,) * 3, dtype=np.bool_)
    mask[tuple(voxels.T)] = True
    return distance_from(mask, pixel_size)
