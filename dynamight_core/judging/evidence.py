"""What the files of a run say of its motion and its map, as plain values: controls, maps, regions, domains."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from dynamight_core.errors import InputError
from dynamight_core.particles.star import read_blocks
from dynamight_core.run import Run

# Tables beside the maps of a reconstruction: what was gained over the rigid map, and which densities are used.
GAINS, DENSITIES = "gains.csv", "densities.csv"


def controls_folder(run: Run) -> Path:
    """Return the folder of a run's controls."""
    return Path(run.path) / "analysis" / "controls"


def read_controls(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return the contents of the JSON files of the controls in a run's folder, by kind.

    Raises
    ------
    InputError
        if a file cannot be read.
    """
    found = {}
    for path in sorted((Path(folder) / "analysis" / "controls").glob("*.json")):
        try:
            values = json.loads(path.read_text())
            found[values["kind"]] = values
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}); run the control again or remove the file") from error
    return found


def read_resolutions(path: Path) -> tuple[float, float] | None:
    """Return the resolution of maps and its conservative estimate (A; NaN where there is none) from their fsc.star.

    None if there is no such file.
    """
    if not path.is_file():
        return None
    general = read_blocks(path)["general"].iloc[0]
    conservative = general.get("dynResolutionAtLeast", "nan")
    return float(general["rlnFinalResolution"]), float(conservative)


def read_rows(path: Path, key: str) -> dict[Any, dict[str, Any]]:
    """Return the rows of a CSV table by the values of a column; nothing if there is no such file."""
    if not path.is_file():
        return {}
    return {row[key]: row for row in pd.read_csv(path).to_dict("records")}
