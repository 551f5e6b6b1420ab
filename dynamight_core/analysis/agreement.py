"""Agreement of the half-sets' decoders on validation particles, which trained neither."""

import numpy as np
import pandas as pd
import torch

from dynamight_core.files import write_table
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Validation particles used at most, evenly spaced.
_MAX_PARTICLES = 4000


@torch.no_grad()
def halves_agreement(run: Run) -> pd.DataFrame:
    """Return how the half-sets agree on validation particles, for each principal motion.

    Each particle has a latent under either decoder; both displacements are projected on the motion.

    Returns
    -------
    pandas.DataFrame
        one row for each motion: `motion`, `share` (explained variance), `particles`, `correlation` of the coordinates
        under the two decoders (empty where one does not vary), `deviation_A` (their standard deviation) and
        `difference_A` (rms of their difference), A rms.
    """
    motions = run.motions
    rows = torch.where(run.validation)[0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _MAX_PARTICLES)).long().unique()] if len(rows) else rows
    projected = []
    for half, model in enumerate(run.models):
        evaluate = model.consensus_evaluator(motions.points)
        parts = [torch.zeros(0, len(motions.components))]
        for part in rows.split(256):
            shift = evaluate(run.latents[half][part].to(model.latent_mean)).cpu() - motions.mean
            parts.append(torch.einsum("bmi,kmi->bk", shift, motions.components) / len(motions.points))
        projected.append(torch.cat(parts).double().numpy())
    table = []
    for k in range(len(motions.components)):
        first, second = projected[0][:, k], projected[1][:, k]
        varies = len(rows) > 2 and first.std() > 1e-6 and second.std() > 1e-6
        table.append(
            {
                "motion": k + 1,
                "share": float(motions.shares[k]),
                "particles": len(rows),
                "correlation": float(np.corrcoef(first, second)[0, 1]) if varies else np.nan,
                "deviation_A": float(np.sqrt((first.var() + second.var()) / 2)) if len(rows) else np.nan,
                "difference_A": float(np.sqrt(((first - second) ** 2).mean())) if len(rows) else np.nan,
            }
        )
    return pd.DataFrame(table)


def write_agreement(run: Run, reporter: Reporter = PRINT) -> None:
    """Write `halves_agreement` to RUN/analysis/agreement.csv, and report the first motion."""
    table = halves_agreement(run)
    write_table(run.path / "analysis" / "agreement.csv", table, "%.5g")
    first = table.iloc[0]
    if np.isfinite(first["correlation"]):
        reporter.say(
            f"Coordinates along motion 1 correlate by {first['correlation']:.2f} between the half-sets "
            f"({int(first['particles'])} validation particles)."
        )
