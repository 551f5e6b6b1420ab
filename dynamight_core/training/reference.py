"""Reference updates: the reference stays a conformation of particles, the same in both half-sets."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch

from dynamight_core.groups import current_group, exchange
from dynamight_core.imaging.geometry import to_grid
from dynamight_core.imaging.masks import distance_from_voxels
from dynamight_core.model.decoders.base import Decoder
from dynamight_core.model.half import HalfModel
from dynamight_core.training.decoder_fit import fit_decoder
from dynamight_core.training.half import HalfTrainer

# Radius around Gaussians of the mask through which the half-sets' conformations are compared, A (paper, Methods).
_MASK_RADIUS = 6.0
# Voxels of that mask, A.
_VOXEL = 2.0
# Number of averaged predictions of the second half-set (paper, Methods).
_AVERAGED = 100
# A reference that moves farther than this anywhere leaves the place where its field was learned, A: a fraction of the
# shortest wavelength of the fields.
_FAR = 8.0


@torch.no_grad()
def update_references(trainers: Sequence[HalfTrainer]) -> list[float]:
    """Move the references of the half-sets trained here, or of a joint model; return the displacements, A rms (paper).

    The first reference becomes the predicted model with the smallest displacement, or the mean of several. The second
    becomes the mean of its predictions with most Gaussians in a mask, the voxels within 6 A of the first half-set's
    Gaussians. Nothing finer than the mask crosses between half-sets.
    """
    own, masks, moved = {trainer.half: trainer for trainer in trainers}, {}, []
    if 1 in own:
        moved.append(_move(own[1], _smallest(own[1])))
        masks[1] = _mask_around(own[1].model, own[1].model.gaussians.positions)
    mask = exchange(masks, trainers[0].data.device)[1]
    if 2 in own:
        moved.append(_move(own[2], _most_inside(own[2].model, own[2].current_latents(own[2].rows), mask)))
    return moved


@torch.no_grad()
def central_latents(models: Mapping[int, HalfModel], latents: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Return latents whose mean conformation is the consensus frame of each half-set, the same in both.

    Those of the most central particles. Where no particles are near the mean, the second half-set takes the predictions
    with most Gaussians within 6 A of the first's, as in `update_references`.

    Parameters
    ----------
    models
        of the half-sets trained here, by their number, or a joint one.
    latents
        (n, d) of the training particles of each.
    """
    device = next(iter(latents.values())).device
    found = {half: model.central_latents(latents[half]) for half, model in models.items()}
    central = {half: each for half, (each, _) in found.items()}
    if all(exchange({half: common for half, (_, common) in found.items()}).values()):
        return central
    masks = {}
    if 1 in models:
        masks[1] = _mask_around(models[1], models[1].gaussians.positions + models[1].displacements(central[1]).mean(0))
    mask = exchange(masks, device)[1]
    if 2 in models:
        central[2] = _most_inside(models[2], latents[2], mask, max(1, len(latents[2]) // 20))
    return central


def _displacements(model: HalfModel, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the (b, n, 3) displacements of this process's part of (n, d) latents in batches."""
    evaluate = model.evaluator(model.gaussians.positions)
    for part in current_group().split(latents, 64):
        yield evaluate(part)


def _smallest(trainer: HalfTrainer) -> torch.Tensor:
    """Return the latents of the predictions with the smallest displacement."""
    latents = trainer.current_latents(trainer.rows)
    own = [shift.square().sum((1, 2)) for shift in _displacements(trainer.model, latents)]
    sizes = current_group().gather(torch.cat([latents.new_empty(0), *own]))
    return latents[sizes.argsort()[: min(trainer.options.reference_predictions, max(1, len(sizes) // 10))]]


def _mask_around(model: HalfModel, positions: torch.Tensor) -> torch.Tensor:
    """Return the (m, m, m) bool mask of voxels within 6 A of (n, 3) positions, A."""
    extent = model.box * model.pixel_size
    size = round(extent / _VOXEL)
    voxels = _voxels(positions, extent, size).flip(-1).cpu().numpy()
    distance = distance_from_voxels(voxels, size, extent / size)
    return torch.from_numpy(distance < _MASK_RADIUS).to(positions.device)


def _voxels(points: torch.Tensor, extent: float, size: int) -> torch.Tensor:
    """Return the (..., 3) voxels x, y, z of points (A), clamped to the box."""
    return to_grid(points, size, extent).round().long().clamp(0, size - 1)


def _most_inside(model: HalfModel, latents: torch.Tensor, mask: torch.Tensor, number: int = _AVERAGED) -> torch.Tensor:
    """Return a number of (n, d) latents, whose predictions have most Gaussians in the mask."""
    counts = [torch.zeros(0, dtype=torch.long, device=mask.device)]
    for shift in _displacements(model, latents):
        x, y, z = _voxels(model.gaussians.positions + shift, model.box * model.pixel_size, len(mask)).unbind(-1)
        counts.append(mask[z, y, x].sum(1))
    best = current_group().gather(torch.cat(counts)).argsort(descending=True, stable=True)[:number]
    return latents[best]


def _move(trainer: HalfTrainer, latents: torch.Tensor) -> float:
    """Move the reference by the mean displacement of (b, d) latents; return the displacement, A rms."""
    model = trainer.model
    total = torch.zeros_like(model.gaussians.positions)
    for part in _displacements(model, latents):
        total += part.sum(0)
    current_group().sum_(total)
    shift = total / len(latents)
    learned, before = copy.deepcopy(model.decoder), model.gaussians.positions.clone()
    model.gaussians.positions.add_(shift)
    model.decoder.absorb(latents)
    if float(shift.norm(dim=1).max()) > _FAR and not model.decoder.moves_reference:
        _keep_conformations(trainer, learned, before)
    trainer.rebuild_graph()
    return float(shift.square().sum(-1).mean().sqrt())


@torch.enable_grad()
def _keep_conformations(trainer: HalfTrainer, learned: Decoder, before: torch.Tensor) -> None:
    """Bring the decoder to the conformations that it had with (n, 3) Gaussians `before` they moved, A."""
    after = trainer.model.gaussians.positions.detach()

    def wanted(particles: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        latents = trainer.current_latents(trainer.rows[particles.cpu()])
        displaced = before[chosen] + learned.displacements(latents, before[chosen])
        return displaced - after[chosen]

    fit_decoder(trainer, wanted)
