"""Fourier transforms: the one place that knows about origins, half planes and shells.

Real-space images and volumes have their origin at index ``box // 2``; their transforms are half-plane
(`rfft`) arrays with the origin in the corner, unnormalised in the forward direction.
"""

from functools import lru_cache
from itertools import product
from typing import Any

import torch

from dynamight_core.imaging.masks import raised_cosine


def real_transform(values: torch.Tensor, ndim: int = 2) -> torch.Tensor:
    """Return the half-plane transform over the last `ndim` equal axes of a real array, origin at index 0.

    Differentiable, at half the cost of torch's own gradient, which pads to the full plane and transforms that.
    """
    transforms: torch.Tensor = _RealTransform.apply(values, ndim)  # type: ignore[no-untyped-call]  # torch has no type
    return transforms


class _RealTransform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, ndim: int) -> torch.Tensor:
        ctx.shape = values.shape[-ndim:]
        transforms: torch.Tensor = torch.fft.rfftn(values, dim=tuple(range(-ndim, 0)))
        return transforms

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        # An inverse transform counts most columns twice, once for their conjugates; the gradient has each once.
        once = gradient / plane_multiplicity(ctx.shape[-1], gradient.device)
        dims = tuple(range(-len(ctx.shape), 0))
        return torch.fft.irfftn(once, s=ctx.shape, dim=dims, norm="forward"), None


def image_to_fourier(images: torch.Tensor) -> torch.Tensor:
    """Transform (..., box, box) images to (..., box, box//2+1) half-plane transforms."""
    transforms: torch.Tensor = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    return transforms


def fourier_to_image(transforms: torch.Tensor, box: int) -> torch.Tensor:
    """Transform (..., box, box//2+1) half-plane transforms to (..., box, box) images."""
    images: torch.Tensor = torch.fft.fftshift(torch.fft.irfft2(transforms, s=(box, box)), dim=(-2, -1))
    return images


def volume_to_fourier(volumes: torch.Tensor) -> torch.Tensor:
    """Transform (..., box, box, box) volumes to (..., box, box, box//2+1) transforms."""
    dims = (-3, -2, -1)
    transforms: torch.Tensor = torch.fft.rfftn(torch.fft.ifftshift(volumes, dim=dims), dim=dims)
    return transforms


def fourier_to_volume(transforms: torch.Tensor, box: int) -> torch.Tensor:
    """Transform (..., box, box, box//2+1) transforms to (..., box, box, box) volumes."""
    dims = (-3, -2, -1)
    volumes: torch.Tensor = torch.fft.fftshift(torch.fft.irfftn(transforms, s=(box,) * 3, dim=dims), dim=dims)
    return volumes


@lru_cache(maxsize=32)
def frequencies_2d(box: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return (box, box//2+1, 2) frequencies (kx, ky) in cycles per pixel."""
    ky = torch.fft.fftfreq(box, device=device)
    kx = torch.fft.rfftfreq(box, device=device)
    grid_y, grid_x = torch.meshgrid(ky, kx, indexing="ij")
    return torch.stack([grid_x, grid_y], -1)


@lru_cache(maxsize=16)
def frequencies_3d(box: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return (box, box, box//2+1, 3) frequencies (kx, ky, kz) in cycles per voxel."""
    full = torch.fft.fftfreq(box, device=device)
    kx = torch.fft.rfftfreq(box, device=device)
    grid_z, grid_y, grid_x = torch.meshgrid(full, full, kx, indexing="ij")
    return torch.stack([grid_x, grid_y, grid_z], -1)


@lru_cache(maxsize=32)
def shells(box: int, ndim: int = 2, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the integer shell (radius in Fourier pixels, rounded) of each element of a half-plane transform."""
    grid = frequencies_2d(box, device) if ndim == 2 else frequencies_3d(box, device)
    index: torch.Tensor = (grid.norm(dim=-1) * box).round().long()
    return index


@lru_cache(maxsize=32)
def plane_multiplicity(box: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return (box//2+1,) how often each column of a half-plane transform occurs in the full one (1 or 2)."""
    count = torch.full((box // 2 + 1,), 2.0, device=device)
    count[0] = 1
    if box % 2 == 0:
        count[-1] = 1
    return count


def shell_sums(values: torch.Tensor, box: int, ndim: int = 2) -> torch.Tensor:
    """Sum half-plane arrays over shells of the *full* transform.

    Parameters
    ----------
    values
        (..., box, box//2+1) or (..., box, box, box//2+1) real values, by `ndim`.

    Returns
    -------
    torch.Tensor
        (..., box//2+1) sums over shells 0 ... box//2; corners beyond Nyquist are omitted.
    """
    index = shells(box, ndim, values.device)
    n_shells = box // 2 + 1
    weighted = (values * plane_multiplicity(box, values.device)).flatten(-ndim)
    index = index.flatten().clamp(max=n_shells).expand(weighted.shape)
    out = torch.zeros(*weighted.shape[:-1], n_shells + 1, dtype=weighted.dtype, device=values.device)
    return out.scatter_add_(-1, index, weighted)[..., :n_shells]


def shell_means(values: torch.Tensor, box: int, ndim: int = 2) -> torch.Tensor:
    """Average half-plane arrays over shells of the full transform; shapes as in `shell_sums`."""
    return shell_sums(values, box, ndim) / shell_sums(torch.ones_like(values), box, ndim)


def expand_shells(curve: torch.Tensor, box: int, ndim: int = 2) -> torch.Tensor:
    """Return (..., box//2+1) shell values at each element of a half plane; corners take that of the last shell."""
    return curve[..., shells(box, ndim, curve.device).clamp(max=box // 2)]


def resize_fourier(transforms: torch.Tensor, box: int, new_box: int) -> torch.Tensor:
    """Crop or zero-pad half-plane transforms of `box` to `new_box` pixels; Nyquist of the smaller box becomes zero.

    Fourier coefficients keep their values: pixels of a smaller image are larger, and their sum stays the same.
    Zeroing Nyquist makes cropping and padding between two boxes exact adjoints.
    """
    half = (min(box, new_box) - 1) // 2
    out = transforms.new_zeros(*transforms.shape[:-2], new_box, new_box // 2 + 1)
    out[..., : half + 1, : half + 1] = transforms[..., : half + 1, : half + 1]
    if half:
        out[..., -half:, : half + 1] = transforms[..., -half:, : half + 1]
    return out


def crop_fourier(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return the (..., size, size//2+1) lowest frequencies of (..., box, box//2+1) values of any kind, `size` even."""
    if values.shape[-2] == size:
        return values
    half = size // 2
    kept = values[..., : half + 1]
    return torch.cat([kept[..., :half, :], kept[..., -half:, :]], -2)


def translation_phases(shifts: torch.Tensor, box: int) -> torch.Tensor:
    """Return (n, box, box//2+1) phase factors that move image content by (n, 2) `shifts` (x, y) in pixels."""
    grid = frequencies_2d(box, shifts.device)
    angle = -2 * torch.pi * torch.einsum("hwc,nc->nhw", grid, shifts)
    return torch.polar(torch.ones_like(angle), angle)


def resample_image(images: torch.Tensor, new_box: int) -> torch.Tensor:
    """Fourier-crop or -pad (..., box, box) images to `new_box` pixels over the same extent.

    Grey values are kept: a constant image keeps its value.
    """
    box = images.shape[-1]
    if new_box == box:
        return images
    return fourier_to_image(resize_fourier(image_to_fourier(images), box, new_box), new_box) * (new_box / box) ** 2


def resize_fourier_3d(transform: torch.Tensor, new_box: int) -> torch.Tensor:
    """Crop or zero-pad the (box, box, box//2+1) transform of a volume to `new_box`, as `resize_fourier` does."""
    half = (min(transform.shape[0], new_box) - 1) // 2
    target = transform.new_zeros(new_box, new_box, new_box // 2 + 1)
    kept = [slice(0, half + 1), slice(-half, None)] if half else [slice(0, 1)]
    for z, y in product(kept, kept):
        target[z, y, : half + 1] = transform[z, y, : half + 1]
    return target


def resample_volume(volume: torch.Tensor, new_box: int) -> torch.Tensor:
    """Fourier-crop or -pad a (box, box, box) volume to `new_box` voxels over the same extent, grey values kept."""
    box = volume.shape[-1]
    if new_box == box:
        return volume
    return fourier_to_volume(resize_fourier_3d(volume_to_fourier(volume), new_box), new_box) * (new_box / box) ** 3


def lowpass_volume(volume: torch.Tensor, pixel_size: float, resolution: float) -> torch.Tensor:
    """Low-pass filter a (box, box, box) volume at `resolution` (A) with a raised-cosine edge of 3 Fourier voxels."""
    box = volume.shape[-1]
    radius = frequencies_3d(box, volume.device).norm(dim=-1) * box
    cutoff = box * pixel_size / resolution
    return fourier_to_volume(volume_to_fourier(volume) * raised_cosine((radius - cutoff + 1.5) / 3), box)
