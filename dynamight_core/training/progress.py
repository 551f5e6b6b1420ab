"""Whether a training goes on as it should: its metrics so far, and a step back if it diverges."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.options import TrainOptions
from dynamight_core.reporter import Reporter
from dynamight_core.run import holds_run
from dynamight_core.training.half import HalfTrainer

# What learning rates are multiplied by after a divergence.
_SLOWER = 0.2
_RATES = ("learning_rate", "gaussian_learning_rate", "width_learning_rate", "encoder_learning_rate")
# Fraction of the Gaussians that leave the box if a training diverges.
_ASTRAY = 0.1
# Particles of a half-set whose deformed Gaussians are looked at.
_SAMPLE = 64


class DivergedError(InputError):
    """A training whose losses, models or latents are not finite, or whose Gaussians left the box."""


def slower(options: TrainOptions) -> TrainOptions:
    """Return the options with smaller learning rates."""
    return replace(options, **{name: _SLOWER * getattr(options, name) for name in _RATES})


def was_slowed(run: Path) -> bool:
    """Return whether the training of a run has diverged and went on with smaller rates."""
    return holds_run(run) and bool(RunConfig.read(run).provenance.get("slower"))


def record_slower(run: Path, error: DivergedError) -> None:
    """Note in config.yaml that, and why, a training goes on with smaller rates."""
    config = RunConfig.read(run)
    config.provenance["slower"] = {"factor": _SLOWER, "reason": str(error)}
    config.write(run)


def read_metrics(path: Path, done: int, reporter: Reporter) -> list[dict]:
    """Return the lines of metrics.jsonl up to epoch `done`; lines that cannot be read are omitted, with a warning."""
    text = path.read_text(errors="replace") if path.exists() else ""
    metrics, bad = [], 0 if text else 1
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            if entry["epoch"] <= done:
                metrics.append(entry)
        except (ValueError, KeyError, TypeError):
            bad += 1
    if bad:
        reporter.warn(f"{path} is missing or damaged; the curves of the training have gaps, its result has not")
    return metrics


@torch.no_grad()
def check_converging(trainers: Sequence[HalfTrainer], epoch: int, entries: Sequence[dict] = ()) -> None:
    """Refuse to go on with losses, models or latents that are not finite, or Gaussians that left the box.

    Parameters
    ----------
    trainers
        of the half-sets.
    epoch
        its number.
    entries
        lines of metrics of this epoch.

    Raises
    ------
    DivergedError
        with what to change.
    """
    losses = [value for entry in entries for value in (*entry.get("losses", {}).values(), entry["fixed_loss"])]
    if not all(value is None or math.isfinite(value) for value in losses):
        raise DivergedError(f"training diverged in epoch {epoch} (the loss is not finite); {_cure(trainers[0])}")
    for trainer in trainers:
        model = trainer.model
        extent = model.box * model.pixel_size
        latents = trainer.latents[:: max(1, len(trainer.latents) // _SAMPLE)][:_SAMPLE]
        moved = model.gaussians.positions + model.displacements(latents)
        finite = all(bool(value.isfinite().all()) for value in (*model.parameters(), trainer.latents))
        # A single one may be moved far without a change of the images. Twice the box is beyond any part of a molecule.
        farthest = moved.abs().amax((0, 2))
        if finite and float((farthest > 2 * extent).float().mean()) < _ASTRAY:
            continue
        what = "Gaussians left the box" if finite else "values are not finite"
        raise DivergedError(f"training diverged in epoch {epoch} (half-set {trainer.half}: {what}); {_cure(trainer)}")


def _cure(trainer: HalfTrainer) -> str:
    return (
        f"use a --learning-rate below {trainer.options.learning_rate:g}, and check units and scale of images and map "
        "with dynamight check"
    )
