"""Homogeneous reconstruction by central-slice insertion: the consensus map of a refinement.

Images are padded, so that views from few directions, whose point spread is longer than the box, are inverted as well.
"""

import numpy as np
import torch
import torch.nn.functional as F

from dynamight_core.imaging.compiled import Floats, compiled
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    image_to_fourier,
    shell_means,
    translation_phases,
)


class FourierReconstruction:
    """Sums of particle images in Fourier space, and their volume.

    Images are padded to reduce the error of trilinear insertion, and the volume is divided by the transform of the
    interpolation kernel.

    Parameters
    ----------
    box
        of images and volume, pixels; even.
    pixel_size
        A.
    padding
        integer factor of the grid into which slices are inserted.
    """

    def __init__(self, box: int, pixel_size: float, padding: int = 2):
        self.box, self.pixel_size, self.padding = box, pixel_size, padding
        grid = box * padding
        # Real and imaginary part of CTF * image, and CTF^2.
        self.sums = torch.zeros(grid, grid, grid // 2 + 1, 3)

    def insert(self, images: torch.Tensor, ctf: CtfParameters, matrices: torch.Tensor, shifts: torch.Tensor) -> None:
        """Add CTF * image and CTF^2.

        Parameters
        ----------
        images
            (b, box, box).
        ctf
            of b particles.
        matrices
            (b, 2, 3) ``x_image = A x_volume``, including magnification.
        shifts
            (b, 2) rlnOriginX/YAngst in A: the particle's centre lies at box//2 - shift / pixel size.
        """
        grid = self.box * self.padding
        before = grid // 2 - self.box // 2
        after = grid - self.box - before
        # A few images at a time fit in the processor's cache.
        for rows in torch.arange(len(images)).split(max(1, 2**18 // grid**2)):
            transfer = evaluate_ctf(ctf[rows], grid, self.pixel_size)
            slices = image_to_fourier(F.pad(images[rows].float(), (before, after) * 2))
            slices = slices * translation_phases(shifts[rows] / self.pixel_size, grid) * transfer.conj()
            values = torch.cat([torch.view_as_real(slices), transfer.abs().square()[..., None]], -1)
            _insert_slices(values.numpy(), matrices[rows].contiguous().numpy(), self.sums.numpy())

    def __add__(self, other: "FourierReconstruction") -> "FourierReconstruction":
        """Return the reconstruction of both sets of images."""
        out = FourierReconstruction(self.box, self.pixel_size, self.padding)
        out.sums = self.sums + other.sums
        return out

    def volume(self, floor: float = 0.1) -> torch.Tensor:
        """Return the (box, box, box) volume, [z, y, x].

        Parameters
        ----------
        floor
            smallest denominator, as a fraction of its shell mean: directions with few particles are damped instead of
            amplified.
        """
        grid = self.box * self.padding
        sums = self.sums.clone()
        # Points on the other side of the first plane are the conjugates of those on this one.
        mirrored = sums[:, :, 0].flip(0, 1).roll((1, 1), (0, 1))
        sums[:, :, 0] += mirrored * torch.tensor([1.0, -1.0, 1.0])
        numerator, denominator = torch.view_as_complex(sums[..., :2].contiguous()), sums[..., 2]
        means = expand_shells(shell_means(denominator, grid, 3), grid, 3)
        # Corners beyond Nyquist are empty.
        denominator = torch.maximum(denominator, floor * means).clamp(min=1e-6)
        volume = fourier_to_volume(numerator / denominator, grid)
        start = grid // 2 - self.box // 2
        inside = slice(start, start + self.box)
        volume = volume[inside, inside, inside]
        kernel = torch.sinc((torch.arange(self.box) - self.box // 2) / grid).square()
        return volume / (kernel[:, None, None] * kernel[:, None] * kernel)


@compiled
def _insert_slices(values: Floats, matrices: Floats, sums: Floats) -> None:
    """Add the values of slices to the eight nearest voxels, with trilinear weights.

    Parameters
    ----------
    values
        (b, grid, grid//2+1, 3) real part, imaginary part and power.
    matrices
        (b, 2, 3) from pixels of a slice to voxels.
    sums
        (grid, grid, grid//2+1, 3).
    """
    grid, half = sums.shape[0], sums.shape[2] - 1
    for i in range(len(matrices)):
        a, b = matrices[i, 0], matrices[i, 1]
        for row in range(grid):
            ky = np.float32(row if row < half else row - grid)
            for column in range(half):
                kx = np.float32(column)
                x, y, z = a[0] * kx + b[0] * ky, a[1] * kx + b[1] * ky, a[2] * kx + b[2] * ky
                if x * x + y * y + z * z >= (half - 1) ** 2:
                    continue
                real, imaginary, power = values[i, row, column]
                if x < 0:
                    x, y, z, imaginary = -x, -y, -z, -imaginary
                # Rows of the first column occur twice, as conjugates of each other.
                weight = np.float32(0.5) if column == 0 else np.float32(1)
                x0, y0, z0 = np.int64(x), np.int64(np.floor(y)), np.int64(np.floor(z))
                for dz in range(2):
                    wz = weight * abs(np.float32(1 - dz) - (z - np.float32(z0)))
                    for dy in range(2):
                        wy = wz * abs(np.float32(1 - dy) - (y - np.float32(y0)))
                        for dx in range(2):
                            w = wy * abs(np.float32(1 - dx) - (x - np.float32(x0)))
                            voxel = sums[(z0 + dz) % grid, (y0 + dy) % grid, x0 + dx]
                            voxel[0] += w * real
                            voxel[1] += w * imaginary
                            voxel[2] += w * power
