"""One grid for images of several pixel sizes and boxes: that of the map.

Images of merged data sets differ in pixel size and box. They are interpolated in Fourier space to the pixels of the
map, about the same centre, so that their magnification stays. Frequencies that an image does not have are zero, and so
is its transfer function there (`CtfParameters.band`).
"""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.files import read_map

# Relative difference of pixel sizes due to rounding, in a file and in headers of maps.
_ROUNDING, _SAME = 1e-4, 0.005
# Images whose box is smaller than the map's by more than this factor (A) would show a second copy of the particle.
_MAX_PADDING = 1.1


def choose_grid(star: Path, sizes: NDArray[np.float64], volume: str | None) -> tuple[int, float, bool]:
    """Return the box and pixel size (A) that images are brought to, and whether any of them differ from it.

    Parameters
    ----------
    star
        file of the particles, for messages.
    sizes
        (n, 2) box and pixel size of each image.
    volume
        map whose grid is taken if images differ; that of most images without a map.

    Raises
    ------
    InputError
        if images differ and the map has the grid of none of them, or images are too small for it.
    """
    groups = _groups(sizes)
    (box, pixel_size), _ = groups.most_common(1)[0]
    if len(groups) == 1:
        return int(box), float(np.median(sizes[:, 1])), False
    if volume:
        given, spacing = read_map(volume)
        same = [(b, p) for b, p in groups if b == len(given) and abs(p / spacing - 1) < _SAME]
        if not same:
            there = ", ".join(f"{b:g} pixels of {p:.5g} A" for b, p in groups)
            raise InputError(
                f"map {volume} has {len(given)} voxels of {spacing:.5g} A, but the images in {star} have {there}; "
                "resample the map to one of these"
            )
        box, pixel_size = same[0]
    for other, spacing in groups:
        if box * pixel_size > _MAX_PADDING * other * spacing:
            raise InputError(
                f"{star} has images of {other:g} pixels of {spacing:.5g} A ({other * spacing:.1f} A), too small for a "
                f"box of {box * pixel_size:.1f} A; use a map in the smaller box, or extract these particles in a "
                "larger one"
            )
    return int(box), float(pixel_size), True


def describe_sizes(sizes: NDArray[np.float64], box: int, pixel_size: float) -> list[str]:
    """Return lines on images that are resampled, from (n, 2) boxes and pixel sizes."""
    return [
        f"resampled to this: {number} images of {int(other)} pixels of {spacing:.6g} A"
        for (other, spacing), number in _groups(sizes).items()
        if not _is_grid(other, spacing, box, pixel_size)
    ]


def resample_to_grid(images: torch.Tensor, pixel_size: float, new_box: int, new_pixel_size: float) -> torch.Tensor:
    """Return (b, new_box, new_box) images of (b, D, D), about the same centre; grey values and magnification stay.

    The images are continued periodically. Frequencies beyond Nyquist of the new pixels are removed.
    """
    matrix = _matrix(images.shape[-1], pixel_size, new_box, new_pixel_size)
    return matrix @ images @ matrix.T


def band_of(sizes: NDArray[np.float64], box: int, pixel_size: float) -> NDArray[np.float64]:
    """Return (n,) the largest frequency along x or y (1/A) that each image has on a grid."""
    own = np.array([_is_grid(other, spacing, box, pixel_size) for other, spacing in sizes])
    # The Nyquist frequency itself is not used.
    return np.where(own | (sizes[:, 1] <= pixel_size), np.inf, 0.5 / sizes[:, 1] * (1 - 1e-6))


def _is_grid(box: float, pixel_size: float, new_box: int, new_pixel_size: float) -> bool:
    return int(box) == new_box and abs(pixel_size / new_pixel_size - 1) < _ROUNDING


def _groups(sizes: NDArray[np.float64]) -> Counter[tuple[float, float]]:
    """Return the number of images of each box and pixel size; pixel sizes that differ by rounding count as one."""
    order = np.argsort(sizes[:, 1], kind="stable")
    spacings = sizes[order, 1]
    new = np.r_[True, np.diff(spacings) > _ROUNDING * spacings[1:]]
    first = spacings[new]
    rounded = np.empty(len(sizes))
    rounded[order] = first[np.cumsum(new) - 1]
    return Counter(zip(sizes[:, 0].tolist(), rounded.tolist(), strict=True))


@cache
def _matrix(box: int, pixel_size: float, new_box: int, new_pixel_size: float) -> torch.Tensor:
    """Return the (new_box, box) matrix that interpolates a line of pixels at the new ones, by its Fourier series."""
    places = (np.arange(new_box) - new_box // 2) * new_pixel_size / pixel_size
    distance = places[:, None] - (np.arange(box) - box // 2)
    limit = min((box - 1) // 2, int(np.ceil(box * pixel_size / (2 * new_pixel_size))) - 1)
    waves = np.arange(1, limit + 1)
    series = np.cos(2 * np.pi / box * distance[..., None] * waves).sum(-1)
    return torch.from_numpy(((1 + 2 * series) / box).astype(np.float32))
