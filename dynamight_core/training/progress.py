"""Whether a training goes on as it should: its metrics so far, and a stop if it diverges."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from dynamight_core.errors import InputError
from dynamight_core.reporter import Reporter
from dynamight_core.training.half import HalfTrainer

# Particles of a half-set whose deformed Gaussians are looked at.
_SAMPLE = 64


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
def check_converging(trainers: Sequence[HalfTrainer], epoch: int) -> None:
    """Refuse to go on with models that hold values which are not finite, or Gaussians that left the box.

    Raises
    ------
    InputError
        with what to change.
    """
    for trainer in trainers:
        model = trainer.model
        extent = model.box * model.pixel_size
        latents = trainer.latents[:: max(1, len(trainer.latents) // _SAMPLE)][:_SAMPLE]
        moved = model.gaussians.positions + model.displacements(latents)
        finite = all(bool(value.isfinite().all()) for value in (*model.parameters(), trainer.latents))
        # As far from the centre as twice the corner of the box is.
        if finite and bool((moved.abs() < 2 * extent).all()):
            continue
        what = "Gaussians left the box" if finite else "values are not finite"
        rate = trainer.options.learning_rate
        raise InputError(
            f"training diverged in epoch {epoch} (half-set {trainer.half}: {what}); use a --learning-rate below "
            f"{rate:g}, and check units and scale of images and map with dynamight check"
        )
