"""The distribution of conformations along each motion, corrected for the errors of the coordinates."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import GREY, HALF_COLOURS, LEGEND_ABOVE, faint
from dynamight_core.analysis.report.page import Page, Part, needs_tables

_COLUMNS = {
    "as_estimated_A": "standard deviation of estimated coordinates (Å rms)",
    "error_A": "error of one coordinate (Å rms)",
    "errors_taken_out_A": "corrected standard deviation (Å rms)",
}


@needs_tables("distributions", "distribution_widths")
def distributions(page: Page, curves: pd.DataFrame, widths: pd.DataFrame) -> Part:
    """Return the distributions that analysis found, if it did."""
    tables = {"distributions": curves, "distribution_widths": widths}
    values = {"widths": widths.rename(columns=_COLUMNS)}
    return Part(values, {"distributions": _draw(curves)} if len(curves) else {}, tables)


def _draw(curves: pd.DataFrame) -> go.Figure:
    motions = curves["motion"].unique()
    figure = make_subplots(1, len(motions), subplot_titles=[f"motion {k}" for k in motions])
    colour = HALF_COLOURS[1]
    for column, motion in enumerate(motions, 1):
        mine = curves[curves["motion"] == motion]
        x, y, error = (mine[name] for name in ("coordinate_A", "density_per_A", "error_per_A"))
        place = {"mode": "lines", "showlegend": column == 1, "row": 1, "col": column}
        figure.add_scatter(
            x=x,
            y=mine["as_estimated_per_A"],
            line={"color": GREY, "shape": "hvh", "width": 1},
            name="estimated coordinates",
            legendgroup="estimated",
            **place,
        )
        figure.add_scatter(
            x=pd.concat([x, x[::-1]]),
            y=pd.concat([y + error, (y - error).clip(lower=0)[::-1]]),
            line={"width": 0},
            fill="toself",
            fillcolor=faint(colour),
            hoverinfo="skip",
            name="standard error",
            legendgroup="error",
            **place,
        )
        line = {"color": colour, "width": 2.2}
        figure.add_scatter(x=x, y=y, line=line, name="corrected for coordinate errors", legendgroup="out", **place)
    figure.update_xaxes(title="coordinate (Å rms)")
    figure.update_yaxes(title="fraction of particles per Å", col=1)
    return figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.14}, margin={"t": 84}, height=380)
