"""Whether the files of a run still belong together, as the explorer assumes."""

import numpy as np
import pandas as pd
import torch

from dynamight_core.errors import InputError
from dynamight_core.run import Run

# Particles whose coordinates are recomputed to compare latents with motions.
_CHECKED = 32
# Largest difference between stored and recomputed coordinates, in standard deviations.
_TOLERANCE = 0.02
_CURE = "restore the original files, or rewrite them with dynamight train --resume"


def check_consistency(run: Run) -> None:
    """Refuse a run whose files do not belong together, as after edits by hand.

    The coordinates of some particles are recomputed from their latents.

    Raises
    ------
    InputError
        naming the file.
    """
    motions, file = run.motions, run.path / "latents.safetensors"
    # Read here so that a run without a summary is refused at the start.
    _ = run.summary
    n = len(run.halves)
    if run.latents.shape[1] != n or len(motions.coordinates) != n:
        raise InputError(
            f"{file} holds {run.latents.shape[1]} particles but analysis/motions.safetensors holds "
            f"{len(motions.coordinates)}; {_CURE}"
        )
    for name, values in (("latents.safetensors", run.latents), ("analysis/motions.safetensors", motions.coordinates)):
        if not torch.isfinite(values).all():
            raise InputError(f"{run.path / name} contains values that are not finite; {_CURE}")
    rows = torch.linspace(0, n - 1, min(n, _CHECKED)).long().unique()
    spread = float(motions.coordinates.std(0).max().clamp(min=1e-3))
    for index, model in enumerate(run.models):
        of_half = rows[run.halves[rows] == index + 1]
        if not len(of_half):
            continue
        latents = run.latents[index][of_half]
        if latents.shape[1] != model.n_latents:
            raise InputError(
                f"{file} has {latents.shape[1]} latents per particle but the model of half {index + 1} expects "
                f"{model.n_latents}; {_CURE}"
            )
        with torch.no_grad():
            shift = model.consensus_evaluator(motions.points)(latents) - motions.mean
        found = torch.einsum("bmi,kmi->bk", shift, motions.components) / len(motions.points)
        if float((found - motions.coordinates[of_half]).abs().max()) > _TOLERANCE * spread + 1e-3:
            raise InputError(f"{file} and analysis/motions.safetensors do not belong together; {_CURE}")


def check_table(run: Run, table: pd.DataFrame) -> None:
    """Refuse a table that is not RUN/particles.star as training wrote it.

    Raises
    ------
    InputError
        if its rows are not the particles of the run.
    """
    path, first = run.path / "particles.star", run.motions.coordinates[:, 0].double().numpy()
    cure = "it was edited: rewrite it with dynamight train --resume"
    if len(table) != len(first):
        raise InputError(f"{path} has {len(table)} rows but the run has {len(first)} particles; {cure}")
    column = table["dynMotion1"].to_numpy(dtype=float) if "dynMotion1" in table else np.array([np.nan])
    if not np.allclose(column, first, atol=_TOLERANCE * max(float(first.std()), 1e-6)):
        raise InputError(f"column dynMotion1 of {path} does not match analysis/motions.safetensors; {cure}")
