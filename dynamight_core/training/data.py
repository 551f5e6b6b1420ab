"""The data of a training: prepared images, transfer functions and poses of particles."""

import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from dynamight_core.groups import neighbours
from dynamight_core.image_series import ImageSeries, at_once, images_of, per_image, per_particle
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import crop_fourier, image_to_fourier, translation_phases
from dynamight_core.imaging.poses import rotvec_to_rotmat
from dynamight_core.parallel import check_stopped
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.shared import shared_halves


@dataclass
class Batch:
    """The b images of p particles; b = p where each particle has one image.

    Parameters
    ----------
    rows
        (p,) particles.
    images
        (b, box, box) prepared images.
    transforms
        (b, box, box//2+1) their Fourier transforms.
    transfer
        (b, box, box//2+1) CTF, complex where there are odd aberrations.
    matrices
        (b, 3, 3) projection matrices.
    series
        which images show which of the p particles, one particle after the other; None if each has one.
    image_rows
        (b,) images among those of the whole set; the particles if None.
    """

    rows: torch.Tensor
    images: torch.Tensor
    transforms: torch.Tensor
    transfer: torch.Tensor
    matrices: torch.Tensor
    series: ImageSeries | None = None
    image_rows: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.rows)

    @property
    def numbers(self) -> torch.Tensor:
        """(b,) images among those of the whole set."""
        return self.rows if self.image_rows is None else self.image_rows

    def per_image(self, values: torch.Tensor) -> torch.Tensor:
        """Return (b, ...) the values of each image's particle, from those (p, ...) of particles."""
        return per_image(self.series, values)

    def per_particle(self, values: torch.Tensor) -> torch.Tensor:
        """Return the (p, ...) sums over each particle's images of (b, ...) values."""
        return per_particle(self.series, values)

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        """Return (p, m) all numbers of each particle's images, from (b, k); 0 where a particle has fewer images."""
        return joined(self.series, values)

    @property
    def frames(self) -> torch.Tensor | None:
        """(b, 3, 3) the matrix of the first image of each image's particle; None if each particle has one image."""
        return None if self.series is None else self.per_image(self.matrices[self.series.first])

    def within(self, weights: torch.Tensor) -> "Batch":
        """Return the batch with the low frequencies that (size, size//2+1) weights are of."""
        size = len(weights)
        if size == self.transforms.shape[-2]:
            return self
        return replace(self, transforms=crop_fourier(self.transforms, size), transfer=crop_fourier(self.transfer, size))


def joined(series: ImageSeries | None, values: torch.Tensor) -> torch.Tensor:
    """Return (p, m) all numbers of each particle's images, from (b, k); 0 where a particle has fewer images."""
    if series is None:
        return values
    most = int(series.counts.max())
    if most * len(series) == series.n_images:
        return values.reshape(len(series), -1)
    padded = values.new_zeros(len(series), most, values.shape[1])
    padded[series.owner, series.rank] = values
    return padded.flatten(1)


class Batches(Protocol):
    """Images of a particle set, in their given or refined poses."""

    @property
    def series(self) -> ImageSeries | None:
        """Whose images they are; None if each particle has one."""

    def batch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of (b,) `rows`."""


def changed_poses(
    changes: torch.Tensor,
    matrices: torch.Tensor,
    transfer: torch.Tensor,
    extent: float,
    frames: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (b, 3, 3) matrices rotated by (b, 5) pose changes, and transfer functions with their shifts.

    Changes are rotation vectors (radians) and shifts (A). Transfer functions are (b, box, box//2+1), of images of an
    extent in A. Those of particles of several images are in the frame of an image whose (b, 3, 3) matrices are given.
    """
    size = transfer.shape[-2]
    rotations, shifts = rotvec_to_rotmat(changes[:, :3]), changes[:, 3:]
    if frames is not None:
        tilts = matrices @ torch.linalg.inv(frames)
        rotations = tilts @ rotations @ torch.linalg.inv(tilts)
        shifts = (tilts[:, :2, :2] @ shifts[..., None])[..., 0]
    phases = translation_phases(shifts * (size / extent), size)
    return rotations @ matrices, transfer * phases


class TrainingImages:
    """Batches of a particle set at the working box.

    Parameters
    ----------
    images
        `ImageCache`, or an object whose ``images(rows)`` are (b, box, box) float32 on `device`.
    ctf
        of all n images.
    matrices
        (n, 3, 3) projection matrices of all images.
    box, pixel_size
        of the prepared images.
    device
        of the batches.
    series
        whose images they are; None if each particle has one.
    noise
        (box//2+1,) fraction of noise that preparation left in images, per shell; 1 if None.
    """

    def __init__(
        self,
        images: Any,
        ctf: CtfParameters,
        matrices: torch.Tensor,
        box: int,
        pixel_size: float,
        device: torch.device | str = "cpu",
        series: ImageSeries | None = None,
        noise: torch.Tensor | None = None,
    ):
        self.series, self.noise = series, noise
        self.box, self.pixel_size, self.device = box, pixel_size, torch.device(device)
        self._images = images
        self._matrices = matrices.to(self.device)
        self._ctf = ctf
        self._transfer: torch.Tensor | None = None
        # Of refined poses, (n, 2) A.
        self._shifts: torch.Tensor | None = None
        needed = 2 * len(ctf) * box * (box // 2 + 1)
        # A CTF takes as long as the rest of a projection: keep it if it fits. Half precision has an error of 5e-4.
        group = neighbours()
        if group.agreed(not ctf.has_odd_aberrations and needed < group.size * available_memory() / 4):
            self._transfer = shared_halves((len(ctf), box, box // 2 + 1))
            for rows in group.split(torch.arange(len(ctf)), 1024):
                self._transfer[rows] = evaluate_ctf(ctf[rows], box, pixel_size).half()
            group.wait()

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self._ctf) if self.series is None else len(self.series)

    def batch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of (p,) particles."""
        if self.series is None:
            return self.image_batch(rows)
        numbers, index = self.series.images(rows)
        return replace(self.image_batch(numbers), rows=rows, series=ImageSeries(index), image_rows=numbers)

    def image_batch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of (b,) images, each taken by itself."""
        images = self.images(rows)
        return Batch(rows, images, image_to_fourier(images), self.transfer(rows), self._matrices[rows])

    def at_once(self, number: int) -> int:
        """Return how many particles have about a number of images, at least one."""
        return at_once(self.series, number)

    def images_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (b,) images of (p,) particles."""
        return images_of(self.series, rows)

    def posed(self, changes: torch.Tensor) -> "TrainingImages":
        """Return the same images in poses that (n, 5) changes are applied to: rotations (radians) and shifts (A).

        Only where each particle has one image.
        """
        posed = copy.copy(self)
        posed._matrices = rotvec_to_rotmat(changes[:, :3].to(self.device)) @ self._matrices
        posed._shifts = changes[:, 3:].to(self.device)
        return posed

    def close(self) -> None:
        """Free the images and any file that holds them."""
        self._images.close()

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (b, box, box) images by their (b,) numbers."""
        check_stopped()
        return self._images.images(rows)

    def transfer(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transfer functions of (b,) images, with the phases of refined shifts."""
        if self._transfer is not None:
            transfer = self._transfer[rows].to(self.device).float()
        else:
            transfer = evaluate_ctf(self._ctf[rows], self.box, self.pixel_size).to(self.device)
        return self.shifted(transfer, rows)

    def shifted(self, transfer: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return (b, box, box//2+1) transfer functions of (b,) images with the phases of their refined shifts."""
        if self._shifts is None:
            return transfer
        return transfer * translation_phases(self._shifts[rows] / self.pixel_size, self.box)
