"""The data of a training: prepared images, transfer functions and poses by row."""

import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from dynamight_core.groups import neighbours
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import crop_fourier, image_to_fourier, translation_phases
from dynamight_core.imaging.poses import rotvec_to_rotmat
from dynamight_core.parallel import check_stopped
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.shared import shared_halves


@dataclass
class Batch:
    """Images of b particles.

    Parameters
    ----------
    rows
        (b,) rows of the particle table.
    images
        (b, box, box) prepared images.
    transforms
        (b, box, box//2+1) their Fourier transforms.
    transfer
        (b, box, box//2+1) CTF, complex where there are odd aberrations.
    matrices
        (b, 3, 3) projection matrices.
    """

    rows: torch.Tensor
    images: torch.Tensor
    transforms: torch.Tensor
    transfer: torch.Tensor
    matrices: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def within(self, weights: torch.Tensor) -> "Batch":
        """Return the batch with the low frequencies that (size, size//2+1) weights are of."""
        size = len(weights)
        if size == self.transforms.shape[-2]:
            return self
        return replace(self, transforms=crop_fourier(self.transforms, size), transfer=crop_fourier(self.transfer, size))


class Batches(Protocol):
    """Images of a particle set, in their given or refined poses."""

    def batch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of (b,) `rows`."""


def changed_poses(
    changes: torch.Tensor, matrices: torch.Tensor, transfer: torch.Tensor, extent: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (b, 3, 3) matrices rotated by (b, 5) pose changes, and transfer functions with their shifts.

    Changes are rotation vectors (radians) and shifts (A). Transfer functions are (b, box, box//2+1), of images of an
    extent in A.
    """
    size = transfer.shape[-2]
    phases = translation_phases(changes[:, 3:] * (size / extent), size)
    return rotvec_to_rotmat(changes[:, :3]) @ matrices, transfer * phases


class TrainingImages:
    """Batches of a particle set at the working box.

    Parameters
    ----------
    images
        `ImageCache`, or an object whose ``images(rows)`` are (b, box, box) float32 on `device`.
    ctf
        of all particles.
    matrices
        (n, 3, 3) projection matrices of all particles.
    box, pixel_size
        of the prepared images.
    device
        of the batches.
    """

    def __init__(
        self,
        images: Any,
        ctf: CtfParameters,
        matrices: torch.Tensor,
        box: int,
        pixel_size: float,
        device: torch.device | str = "cpu",
    ):
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
        return len(self._ctf)

    def batch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of (b,) `rows`."""
        images = self.images(rows)
        return Batch(rows, images, image_to_fourier(images), self.transfer(rows), self._matrices[rows])

    def posed(self, changes: torch.Tensor) -> "TrainingImages":
        """Return the same images in poses that (n, 5) changes are applied to: rotations (radians) and shifts (A)."""
        posed = copy.copy(self)
        posed._matrices = rotvec_to_rotmat(changes[:, :3].to(self.device)) @ self._matrices
        posed._shifts = changes[:, 3:].to(self.device)
        return posed

    def close(self) -> None:
        """Free the images and any file that holds them."""
        self._images.close()

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box) images of (b,) `rows`."""
        check_stopped()
        return self._images.images(rows)

    def transfer(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transfer functions of (b,) `rows`, with the phases of refined shifts."""
        if self._transfer is not None:
            transfer = self._transfer[rows].to(self.device).float()
        else:
            transfer = evaluate_ctf(self._ctf[rows], self.box, self.pixel_size).to(self.device)
        return self.shifted(transfer, rows)

    def shifted(self, transfer: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return (b, box, box//2+1) transfer functions of (b,) `rows` with the phases of their refined shifts."""
        if self._shifts is None:
            return transfer
        return transfer * translation_phases(self._shifts[rows] / self.pixel_size, self.box)
