"""Maps by inversion in Fourier space with torch-fourier-slice, independent of the engine's backprojection."""

import torch
import torch.nn.functional as F
from torch_fourier_slice import insert_central_slices_rfft_3d_multichannel

from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    image_to_fourier,
    shell_means,
    translation_phases,
)
from dynamight_core.imaging.poses import rotation_matrices

# Of the grid that slices are inserted in, which reduces the error of trilinear insertion.
PADDING = 2
# Smallest denominator, as a fraction of its shell's mean: directions with few particles are damped.
FLOOR = 0.1


def reconstruct_fourier(images, ctf, angles, shifts, box, pixel_size):
    """Return the (box, box, box) map of (n, box, box) images with (n, 3) radians and (n, 2) shifts in A."""
    grid = box * PADDING
    sums = torch.zeros(2, grid, grid, grid // 2 + 1, dtype=torch.complex64)
    # Insertion takes 150 bytes per value: a few images at a time fit in the processor's cache.
    chunk = max(1, 2**18 // grid**2)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        sums += _slices(images[part], ctf[part], angles[part], shifts[part], grid, pixel_size)
    numerator, denominator = sums[0], sums[1].real
    means = expand_shells(shell_means(denominator, grid, 3), grid, 3)
    # Corners beyond Nyquist are empty.
    denominator = torch.maximum(denominator, FLOOR * means).clamp(min=1e-6)
    inside = slice(grid // 2 - box // 2, grid // 2 + box - box // 2)
    volume = fourier_to_volume(numerator / denominator, grid)[inside, inside, inside]
    kernel = torch.sinc((torch.arange(box) - box // 2) / grid).square()
    return volume / (kernel[:, None, None] * kernel[:, None] * kernel)


def _slices(images, ctf, angles, shifts, grid, pixel_size):
    """Return the (2, grid, grid, grid//2+1) sums of CTF times images, and of CTF squared."""
    box = images.shape[-1]
    before = grid // 2 - box // 2
    slices = image_to_fourier(F.pad(images.float(), (before, grid - box - before) * 2))
    slices = slices * translation_phases(shifts / pixel_size, grid)
    transfer = evaluate_ctf(ctf, grid, pixel_size)
    channels = torch.stack([slices * transfer.conj(), (transfer.abs() ** 2).to(slices.dtype)], 1)
    # The magnification takes coordinates to the undistorted slice, and the transpose of A from there to the volume.
    slice_to_volume = rotation_matrices(angles).transpose(1, 2)
    slice_to_volume[:, :, :2] = slice_to_volume[:, :, :2] @ ctf.magnification
    inserted, _ = insert_central_slices_rfft_3d_multichannel(
        torch.fft.fftshift(channels, dim=-2),
        volume_shape=(grid,) * 3,
        rotation_matrices=slice_to_volume,
        fftfreq_max=0.5,
    )
    return torch.fft.ifftshift(inserted, dim=(-3, -2))
