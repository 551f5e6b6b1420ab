"""Refinement of poses: the most probable rotation and shift of each image, the model fixed.

Errors of poses look like motion of the whole molecule, to which gradient descent gives the deformation before the poses
have moved. Poses are therefore inferred like latents, by Gauss-Newton steps, before there is any motion, and again
after each inference of latents. Their prior is normal with the most likely covariance, so that poses which images know
badly, or which are right, stay.
"""

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import Batch, TrainingImages, changed_poses
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import Projection, infer_latents, infer_parameters
from dynamight_core.training.latent_prior import most_likely_prior
from dynamight_core.training.schedule import Epoch

# Standard deviations of pose changes that the search for their prior starts from, radians and A, and its rounds.
POSE_WIDTHS, _ROUNDS = (0.07, 0.07, 0.07, 3.0, 3.0), 2
# Times that poses and Gaussians are refined in turn before there is motion.
_TURNS = 3
# Part of the first variance that a prior keeps.
_FLOOR = 1e-6


def refine_before_motion(trainer: HalfTrainer, number: int) -> None:
    """Refine poses and Gaussians of a half-set in turn, without deformation; `number` is the epoch's."""
    trainer.estimate_noise(False)
    for _ in range(_TURNS):
        refine_poses(trainer, moved=False)
        run_epoch(trainer, Epoch("warm-up"), number)
        trainer.estimate_noise(False)
    refine_poses(trainer, moved=False)


def refine_poses(trainer: HalfTrainer, moved: bool = True) -> None:
    """Refine the poses of a half-set's training particles, with their present deformations or at rest."""
    latents = trainer.current_latents(trainer.rows) if moved else None
    changes = most_likely_poses(trainer.model, trainer.data, trainer.rows, latents, trainer.pose_changes.detach())
    trainer.rotations.copy_(changes[:, :3])
    trainer.shifts.copy_(changes[:, 3:])


def held_out_poses(trainer: HalfTrainer) -> torch.Tensor:
    """Return (v, 5) pose changes of a half-set's held-out particles, which its model was not trained on."""
    rows, model = trainer.held_out, trainer.model
    latents, changes = model.latent_mean.expand(len(rows), -1), None
    for _ in range(_TURNS):
        changes = most_likely_poses(model, trainer.data, rows, latents, changes)
        every = torch.zeros(len(trainer.data), 5)
        every[rows] = changes.cpu()
        latents = infer_latents(model, trainer.data.posed(every), rows, model.latent_starts(len(rows))).latents
    assert changes is not None
    return changes


@torch.no_grad()
def most_likely_poses(
    model: HalfModel,
    data: TrainingImages,
    rows: torch.Tensor,
    latents: torch.Tensor | None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the (n, 5) most probable changes of the given poses, rotation vectors (radians) and shifts (A).

    Parameters
    ----------
    model
        of one half-set.
    data, rows
        images in their given poses, and (n,) particles.
    latents
        (n, d) of their deformations; at rest if None.
    start
        (n, 5) changes to start from.
    """
    like = model.latent_mean
    covariance = torch.diag(torch.tensor(POSE_WIDTHS).to(like).square())
    floor, mean = _FLOOR * covariance, torch.zeros(5).to(like)
    changes = torch.zeros(len(rows), 5).to(like) if start is None else start

    def projection(batch: Batch, chosen: torch.Tensor) -> Projection:
        positions = model.consensus_positions.expand(len(chosen), -1, -1)
        if latents is not None:
            positions = model.gaussians.positions + model.displacements(latents[chosen])

        def project(changes: torch.Tensor, which: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
            matrices, transfer = changed_poses(changes, batch.matrices[which], transfer, model.box * model.pixel_size)
            return model.project(matrices, transfer, positions[which])

        return project

    for _ in range(_ROUNDS):
        posterior = infer_parameters(model, projection, (mean, covariance), data, rows, [changes])
        prior = most_likely_prior(posterior, mean, covariance)
        # A mean change of all poses is one of the molecule.
        covariance = prior.covariance.to(like) + floor
        changes = (prior.latents - prior.mean).to(like)
    return changes
