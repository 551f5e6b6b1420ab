"""Fourier shell correlations."""

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import starfile

from dynamight_core.analysis.report.draw import HALF_COLOURS, SOFT, resolution_axis
from dynamight_core.analysis.report.page import Page, Part
from dynamight_core.reconstruction.densities import TABLE, density_sentence

_MAIN = "rlnFourierShellCorrelationCorrected"
_CURVES = {
    _MAIN: "half-maps, corrected",
    "rlnFourierShellCorrelationUnmaskedMaps": "half-maps, unmasked",
    "dynFourierShellCorrelationWithMotion": "including residual motion",
    "dynFourierShellCorrelationAtLeast": "conservative estimate",
    "rlnFourierShellCorrelationMaskedMaps": "half-maps, masked",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "phase-randomised, masked",
    "dynModelConsensus": "Gaussian model and consensus map",
    "dynModelMap": "Gaussian model and this map",
}
_REGION, _ATOMIC = "dynRegion_", "dynAtomic_"


def read_fsc(path: Path) -> tuple[pd.DataFrame, float, float] | None:
    """Return the curves of an fsc.star, the resolution and its conservative estimate (A; NaN where there is none).

    None if there is no such file.
    """
    if not path.is_file():
        return None
    blocks = starfile.read(path, always_dict=True)
    general = blocks["general"]
    conservative = float(general.get("dynResolutionAtLeast", float("nan")))
    return blocks["fsc"], float(general["rlnFinalResolution"]), conservative


def fsc(page: Page) -> Part:
    """Return the FSC curves and resolutions of the maps before and after."""
    parts = {"before": "reconstruction/rigid", "after": "reconstruction"}
    files = {name: read_fsc(page.folder / part / "fsc.star") for name, part in parts.items()}
    found = {name: file for name, file in files.items() if file is not None}
    if "after" not in found:
        return Part()
    rows, curves = [], {}
    for name, (table, resolution, conservative) in found.items():
        row = {"map": name, "resolution at FSC 0.143 (Å)": resolution}
        rows.append(row | ({"conservative resolution (Å)": conservative} if np.isfinite(conservative) else {}))
        curves[name] = table[table["rlnSpectralIndex"] > 0]
    resolutions = pd.DataFrame(rows)
    tables = {"fsc": pd.concat([table.assign(map=name) for name, table in curves.items()]), "resolution": resolutions}
    values = {"resolutions": resolutions, "rigid": "before" in found, "densities": []}
    densities = page.folder / "reconstruction" / TABLE
    if densities.is_file():
        tables["densities"] = pd.read_csv(densities)
        values["densities"] = [density_sentence(row) for row in tables["densities"].to_dict("records")]
    return Part(values, {"fsc": _draw(curves)}, tables)


def _draw(curves: dict[str, pd.DataFrame]) -> go.Figure:
    figure = go.Figure()
    for name, table in curves.items():
        regions = {column: f"half-maps, in {column.removeprefix(_REGION)}" for column in table if _REGION in column}
        atomic = {column: f"atomic model {column.removeprefix(_ATOMIC)}" for column in table if _ATOMIC in column}
        for column, title in (_CURVES | regions | atomic).items():
            consensus, model = column == "dynModelConsensus", column.startswith("dynModel")
            # The model's agreement with the consensus is the same before and after.
            if column not in table or (consensus and table is not next(iter(curves.values()))):
                continue
            colour = SOFT if consensus else HALF_COLOURS[1 if name == "after" else 2]
            dash = "solid" if column == _MAIN else "dash" if model else "dot"
            figure.add_scatter(
                x=table["rlnResolution"],
                y=table[column],
                mode="lines",
                name=title if consensus else f"{name}: {title}",
                visible=True if column == _MAIN or model else "legendonly",
                line={"color": colour, "width": 2.6 if column == _MAIN else 1.5, "dash": dash},
                customdata=table["rlnAngstromResolution"],
                hovertemplate="%{customdata:.2f} Å: %{y:.3f}",
            )
    figure.add_hline(0.143, line={"color": SOFT, "width": 1, "dash": "dot"}, annotation_text="0.143")
    figure.update_xaxes(resolution_axis(float(next(iter(curves.values()))["rlnResolution"].max())))
    figure.update_yaxes(title="Fourier shell correlation", range=[-0.1, 1.04])
    legend = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "entrywidth": 215}
    return figure.update_layout(legend=legend, margin={"t": 40}, height=560)
