"""Weighted backprojection through a deformation, as the exact adjoint of the projection.

Every voxel x is a pseudo-atom. The image of a map f is made by spreading f(x) at A (x + delta(x)), so its
adjoint filters the image with the CTF and *reads* it there: only the forward field is needed, one bilinear read
per voxel and particle, and no volume per particle. The denominator comes from the same operator: the point
spread irfft(|CTF|^2) of every particle, read by the same rule at A x for all differences x of two voxels, is the
kernel that the map was convolved with where nothing moves. Differences beyond half the box are left out: a box of
images does not know their power spectrum any finer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from dynamight_core.errors import InputError
from dynamight_core.imaging.fourier import (
    crop_fourier,
    expand_shells,
    fourier_to_volume,
    image_to_fourier,
    shell_means,
    shells,
    volume_to_fourier,
)
from dynamight_core.imaging.projector import Projector, kernel_correction

OVERSAMPLING = 2
# Power of a shell that counts as none, as a fraction of what the strongest shell's slices would leave in it
_EMPTY = 1e-3
# Share of half the box from which on the kernel fades out.
_FADE = 0.75
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
    rigid
        (box, box, box) the same without deformation.
    kernel
        (box, box, box) point spread of the undeformed case, faded out towards half the box; None if not asked for.
    n_particles
        how many are summed.
    """

    numerator: torch.Tensor
    rigid: torch.Tensor
    kernel: torch.Tensor | None
    n_particles: int

    def __add__(self, other: "BackprojectionSums") -> "BackprojectionSums":
        """Return the sums over both sets of particles."""
        return BackprojectionSums(
            self.numerator + other.numerator, self.rigid + other.rigid,
            None if self.kernel is None else self.kernel + other.kernel, self.n_particles + other.n_particles,
        )  # fmt: skip


class ParticleData:
    """What a reconstruction knows of its particles: images, transfer functions, poses and noise.

    Parameters
    ----------
    images
        gives the (b, box, box) prepared images (centred, not masked) of particle indices (b,).
    ctf
        gives their (b, box, box//2+1) transfer functions, real or complex.
    matrices
        (n, 3, 3) or (n, 2, 3) ``x_image = A x_volume``, magnification folded in; rows are what indices name.
    box, pixel_size
        of images and map, pixels and A; box even.
    weights
        (box//2+1,) factor on every shell of the data term, one over the noise power; 1 if None.
    device
        where to work.
    """

    def __init__(self, images, ctf, matrices, box, pixel_size, weights=None, device="cpu"):
        if box % 2:
            raise InputError(f"the working box is {box} pixels; choose an even number")
        self._images, self._ctf, self._matrices = images, ctf, matrices
        self.box, self.pixel_size, self.device = box, pixel_size, torch.device(device)
        self.projector = Projector(box, pixel_size, OVERSAMPLING)
        # Rotated, the corners of an image's transform would reach beyond the map's Nyquist and fold back into it.
        self.weights = (shells(box, 2, self.device) <= box // 2).float()
        if weights is not None:
            self.weights = self.weights * expand_shells(weights.to(self.device), box)

    def poses(self, indices: torch.Tensor) -> torch.Tensor:
        """Return (b, 2, 4) matrices from homogeneous points (A) to pixels of the projector's grid, origin at index 0.

        The same places as `Projector.image_points` gives.
        """
        matrices = self._matrices[indices].to(self.device).float()[:, :2]
        centre = matrices.new_full((len(matrices), 2, 1), float(self.projector.grid_size // 2))
        return torch.cat([matrices * (self.projector.oversampling / self.pixel_size), centre], 2)

    def transfer(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transfer functions."""
        return self._ctf(indices).to(self.device)

    def transforms(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transforms of the images."""
        return image_to_fourier(self._images(indices).to(self.device).float())

    def images_of(self, grid: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transforms of (b, grid, grid) images that points were spread into.

        The transpose of `Projector.reading_grid`.
        """
        size = self.projector.grid_size
        correction = kernel_correction(self.box, self.projector.oversampling, grid.device)
        return crop_fourier(image_to_fourier(grid), size, self.box) * correction

    def power(self, transfer: torch.Tensor) -> torch.Tensor:
        """Return the weighted squared modulus of transfer functions."""
        squared = transfer.abs().square() if transfer.is_complex() else transfer.square()
        return squared * self.weights


class ModalField:
    """A deformation as a sum of a few fields: delta_i(x) = sum_k c_ik phi_k(x); its latents are coordinates (n, K).

    Parameters
    ----------
    fields
        gives phi, (K, m, 3), at (m, 3) points (A). With c in A, phi has no unit.
    """

    def __init__(self, fields: Callable[[torch.Tensor], torch.Tensor]):
        self.fields = fields

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, K) coordinates to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        fields = self.fields(points)
        return lambda coordinates: torch.tensordot(coordinates, fields, dims=1)


class VoxelReader:
    """Voxels of a grid, read in particle images or spread into them, moved by a field or at rest.

    Parameters
    ----------
    mask
        (z, y, x) bool, the voxels.
    origin
        (z, y, x) index of the grid's origin.
    pixel_size
        A.
    field
        deformation, or None.
    scale
        (z, y, x) factor on displacements, None for 1.
    """

    def __init__(self, mask: torch.Tensor, origin, pixel_size: float, field: Field | None = None, scale=None):
        places = mask.nonzero()
        # One product with (2 b, 4) matrices rotates, scales and shifts the points for all particles, many times as
        # fast as a batch of thin products; the fields of a modal deformation are further rows of it.
        rows = torch.ones(4, len(places), device=mask.device)
        for axis, start in enumerate(reversed(origin)):
            rows[axis] = (places[:, 2 - axis] - start) * pixel_size
        factor = None
        if field is not None and scale is not None and scale.is_floating_point():
            factor = scale[mask][:, None]
        self._set(mask.flatten().nonzero()[:, 0], rows, field, factor)

    def _set(self, voxels, rows, field, factor):
        self.voxels, self._rows, self.field, self.factor = voxels, rows, field, factor
        self._evaluate = None

    def __len__(self) -> int:
        return len(self.voxels)

    @property
    def points(self) -> torch.Tensor:
        """(m, 3) x, y, z in A."""
        return self._rows[:3].T.contiguous()

    def split(self, size: int) -> list["VoxelReader"]:
        """Return readers of at most `size` voxels each."""
        parts = []
        for start in range(0, len(self), size):
            part, chosen = object.__new__(VoxelReader), slice(start, start + size)
            factor = None if self.factor is None else self.factor[chosen]
            part._set(self.voxels[chosen], self._rows[:4, chosen], self.field, factor)
            parts.append(part)
        return parts

    def prepare(self) -> None:
        """Evaluate what of the field does not depend on the particle."""
        if self.field is None or self._evaluate is not None:
            return
        if isinstance(self.field, ModalField):
            fields = self.field.fields(self.points)
            if self.factor is not None:
                fields = fields * self.factor
            self._rows = torch.cat([self._rows, fields.transpose(1, 2).flatten(0, 1)])
            self._evaluate = True
        else:
            self._evaluate = self.field.evaluator(self.points)

    def release(self) -> None:
        """Let go of what `prepare` made."""
        self._rows, self._evaluate = self._rows[:4], None

    def image_points(self, poses: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        """Return (b, m, 2) where the voxels lie in b images, pixels of the grid that `poses` (b, 2, 4) lead to."""
        rows, b = poses, len(poses)
        if isinstance(self.field, ModalField):
            moved = latents[:, None, :, None] * poses[:, :, None, :3]  # (b, 2, K, 3)
            rows = torch.cat([poses, moved.flatten(2)], 2)
        places = (rows.reshape(2 * b, -1) @ self._rows).view(b, 2, -1)
        if self.field is not None and not isinstance(self.field, ModalField):
            displacements = self._evaluate(latents)
            if self.factor is not None:
                displacements = displacements * self.factor
            places += torch.bmm(poses[:, :, :3], displacements.transpose(1, 2))
        return places.transpose(1, 2)


@torch.no_grad()
def accumulate(
    data: ParticleData,
    indices: torch.Tensor,
    *,
    field: Field | None = None,
    latents: torch.Tensor | None = None,
    region: torch.Tensor | None = None,
    kernel: bool = True,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    memory: int = 2**30,
) -> BackprojectionSums:
    """Sum the backprojections of particles with and without deformation, and the kernel of the undeformed case.

    Every voxel of the box is read, those outside `region` undeformed, so that the solvent keeps its noise and the
    maps stay unmasked. Without a field nothing moves, and both sums are one.

    Parameters
    ----------
    data
        images, transfer functions and poses of the particles.
    indices
        (p,) particles to sum.
    field, latents
        deformation field and its (n, d) latents. Its evaluator is made once for a chunk of points.
    region
        (box, box, box) bool, or weights in [0, 1] that displacements are multiplied by (a soft edge); the
        inscribed sphere if None.
    kernel
        whether to sum it too; it depends on poses and CTFs alone, and takes most of the time.
    batch_size
        particles at a time.
    progress
        called with the number of particles done and in all.
    memory
        bytes that evaluators of the field may hold. Larger maps take several passes over the particles.

    Raises
    ------
    InputError
        if there are no particles, or the region has another box.
    """
    indices = torch.as_tensor(indices, device="cpu").long()
    box, device = data.box, data.device
    if not len(indices):
        raise InputError("there are no particles to reconstruct from; check the half-sets and the selection")
    if field is not None and latents is None:
        raise ValueError("a field needs the latents of the particles")
    region = check_region(region, box).to(device)
    moving = region > 0 if field is not None else torch.zeros_like(region, dtype=torch.bool)

    centre = (box // 2,) * 3
    chunk = chunk_size(batch_size, device)
    # Slabs of a few planes differ by a shift along z: one reader serves them all, and a large map takes no room.
    depth = max(d for d in range(1, box + 1) if box % d == 0 and (d == 1 or d * box**2 <= chunk))
    whole = VoxelReader(torch.ones(depth, box, box, dtype=torch.bool, device=device), (0, *centre[1:]), data.pixel_size)
    slab = whole.split(chunk)
    ball = VoxelReader(_half_ball(box, device), (0, *centre[1:]), data.pixel_size).split(chunk) if kernel else []
    movers = VoxelReader(moving, centre, data.pixel_size, field, region).split(max(1, memory // _BYTES_PER_POINT))
    rigid, half_kernel = torch.zeros(box**3, device=device), torch.zeros(box**3 // 2, device=device)
    deformed = torch.zeros(box**3, device=device)
    n_passes = max(1, len(movers))
    for number in range(n_passes):
        readers = movers[number].split(chunk) if movers else []
        for reader in readers:
            reader.prepare()
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            poses, transfer = _unit_poses(data.poses(batch), data.projector.grid_size), data.transfer(batch)
            grid = data.projector.reading_grid(data.transforms(batch) * transfer.conj() * data.weights)[:, None]
            for reader in readers:
                points = reader.image_points(poses, latents[batch].to(device))
                deformed[reader.voxels] += _read(grid, points)
            if number == 0:
                for plane in range(0, box, depth):
                    shifted = poses.clone()
                    shifted[:, :, 3] += poses[:, :, 2] * ((plane - centre[0]) * data.pixel_size)
                    for number_in_slab, reader in enumerate(slab):
                        first = plane * box**2 + number_in_slab * chunk
                        rigid[first : first + len(reader)] += _read(grid, reader.image_points(shifted))
                if kernel:
                    spread = data.projector.reading_grid(data.power(transfer))[:, None]
                    # The first row and column have no mirror image; the kernel has one everywhere.
                    spread[..., 0, :] = spread[..., 0] = 0
                    for reader in ball:
                        half_kernel[reader.voxels] += _read(spread, reader.image_points(poses))
            if progress is not None:
                progress(number * len(indices) + start + len(batch), n_passes * len(indices))
    rigid, deformed = rigid.view((box,) * 3), deformed.view((box,) * 3)
    deformed = torch.where(moving, deformed, rigid)
    full_kernel = _whole_kernel(half_kernel.view(box // 2, box, box)) if kernel else None
    return BackprojectionSums(deformed, rigid, full_kernel, len(indices))


def _unit_poses(poses: torch.Tensor, size: int) -> torch.Tensor:
    """Return poses that lead to -1 ... 1 across a grid, as `grid_sample` wants it, in the place of its pixels.

    Spares a pass over all points of all particles.
    """
    poses = poses * (2 / (size - 1))
    poses[:, :, 3] -= 1
    return poses


def _read(grid: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the (m,) sums over images of what (b, 1, size, size) grids hold at (b, m, 2) points, -1 ... 1."""
    return F.grid_sample(grid, points[:, None], align_corners=True).sum((0, 1, 2))


def fourier_denominator(kernel: torch.Tensor) -> torch.Tensor:
    """Return the real (box, box, box//2+1) transform of a (box, box, box) kernel of `accumulate`."""
    # The kernel is symmetric, so its transform is real; fading it out makes it slightly negative in places.
    return volume_to_fourier(kernel).real.clamp(min=0)


def denominator_floor(denominator: torch.Tensor, regularisation: float | torch.Tensor) -> torch.Tensor:
    """Return the (box//2+1,) floor of a denominator: a share of its shell means, more in shells that hold nothing.

    Parameters
    ----------
    denominator
        of `fourier_denominator`.
    regularisation
        share, one number or (box//2+1,).
    """
    means = shell_means(denominator, denominator.shape[0], 3)
    # Slices thin out as 1 / radius. A shell of far less power than that says (noise weights, an envelope) holds
    # little but what leaks into it from others where the numerator ends with the box.
    radius = torch.arange(len(means), device=means.device).clamp(min=0.5)
    return torch.maximum(regularisation * means, _EMPTY * (means * radius).max() / radius)


def solve(numerator: torch.Tensor, denominator: torch.Tensor, regularisation: float | torch.Tensor) -> torch.Tensor:
    """Return the (box, box, box) map [z, y, x]: a numerator divided by the denominator in Fourier space.

    Directions that few particles see are damped instead of amplified, and empty shells stay empty. The map is
    multiplied by 1 + `regularisation`, so that grey values are kept where the denominator is at its shell's mean: the
    map is not low-pass filtered.

    Parameters
    ----------
    numerator
        (box, box, box) of `BackprojectionSums`.
    denominator
        of `fourier_denominator`.
    regularisation
        what is added to the denominator, as a share of its mean over the shell, one number or (box//2+1,).
    """
    box = len(numerator)
    shares = torch.as_tensor(regularisation, dtype=torch.float32, device=numerator.device).expand(box // 2 + 1)
    floor = expand_shells(denominator_floor(denominator, shares), box, 3)
    return filter_volume(numerator, expand_shells(1 + shares, box, 3) / (denominator + floor))


def filter_volume(volume: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
    """Return a (box, box, box) volume whose transform is multiplied by (box, box, box//2+1) real numbers."""
    return fourier_to_volume(volume_to_fourier(volume) * transfer, len(volume))


def check_region(region: torch.Tensor | None, box: int) -> torch.Tensor:
    """Return the deforming region, the inscribed sphere if None.

    Raises
    ------
    InputError
        if it has another box.
    """
    region = inscribed_sphere(box) if region is None else region
    if tuple(region.shape) != (box,) * 3:
        raise InputError(
            f"the deforming region has {region.shape[0]} voxels a side, the map {box}; give one of the map's box"
        )
    return region


def inscribed_sphere(box: int, device: torch.device | str = "cpu", radius: float | None = None) -> torch.Tensor:
    """Return a (box, box, box) bool sphere about index box//2; `radius` in voxels, box//2 - 1 if None."""
    axis = torch.arange(box, device=device) - box // 2
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    return squared <= (box // 2 - 1 if radius is None else radius) ** 2


def chunk_size(batch_size: int, device: torch.device | str) -> int:
    """Return how many points to read at once for a batch of particles.

    On a CPU what is at hand then fits its cache; on a GPU a step outlasts its launch.
    """
    size = 2**24 if torch.device(device).type == "cpu" else 2**29
    return max(1024, size // (batch_size * _BYTES_PER_READ))


def _half_ball(box: int, device) -> torch.Tensor:
    """Return (box//2, box, box) bool: the differences of voxels that the kernel is read at, z from 0 on."""
    return inscribed_sphere(box, device)[box // 2 :]


def _whole_kernel(half: torch.Tensor) -> torch.Tensor:
    """Return the (box, box, box) kernel K(x) = K(-x) of its half z >= 0, faded out towards half the box."""
    middle, box = len(half), half.shape[-1]
    kernel = half.new_zeros(box, box, box)
    kernel[middle:] = half
    # index -i of an axis with its origin at the middle is box - i; index 0 has no mirror image and lies outside
    kernel[1:middle, 1:, 1:] = half[1:, 1:, 1:].flip(0, 1, 2)
    axis = torch.arange(box, device=half.device) - middle
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float().sqrt()
    edge = ((radius - _FADE * middle) / ((1 - _FADE) * middle)).clamp(0, 1)
    return kernel * (0.5 + 0.5 * torch.cos(torch.pi * edge))
