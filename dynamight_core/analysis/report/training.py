"""How training went."""

import json

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import HALF_COLOURS, LEGEND_ABOVE
from dynamight_core.analysis.report.page import Page, Part

_KIND_COLOURS = {"warm-up": "#f1ead9", "encoder": "#e8f1f4", "refinement": "#eef4e8", "reference": "#f3e6ea"}


def training(page: Page) -> Part:
    """Return the curves of training: loss, KL term, regularisation and motion of both halves by epoch."""
    path = page.folder / "metrics.jsonl"
    if not path.exists():
        return Part()
    metrics = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines() if line.strip()])
    # The loss of filtered images is another one than that of all frequencies.
    first = metrics.groupby(["half", "resolution"])["data"].transform("first")
    metrics.insert(3, "data_change_percent", 100 * (metrics["data"] / first - 1))
    values = {
        "epochs": metrics["epoch"].max(),
        # Both halves' lines give the time of the epoch of both.
        "minutes": metrics.groupby("epoch")["seconds"].first().sum() / 60,
        "particles_per_second": metrics["particles_per_second"].iloc[-1],
        "memory": metrics["peak_memory_gb"].max(),
    }
    return Part(values, {"training": _draw(metrics)}, {"training": metrics})


def _draw(metrics: pd.DataFrame) -> go.Figure:
    moves = metrics["kind"].isin(["encoder", "refinement"])
    # Terms that an epoch's kind does not have are left out, not drawn as zero.
    panels = {
        "data loss against the first epoch with the same filter, %": metrics["data_change_percent"],
        "KL term (encoder epochs)": metrics["kl"].where(metrics["kind"] == "encoder"),
        "regularisation R<sub>d</sub> + R<sub>r</sub>, Å²": (metrics["regularity"] + metrics["repulsion"]).where(moves),
        "rms motion, Å": metrics["motion"].where(moves),
    }
    figure = make_subplots(2, 2, subplot_titles=list(panels), vertical_spacing=0.15)
    for number, values in enumerate(panels.values()):
        for half, colour in HALF_COLOURS.items():
            mine = metrics["half"] == half
            figure.add_scatter(
                x=metrics["epoch"][mine],
                y=values[mine],
                name=f"half {half}",
                legendgroup=str(half),
                showlegend=number == 0,
                mode="lines+markers",
                line={"color": colour, "width": 1.8},
                marker={"size": 4},
                text=metrics["kind"][mine],
                row=number // 2 + 1,
                col=number % 2 + 1,
                hovertemplate="epoch %{x} (%{text}): %{y:.4g}",
            )
    _shade(figure, metrics[metrics["half"] == metrics["half"].min()])
    figure.update_xaxes(title="epoch", row=2)
    return figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.13}, margin={"t": 92}, height=620)


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
