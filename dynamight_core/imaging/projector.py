"""The projector: weighted points in 3D to Fourier images, and its exact adjoint.

A projection spreads each point on the pixel grid with bilinear weights and transforms the grid. Dividing by sinc^2
undoes the attenuation by the bilinear kernel; its aliasing remains, and falls with oversampling. The adjoint filters an
image the same way and *reads* it, bilinearly, at the same positions. Both run in batches on CPU and GPU. The projection
is differentiable with respect to positions and weights.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from dynamight_core.imaging.compiled import in_threads, shares, spread_moved
from dynamight_core.imaging.fourier import fourier_to_image, frequencies_2d, real_transform, resize_fourier

# Displacements, numbers, of some images that are computed and used at a time.
_CACHED = 2**18
_LINEAR, _ZEROS, _ALIGN = 0, 0, True


def read_bilinear(images: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Read images at points by bilinear interpolation; zero outside.

    Parameters
    ----------
    images
        (b, c, size, size) real.
    points
        (b, n, 2) x and y in pixels, the origin at index 0.

    Returns
    -------
    torch.Tensor
        (b, c, n) values.
    """
    grid = (points * (2 / (images.shape[-1] - 1)) - 1)[:, None]
    return F.grid_sample(images, grid, align_corners=True)[:, :, 0]


def spread_bilinear(weights: torch.Tensor, points: torch.Tensor, size: int) -> torch.Tensor:
    """Spread weighted points onto pixels with bilinear weights; the exact transpose of `read_bilinear`.

    Parameters
    ----------
    weights
        (b, c, n).
    points
        (b, n, 2) x and y in pixels, the origin at index 0. Parts that fall outside are lost. With (b, n, 3) points
        x, y and z the weights are trilinear, onto voxels.
    size
        of the square image or cubic volume, pixels.

    Returns
    -------
    torch.Tensor
        (b, c, size, size) or (b, c, size, size, size). Differentiable with respect to weights and points.
    """
    images: torch.Tensor = _Spread.apply(weights, points, size)  # type: ignore[no-untyped-call]  # torch has no type
    return images


class _Spread(torch.autograd.Function):
    """Transpose of a linear read: torch's own gradient of `grid_sample` with respect to its image."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, points: torch.Tensor, size: int) -> torch.Tensor:
        ndim = points.shape[-1]
        grid = (points * (2 / (size - 1)) - 1).reshape(len(points), *[1] * (ndim - 1), -1, ndim)
        ctx.save_for_backward(weights, grid)
        ctx.size = size
        blank = weights.new_zeros(1).expand(*weights.shape[:2], *[size] * ndim)
        return _read_gradients(_lone_axes(weights, ndim), blank, grid, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (grad_image,) = gradients
        weights, grid = ctx.saved_tensors
        ndim = grid.shape[-1]
        grad_weights = grad_points = None
        if ctx.needs_input_grad[0]:
            grad_weights = F.grid_sample(grad_image, grid, align_corners=True).flatten(2)
        if ctx.needs_input_grad[1]:
            grad_grid = _read_gradients(_lone_axes(weights, ndim), grad_image.contiguous(), grid, [False, True])[1]
            grad_points = grad_grid.reshape(len(grid), -1, ndim) * (2 / (ctx.size - 1))
        return grad_weights, grad_points, None


def _lone_axes(weights: torch.Tensor, ndim: int) -> torch.Tensor:
    """Return (b, c, n) weights in the shape of an image or volume with one row, as `grid_sample` needs them."""
    return weights.reshape(*weights.shape[:2], *[1] * (ndim - 1), -1).contiguous()


def _read_gradients(
    gradient: torch.Tensor, image: torch.Tensor, grid: torch.Tensor, wanted: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of a linear read with respect to the image and to the points."""
    aten = torch.ops.aten
    backward = aten.grid_sampler_2d_backward if grid.shape[-1] == 2 else aten.grid_sampler_3d_backward
    gradients: tuple[torch.Tensor, torch.Tensor] = backward(gradient, image, grid, _LINEAR, _ZEROS, _ALIGN, wanted)
    return gradients


@dataclass(frozen=True)
class LinearPoints:
    """Points that move linearly in a few coefficients.

    Parameters
    ----------
    positions
        (3, n) at rest, A.
    basis
        (F, 3, n) displacement per unit of a coefficient, A.
    """

    positions: torch.Tensor
    basis: torch.Tensor


@dataclass(frozen=True)
class Projector:
    """Projects weighted points to the Fourier transforms of images, and reads images back at points.

    Parameters
    ----------
    box
        of the images, pixels.
    pixel_size
        A.
    oversampling
        factor of the grid that points are spread on, which has a whole number of pixels; 2 pushes the bilinear kernel's
        aliasing out.
    """

    box: int
    pixel_size: float
    oversampling: float = 1

    @property
    def grid_size(self) -> int:
        """Size of the square grid that points are spread on, pixels."""
        return round(self.box * self.oversampling)

    def image_points(self, positions: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Rotate points and drop z.

        Parameters
        ----------
        positions
            (n, 3) or (b, n, 3) A, origin at the centre of the box.
        matrices
            (b, 3, 3) or (b, 2, 3): ``x_image = A x_volume``; magnification may be folded in.

        Returns
        -------
        torch.Tensor
            (b, n, 2) in pixels of the (oversampled) grid, origin at index 0.
        """
        scale = self.oversampling / self.pixel_size
        if positions.ndim == 2:
            positions = positions.expand(len(matrices), -1, -1)
        # In this order the product with a thin matrix is four times faster on a CPU.
        points = torch.bmm(matrices[:, :2] * scale, positions.transpose(1, 2)) + self.grid_size // 2
        return points.transpose(1, 2)

    def poses(self, matrices: torch.Tensor) -> torch.Tensor:
        """Return (b, 2, 4) matrices from homogeneous points in A to the pixels that `image_points` returns."""
        centre = matrices.new_full((len(matrices), 2, 1), float(self.grid_size // 2))
        return torch.cat([matrices[:, :2] * (self.oversampling / self.pixel_size), centre], 2)

    def project(
        self,
        positions: torch.Tensor,
        weights: torch.Tensor,
        matrices: torch.Tensor,
        transfer: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Project weighted points: sum_j w_j exp(-2 pi i k . (A x_j)) up to the kernel's aliasing.

        Parameters
        ----------
        positions
            (n, 3) or (b, n, 3) A.
        weights
            (n,), (b, n) or (b, c, n): c channels give c images a particle.
        matrices
            (b, 3, 3).
        transfer
            factor of the transforms, broadcast to (b, c, box, box//2+1); saves a pass over the images.

        Returns
        -------
        torch.Tensor
            (b, c, box, box//2+1) complex, without the channel axis if `weights` had none.
        """
        points = self.image_points(positions, matrices)
        has_channels = weights.ndim == 3
        if not has_channels:
            weights = weights.expand(len(points), -1)[:, None]
        grids = spread_bilinear(weights.expand(len(points), -1, -1), points, self.grid_size)
        images = self._images(grids, transfer)
        return images if has_channels else images[:, 0]

    def _images(self, grids: torch.Tensor, transfer: torch.Tensor | None) -> torch.Tensor:
        """Return the (..., box, box//2+1) images of (..., grid, grid) grids that points were spread on."""
        transforms = real_transform(grids)
        if self.oversampling > 1:
            transforms = resize_fourier(transforms, self.grid_size, self.box)
        correction = grid_correction(self.box, self.oversampling, grids.device)
        return transforms * (correction if transfer is None else correction * transfer)

    def project_moved(
        self,
        moved: LinearPoints,
        coefficients: torch.Tensor,
        weights: torch.Tensor,
        matrices: torch.Tensor,
        transfer: torch.Tensor,
    ) -> torch.Tensor:
        """Project points that are moved by a few fields, on a CPU: what `project` does, without their positions.

        Positions of a batch take more memory, and more time to write and to read, than all else.

        Parameters
        ----------
        moved
            n points.
        coefficients
            (b, F) of the fields.
        weights
            (n,).
        matrices
            (b, 3, 3).
        transfer
            (b, box, box//2+1).
        """
        grids = torch.zeros(len(matrices), self.grid_size, self.grid_size)
        basis, n = moved.basis.flatten(1), moved.positions.shape[1]
        # Displacements stay in the processor's cache.
        for part in torch.arange(len(matrices)).split(max(torch.get_num_threads(), _CACHED // (3 * n))):
            shifts = (coefficients[part] @ basis).view(len(part), 3, n)
            arguments = (moved.positions, shifts, self.poses(matrices[part]), weights, grids[part[0] : part[-1] + 1])
            bounds = shares(len(part), torch.get_num_threads())
            in_threads(spread_moved, bounds, *(each.contiguous().numpy() for each in arguments))
        return self._images(grids, transfer)

    def backproject(self, images: torch.Tensor, positions: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Read Fourier images at projected points; the exact adjoint of `project`.

        With <a, b> = sum over pixels of the real-space images, <project(w), y> = <w, backproject(y)>.

        Parameters
        ----------
        images
            (b, box, box//2+1) or (b, c, box, box//2+1) complex.
        positions, matrices
            as in `project`.

        Returns
        -------
        torch.Tensor
            (b, n) or (b, c, n).
        """
        points = self.image_points(positions, matrices)
        grid = self.reading_grid(images)
        if images.ndim == 3:
            return read_bilinear(grid[:, None], points)[:, 0]
        return read_bilinear(grid, points)

    def reading_grid(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (..., grid_size, grid_size) real images that `backproject` reads."""
        # Padding to the same box drops Nyquist, so that oversampling 1 and 2 treat it the same way.
        corrected = images * kernel_correction(self.box, self.oversampling, images.device)
        return (
            fourier_to_image(resize_fourier(corrected, self.box, self.grid_size), self.grid_size) * self.oversampling**2
        )


def kernel_correction(box: int, oversampling: float, device: torch.device | str) -> torch.Tensor:
    """Return (box, box//2+1) one over the transform of the bilinear kernel on the oversampled grid."""
    return 1 / torch.sinc(frequencies_2d(box, device) / oversampling).square().prod(-1)


@lru_cache(maxsize=16)
def grid_correction(box: int, oversampling: float, device: torch.device | str) -> torch.Tensor:
    """Return (box, box//2+1) factors that turn the transform of a grid into the transform of an image.

    Undoes the bilinear kernel (1 / sinc^2), moves the origin from index 0 to index ``size // 2`` of the
    oversampled grid, and drops the box's Nyquist frequency, which a half plane cannot represent. Real for grids of even
    size.
    """
    frequencies = frequencies_2d(box, device)
    size = round(box * oversampling)
    if size % 2:
        angle = 2 * torch.pi * (size // 2 / oversampling) * frequencies.sum(-1)
        origin = torch.polar(torch.ones_like(angle), angle)
    else:
        # A shift by half the grid alternates the sign.
        origin = 1 - 2 * ((frequencies * box).round().sum(-1) % 2)
    inside = (frequencies.abs() * box < box / 2).all(-1)
    return kernel_correction(box, oversampling, device) * origin * inside
