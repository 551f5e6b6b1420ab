"""What a control found, and where it is kept."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dynamight_core.files import atomic_path

if TYPE_CHECKING:
    from dynamight_core.analysis.results import Run


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
        the numbers behind: a row for each particle, shell or map.
    options
        of the control.
    """

    kind: str
    verdict: str
    sentence: str
    figures: dict
    table: pd.DataFrame
    options: dict = field(default_factory=dict)


def controls_folder(run: "Run") -> Path:
    """Return where a run's controls are kept."""
    return Path(run.path) / "analysis" / "controls"


def write_control(run: "Run", control: Control) -> Path:
    """Write a control to RUN/analysis/controls/KIND.json, and its table to KIND.csv; returns the former."""
    path = controls_folder(run) / f"{control.kind}.json"
    with atomic_path(path.with_suffix(".csv")) as temporary:
        control.table.to_csv(temporary, index=False, float_format="%.6g")
    values = {name: value for name, value in asdict(control).items() if name != "table"}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1))
    return path


def read_controls(folder: str | Path) -> dict[str, dict]:
    """Return the controls in a run's folder by kind, as they are in their JSON files."""
    found = {}
    for path in sorted((Path(folder) / "analysis" / "controls").glob("*.json")):
        values = json.loads(path.read_text())
        found[values["kind"]] = values
    return found
