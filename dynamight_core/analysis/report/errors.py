"""Motion and its error, and whether the halves agree."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import LEGEND_ABOVE, SOFT, add_histogram, colour_bar, middles
from dynamight_core.analysis.report.page import Page, Part, needs_tables

_AGREEMENT_COLUMNS = {
    "share": "explained variance (%)",
    "particles": "validation particles",
    "deviation_A": "standard deviation (Å rms)",
    "difference_A": "difference between halves (Å rms)",
}


@needs_tables("agreement")
def agreement(page: Page, table: pd.DataFrame) -> Part:
    """Return how well the halves agree on validation particles, if analysis compared them."""
    shown = table.assign(share=100 * table["share"]).rename(columns=_AGREEMENT_COLUMNS)
    return Part({"agreement": shown}, tables={"agreement": table})


def errors(page: Page) -> Part:
    """Return histograms of the motion of particles and its error, and one against the other."""
    titles = ["rms motion of a particle", "uncertainty of its displacement", "uncertainty against motion"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.08)
    above = 100 * float((page.rms > page.error).mean())
    tables = {
        "motion_and_error": _add_histograms(figure, page),
        "error_against_motion": _add_density(figure, page),
        "above_error": pd.DataFrame({"particles_that_move_by_more_than_their_error_percent": [above]}),
    }
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.14}, margin={"t": 84}, height=440)
    return Part({"factor": page.run.summary["error_factor"], "above": above}, {"errors": figure}, tables)


def _add_histograms(figure: go.Figure, page: Page) -> pd.DataFrame:
    rows = []
    kinds = (("training", ~page.validation, "#5d7f92"), ("validation", page.validation, "#b3412c"))
    for column, (name, values) in enumerate((("motion", page.rms), ("error", page.error)), 1):
        edges = np.linspace(0, max(float(np.quantile(values, 0.998)), 1e-3), 51)
        for kind, mine, colour in kinds:
            percent = np.histogram(values[mine], edges)[0] / max(1, mine.sum()) * 100
            rows += [(name, kind, a, b, p) for a, b, p in zip(edges[:-1], edges[1:], percent, strict=True)]
            more = {"legendgroup": kind, "showlegend": column == 1, "row": 1, "col": column}
            add_histogram(figure, edges, percent, colour, f"{kind} particles", **more)
        figure.update_xaxes(title="Å rms", row=1, col=column)
        figure.update_yaxes(title="% of particles" if column == 1 else "", row=1, col=column)
    return pd.DataFrame(rows, columns=["quantity", "particles", "from", "to", "percent"])


def _add_density(figure: go.Figure, page: Page) -> pd.DataFrame:
    top = [max(float(np.quantile(v, 0.995)), 1e-3) for v in (page.rms, page.error)]
    counts, *edges = np.histogram2d(page.rms, page.error, bins=60, range=[[0, top[0]], [0, top[1]]])
    centres = [middles(part) for part in edges]
    place = {"row": 1, "col": 3}
    figure.add_heatmap(
        x=centres[0],
        y=centres[1],
        z=np.where(counts > 0, counts, np.nan).T.astype(np.float32),
        colorscale="Blues",
        zmin=-0.15 * counts.max(),
        colorbar=colour_bar("particles", 12),
        hovertemplate="motion %{x:.2f} Å, uncertainty %{y:.2f} Å: %{z} particles<extra></extra>",
        **place,
    )
    figure.add_scatter(
        x=[0, min(top)],
        y=[0, min(top)],
        mode="lines",
        line={"color": SOFT, "dash": "dot", "width": 1.5},
        name="uncertainty = motion",
        hoverinfo="skip",
        **place,
    )
    figure.update_xaxes(title="rms motion (Å)", **place)
    figure.update_yaxes(title="uncertainty (Å)", **place)
    x, y = np.meshgrid(*centres, indexing="ij")
    return pd.DataFrame({"motion": x.ravel(), "error": y.ravel(), "particles": counts.ravel().astype(int)})
