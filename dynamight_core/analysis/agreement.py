"""Table of how the half-sets agree on each motion."""

import numpy as np

from dynamight_core.files import write_table
from dynamight_core.judging.agreement import halves_agreement
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run


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
