"""Bands of frequency and windows in space: a map filtered around each voxel by the agreement of its half-maps."""

import math

import torch

from dynamight_core.imaging.backprojection import filter_volume
from dynamight_core.imaging.fourier import frequencies_3d

# Ratio of the centres of neighbouring bands, and standard deviation of a band as a fraction of their distance, both on
# a logarithmic scale. The first is centred at this wavelength, A.
_RATIO, _WIDTH, _FIRST = 1.6, 0.5, 64.0
# Standard deviation of the window of the filter, A, and at least this many voxels.
_WINDOW, _MIN_VOXELS = 10.0, 2.5


def window(box: int, pixel_size: float, deviation: float) -> torch.Tensor:
    """Return the (box, box, box//2+1) transform of a Gaussian window of this standard deviation (A)."""
    return torch.exp(-2 * (torch.pi * deviation / pixel_size * frequencies_3d(box).norm(dim=-1)).square())


def frequency_bands(box: int, pixel_size: float) -> list[torch.Tensor]:
    """Return (box, box, box//2+1) bands of frequency up to Nyquist, which overlap and add up to 1."""
    radius = frequencies_3d(box).norm(dim=-1) / pixel_size
    number = 1 + max(0, math.ceil(math.log(0.5 / pixel_size * _FIRST, _RATIO) - 1))
    logarithm = (radius.clamp(min=1e-9) * _FIRST).log() / math.log(_RATIO)
    bands = [torch.exp(-0.5 * ((logarithm - k) / _WIDTH).square()) for k in range(number)]
    # Below the first centre and beyond the last one.
    bands[0], bands[-1] = bands[0].where(logarithm > 0, 1.0), bands[-1].where(logarithm < number - 1, 1.0)
    total = sum(bands, torch.zeros(()))
    return [band / total for band in bands]


def locally_filtered(half1: torch.Tensor, half2: torch.Tensor, pixel_size: float) -> torch.Tensor:
    """Return the mean of two half-maps, weighted by 2 FSC / (1 + FSC) around each voxel in each band of frequency.

    This is the Wiener filter of the mean. It matters where the noise varies over the map.

    Parameters
    ----------
    half1, half2
        (box, box, box), unfiltered.
    pixel_size
        A.
    """
    box = half1.shape[-1]
    smooth = window(box, pixel_size, max(_WINDOW, _MIN_VOXELS * pixel_size))
    total = torch.zeros_like(half1)
    for band in frequency_bands(box, pixel_size):
        first, second = filter_volume(half1, band), filter_volume(half2, band)
        powers = [filter_volume(half.square(), smooth).clamp(min=0) for half in (first, second)]
        power = (powers[0] * powers[1]).sqrt()
        correlation = filter_volume(first * second, smooth) / power.clamp(min=1e-6 * float(power.max()))
        correlation = correlation.clamp(0, 1)
        total += (first + second) * correlation / (1 + correlation)
    return total
