"""Trials: a half trained a little on another field, and compared with the one it has on images that trained neither."""

import copy

import torch

from dynamight_core.groups import current_group
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import data_terms, infer_latents, random_pixels
from dynamight_core.training.schedule import Epoch

# Latents of other particles that inference also starts from.
STARTS = 16
# Epochs, each with an inference, after which a new field is compared with the old one: after one, it still loses.
_EPOCHS = 3


def trial_of(trainer: HalfTrainer) -> HalfTrainer:
    """Return a trainer of a copy of a half's model, with the same particles and latents."""
    model = copy.deepcopy(trainer.model)
    trial = HalfTrainer(model, trainer.data, trainer.rows, trainer.options, trainer.half, held_out=trainer.held_out)
    trial.latents, trial.covariances, trial.started = trainer.latents, trainer.covariances, True
    trial.rotations.data, trial.shifts.data = trainer.rotations.data, trainer.shifts.data
    trial.point_spread = trainer.point_spread
    return trial


def train_trial(trial: HalfTrainer, number: int) -> None:
    """Train a trial for some epochs, numbered from `number` on, and its Gaussians for one more."""
    trial.rebuild_graph()
    for step in range(_EPOCHS):
        run_epoch(trial, Epoch("refinement"), number + step)
        trial.infer(steps=1)
    run_epoch(trial, Epoch("reference"), number)


def held_out_gain(kept: HalfTrainer, tried: HalfTrainer, number: int, resolution: float = 0.0) -> tuple[float, float]:
    """Return by how many nats a held-out image is explained better by the second of two trainers, and the error.

    `resolution` (A) is that of a low-pass filter; without one (0), detail shows what is turned wrongly.
    """
    gains = _held_out_misfit(kept, number, resolution) - _held_out_misfit(tried, number, resolution)
    return float(gains.mean()), float(gains.std() / len(gains) ** 0.5)


def adopt(trainer: HalfTrainer, trial: HalfTrainer) -> None:
    """Let the training of a half go on from a trial."""
    trainer.model.restore(trial.model.decoder_name, trial.model.state_dict())
    trainer.latents, trainer.covariances = trial.latents, trial.covariances
    trainer.restart_optimizers()
    trainer.infer(steps=2)
    trainer.estimate_noise(True)
    trainer.rebuild_graph()


@torch.no_grad()
def _held_out_misfit(trainer: HalfTrainer, number: int, resolution: float) -> torch.Tensor:
    """Return (n,) minus log-likelihoods of held-out images, the latents of each half of the pixels from the other half.

    The halves are the same for the same number.
    """
    model, rows, data = trainer.model, trainer.held_out, trainer.data
    pixels = random_pixels(len(rows), model.box, torch.Generator().manual_seed(number))
    starts = [trainer.encode(rows), *(start.expand(len(rows), -1) for start in trainer.some_latents(STARTS))]
    misfit = torch.zeros(len(rows), device=data.device)
    for half in (pixels, ~pixels):
        latents = infer_latents(model, data, rows, starts, steps=4, pixels=half).latents
        misfit += data_terms(model, data, rows, latents, ~half, resolution)
    return misfit


def agreed_on(gain: float, error: float, sigmas: float) -> bool:
    """Return whether a gain exceeds so many of its standard errors, the same in all processes of the group."""
    return current_group().agreed(gain > sigmas * error)
