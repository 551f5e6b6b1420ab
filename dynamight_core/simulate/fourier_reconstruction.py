"""Homogeneous reconstruction by central-slice insertion: the consensus map of a refinement.

Slices are inserted by torch-fourier-slice, which is independent of `dynamight_core.imaging.projector`; the result
therefore checks the backprojection in real space.
"""

import torch
import torch.nn.functional as F
from torch_fourier_slice import insert_central_slices_rfft_3d_multichannel

from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    image_to_fourier,
    shell_means,
    translation_phases,
)
from dynamight_core.imaging.poses import rotation_matrices


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
        self.numerator = torch.zeros(grid, grid, grid // 2 + 1, dtype=torch.complex64)
        self.denominator = torch.zeros(grid, grid, grid // 2 + 1)

    def insert(self, images: torch.Tensor, ctf: CtfParameters, angles: torch.Tensor, shifts: torch.Tensor) -> None:
        """Add CTF * image to the numerator and CTF^2 to the denominator.

        Parameters
        ----------
        images
            (b, box, box).
        ctf
            of b particles.
        angles
            (b, 3) rot, tilt, psi in radians.
        shifts
            (b, 2) rlnOriginX/YAngst in A: the particle's centre lies at box//2 - shift / pixel size.
        """
        # Insertion takes 150 bytes per value: a few images at a time fit in the processor's cache.
        chunk = max(1, 2**18 // (self.box * self.padding) ** 2)
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            self._insert(images[part], ctf[part], angles[part], shifts[part])

    def _insert(self, images: torch.Tensor, ctf: CtfParameters, angles: torch.Tensor, shifts: torch.Tensor) -> None:
        grid = self.box * self.padding
        before = grid // 2 - self.box // 2
        after = grid - self.box - before
        slices = image_to_fourier(F.pad(images.float(), (before, after) * 2))
        slices = slices * translation_phases(shifts / self.pixel_size, grid)
        transfer = evaluate_ctf(ctf, grid, self.pixel_size)
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
        inserted = torch.fft.ifftshift(inserted, dim=(-3, -2))
        self.numerator += inserted[0]
        self.denominator += inserted[1].real

    def __add__(self, other: "FourierReconstruction") -> "FourierReconstruction":
        """Return the reconstruction of both sets of images."""
        out = FourierReconstruction(self.box, self.pixel_size, self.padding)
        out.numerator = self.numerator + other.numerator
        out.denominator = self.denominator + other.denominator
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
        means = expand_shells(shell_means(self.denominator, grid, 3), grid, 3)
        # Corners beyond Nyquist are empty.
        denominator = torch.maximum(self.denominator, floor * means).clamp(min=1e-6)
        volume = fourier_to_volume(self.numerator / denominator, grid)
        start = grid // 2 - self.box // 2
        inside = slice(start, start + self.box)
        volume = volume[inside, inside, inside]
        kernel = torch.sinc((torch.arange(self.box) - self.box // 2) / grid).square()
        return volume / (kernel[:, None, None] * kernel[:, None] * kernel)
