"""Where the molecule moves, and how sure that is."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.molecule import spread_out
from dynamight_core.analysis.report.draw import INK, Array, colour_bar, frame_scenes, icosphere, xyz
from dynamight_core.analysis.report.page import Page, Part

CLOUD_POINTS = 2500
_ARROWS = 120


def gaussians(page: Page) -> Part:
    """Return the points of the molecule coloured by their motion, and arrows of the first motion."""
    moved, errors = (np.asarray(page.run.summary[name], dtype=np.float32) for name in ("point_motion", "point_error"))
    table = {axis: page.points[:, i] for i, axis in enumerate("xyz")} | {"rms_motion": moved, "error": errors}
    table |= {f"motion_1_{axis}": page.components[0][:, i] for i, axis in enumerate("xyz")}
    cloud = np.random.default_rng(1).permutation(len(page.rest))[:CLOUD_POINTS]
    figure = make_subplots(
        1,
        2,
        specs=[[{"type": "scene"}, {"type": "scene"}]],
        horizontal_spacing=0.02,
        subplot_titles=["rms motion over all particles", "motion 1, with its uncertainty at the tip of each arrow"],
    )
    marker = {
        "size": 2.5 + 6 * errors[cloud] / max(float(errors.max()), 1e-6),
        "color": moved[cloud],
        "colorscale": "Viridis",
        "cmin": 0,
        "line": {"width": 0},
        "colorbar": colour_bar("rms motion (Å)", 12, x=0.47, len=0.6),
    }
    figure.add_scatter3d(
        **xyz(page.rest[cloud]),
        mode="markers",
        showlegend=False,
        marker=marker,
        hovertemplate="(%{x:.0f}, %{y:.0f}, %{z:.0f}) Å: %{marker.color:.2f} Å<extra></extra>",
        row=1,
        col=1,
    )
    _add_arrows(figure, page, moved, errors)
    frame_scenes(figure, page.rest, page.components[0])
    figure.update_layout(height=500)
    values = {"drawn": len(cloud), "points": len(page.rest), "deviation": page.coordinates[:, 0].std()}
    return Part(values, {"gaussians": figure}, {"points": pd.DataFrame(table)})


def _add_arrows(figure: go.Figure, page: Page, moved: Array, errors: Array) -> None:
    """Add arrows of the first motion, evenly spread over the molecule, with spheres of the error's radius."""
    chosen = spread_out(page.rest, _ARROWS)
    start = page.rest[chosen]
    tip = start + page.components[0][chosen] * float(page.coordinates[:, 0].std())
    place = {"row": 1, "col": 2, "hoverinfo": "skip"}
    grey = {"size": 1.6, "color": "#c3ccd2", "opacity": 0.5}
    figure.add_scatter3d(**xyz(page.rest[::2]), mode="markers", showlegend=False, marker=grey, **place)
    # A gap after each arrow.
    lines = np.stack([start, tip, np.full_like(tip, np.nan)], 1).reshape(-1, 3)
    ink = {"color": INK, "width": 4}
    figure.add_scatter3d(**xyz(lines), mode="lines", line=ink, showlegend=False, connectgaps=False, **place)
    corners, faces = icosphere()
    vertices = (tip[:, None] + corners * errors[chosen, None, None]).reshape(-1, 3)
    triangles = (faces + len(corners) * np.arange(len(tip))[:, None, None]).reshape(-1, 3)
    figure.add_mesh3d(
        **xyz(vertices),
        **dict(zip("ijk", triangles.T, strict=True)),
        opacity=0.35,
        intensity=np.repeat(moved[chosen], len(corners)),
        showscale=False,
        colorscale="Viridis",
        cmin=0,
        cmax=float(moved.max()),
        **place,
    )
