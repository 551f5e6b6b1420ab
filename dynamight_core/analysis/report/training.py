"""How training went."""

import json
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import HALF_COLOURS, LEGEND_ABOVE
from dynamight_core.analysis.report.page import Page, Part
from dynamight_core.training.curves import LOSS, training_curves

_KIND_COLOURS = {"warm-up": "#f1ead9", "encoder": "#e8f1f4", "refinement": "#eef4e8", "reference": "#f3e6ea"}


def training(page: Page) -> Part:
    """Return the curves of training: loss, KL term, regularisation and motion of both halves by epoch."""
    path = page.folder / "metrics.jsonl"
    if not path.exists():
        return Part()
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    metrics, curves = pd.json_normalize(lines), training_curves(lines)
    metrics.insert(3, "data_change_percent", curves["value"][curves["curve"] == LOSS])
    values = {
        "epochs": metrics["epoch"].max(),
        # Both halves' lines give the time of the epoch of both.
        "minutes": metrics.groupby("epoch")["seconds"].first().sum() / 60,
        "particles_per_second": metrics["particles_per_second"].iloc[-1],
        "memory": metrics["peak_memory_gb"].max(),
    }
    return Part(values, {"training": _draw(curves)}, {"training": metrics})


def _draw(curves: pd.DataFrame) -> go.Figure:
    titles = list(curves["curve"].unique())
    n_rows = 1 if len(titles) <= 3 else 2
    columns = -(-len(titles) // n_rows)
    specs: list[Any] = [{}] * len(titles) + [None] * (n_rows * columns - len(titles))
    grid = [specs[:columns], specs[columns:]][:n_rows]
    figure = make_subplots(n_rows, columns, specs=grid, subplot_titles=titles, vertical_spacing=0.15)
    for (title, half), curve in curves.groupby(["curve", "half"], sort=False):
        number = titles.index(title)
        figure.add_scatter(
            x=curve["epoch"],
            y=curve["value"],
            name=f"half {half}",
            legendgroup=str(half),
            showlegend=number == 0,
            mode="lines+markers",
            line={"color": HALF_COLOURS[half], "width": 1.8},
            marker={"size": 4},
            text=curve["kind"],
            row=number // columns + 1,
            col=number % columns + 1,
            hovertemplate="epoch %{x} (%{text}): %{y:.4g}",
        )
    _shade(figure, curves.drop_duplicates("epoch"))
    figure.update_xaxes(title="epoch", row=n_rows)
    legend = LEGEND_ABOVE | {"y": 1 + 0.18 / n_rows, "entrywidth": 120}
    return figure.update_layout(legend=legend, margin={"t": 104}, height=130 + 250 * n_rows)


def _shade(figure: go.Figure, epochs: pd.DataFrame) -> None:
    """Colour the background of every panel by the kind of the epochs."""
    runs = (epochs["kind"] != epochs["kind"].shift()).cumsum()
    for _, part in epochs.groupby(runs):
        figure.add_vrect(
            x0=part["epoch"].min() - 0.5,
            x1=part["epoch"].max() + 0.5,
            opacity=0.9,
            fillcolor=_KIND_COLOURS.get(part["kind"].iloc[0], "#eeeeee"),
            line_width=0,
            layer="below",
            row="all",
            col="all",
        )
    for name, colour in _KIND_COLOURS.items():
        if (epochs["kind"] == name).any():
            marker = {"symbol": "square", "size": 13, "color": colour, "line": {"color": "#b9c3ca", "width": 1}}
            figure.add_scatter(x=[None], y=[None], mode="markers", name=f"{name} epochs", marker=marker)
