"""The point spread of a backprojection while training, and the map behind it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.imaging.backprojection import filter_volume
from dynamight_core.imaging.fourier import expand_shells, shell_means, shells, volume_to_fourier
from dynamight_core.imaging.projector import Projector
from dynamight_core.imaging.voxels import Voxels, bordered
from dynamight_core.imaging.wide_kernel import WideKernel, views_are_uneven
from dynamight_core.training.data import TrainingImages

# Fraction of the shell mean that is added to the denominator.
_FLOOR = 0.1
# Images for the undeformed point spread function; more change it little.
_IMAGES = 300
_BATCH = 16


@dataclass(frozen=True)
class PointSpread:
    """How particles at rest spread a point of their backprojection.

    Parameters
    ----------
    transform
        (box, box, box//2+1) real.
    kernel
        for all differences of two voxels, if views are uneven.
    """

    transform: torch.Tensor
    kernel: WideKernel | None

    @classmethod
    @torch.no_grad()
    def of(cls, data: TrainingImages, rows: torch.Tensor) -> "PointSpread":
        """Return the point spread of (n,) particles, divided among the group, from as many as change it little."""
        projector, box = Projector(data.box, data.pixel_size, 2), data.box
        voxels = Voxels(torch.ones((box,) * 3, dtype=torch.bool, device=data.device), (box // 2,) * 3, data.pixel_size)
        total = torch.zeros(box, box, box, device=data.device)
        some = rows[:: max(1, len(rows) // data.at_once(_IMAGES))]
        group, own = current_group(), current_group().shard(some)
        for matrices, power in _powers(data, own):
            voxels.read(bordered(projector.reading_grid(power)), voxels.place(projector.poses(matrices)), total)
        group.sum_(total)
        transform, number = volume_to_fourier(total).real, len(rows) / len(some)
        kernel = None
        if views_are_uneven(transform):
            kernel = WideKernel(WideKernel.summed(_powers(data, own), box).transform * number, box)
        return cls(transform * number, kernel)

    def undo(self, volume: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the (box, box, box) map that was spread to a volume; both are zero outside of a mask."""
        box = len(volume)
        if self.kernel is None:
            floor = expand_shells(shell_means(self.transform, box, 3), box, 3) * _FLOOR
            return filter_volume(volume, 1 / (self.transform.clamp(min=0) + floor))
        # The mean is that of the directions with most views.
        middle = self.transform[shells(box, 3, volume.device) == box // 4]
        fraction = _FLOOR * float(middle.median()) / float(middle.mean())
        regularisation = torch.tensor([fraction] * (box // 2 + 1), device=volume.device)
        return self.kernel.solve(volume, self.transform.clamp(min=0), regularisation, mask)


def _powers(data: TrainingImages, chosen: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the (b, 3, 3) matrices and (b, box, box//2+1) squared transfer functions of batches of (n,) particles."""
    inside = (shells(data.box, 2, data.device) <= data.box // 2).float()
    for rows in chosen.split(data.at_once(_BATCH)):
        batch = data.batch(rows)
        yield batch.matrices, batch.transfer.abs().square().float() * inside
