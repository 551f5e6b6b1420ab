"""Least squares: the map that explains the images best through their deformations (paper, Eq. 6).

    (sum_i P_i* C_i^2 P_i / Sigma + R) f = sum_i P_i* C_i y_i / Sigma

on the voxels around the molecule, by conjugate gradients, with the projector's exact adjoint P*, the noise's spectrum
Sigma and R = 1 / tau^2 in every shell. Weighted backprojection replaces the operator by the one without deformation,
which is diagonal in Fourier space; here that is the preconditioner and the start.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynamight_core.imaging.backprojection import ParticleData, denominator_floor, filter_volume
from dynamight_core.imaging.fourier import expand_shells, plane_multiplicity
from dynamight_core.imaging.voxels import Field, bordered, moving_voxels


class DeformedProjection:
    """The images of a map whose voxels in a region move, and their exact adjoint.

    Parameters
    ----------
    data
        poses, transfer functions and noise of the particles.
    region
        (box, box, box) bool or weights in [0, 1]: voxels above zero belong to the map, displacements are multiplied.
    field, latents
        deformation and its (n, d) latents; None for a rigid map.
    batch_size
        particles at a time.
    """

    def __init__(self, data: ParticleData, region, field: Field | None = None, latents=None, batch_size=32):
        self.data, self.latents = data, latents
        self.region = region.to(data.device)
        self.shape = self.region > 0
        self.parts = moving_voxels(
            self.shape, (data.box // 2,) * 3, data.pixel_size, field, self.region, latents, batch_size
        )

    def __len__(self) -> int:
        return int(self.shape.sum())

    def _placed(self, batch):
        latents = None if self.latents is None else self.latents[batch].to(self.data.device)
        poses = self.data.poses(batch)
        return ((part, part.place(poses, latents)) for part in self.parts)

    def project(self, values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return (b, box, box//2+1) images, without the CTF, of (m,) voxels for (b,) particles."""
        size = self.data.projector.grid_size
        volume = self.volume(values)
        return self.data.images_of(sum(part.spread(volume, placed, size) for part, placed in self._placed(batch)))

    def backproject(self, transforms: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return (m,) sums over the images of (b,) particles at the voxels; the adjoint of `project`."""
        images = bordered(self.data.projector.reading_grid(transforms))
        total = torch.zeros(self.shape.shape, device=images.device)
        for part, placed in self._placed(batch):
            part.read(images, placed, total)
        return total[self.shape]

    def volume(self, values: torch.Tensor) -> torch.Tensor:
        """Return the (box, box, box) map of (m,) voxels."""
        volume = torch.zeros(self.shape.shape, device=values.device)
        volume[self.shape] = values
        return volume

    @torch.no_grad()
    def numerator(self, indices: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return the (box, box, box) sum_i P_i* C_i y_i / Sigma."""
        total = torch.zeros(int(self.shape.sum()), device=self.shape.device)
        for batch in indices.split(batch_size):
            transfer = self.data.transfer(batch)
            total += self.backproject(self.data.transforms(batch) * transfer.conj() * self.data.weights, batch)
        return self.volume(total)

    @torch.no_grad()
    def normal(self, values: torch.Tensor, indices: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return (m,) sum_i P_i* C_i^2 P_i / Sigma of (m,) voxels."""
        total = torch.zeros_like(values)
        for batch in indices.split(batch_size):
            images = self.project(values, batch) * self.data.power(self.data.transfer(batch))
            total += self.backproject(images, batch)
        return total

    @torch.no_grad()
    def residuals(self, values: torch.Tensor, indices: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return each particle's sum |y - C P f|^2 / Sigma for (m,) voxels."""
        box, rows = self.data.box, []
        weights = self.data.weights * plane_multiplicity(box, self.data.device) / box**2
        for batch in indices.split(batch_size):
            predicted = self.project(values, batch) * self.data.transfer(batch)
            rows.append(((self.data.transforms(batch) - predicted).abs().square() * weights).sum((1, 2)))
        return torch.cat(rows)


@dataclass(frozen=True)
class LeastSquares:
    """A solution.

    Parameters
    ----------
    volume
        (box, box, box); zero outside the region.
    steps
        of conjugate gradients that it took.
    residuals
        mean of held-out particles at the start and after every step tried.
    """

    volume: torch.Tensor
    steps: int
    residuals: tuple[float, ...]


@torch.no_grad()
def least_squares(
    operator: DeformedProjection,
    numerator: torch.Tensor,
    denominator: torch.Tensor,
    regularisation: torch.Tensor | float,
    indices: torch.Tensor,
    held_out: Callable[[torch.Tensor], torch.Tensor] | None,
    *,
    most_steps: int = 8,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> LeastSquares:
    """Solve for a half-map by preconditioned conjugate gradients, from weighted backprojection on.

    Parameters
    ----------
    operator
        the deformed projection of these particles.
    numerator, denominator
        of `accumulate` with the same field, region and particles.
    regularisation
        R as a share of the denominator's shell means, one number or (box//2+1,): Sigma / (particles tau^2).
    indices
        (p,) the particles.
    held_out
        gives the (v,) residuals of particles that are not among them for (m,) voxels; a step that does not lower
        their mean by more than its standard error is not taken, and none after it. `most_steps` are taken if None.
    """
    box = len(numerator)
    shape = operator.shape
    shares = torch.as_tensor(regularisation, dtype=torch.float32, device=denominator.device).expand(box // 2 + 1)
    penalty = expand_shells(denominator_floor(denominator, shares), box, 3)
    inverse = 1 / (denominator + penalty)

    def filtered(values, transfer):
        return filter_volume(operator.volume(values), transfer)[shape]

    def apply(values):
        return operator.normal(values, indices, batch_size) + filtered(values, penalty)

    target = numerator[shape]
    values = filtered(target, inverse)
    residual = target - apply(values)
    current = None if held_out is None else held_out(values)
    residuals = [] if held_out is None else [float(current.mean())]
    direction, before, taken = None, None, 0
    for step in range(most_steps):
        corrected = filtered(residual, inverse)
        product = residual @ corrected
        direction = corrected if direction is None else corrected + (product / before) * direction
        before = product
        image = apply(direction)
        length = product / (direction @ image)
        candidate = values + length * direction
        if held_out is not None:
            after = held_out(candidate)
            residuals.append(float(after.mean()))
            fall = current - after
            if fall.mean() <= fall.std() / len(fall) ** 0.5:
                break
            current = after
        values, residual, taken = candidate, residual - length * image, step + 1
        if progress is not None:
            progress(taken, most_steps)
    return LeastSquares(operator.volume(values), taken, tuple(residuals))
