"""Agreement of the half-sets' decoders on validation particles, which trained neither."""

import numpy as np
import pandas as pd
import torch

from dynamight_core.judging.bias import is_joint
from dynamight_core.run import Run

# Validation particles used at most, evenly spaced.
_MAX_PARTICLES = 4000
# Standard errors by which the half-sets' coordinates must correlate for a motion to be shared.
_SIGMAS = 3.0


@torch.no_grad()
def halves_agreement(run: Run) -> pd.DataFrame:
    """Return how the half-sets agree on validation particles, for each principal motion.

    Each particle has a latent under either decoder; both displacements are projected on the motion.

    Returns
    -------
    pandas.DataFrame
        one row for each motion: `motion`, `share` (explained variance), `particles`, `correlation` of the coordinates
        under the two decoders (empty where one does not vary), `shared` (whether that is positive beyond chance),
        `deviation_A` (their standard deviation) and `difference_A` (rms of their difference), A rms. A joint model has
        one decoder: correlation and difference are empty.
    """
    motions = run.motions
    rows = torch.where(run.validation)[0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _MAX_PARTICLES)).long().unique()] if len(rows) else rows
    projected = []
    for half, model in enumerate(run.models):
        evaluate = model.consensus_evaluator(motions.points)
        parts = [torch.zeros(0, len(motions.components))]
        for part in rows.split(256):
            parts.append(motions.project(evaluate(run.latents[half][part].to(model.latent_mean)).cpu()))
        projected.append(torch.cat(parts).double().numpy())
    table = []
    for k in range(len(motions.components)):
        first, second = projected[0][:, k], projected[1][:, k]
        varies = len(rows) > 2 and first.std() > 1e-6 and second.std() > 1e-6
        correlation = float(np.corrcoef(first, second)[0, 1]) if varies else np.nan
        table.append(
            {
                "motion": k + 1,
                "share": float(motions.shares[k]),
                "particles": len(rows),
                "correlation": correlation,
                "shared": correlates(correlation, len(rows)),
                "deviation_A": float(np.sqrt((first.var() + second.var()) / 2)) if len(rows) else np.nan,
                "difference_A": float(np.sqrt(((first - second) ** 2).mean())) if len(rows) else np.nan,
            }
        )
    found = pd.DataFrame(table)
    if is_joint(run):
        found[["correlation", "difference_A"]] = np.nan
    return found


def correlates(correlation: float, n: int) -> bool:
    """Return whether a correlation of n pairs is positive by more than three standard errors of Fisher's z."""
    return bool(n > 3 and np.arctanh(min(correlation, 1 - 1e-12)) * np.sqrt(n - 3) > _SIGMAS)
