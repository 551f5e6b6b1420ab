"""Particles along the principal motions: where each is, how each half is distributed, and the free energy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import binned_statistic_2d

from dynamight_core.analysis.landscape import Landscape, plane_landscape
from dynamight_core.analysis.report.draw import (
    GREY,
    HALF_COLOURS,
    LEGEND_ABOVE,
    Array,
    add_histogram,
    add_states,
    colour_bar,
    middles,
)
from dynamight_core.analysis.report.page import Page, Part

_BINS = 90


def landscape(page: Page) -> Part:
    """Return particles, or their density, over the first two motions that count, and its free energy.

    With one motion there is no plane: its histogram is with the distribution, see `distributions`.
    """
    counted = page.counted
    if len(counted) < 2:
        return Part()
    c = page.coordinates
    first, second = (c[:, number - 1] for number in counted[:2])
    particles = {"motion_1": first, "motion_2": second, "rms": page.rms, "error": page.error}
    particles["direction_deg"] = page.direction
    particles |= {"half": page.halves, "validation": page.validation.astype(int)}
    # Above the limit the file would not hold all particles; particles.star does.
    tables = {"landscape": pd.DataFrame(particles).iloc[page.shown]}
    if page.few:
        figure = _scatter(page, first, second)
    else:
        figure, tables["landscape_density"] = _density(page, first, second)
    names = [trace.name for trace in figure.data]
    add_states(figure, page.states, *counted[:2])
    _add_menu(figure, names)
    titles = [f"{page.names(number - 1)} (Å rms)" for number in counted[:2]]
    figure.update_xaxes(title=titles[0])
    # An Å is as long on both axes.
    figure.update_yaxes(title=titles[1], scaleanchor="x", scaleratio=1)
    energy, tables["free_energy"] = _free_energy(plane_landscape(first, second), counted)
    return Part({"few": page.few}, {"landscape": figure, "free-energy": energy}, tables)


def coordinates(page: Page) -> Part:
    """Return histograms of all coordinates of both half-sets; what the half-sets do not share is grey and last."""
    figure, table = _histograms(page)
    return Part({}, {"coordinates": figure}, {"coordinates": table})


@dataclass(frozen=True)
class _Colouring:
    name: str
    values: Array
    scale: str | list[Any]
    low: float
    high: float


def _colourings(page: Page) -> Iterator[_Colouring]:
    for name, values, scale in (("rms motion (Å)", page.rms, "Viridis"), ("uncertainty (Å)", page.error, "Cividis")):
        low, high = (float(value) for value in np.quantile(values, [0.01, 0.99]))
        yield _Colouring(name, values, scale, low, max(high, low + 1e-6))
    yield _Colouring("direction of motion (°)", page.direction, "HSV", -180.0, 180.0)
    halves = [[0, HALF_COLOURS[1]], [1, HALF_COLOURS[2]]]
    yield _Colouring("half", page.halves.astype(np.float32), halves, 1.0, 2.0)
    validation = [[0, "#c3ccd2"], [1, "#b3412c"]]
    yield _Colouring("validation", page.validation.astype(np.float32), validation, 0.0, 1.0)


def _add_menu(figure: go.Figure, names: list[str]) -> None:
    """Add a menu that shows one of the figure's traces, and the last."""
    buttons = [
        {
            "label": f"colour: {name}",
            "method": "update",
            "args": [{"visible": [other == name for other in names] + [True]}],
        }
        for name in names
    ]
    menu = {"buttons": buttons, "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "showactive": True}
    menu |= {"bgcolor": "#f4f6f7", "bordercolor": "#cbd3d9", "pad": {"b": 4}}
    figure.update_layout(updatemenus=[menu], height=640)


def _scatter(page: Page, x: Array, y: Array) -> go.Figure:
    figure = go.Figure()
    colourings = list(_colourings(page))
    for index, colouring in enumerate(colourings):
        name, low, high = colouring.name, colouring.low, colouring.high
        bar = colour_bar(name)
        if name in ("half", "validation"):
            bar |= {"tickvals": [low, high], "ticktext": ["1", "2"] if name == "half" else ["no", "yes"]}
        marker = {"color": colouring.values, "colorscale": colouring.scale, "cmin": low, "cmax": high}
        figure.add_scattergl(
            x=x,
            y=y,
            mode="markers",
            visible=index == 0,
            name=name,
            showlegend=False,
            marker=marker | {"size": 4.5, "opacity": 0.75, "colorbar": bar},
            hovertemplate=f"%{{x:.2f}} Å, %{{y:.2f}} Å<br>{name}: %{{marker.color:.3g}}<extra></extra>",
        )
    return figure


def _density(page: Page, x: Array, y: Array) -> tuple[go.Figure, pd.DataFrame]:
    """Return a figure with the particles in each bin of the plane, and means over these, and its table."""
    span = [np.quantile(v, [0.0005, 0.9995]) + [-1e-3, 1e-3] for v in (x, y)]
    counts, *edges, _ = binned_statistic_2d(x, y, None, "count", bins=_BINS, range=span)

    def mean(values: Array) -> Array:
        return np.asarray(binned_statistic_2d(x, y, values, "mean", bins=_BINS, range=span)[0])

    layers = [_Colouring("particles", counts, "Blues", 0.0, float(counts.max()))]
    for part in _colourings(page):
        if part.name.startswith("direction"):
            # The mean of directions is that of their unit vectors: -179 and 179 degrees are neighbours.
            angles = np.radians(part.values)
            means = np.degrees(np.arctan2(mean(np.sin(angles)), mean(np.cos(angles))))
        else:
            means = mean(part.values)
        layers.append(_Colouring(part.name, means, part.scale, part.low, part.high))
    centres = [middles(part).astype(np.float32) for part in edges]
    figure = go.Figure()
    for index, layer in enumerate(layers):
        figure.add_heatmap(
            x=centres[0],
            y=centres[1],
            z=np.where(counts > 0, layer.values, np.nan).T.astype(np.float32),
            colorscale=layer.scale,
            zmin=layer.low,
            zmax=layer.high,
            visible=index == 0,
            name=layer.name,
            colorbar=colour_bar(layer.name),
            hovertemplate=f"%{{x:.2f}} Å, %{{y:.2f}} Å<br>{layer.name}: %{{z:.3g}}<extra></extra>",
        )
    return figure, _grid(centres, {layer.name: layer.values for layer in layers})


def _grid(centres: list[Array], columns: dict[str, Array]) -> pd.DataFrame:
    """Return a table of (n, m) arrays over a plane."""
    places = {"motion_1": np.repeat(centres[0], len(centres[1])), "motion_2": np.tile(centres[1], len(centres[0]))}
    return pd.DataFrame(places | {name: values.ravel() for name, values in columns.items()})


def _histograms(page: Page) -> tuple[go.Figure, pd.DataFrame]:
    """Return a figure with histograms of the first motions' coordinates, and a table of all of them."""
    order = sorted(range(page.coordinates.shape[1]), key=lambda k: (k + 1 not in page.shared, k))
    n = min(6, len(order))
    columns = min(3, n)
    n_rows = -(-n // columns)
    titles = [page.names(k) for k in order[:n]]
    figure = make_subplots(n_rows, columns, subplot_titles=titles, vertical_spacing=0.2)
    rows = []
    for place, k in enumerate(order):
        values = page.coordinates[:, k]
        low, high = np.quantile(values, [0.001, 0.999])
        edges = np.linspace(low, max(high, low + 1e-3), 41)
        for half, colour in HALF_COLOURS.items():
            counts, _ = np.histogram(values[page.halves == half], edges)
            rows += [(k + 1, half, a, b, int(c)) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)]
            if place < n:
                more = {"row": place // columns + 1, "col": place % columns + 1, "legendgroup": str(half)}
                drawn = colour if k + 1 in page.shared else GREY
                add_histogram(figure, edges, counts, drawn, f"half {half}", showlegend=place == 0, **more)
    figure.update_xaxes(title="coordinate (Å rms)", row=n_rows)
    figure.update_yaxes(title="particles", col=1)
    figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.1}, height=250 * n_rows + 60)
    return figure, pd.DataFrame(rows, columns=["motion", "half", "from", "to", "particles"])


def _free_energy(found: Landscape, motions: list[int]) -> tuple[go.Figure, pd.DataFrame]:
    known = found.relative_error < 1.0
    energy, error = (np.where(known, grid, np.nan) for grid in (found.free_energy, found.relative_error))
    centres = [middles(edges).astype(np.float32) for edges in (found.x_edges, found.y_edges)]
    titles = ["free energy (kT)", "sampling error (kT)"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.14)
    for column, (part, top) in enumerate(((energy, 6.0), (error, 1.0)), 1):
        figure.add_heatmap(
            x=centres[0],
            y=centres[1],
            z=part.T.astype(np.float32),
            colorscale="Viridis_r",
            zmin=0,
            zmax=top,
            colorbar=colour_bar(thickness=12, x=0.43 if column == 1 else 1.0),
            row=1,
            col=column,
            hovertemplate="%{x:.2f} Å, %{y:.2f} Å: %{z:.2f} kT<extra></extra>",
        )
        figure.update_xaxes(title=f"motion {motions[0]} (Å rms)", row=1, col=column)
    figure.update_yaxes(title=f"motion {motions[1]} (Å rms)", row=1, col=1)
    columns = {"particles": found.counts, "density": found.density, "free_energy_kT": energy, "error_kT": error}
    return figure.update_layout(height=420), _grid(centres, columns)
