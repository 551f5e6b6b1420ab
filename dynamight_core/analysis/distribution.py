"""Distributions of the molecule along the motions of a run, corrected for the errors of the particles' coordinates."""

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.domains import Domains
from dynamight_core.files import write_tables
from dynamight_core.judging.distribution import corrected_distribution
from dynamight_core.judging.errors import coordinate_variances
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Particles used at most, and motions.
_MAX_PARTICLES, _MOTIONS = 10_000, 3


def motion_distributions(run: Run, domains: Domains) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the distributions along the first motions, where the coordinates vary by more than their error.

    Parameters
    ----------
    run
        finished and summarised.
    domains
        of the run, for their rotation at each coordinate.

    Returns
    -------
    tuple
        the distributions, one row per motion and coordinate: `motion`, `coordinate_A`, `density_per_A` (corrected) and
        its `error_per_A`, `as_estimated_per_A` (uncorrected), and `domainD_angle_deg`; and their standard deviations,
        one row per motion, A rms: `as_estimated_A`, `error_A` (rms over particles) and `errors_taken_out_A`.
    """
    n = len(run.halves)
    rows = torch.linspace(0, n - 1, min(n, _MAX_PARTICLES)).long().unique()
    coordinates = run.motions.coordinates.numpy().astype(float)
    variances = coordinate_variances(run, rows).numpy().astype(float)
    # Where the error exceeds the variation, the coordinates do not determine a distribution.
    n_motions = min(_MOTIONS, coordinates.shape[1])
    chosen = [k for k in range(n_motions) if coordinates[:, k].var() > variances[:, k].mean()]
    curves, widths = [], []
    for k in chosen:
        means = coordinates[rows.numpy(), k]
        found = corrected_distribution(means, variances[:, k])
        step = found.values[1] - found.values[0]
        edges = np.append(found.values - step / 2, found.values[-1] + step / 2)
        curve = {
            "motion": k + 1,
            "coordinate_A": found.values,
            "density_per_A": found.density,
            "error_per_A": found.error,
            "as_estimated_per_A": np.histogram(means, edges)[0] / len(means) / step,
        }
        for domain in range(1, len(domains)):
            angle = domains.angles[:, domain]
            slope = np.cov(angle, coordinates[:, k])[0, 1] / coordinates[:, k].var(ddof=1)
            curve[f"domain{domain + 1}_angle_deg"] = angle.mean() + slope * (found.values - coordinates[:, k].mean())
        curves.append(pd.DataFrame(curve))
        widths.append(
            {
                "motion": k + 1,
                "as_estimated_A": means.std(),
                "error_A": np.sqrt(variances[:, k].mean()),
                "errors_taken_out_A": found.spread,
            }
        )
    columns = ["motion", "coordinate_A", "density_per_A", "error_per_A", "as_estimated_per_A"]
    return (
        pd.concat(curves) if curves else pd.DataFrame(columns=columns),
        pd.DataFrame(widths, columns=["motion", "as_estimated_A", "error_A", "errors_taken_out_A"]),
    )


def write_distributions(run: Run, domains: Domains, reporter: Reporter = PRINT) -> None:
    """Write `motion_distributions` to RUN/analysis/distributions.csv and distribution_widths.csv."""
    folder = run.path / "analysis"
    curves, widths = motion_distributions(run, domains)
    write_tables(folder, {"distributions": curves, "distribution_widths": widths}, "%.5g")
    reporter.say(f"Distributions along the motions, corrected for errors: {folder / 'distributions.csv'}.")
