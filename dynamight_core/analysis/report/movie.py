"""The principal motions, animated in the browser."""

import base64

import numpy as np
import plotly.graph_objects as go

from dynamight_core.analysis.report.draw import Array, colour_bar, frame_scenes, xyz
from dynamight_core.analysis.report.page import Page, Part

_POINTS = 1500


def movie(page: Page) -> Part:
    """Return points of the molecule, and the motions that the page's script moves them along."""
    chosen = np.random.default_rng(2).permutation(len(page.rest))[:_POINTS]
    motions = []
    reach = 0.0
    # What the halves do not share is no motion.
    shown = [number - 1 for number in page.shared[:3]]
    if not shown:
        return Part({"points": 0})
    for k in shown:
        component = page.components[k]
        low, high = (float(v) for v in np.quantile(page.coordinates[:, k], [0.05, 0.95]))
        motions.append({"motion": k + 1, "field": _encode(component[chosen]), "low": low, "high": high})
        reach = max(reach, float(np.abs(component).max()) * max(abs(low), abs(high)))
    marker = {
        "size": 4,
        "color": np.linalg.norm(page.components[shown[0]][chosen], axis=1),
        "colorscale": "Viridis",
        "cmin": 0,
        "line": {"width": 0},
        "colorbar": colour_bar("displacement<br>(Å per Å rms)", 12, len=0.7),
    }
    figure = go.Figure(go.Scatter3d(**xyz(page.rest[chosen]), mode="markers", hoverinfo="skip", marker=marker))
    frame_scenes(figure, page.rest, page.components[shown[0]], 1.1 + 2 * reach / float(np.ptp(page.rest, 0).max()))
    values = {"points": len(chosen), "data": {"rest": _encode(page.rest[chosen]), "motions": motions}}
    return Part(values | {"explains": page.explains}, {"movie": figure.update_layout(height=500)})


def _encode(values: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
