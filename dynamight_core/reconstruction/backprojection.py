"""Weighted backprojection through a deformation, as the exact adjoint of the projection.

Every voxel x is a pseudo-atom. The image of a map f is made by spreading f(x) at A (x + delta(x)), so its
adjoint filters the image with the CTF and *reads* it there: only the forward field is needed, one bilinear read
per voxel and particle, and no volume per particle. The denominator comes from the same operator: the point
spread irfft(|CTF|^2) of every particle, read by the same rule at A x for all differences x of two voxels, is the
kernel that the map was convolved with where nothing moves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from dynamight_core.errors import InputError
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    image_to_fourier,
    shell_means,
    shells,
    volume_to_fourier,
)
from dynamight_core.imaging.projector import Projector

OVERSAMPLING = 2
REGULARISATION = 0.3
# Power of a shell that counts as none, as a fraction of what the strongest shell's slices would leave in it
_EMPTY = 1e-3
# Bytes that one read of one particle takes on its way: displacement, image point, value and their copies.
_BYTES_PER_READ = 64
# Bytes that a decoder keeps for a fixed point: 32 basis fields of three numbers, and some room.
_BYTES_PER_POINT = 512

Evaluator = Callable[[torch.Tensor], torch.Tensor]


class Field(Protocol):
    """What knows a deformation: a decoder, an inverse field, the truth of a simulation."""

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""


@dataclass
class BackprojectionSums:
    """Sums over particles; those of disjoint sets of particles add.

    Parameters
    ----------
    numerator
        (box, box, box) [z, y, x] CTF-filtered images read at every voxel's deformed place.
    kernel
        (2 box, 2 box, 2 box) point spread of the undeformed case, origin at index box.
    n_particles
        how many are summed.
    """

    numerator: torch.Tensor
    kernel: torch.Tensor
    n_particles: int

    def __add__(self, other: "BackprojectionSums") -> "BackprojectionSums":
        """Return the sums over both sets of particles."""
        return BackprojectionSums(
            self.numerator + other.numerator, self.kernel + other.kernel, self.n_particles + other.n_particles
        )


@torch.no_grad()
def accumulate(
    images: Callable[[torch.Tensor], torch.Tensor],
    ctf: Callable[[torch.Tensor], torch.Tensor],
    matrices: torch.Tensor,
    indices: torch.Tensor,
    box: int,
    pixel_size: float,
    *,
    field: Field | None = None,
    latents: torch.Tensor | None = None,
    displacement: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    region: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
    memory: int = 2**30,
) -> BackprojectionSums:
    """Sum the deformed backprojections of particles, and the kernel of the undeformed case.

    Every voxel of the box is read, those outside `region` undeformed, so that the solvent keeps its noise and the
    maps stay unmasked. With neither `field` nor `displacement` nothing moves.

    Parameters
    ----------
    images
        gives the (b, box, box) prepared images (centred, not masked) of particle indices (b,).
    ctf
        gives their (b, box, box//2+1) transfer functions, real or complex.
    matrices
        (n, 3, 3) or (n, 2, 3) ``x_image = A x_volume``, magnification folded in; rows are what `indices` name.
    indices
        (p,) particles to sum.
    box, pixel_size
        of images and map, pixels and A; box even.
    field, latents
        deformation field and its (n, d) latents. Its evaluator is made once for a chunk of points.
    displacement
        instead of a field: gives (b, m, 3) displacements (A) of particle indices (b,) and points (m, 3) A.
    region
        (box, box, box) bool, or weights in [0, 1] that displacements are multiplied by (a soft edge); the
        inscribed sphere if None.
    weights
        (box//2+1,) factor on every shell of the data term, one over the noise power; 1 if None.
    batch_size
        particles at a time.
    progress
        called with the number of particles done and in all.
    device
        where to work; the sums stay there.
    memory
        bytes that evaluators of the field may hold. Larger maps take several passes over the particles.

    Returns
    -------
    BackprojectionSums

    Raises
    ------
    InputError
        if the box is odd, there are no particles, or the region has another box.
    """
    indices = torch.as_tensor(indices, device="cpu").long()
    if box % 2:
        raise InputError(f"the working box is {box} pixels; choose an even number")
    if not len(indices):
        raise InputError("there are no particles to reconstruct from; check the half-sets and the selection")
    if field is not None and latents is None:
        raise ValueError("a field needs the latents of the particles")
    if displacement is not None:
        field, latents = _CalledField(displacement), torch.arange(len(matrices))
    if region is None:
        region = inscribed_sphere(box)
    if field is None:
        region = torch.zeros_like(region)
    if tuple(region.shape) != (box,) * 3:
        raise InputError(
            f"the deforming region has {region.shape[0]} voxels a side, the map {box}; give one of the map's box"
        )
    region = region.to(device)
    moving = region > 0

    projector = Projector(box, pixel_size, OVERSAMPLING)
    # Rotated, the corners of an image's transform would reach beyond the map's Nyquist and fold back into it.
    shell_weights = (shells(box, 2, device) <= box // 2).float()
    if weights is not None:
        shell_weights = shell_weights * expand_shells(weights.to(device), box)
    numerator = torch.zeros(box**3, device=device)
    half_kernel = torch.zeros(box, 2 * box, 2 * box, device=device)
    centre = (box // 2,) * 3
    chunk = _chunk(batch_size, device)
    still = _Reader.of(~moving, centre, pixel_size).split(chunk)
    ball = _Reader.of(_half_ball(box, device), (0, box, box), pixel_size).split(chunk)
    movers = _Reader.of(moving, centre, pixel_size, region).split(max(1, memory // _BYTES_PER_POINT))
    n_passes = max(1, len(movers))
    for number in range(n_passes):
        readers = movers[number].split(chunk) if movers else []
        evaluators = [field.evaluator(reader.points) for reader in readers]
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            transfer = ctf(batch).to(device)
            weighted = transfer.conj() * shell_weights
            pose = _reading_matrices(matrices[batch].to(device).float(), projector)
            data = projector.reading_grid(image_to_fourier(images(batch).to(device).float()) * weighted)
            for reader, evaluate in zip(readers, evaluators, strict=True):
                reader.add(numerator, data, pose, evaluate(latents[batch].to(device)))
            if number == 0:
                spread = (weighted * transfer).real if transfer.is_complex() else weighted * transfer
                spread = projector.reading_grid(spread)
                # The first row and column have no mirror image; the kernel has one everywhere.
                spread[:, 0] = spread[:, :, 0] = 0
                for reader in still:
                    reader.add(numerator, data, pose)
                for reader in ball:
                    reader.add(half_kernel.view(-1), spread, pose)
            if progress is not None:
                progress(number * len(indices) + start + len(batch), n_passes * len(indices))
    return BackprojectionSums(numerator.reshape((box,) * 3), _mirror(half_kernel), len(indices))


def solve(sums: BackprojectionSums, regularisation: float = REGULARISATION) -> torch.Tensor:
    """Return the (box, box, box) map [z, y, x]: the numerator divided by the kernel in Fourier space.

    The grid of twice the box makes the convolution linear; the map is its middle.

    Parameters
    ----------
    sums
        over particles.
    regularisation
        what is added to the denominator, as a fraction of its mean over the shell: directions that few particles
        see are damped instead of amplified, and empty shells stay empty. The map is multiplied by 1 + this, so
        that grey values are kept where the denominator is at its mean.
    """
    box = sums.numerator.shape[-1]
    padding = (box // 2,) * 6
    transform = volume_to_fourier(F.pad(sums.numerator, padding))
    # The kernel is symmetric, so its transform is real; cutting the kernel off makes it slightly negative in places.
    denominator = volume_to_fourier(sums.kernel).real.clamp(min=0)
    means = shell_means(denominator, 2 * box, 3)
    # Slices thin out as 1 / radius. A shell of far less power than that says (noise weights, an envelope) holds
    # little but what leaks into it from others where the numerator ends with the box.
    radius = torch.arange(box + 1, device=means.device).clamp(min=0.5)
    floor = torch.maximum(regularisation * means, _EMPTY * (means * radius).max() / radius)
    quotient = transform * ((1 + regularisation) / (denominator + expand_shells(floor, 2 * box, 3)))
    volume = fourier_to_volume(quotient, 2 * box)
    inside = slice(box // 2, box // 2 + box)
    return volume[inside, inside, inside].contiguous()


def inscribed_sphere(box: int, device: torch.device | str = "cpu", radius: float | None = None) -> torch.Tensor:
    """Return a (box, box, box) bool sphere about index box//2; `radius` in voxels, box//2 - 1 if None."""
    axis = torch.arange(box, device=device) - box // 2
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    return squared <= (box // 2 - 1 if radius is None else radius) ** 2


class _CalledField:
    """A field from a function of particle indices and points; the indices are its latents."""

    def __init__(self, displacement):
        self.displacement = displacement

    def evaluator(self, points):
        return lambda indices: self.displacement(indices, points)


@dataclass
class _Reader:
    """Voxels of a grid that are read in particle images.

    Parameters
    ----------
    voxels
        (m,) flat indices into the grid.
    homogeneous
        (4, m) x, y, z in A and 1: one product with (2 b, 4) matrices rotates, scales and shifts the points for all
        particles, many times as fast as a batch of thin products.
    scale
        (m, 1) factor on displacements, None for 1.
    """

    voxels: torch.Tensor
    homogeneous: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def points(self) -> torch.Tensor:
        """(m, 3) x, y, z in A."""
        return self.homogeneous[:3].T.contiguous()

    @classmethod
    def of(cls, mask: torch.Tensor, origin, pixel_size: float, region: torch.Tensor | None = None) -> "_Reader":
        """Make the reader of the voxels of a (z, y, x) mask whose origin lies at index `origin` (z, y, x)."""
        places = mask.nonzero()
        points = (places - torch.tensor(origin, device=mask.device)).flip(1).float() * pixel_size
        homogeneous = torch.cat([points.T, points.new_ones(1, len(points))])
        scale = None
        if region is not None and region.is_floating_point() and not bool((region[mask] == 1).all()):
            scale = region[mask][:, None]
        return cls(mask.flatten().nonzero()[:, 0], homogeneous, scale)

    def split(self, size: int) -> list["_Reader"]:
        """Return readers of at most `size` voxels each."""
        scales = [None] * len(self.voxels) if self.scale is None else self.scale.split(size)
        parts = zip(self.voxels.split(size), self.homogeneous.split(size, 1), scales, strict=False)
        return [_Reader(*part) for part in parts if len(part[0])]

    def add(self, total, grids, matrices, displacements=None) -> None:
        """Add to the flat `total` what (b, size, size) grids hold at the displaced voxels.

        `matrices` (b, 2, 4) take homogeneous points to the coordinates of `grid_sample`.
        """
        places = (matrices.reshape(-1, 4) @ self.homogeneous).view(len(matrices), 2, -1)
        if displacements is not None:
            displacements = displacements if self.scale is None else displacements * self.scale
            places += torch.bmm(matrices[:, :, :3], displacements.transpose(1, 2))
        values = F.grid_sample(grids[:, None], places.transpose(1, 2)[:, None], align_corners=True)
        total[self.voxels] += values.sum((0, 1, 2))


def _reading_matrices(matrices: torch.Tensor, projector: Projector) -> torch.Tensor:
    """Return (b, 2, 4) matrices from homogeneous points (A) to -1 ... 1 across the projector's grid.

    The same places as `Projector.image_points` and `read_bilinear` give together.
    """
    unit = 2 / (projector.grid_size - 1)
    centre = matrices.new_full((len(matrices), 2, 1), projector.grid_size // 2 * unit - 1)
    return torch.cat([matrices[:, :2] * (projector.oversampling / projector.pixel_size * unit), centre], 2)


def _chunk(batch_size: int, device: torch.device | str) -> int:
    """Return how many points to read at once for a batch of particles.

    On a CPU what is at hand then fits its cache; on a GPU a step outlasts its launch.
    """
    size = 2**24 if torch.device(device).type == "cpu" else 2**29
    return max(1024, size // (batch_size * _BYTES_PER_READ))


def _half_ball(box: int, device) -> torch.Tensor:
    """Return (box, 2 box, 2 box) bool: the differences of voxels that the kernel is read at, z from 0 on.

    Those of two points of the inscribed sphere; beyond, the point spread has faded.
    """
    return inscribed_sphere(2 * box, device, radius=box - 1)[box:]


def _mirror(half: torch.Tensor) -> torch.Tensor:
    """Return the (2 box, 2 box, 2 box) kernel K(x) = K(-x) of its half z >= 0, origin at index box."""
    box = len(half)
    kernel = half.new_zeros(2 * box, 2 * box, 2 * box)
    kernel[box:] = half
    # index -i of an axis with its origin at `box` is 2 box - i; index 0 has no mirror image and lies outside
    kernel[1:box, 1:, 1:] = half[1:, 1:, 1:].flip(0, 1, 2)
    return kernel
