"""Rigid-body domains that analysis found, and rigid bodies that training was given."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import add_histogram, frame_scenes, xyz
from dynamight_core.analysis.report.gaussians import CLOUD_POINTS
from dynamight_core.analysis.report.page import Page, Part, needs_tables

_COLOURS = ["#7f8b94", "#1f6f8b", "#c8643c", "#6a8f3f", "#8a6bb1", "#b08d2f"]
_DOMAIN_COLUMNS = {
    "domain": "domain",
    "against": "relative to",
    "share_of_points": "fraction",
    "motion_A": "motion (Å)",
    "error_A": "uncertainty (Å)",
    "motion_beyond_error_A": "beyond uncertainty (Å)",
    "angle_std_deg": "rotation (°)",
    "angle_low_deg": "from (°)",
    "angle_high_deg": "to (°)",
    "shift_rms_A": "shift (Å)",
}
_BODY_COLUMNS = {
    "body": "body",
    "mask": "mask",
    "share": "fraction of the molecule",
    "angle_std_deg": "rotation (°)",
    "angle_low_deg": "from (°)",
    "angle_high_deg": "to (°)",
    "rotation_error_rms_deg": "rotation uncertainty (°)",
    "shift_std_A": "shift (Å)",
    "shift_error_rms_A": "shift uncertainty (Å)",
}


@needs_tables(*(f"domains/{name}" for name in ("domains", "particles", "points", "residuals")))
def domains(
    page: Page, table: pd.DataFrame, particles: pd.DataFrame, points: pd.DataFrame, residuals: pd.DataFrame
) -> Part:
    """Return the rigid domains that analysis divided the motion into, if it did."""
    figure, angles = _draw(page, len(table), particles, points)
    values = {
        "domains": table[list(_DOMAIN_COLUMNS)].rename(columns=_DOMAIN_COLUMNS),
        "residuals": residuals["residual_rms_A"],
    }
    tables = {"domains": table, "domain_residuals": residuals, "domain_angles": angles}
    return Part(values, {"domains": figure}, tables)


def _draw(page: Page, n: int, particles: pd.DataFrame, points: pd.DataFrame) -> tuple[go.Figure, pd.DataFrame]:
    figure = make_subplots(
        1,
        2,
        specs=[[{"type": "scene"}, {"type": "xy"}]],
        horizontal_spacing=0.1,
        column_widths=[0.55, 0.45],
        subplot_titles=["points by domain", "rotation of each domain"],
    )
    places = points[["x_A", "y_A", "z_A"]].to_numpy()
    cloud = np.random.default_rng(1).permutation(len(points))[:CLOUD_POINTS]
    rows = []
    for domain in range(1, n + 1):
        colour = _COLOURS[(domain - 1) % len(_COLOURS)]
        name = {"name": f"domain {domain}", "legendgroup": str(domain)}
        figure.add_scatter3d(
            **xyz(places[cloud][points["domain"].to_numpy()[cloud] == domain]),
            **name,
            mode="markers",
            hoverinfo="name",
            marker={"size": 4, "color": colour, "line": {"width": 0}},
            row=1,
            col=1,
        )
        values = particles[f"domain{domain}_angle_deg"].to_numpy()
        low, high = np.quantile(values, [0.001, 0.999])
        edges = np.linspace(low - 1e-3, high + 1e-3, 51)
        counts = np.histogram(values, edges)[0]
        rows += [(domain, a, b, int(c)) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)]
        heights = 100 * counts / len(values) / (edges[1] - edges[0])
        add_histogram(figure, edges, heights, colour, showlegend=False, row=1, col=2, **name)
    frame_scenes(figure, places, page.components[0])
    figure.update_xaxes(title="angle (°)")
    figure.update_yaxes(title="% of particles per degree")
    figure.update_layout(margin={"b": 52}, legend={"x": 0, "y": 1}, height=480)
    return figure, pd.DataFrame(rows, columns=["domain", "from_deg", "to_deg", "particles"])


@needs_tables("bodies_summary")
def bodies(page: Page, table: pd.DataFrame) -> Part:
    """Return what the bodies do that the run was trained with; domains are found again in any motion."""
    return Part({"bodies": table[list(_BODY_COLUMNS)].rename(columns=_BODY_COLUMNS)}, tables={"bodies": table})
