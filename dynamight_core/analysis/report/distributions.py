"""The distribution of conformations along each motion, corrected for the errors of the coordinates."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import GREY, HALF_COLOURS, LEGEND_ABOVE, add_states, faint, middles
from dynamight_core.analysis.report.page import Page, Part

_COLUMNS = {
    "as_estimated_A": "standard deviation of estimated coordinates (Å rms)",
    "error_A": "error of one coordinate (Å rms)",
    "errors_taken_out_A": "corrected standard deviation (Å rms)",
}
_MOTIONS, _BINS = 3, 60


def distributions(page: Page) -> Part:
    """Return histograms along the motions that count, with the distributions that analysis found, if it did."""
    counted = page.counted[:_MOTIONS]
    if not counted:
        return Part()
    names = ("distributions", "distribution_widths")
    paths = [page.folder / "analysis" / f"{name}.csv" for name in names]
    curves, widths = (pd.read_csv(path) for path in paths) if paths[0].is_file() else (pd.DataFrame(),) * 2
    tables = {name: table for name, table in zip(names, (curves, widths), strict=True) if len(table)}
    known = [number for number in counted if len(curves) and (curves["motion"] == number).any()]
    figure, tables["estimated_coordinates"] = _draw(page, counted, curves, known)
    values: dict[str, Any] = {"corrected": bool(known), "states": bool(page.states)}
    if known:
        values["widths"] = widths[widths["motion"].isin(known)].rename(columns=_COLUMNS)
    return Part(values, {"distributions": figure}, tables)


def _draw(page: Page, counted: list[int], curves: pd.DataFrame, known: list[int]) -> tuple[go.Figure, pd.DataFrame]:
    figure = make_subplots(1, len(counted), subplot_titles=[page.names(number - 1) for number in counted])
    # An Å is as long in every panel.
    reach = max(float(np.abs(np.quantile(page.coordinates[:, k - 1], [0.001, 0.999])).max()) for k in counted)
    edges = np.linspace(-1.1, 1.1, _BINS + 1) * max(reach, 1e-3)
    rows = []
    for column, number in enumerate(counted, 1):
        counts = np.histogram(page.coordinates[:, number - 1], edges)[0]
        density = counts / max(1, counts.sum()) / (edges[1] - edges[0])
        rows += [(number, *row) for row in zip(edges[:-1], edges[1:], counts.astype(int), strict=True)]
        place = {"showlegend": column == 1, "row": 1, "col": column}
        bars = {"marker_color": GREY, "opacity": 0.55, "name": "estimated coordinates", "legendgroup": "estimated"}
        figure.add_bar(x=middles(edges), y=density, width=edges[1] - edges[0], **bars, **place)
        if number in known:
            _add_corrected(figure, curves[curves["motion"] == number], place)
        if page.states and len(counted) == 1:
            heights = np.full(len(page.states), 0.04 * float(density.max()))
            add_states(figure, page.states, number, heights, row=1, col=column)
    figure.update_xaxes(title="coordinate (Å rms)", range=[edges[0], edges[-1]])
    figure.update_yaxes(title="fraction of particles per Å", col=1)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.12}, margin={"t": 72}, height=340, bargap=0)
    return figure, pd.DataFrame(rows, columns=["motion", "from", "to", "particles"])


def _add_corrected(figure: go.Figure, curve: pd.DataFrame, place: dict[str, Any]) -> None:
    x, y, error = (curve[name] for name in ("coordinate_A", "density_per_A", "error_per_A"))
    colour = HALF_COLOURS[1]
    figure.add_scatter(
        x=pd.concat([x, x[::-1]]),
        y=pd.concat([y + error, (y - error).clip(lower=0)[::-1]]),
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(colour),
        hoverinfo="skip",
        name="standard error",
        legendgroup="error",
        **place,
    )
    line = {"color": colour, "width": 2.4}
    figure.add_scatter(
        x=x, y=y, mode="lines", line=line, name="corrected for coordinate errors", legendgroup="out", **place
    )
