"""What the figures share: colours, plotly's template, histograms, and scenes in three dimensions."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

Array = NDArray[Any]

HALF_COLOURS = {1: "#1f6f8b", 2: "#c8643c"}
INK, SOFT, GREY, GREEN, OCHRE = "#22282e", "#5d6873", "#9aa5ad", "#6a8f3f", "#b08d2f"
FONT = "Inter, Source Sans 3, Segoe UI, Helvetica Neue, Liberation Sans, Arial, sans-serif"
_AXIS = {
    "showline": True,
    "linecolor": GREY,
    "ticks": "outside",
    "tickcolor": GREY,
    "gridcolor": "rgba(130,145,155,0.16)",
    "zeroline": False,
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [*HALF_COLOURS.values(), GREEN, "#8a6bb1", OCHRE, SOFT],
        "margin": {"l": 64, "r": 24, "t": 64, "b": 52},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"bgcolor": "rgba(0,0,0,0)"},
        "hoverlabel": {"font": {"family": FONT}},
    }
)
# Entries as wide as the longest: plotly measures text before fonts are there, and cuts it off.
LEGEND_ABOVE = {"orientation": "h", "x": 0, "yanchor": "bottom", "entrywidth": 215}
_RESOLUTIONS = (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.5, 1.2, 1)


def faint(colour: str) -> str:
    """Return a colour "#rrggbb" for filled areas."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def middles(edges: Array) -> Array:
    """Return the (n,) middles of bins from their (n + 1,) edges."""
    return np.asarray((edges[1:] + edges[:-1]) / 2)


def add_histogram(figure: go.Figure, edges: Array, heights: Array, colour: str, name: str, **more: Any) -> None:
    """Add a filled outline of a histogram; `more` goes to plotly's scatter."""
    figure.add_scatter(
        x=middles(edges),
        y=heights,
        mode="lines",
        line={"color": colour, "shape": "hvh"},
        fill="tozeroy",
        fillcolor=faint(colour),
        name=name,
        **more,
    )


def add_states(figure: go.Figure, states: list[dict[str, Any]], x: int, y: int | Array, **more: Any) -> None:
    """Add states as numbered dots in their colours, along motion x, and motion y or at heights y."""
    heights = [state["at"][y - 1] for state in states] if isinstance(y, int) else y
    figure.add_scatter(
        x=[state["at"][x - 1] for state in states],
        y=heights,
        mode="markers+text",
        text=[state["name"] for state in states],
        textfont={"color": "white", "size": 11},
        marker={
            "color": [state["colour"] for state in states],
            "size": 19,
            "line": {"color": "white", "width": 1.5},
        },
        name="chosen states",
        showlegend=False,
        hovertemplate="state %{text}<extra></extra>",
        **more,
    )


def colour_bar(title: str | None = None, thickness: int = 14, **more: Any) -> dict[str, Any]:
    """Return plotly's settings of a colour bar."""
    return {**({"title": {"text": title}} if title else {}), "thickness": thickness, "outlinewidth": 0, **more}


def resolution_axis(highest: float) -> dict[str, Any]:
    """Return plotly's settings of an axis in 1/A up to `highest`, with ticks in A, not too close to each other."""
    ticks: list[float] = []
    for value in _RESOLUTIONS:
        if 1 / value <= highest and (not ticks or 1 / value - 1 / ticks[-1] > 0.055 * highest):
            ticks.append(value)
    return {
        "title": "resolution (Å)",
        "tickvals": [1 / tick for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def xyz(points: Array) -> dict[str, Array]:
    """Return (n, 3) points as plotly's arguments."""
    points = np.asarray(points, dtype=np.float32)
    return {"x": points[:, 0], "y": points[:, 1], "z": points[:, 2]}


def icosphere() -> tuple[Array, Array]:
    """Return corners (42, 3) and faces (80, 3) of a unit sphere: an icosahedron, divided once."""
    g = (1 + 5**0.5) / 2
    corners: list[Any] = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g)]
    corners += [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4)]
    faces += [(11, 10, 2), (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8)]
    faces += [(3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)]
    middle: dict[tuple[int, int], int] = {}
    divided = []
    for face in faces:
        between = []
        for edge in (face[:2], face[1:], (face[2], face[0])):
            key = (min(edge), max(edge))
            if key not in middle:
                middle[key] = len(corners)
                corners.append(np.mean([corners[corner] for corner in edge], axis=0))
            between.append(middle[key])
        (a, b, c), (ab, bc, ca) = face, between
        divided += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    sphere = np.array(corners, dtype=np.float32)
    return sphere / np.linalg.norm(sphere, axis=1, keepdims=True), np.array(divided)


def frame_scenes(figure: go.Figure, points: Array, motion: Array, room: float = 1.15) -> None:
    """Show the same cube around the points in all scenes, without axes, from where the motion is seen best.

    Parameters
    ----------
    figure
        with the scenes.
    points
        (m, 3) in A.
    motion
        (m, 3) displacements.
    room
        side of the cube over the largest extent of the points.
    """
    middle, half = (points.max(0) + points.min(0)) / 2, room * float(np.ptp(points, 0).max()) / 2
    axes = {
        f"{name}axis": {"range": [float(middle[i] - half), float(middle[i] + half)], "visible": False}
        for i, name in enumerate("xyz")
    }
    # Along the direction that the motion uses least, so that it lies in the page, and the molecule lengthwise.
    eye = np.linalg.eigh(motion.T @ motion)[1][:, 0]
    eye = eye if eye.sum() > 0 else -eye
    length = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
    up = np.cross(eye, length)
    camera = {
        "eye": dict(zip("xyz", (1.6 * eye + 0.25 * up).tolist(), strict=True)),
        "up": dict(zip("xyz", up.tolist(), strict=True)),
        "projection": {"type": "orthographic"},
    }
    # Larger than plotly's own cube, whose corners always stay in sight.
    scale = {"x": 1.9, "y": 1.9, "z": 1.9}
    figure.update_scenes(**axes, aspectmode="manual", aspectratio=scale, camera=camera, dragmode="orbit")
    figure.update_layout(margin={"l": 4, "r": 4, "t": 56, "b": 4})
