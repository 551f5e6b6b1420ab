"""Least squares: the map that best explains the images, given their deformations.

    (sum_i P_i* C_i^2 P_i / Sigma + R) f = sum_i P_i* C_i y_i / Sigma

is solved on the voxels around the molecule by conjugate gradients, with the projector's exact adjoint P*, the noise
spectrum Sigma and R = 1 / tau^2 in every shell. Weighted backprojection, whose operator is diagonal in Fourier space,
is the initial map, and its filter is the preconditioner.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.imaging.backprojection import ParticleData, filter_volume
from dynamight_core.imaging.conjugate_gradients import Operator, conjugate_gradients
from dynamight_core.imaging.fourier import expand_shells, plane_multiplicity
from dynamight_core.imaging.geometry import Field
from dynamight_core.imaging.voxels import Placed, Voxels, bordered, moving_voxels


class DeformedProjection:
    """The projection of a map whose voxels move in a region, and its exact adjoint.

    Sums over particles and their residuals are divided among the `current_group` of processes.

    Parameters
    ----------
    data
        poses, transfer functions and noise of the particles.
    region
        (box, box, box) bool, or weights of the displacement in [0, 1]; voxels above zero belong to the map.
    field, latents
        deformation and its (n, d) latents; None for a rigid map.
    batch_size
        particles at a time.
    """

    def __init__(
        self,
        data: ParticleData,
        region: torch.Tensor,
        field: Field | None = None,
        latents: torch.Tensor | None = None,
        batch_size: int = 32,
    ):
        self.data, self.latents = data, latents
        self.region = region.to(data.device)
        self.shape = self.region > 0
        voxels = Voxels(self.shape, (data.box // 2,) * 3, data.pixel_size, field, self.region)
        self.parts = moving_voxels(voxels, latents, batch_size)

    def __len__(self) -> int:
        return int(self.shape.sum())

    def _placed(self, batch: torch.Tensor) -> Iterator[tuple[Voxels, Placed]]:
        latents = None if self.latents is None else self.latents[batch].to(self.data.device)
        poses = self.data.poses(batch)
        return ((part, part.place(poses, latents)) for part in self.parts)

    def project(self, values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) images of (m,) voxels for (b,) particles, without the CTF."""
        size = self.data.projector.grid_size
        volume = self.volume(values)
        return self.data.images_of(
            sum((part.spread(volume, placed, size) for part, placed in self._placed(batch)), torch.zeros(()))
        )

    def backproject(self, transforms: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return (m,) sums at the voxels over the images of (b,) particles; the adjoint of `project`."""
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
        total, group = torch.zeros(int(self.shape.sum()), device=self.shape.device), current_group()
        for batch in group.split(indices, batch_size):
            transfer = self.data.transfer(batch)
            total += self.backproject(self.data.transforms(batch) * transfer.conj() * self.data.weights, batch)
        group.sum_(total)
        return self.volume(total)

    @torch.no_grad()
    def normal(self, values: torch.Tensor, indices: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return (m,) sum_i P_i* C_i^2 P_i / Sigma of (m,) voxels."""
        total, group = torch.zeros_like(values), current_group()
        for batch in group.split(indices, batch_size):
            images = self.project(values, batch) * self.data.power(self.data.transfer(batch))
            total += self.backproject(images, batch)
        group.sum_(total)
        return total

    @torch.no_grad()
    def residuals(self, values: torch.Tensor, indices: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return (p,) sum |y - C P f|^2 / Sigma of every particle for (m,) voxels."""
        box, group, rows = self.data.box, current_group(), [values.new_empty(0)]
        weights = self.data.weights * plane_multiplicity(box, self.data.device) / box**2
        for batch in group.split(indices, batch_size):
            predicted = self.project(values, batch) * self.data.transfer(batch)
            rows.append(((self.data.transforms(batch) - predicted).abs().square() * weights).sum((1, 2)))
        return group.gather(torch.cat(rows))


@dataclass(frozen=True)
class LeastSquares:
    """A solution.

    Parameters
    ----------
    volume
        (box, box, box); zero outside the region.
    steps
        of conjugate gradients.
    residuals
        mean over held-out particles, initially and after every step tried.
    """

    volume: torch.Tensor
    steps: int
    residuals: tuple[float, ...]


@torch.no_grad()
def least_squares(
    operator: DeformedProjection,
    numerator: torch.Tensor,
    penalty: torch.Tensor,
    inverse: Operator,
    indices: torch.Tensor,
    held_out: Callable[[torch.Tensor], torch.Tensor],
    *,
    max_steps: int = 8,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> LeastSquares:
    """Solve for a half-map by preconditioned conjugate gradients, initialised by weighted backprojection.

    Parameters
    ----------
    operator
        the deformed projection of these particles.
    numerator
        from `accumulate` with the same field, region and particles.
    penalty
        (box//2+1,) R of every shell: Sigma / (particles tau^2).
    inverse
        from (m,) voxels of a numerator to those of its weighted backprojection, damped by R.
    indices
        (p,) the particles.
    held_out
        returns the (v,) residuals of other particles for (m,) voxels. A step must lower their mean by more than its
        standard error, or the solver stops before it.
    max_steps
        of conjugate gradients.
    """
    shape, every = operator.shape, expand_shells(penalty, len(numerator), 3)

    def apply(values: torch.Tensor) -> torch.Tensor:
        damping = filter_volume(operator.volume(values), every)[shape]
        return operator.normal(values, indices, batch_size) + damping

    target = numerator[shape]
    values, taken = inverse(target), 0
    current = held_out(values)
    residuals = [float(current.mean())]
    for step, (candidate, _) in zip(
        range(max_steps), conjugate_gradients(apply, inverse, target, values), strict=False
    ):
        after = held_out(candidate)
        residuals.append(float(after.mean()))
        fall = current - after
        if fall.mean() <= fall.std() / len(fall) ** 0.5:
            break
        values, current, taken = candidate, after, step + 1
        if progress is not None:
            progress(taken, max_steps)
    return LeastSquares(operator.volume(values), taken, tuple(residuals))
