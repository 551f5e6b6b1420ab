"""Weighted backprojection through a deformation, as the exact adjoint of the projection.

Every voxel x is a pseudo-atom. The image of a map f spreads f(x) at A (x + delta(x)). The adjoint filters the image
with the CTF and *reads* it there: it needs the forward field alone, one bilinear read per moving voxel and particle,
and no volume per particle. Voxels at rest are summed as Fourier slices. The denominator belongs to the same operator:
without motion the map is convolved with a kernel, the point spread irfft(|CTF|^2) of every particle, read at A x for
all differences x of two voxels. Differences beyond half the box are omitted: images of one box do not resolve their
power spectrum more finely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dynamight_core.errors import InputError
from dynamight_core.groups import current_group
from dynamight_core.image_series import ImageSeries
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    image_to_fourier,
    plane_multiplicity,
    resize_fourier,
    shell_means,
    shells,
    volume_to_fourier,
)
from dynamight_core.imaging.geometry import Field, squared_radius
from dynamight_core.imaging.masks import raised_cosine, sphere
from dynamight_core.imaging.projector import Projector, kernel_correction
from dynamight_core.imaging.slices import SliceSums
from dynamight_core.imaging.voxels import Voxels, bordered, moving_voxels, passes_within

OVERSAMPLING = 2
# A shell with less power than this fraction of the strongest shell's (scaled to its radius) counts as empty.
_EMPTY = 1e-3
# Fraction of half the box beyond which the kernel fades out.
_FADE = 0.75


@dataclass
class BackprojectionSums:
    """Sums over particles; those of disjoint sets of particles add.

    Parameters
    ----------
    numerator
        (box, box, box) [z, y, x] CTF-filtered images read at every voxel's deformed position.
    rigid
        (box, box, box) the same without deformation.
    kernel
        (box, box, box) point spread without deformation, faded out towards half the box; None if not requested.
    n_particles
        number of particles in the sums.
    """

    numerator: torch.Tensor
    rigid: torch.Tensor
    kernel: torch.Tensor | None
    n_particles: int

    def __add__(self, other: "BackprojectionSums") -> "BackprojectionSums":
        """Return the sums over both sets of particles."""
        return BackprojectionSums(
            self.numerator + other.numerator,
            self.rigid + other.rigid,
            None if self.kernel is None or other.kernel is None else self.kernel + other.kernel,
            self.n_particles + other.n_particles,
        )


class ParticleData:
    """The data of a reconstruction: images, transfer functions, poses and noise of particles.

    Parameters
    ----------
    images
        returns the (b, box, box) prepared images (centred, not masked) of particle indices (b,).
    ctf
        returns their (b, box, box//2+1) transfer functions, real or complex.
    matrices
        (n, 3, 3) or (n, 2, 3) ``x_image = A x_volume`` including magnification, one per particle index.
    box, pixel_size
        of images and map, pixels and A; box even.
    weights
        (box//2+1,) factor on every shell of the data term, one over the noise power; 1 if None.
    device
        of all results.
    series
        whose images they are, if particles have several; indices are those of images.

    Raises
    ------
    InputError
        if the box is odd.
    """

    def __init__(
        self,
        images: Callable[[torch.Tensor], torch.Tensor],
        ctf: Callable[[torch.Tensor], torch.Tensor],
        matrices: torch.Tensor,
        box: int,
        pixel_size: float,
        weights: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
        series: ImageSeries | None = None,
    ):
        self.series = series
        if box % 2:
            raise InputError(f"the working box is {box} pixels; choose an even number")
        self._images, self._ctf, self._matrices = images, ctf, matrices
        self.box, self.pixel_size, self.device = box, pixel_size, torch.device(device)
        self.projector = Projector(box, pixel_size, OVERSAMPLING)
        # Once rotated, the corners of an image's transform would alias: they lie beyond the map's Nyquist.
        self.weights = (shells(box, 2, self.device) <= box // 2).float()
        if weights is not None:
            self.weights = self.weights * expand_shells(weights.to(self.device), box)

    def matrices(self, indices: torch.Tensor) -> torch.Tensor:
        """Return (b, 2, 3) ``x_image = A x_volume``."""
        return self._matrices[indices].to(self.device).float()[:, :2]

    def poses(self, indices: torch.Tensor) -> torch.Tensor:
        """Return (b, 2, 4) matrices from homogeneous points (A) to pixels of the projector's grid, from index 0."""
        return self.projector.poses(self.matrices(indices))

    def transfer(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transfer functions."""
        return self._ctf(indices).to(self.device)

    def transforms(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transforms of the images."""
        return image_to_fourier(self._images(indices).to(self.device).float())

    def images_of(self, grid: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transforms of (b, grid, grid) grids that points were spread on.

        The transpose of `Projector.reading_grid`.
        """
        size = self.projector.grid_size
        correction = kernel_correction(self.box, self.projector.oversampling, grid.device)
        return resize_fourier(image_to_fourier(grid), size, self.box) * correction

    def power(self, transfer: torch.Tensor) -> torch.Tensor:
        """Return the weighted squared modulus of transfer functions."""
        squared = transfer.abs().square() if transfer.is_complex() else transfer.square()
        return squared * self.weights


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
    """Sum the backprojections of particles with and without deformation, and the kernel without deformation.

    Voxels outside `region` are summed undeformed, so that the solvent keeps its noise and the maps stay unmasked.
    Without a field both sums are the same.

    Parameters
    ----------
    data
        images, transfer functions and poses of the particles.
    indices
        (p,) particles to sum.
    field, latents
        deformation field and its (n, d) latents. It is evaluated once for each part of the voxels.
    region
        (box, box, box) bool, or factors on displacements from 0 to 1 (a soft edge); the inscribed sphere if None.
    kernel
        whether to sum the kernel, which depends on poses and CTFs alone.
    batch_size
        particles at a time.
    progress
        called with the number of particles done and the total.
    memory
        bytes for values of the field. Larger maps take several passes over the particles.

    Raises
    ------
    InputError
        if there are no particles, or the box of the region differs.
    ValueError
        if there is a field but no latents.
    """
    return accumulate_groups(
        data,
        [indices],
        field=field,
        latents=latents,
        region=region,
        kernel=kernel,
        batch_size=batch_size,
        progress=progress,
        memory=memory,
    )[0]


@torch.no_grad()
def accumulate_groups(
    data: ParticleData,
    groups: Sequence[torch.Tensor],
    *,
    field: Field | None = None,
    latents: torch.Tensor | None = None,
    region: torch.Tensor | None = None,
    kernel: bool = True,
    known: BackprojectionSums | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    memory: int = 2**30,
) -> list[BackprojectionSums]:
    """Return the sums of each of several groups of particles; see `accumulate`. The field is evaluated once for all.

    `known` sums of the same data with another deformation, of one group, save those without deformation and the kernel.
    The `current_group` of processes shares the particles.
    """
    groups = [torch.as_tensor(group, device="cpu").long() for group in groups]
    together = current_group()
    shares = [together.shard(group) for group in groups]
    box, device, total = data.box, data.device, sum(map(len, shares))
    if not all(map(len, groups)):
        raise InputError("there are no particles to reconstruct from; check the half-sets and the selection")
    if field is not None and latents is None:
        raise ValueError("a field needs the latents of the particles")
    region = check_region(region, box).to(device)
    moving = region > 0 if field is not None else torch.zeros_like(region, dtype=torch.bool)

    # Beyond the inscribed sphere some views are missing, and no filter can make up for them.
    inside = sphere(box, device=device) | moving
    parts = []
    if field is not None and latents is not None and moving.any():
        voxels = Voxels(moving, (box // 2,) * 3, data.pixel_size, field, region)
        parts = moving_voxels(voxels, latents, batch_size)
    passes = passes_within(memory, parts)
    still = [_StillSums(data, inside, None if known is None else known.rigid) for _ in groups]
    deformed = [torch.zeros((box,) * 3, device=device) for _ in groups]
    done = 0
    for number, movers in enumerate(passes):
        for share, resting, summed in zip(shares, still, deformed, strict=True):
            for batch in share.split(batch_size) if len(share) else ():
                transfer = data.transfer(batch)
                transforms = data.transforms(batch) * transfer.conj() * data.weights
                if number == 0 and known is None:
                    resting.add(batch, transforms, data.power(transfer))
                if movers:
                    poses, images = data.poses(batch), bordered(data.projector.reading_grid(transforms))
                    chosen = None if latents is None else latents[batch].to(device)
                    for part in movers:
                        part.read(images, part.place(poses, chosen), summed)
                done += len(batch)
                if progress is not None:
                    progress(done, len(passes) * total)
            if number == 0 and known is None:
                resting.finish(kernel)
        for part in movers:
            part.release()
    for resting, summed in zip(still, deformed, strict=True):
        together.sum_(summed, *(resting.sums if known is None else ()))
    return [
        BackprojectionSums(torch.where(moving, summed, resting.rigid), resting.rigid, resting.kernel, len(group))
        for group, resting, summed in zip(groups, still, deformed, strict=True)
    ]


class _StillSums:
    """Sums without deformation: `rigid` and `kernel` of `BackprojectionSums`, once finished, or a given `rigid`."""

    kernel: torch.Tensor | None = None

    def __init__(self, data: ParticleData, inside: torch.Tensor, rigid: torch.Tensor | None = None):
        self._data, self._inside, self._rigid = data, inside, rigid
        self._slices: SliceSums | None = None
        self._floor = torch.zeros((), device=data.device)
        # Reads of the finer grid have more power than slices: the correction of the bilinear kernel amplifies its
        # aliases, which fall anywhere in the map's transform. They add a constant to the denominator of reads.
        aliases = kernel_correction(data.box, OVERSAMPLING, data.device) - 1
        self._aliases = aliases * plane_multiplicity(data.box, data.device) / data.box**2

    @property
    def rigid(self) -> torch.Tensor:
        """(box, box, box), once finished or given."""
        assert self._rigid is not None
        return self._rigid

    @property
    def sums(self) -> list[torch.Tensor]:
        """What was summed, once finished."""
        return [self.rigid] if self.kernel is None else [self.rigid, self.kernel]

    def add(self, batch: torch.Tensor, transforms: torch.Tensor, power: torch.Tensor) -> None:
        self._slices = self._slices or SliceSums(self._data.box, self._data.device)
        self._slices.add(self._data.matrices(batch), transforms, power)
        self._floor += (power * self._aliases)[:, :, :-1].sum()

    def finish(self, kernel: bool) -> None:
        """Free the slices, which take more memory than their sum."""
        self._slices = self._slices or SliceSums(self._data.box, self._data.device)
        self._rigid = self._slices.images() * self._inside
        if kernel:
            self.kernel = _faded(self._slices.point_spread())
            self.kernel[(self._data.box // 2,) * 3] += self._floor
        self._slices = None


def fourier_denominator(kernel: torch.Tensor) -> torch.Tensor:
    """Return the real (box, box, box//2+1) transform of a (box, box, box) kernel of `accumulate`."""
    # The kernel is symmetric, so its transform is real. Fading the kernel out makes some values slightly negative.
    return volume_to_fourier(kernel).real.clamp(min=0)


def denominator_floor(denominator: torch.Tensor, regularisation: float | torch.Tensor) -> torch.Tensor:
    """Return the (box//2+1,) floor of a denominator: a fraction of its shell means, and more in empty shells.

    Parameters
    ----------
    denominator
        (box, box, box//2+1) of `fourier_denominator`.
    regularisation
        fraction of the shell means, one number or (box//2+1,).
    """
    means = shell_means(denominator, denominator.shape[0], 3)
    # The density of slices falls as 1 / radius. A shell with far less power (noise weights, an envelope) has little
    # but leakage from other shells, because the numerator ends with the box.
    radius = torch.arange(len(means), device=means.device).clamp(min=0.5)
    return torch.maximum(regularisation * means, _EMPTY * (means * radius).max() / radius)


def solve(numerator: torch.Tensor, denominator: torch.Tensor, regularisation: float | torch.Tensor) -> torch.Tensor:
    """Return the (box, box, box) map [z, y, x]: the numerator divided by the denominator in Fourier space.

    Directions that few particles cover are damped instead of amplified, and empty shells stay empty. The map is
    multiplied by 1 + `regularisation`, which keeps grey values where the denominator equals its shell's mean: the map
    is not low-pass filtered.

    Parameters
    ----------
    numerator
        (box, box, box) of `BackprojectionSums`.
    denominator
        (box, box, box//2+1) of `fourier_denominator`.
    regularisation
        added to the denominator, as a fraction of its mean over the shell; one number or (box//2+1,).
    """
    box = len(numerator)
    fractions = torch.as_tensor(regularisation, dtype=torch.float32, device=numerator.device).expand(box // 2 + 1)
    floor = expand_shells(denominator_floor(denominator, fractions), box, 3)
    return filter_volume(numerator, expand_shells(1 + fractions, box, 3) / (denominator + floor))


def filter_volume(volume: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
    """Return a (box, box, box) volume with its transform multiplied by (box, box, box//2+1) real numbers."""
    return fourier_to_volume(volume_to_fourier(volume) * transfer, len(volume))


def check_region(region: torch.Tensor | None, box: int) -> torch.Tensor:
    """Return the (box, box, box) deforming region, the inscribed sphere if None.

    Raises
    ------
    InputError
        if its box differs.
    """
    region = sphere(box) if region is None else region
    if tuple(region.shape) != (box,) * 3:
        raise InputError(
            f"the deforming region has {region.shape[0]} voxels a side, the map {box}; give one of the map's box"
        )
    return region


def _faded(kernel: torch.Tensor) -> torch.Tensor:
    """Fade a (box, box, box) kernel out towards half the box."""
    middle = len(kernel) // 2
    radius = squared_radius(len(kernel), kernel.device).sqrt_()
    return kernel * raised_cosine((radius - _FADE * middle) / ((1 - _FADE) * middle))
