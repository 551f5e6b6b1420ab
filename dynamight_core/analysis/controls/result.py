"""The result of a control, and its files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from dynamight_core.files import atomic_path, write_table
from dynamight_core.judging.evidence import controls_folder
from dynamight_core.run import Run


@dataclass
class Control:
    """The result of a control.

    Parameters
    ----------
    kind
        shuffled-latents, noise-particles, held-out or wrong-model.
    verdict
        a few words.
    sentence
        the verdict in sentences, with the numbers and what to do.
    figures
        numbers by name, and curves (lists) over the shells of `resolution`.
    table
        one row per particle or shell; None if there was no motion to judge.
    options
        of the control.
    """

    kind: str
    verdict: str
    sentence: str
    figures: dict = field(default_factory=dict)
    table: pd.DataFrame | None = None
    options: dict = field(default_factory=dict)


def write_control(run: Run, control: Control) -> list[Path]:
    """Write a control to RUN/analysis/controls/KIND.json, and its table (if any) to KIND.csv; return the paths."""
    path = controls_folder(run) / f"{control.kind}.json"
    table = path.with_suffix(".csv")
    # It may be there from an earlier control.
    table.unlink(missing_ok=True)
    written = [path]
    if control.table is not None:
        write_table(table, control.table)
        written.append(table)
    values = {name: value for name, value in asdict(control).items() if name != "table"}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=float))
    return written
