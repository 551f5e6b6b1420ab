"""Reference updates: the reference stays a conformation of particles, the same in both half-sets."""

from collections.abc import Iterator

import torch

from dynamight_core.imaging.geometry import to_grid
from dynamight_core.imaging.masks import distance_from_voxels
from dynamight_core.training.half import HalfTrainer

# Radius around Gaussians of the mask through which the half-sets' conformations are compared, A (paper, Methods).
_MASK_RADIUS = 6.0
# Voxels of that mask, A.
_VOXEL = 2.0
# Number of averaged predictions.
_AVERAGED = 100


@torch.no_grad()
def update_references(trainers: tuple[HalfTrainer, HalfTrainer]) -> tuple[float, float]:
    """Move the references of both half-sets; return the displacements, A rms (paper, Methods).

    The first reference becomes the mean of the predicted models with the smallest displacement. The second becomes the
    mean of its predictions with most Gaussians in a mask, the voxels within 6 A of the first half-set's Gaussians.
    Nothing finer than the mask crosses between half-sets.
    """
    first, second = trainers
    moved_first = _move(first, _smallest(first))
    return moved_first, _move(second, _most_inside(second, _mask_around(first)))


def _displacements(trainer: HalfTrainer, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the (b, n, 3) displacements of (n, d) latents in batches."""
    evaluate = trainer.model.evaluator(trainer.model.gaussians.positions)
    for part in latents.split(64):
        yield evaluate(part)


def _smallest(trainer: HalfTrainer) -> torch.Tensor:
    """Return the latents of the predictions with the smallest displacement."""
    latents = trainer.current_latents(trainer.rows)
    sizes = torch.cat([shift.square().sum((1, 2)) for shift in _displacements(trainer, latents)])
    return latents[sizes.argsort()[: min(_AVERAGED, max(1, len(sizes) // 10))]]


def _mask_around(trainer: HalfTrainer) -> torch.Tensor:
    """Return the (m, m, m) bool mask of voxels within 6 A of the reference's Gaussians."""
    model = trainer.model
    extent = model.box * model.pixel_size
    size = round(extent / _VOXEL)
    voxels = _voxels(model.gaussians.positions, extent, size).flip(-1).cpu().numpy()
    distance = distance_from_voxels(voxels, size, extent / size)
    return torch.from_numpy(distance < _MASK_RADIUS).to(trainer.data.device)


def _voxels(points: torch.Tensor, extent: float, size: int) -> torch.Tensor:
    """Return the (..., 3) voxels x, y, z of points (A), clamped to the box."""
    return to_grid(points, size, extent).round().long().clamp(0, size - 1)


def _most_inside(trainer: HalfTrainer, mask: torch.Tensor) -> torch.Tensor:
    """Return the latents of the predictions with most Gaussians in the mask."""
    model = trainer.model
    latents = trainer.current_latents(trainer.rows)
    counts = []
    for shift in _displacements(trainer, latents):
        x, y, z = _voxels(model.gaussians.positions + shift, model.box * model.pixel_size, len(mask)).unbind(-1)
        counts.append(mask[z, y, x].sum(1))
    best = torch.cat(counts).argsort(descending=True, stable=True)[: min(_AVERAGED, len(latents))]
    return latents[best]


def _move(trainer: HalfTrainer, latents: torch.Tensor) -> float:
    """Move the reference by the mean displacement of (b, d) latents; return the displacement, A rms."""
    total = sum((part.sum(0) for part in _displacements(trainer, latents)), torch.zeros(()))
    shift = total / len(latents)
    trainer.model.gaussians.positions.add_(shift)
    trainer.model.decoder.absorb(latents)
    trainer.rebuild_graph()
    return float(shift.square().sum(-1).mean().sqrt())
