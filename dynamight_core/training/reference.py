"""Reference updates: the reference stays a conformation that particles have, the same in both halves."""

import torch

from dynamight_core.imaging.geometry import to_grid
from dynamight_core.imaging.masks import distance_from_voxels
from dynamight_core.training.half import HalfTrainer

# The two halves' conformations are compared through a mask of this radius around Gaussians, A (paper, Methods).
MASK_RADIUS = 6.0
# Voxels of that mask, A.
_VOXEL = 2.0
# Predictions that are averaged.
_AVERAGED = 100


@torch.no_grad()
def update_references(trainers: tuple[HalfTrainer, HalfTrainer]) -> tuple[float, float]:
    """Move the references of both halves; return by how much, A rms.

    The first half's becomes the mean of the predicted models with the smallest displacement. The second half
    is brought to that conformation by the mean of those of its predictions that have most Gaussians inside the
    mask within 6 A of the first half's Gaussians; nothing finer than that mask crosses between halves
    (paper, Methods).
    """
    first, second = trainers
    moved_first = _move(first, _smallest(first))
    return moved_first, _move(second, _most_inside(second, _mask_around(first)))


def _displacements(trainer: HalfTrainer, latents: torch.Tensor):
    """Yield (b, n, 3) displacements of (n, d) latents in order."""
    evaluate = trainer.model.evaluator(trainer.model.gaussians.positions)
    for part in latents.split(64):
        yield evaluate(part)


def _smallest(trainer: HalfTrainer) -> torch.Tensor:
    """Return the latents of the predictions with the smallest displacement."""
    latents = trainer.current_latents(trainer.rows)
    sizes = torch.cat([shift.square().sum((1, 2)) for shift in _displacements(trainer, latents)])
    return latents[sizes.argsort()[: min(_AVERAGED, max(1, len(sizes) // 10))]]


def _mask_around(trainer: HalfTrainer) -> torch.Tensor:
    """Return the (m, m, m) bool mask of the voxels, about `_VOXEL` wide, within 6 A of the reference's Gaussians."""
    model = trainer.model
    extent = model.box * model.pixel_size
    size = round(extent / _VOXEL)
    voxels = _voxels(model.gaussians.positions, extent, size).flip(-1).cpu().numpy()
    distance = distance_from_voxels(voxels, size, extent / size)
    return torch.from_numpy(distance < MASK_RADIUS).to(trainer.data.device)


def _voxels(points: torch.Tensor, extent: float, size: int) -> torch.Tensor:
    """Return the (..., 3) voxels x, y, z of points (A); those outside the box count to its faces."""
    return to_grid(points, size, extent).round().long().clamp(0, size - 1)


def _most_inside(trainer: HalfTrainer, mask: torch.Tensor) -> torch.Tensor:
    """Return the latents of the predictions with most Gaussians inside the mask."""
    model = trainer.model
    latents = trainer.current_latents(trainer.rows)
    counts = []
    for shift in _displacements(trainer, latents):
        x, y, z = _voxels(model.gaussians.positions + shift, model.box * model.pixel_size, len(mask)).unbind(-1)
        counts.append(mask[z, y, x].sum(1))
    best = torch.cat(counts).argsort(descending=True, stable=True)[: min(_AVERAGED, len(latents))]
    return latents[best]


def _move(trainer: HalfTrainer, latents: torch.Tensor) -> float:
    """Move the reference by the mean displacement of (b, d) latents; return by how much, A rms."""
    shift = sum(part.sum(0) for part in _displacements(trainer, latents)) / len(latents)
    trainer.model.gaussians.positions.add_(shift)
    trainer.model.decoder.absorb(latents)
    trainer.rebuild_graph()
    return float(shift.square().sum(-1).mean().sqrt())
