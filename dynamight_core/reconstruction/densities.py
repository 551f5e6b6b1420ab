"""Which densities a map has in each region: in a table, a map and words."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from dynamight_core.files import header_origin, write_map, write_tables
from dynamight_core.judging.evidence import DENSITIES
from dynamight_core.reconstruction.competition import Choice
from dynamight_core.reconstruction.judgement import Judgement
from dynamight_core.reconstruction.maps import ReconstructionFiles
from dynamight_core.run import Run

TABLE, MOTION_USED = DENSITIES, "motion_used.mrc"
MOLECULE = "molecule"
# Fractions below this are not worth a word.
_FEW = 0.05


def density_table(
    judged: Judgement,
    choice: Choice,
    written: Mapping[bool, ReconstructionFiles],
    columns: Mapping[bool, dict[str, torch.Tensor]],
) -> pd.DataFrame:
    """Return one row per region: fractions of the densities, and resolutions (A) with and without motion.

    Parameters
    ----------
    judged
        of the maps.
    choice
        of the densities.
    written, columns
        files, and columns of fsc.star, by whether motion is used.
    """
    rows = []
    for name, mask in {MOLECULE: judged.mask, **judged.regions}.items():
        row: dict[str, str | float] = {"region": name, **choice.fractions(mask)}
        for motion, prefix in ((True, ""), (False, "rigid_")):
            if motion in written:
                files = written[motion]
                found = (files.resolution, files.conservative_resolution)
                if name != MOLECULE:
                    found = judged.resolutions(columns[motion], name)
                row |= dict(zip((f"{prefix}resolution_A", f"{prefix}conservative_A"), found, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def write_densities(
    folder: Path,
    run: Run,
    judged: Judgement,
    choice: Choice | None,
    written: Mapping[bool, ReconstructionFiles],
    columns: Mapping[bool, dict[str, torch.Tensor]],
) -> pd.DataFrame:
    """Write densities.csv and motion_used.mrc to a folder, or remove those of an earlier map; return the table."""
    if choice is None:
        for name in (TABLE, MOTION_USED):
            (folder / name).unlink(missing_ok=True)
        return pd.DataFrame()
    table = density_table(judged, choice, written, columns)
    write_tables(folder, {Path(TABLE).stem: table}, "%.5g")
    origin = header_origin(run.config.inputs.map)
    write_map(folder / MOTION_USED, choice.motion_used.numpy(), run.particles.pixel_size, origin)
    return table


def density_sentence(row: Mapping[str, str | float]) -> str:
    """Return the densities of a region, a row of the table, in words."""
    kinds = {
        "corrected": "all particles with motion corrected",
        "near": "particles near the conformation of the map",
        "rigid": "all particles without correction",
    }
    shares = sorted(((float(row[kind]), words) for kind, words in kinds.items()), reverse=True)
    parts = [f"{100 * share:.0f} % from {words}" for share, words in shares if share >= _FEW]
    return f"Density of {'the ' if row['region'] == MOLECULE else ''}{row['region']}: {', '.join(parts)}."
