"""What a control found, and where it is kept."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from dynamight_core.files import atomic_path
from dynamight_core.run import Run


@dataclass
class Control:
    """The outcome of a control experiment.

    Parameters
    ----------
    kind
        shuffled-latents, noise-particles, held-out or wrong-model.
    verdict
        a few words.
    sentence
        what was measured and what follows from it.
    figures
        numbers by name, and curves (lists) over the shells of `resolution`.
    table
        the numbers behind: a row for each particle, shell or map; None where nothing was to judge.
    options
        of the control.
    """

    kind: str
    verdict: str
    sentence: str
    figures: dict = field(default_factory=dict)
    table: pd.DataFrame | None = None
    options: dict = field(default_factory=dict)


def controls_folder(run: Run) -> Path:
    """Return where a run's controls are kept."""
    return Path(run.path) / "analysis" / "controls"


def write_control(run: Run, control: Control) -> list[Path]:
    """Write a control to RUN/analysis/controls/KIND.json, its table to KIND.csv if it has one; return the paths."""
    path = controls_folder(run) / f"{control.kind}.json"
    table = path.with_suffix(".csv")
    # That of an earlier control does not belong to this one.
    table.unlink(missing_ok=True)
    written = [path]
    if control.table is not None:
        with atomic_path(table) as temporary:
            control.table.to_csv(temporary, index=False, float_format="%.6g")
        written.append(table)
    values = {name: value for name, value in asdict(control).items() if name != "table"}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1))
    return written


def read_controls(folder: str | Path) -> dict[str, dict]:
    """Return the controls in a run's folder by kind, as they are in their JSON files."""
    found = {}
    for path in sorted((Path(folder) / "analysis" / "controls").glob("*.json")):
        values = json.loads(path.read_text())
        found[values["kind"]] = values
    return found
