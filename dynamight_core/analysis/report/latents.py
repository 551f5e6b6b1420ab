"""The latent spaces of both halves."""

import numpy as np
import pandas as pd
from matplotlib.colors import hsv_to_rgb
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import Array
from dynamight_core.analysis.report.page import MAX_POINTS, Page, Part, principal_plane


def latents(page: Page) -> Part:
    """Return all particles under each half's decoder, in the plane in which their latents spread most."""
    colours, full = _direction_colours(page.displacement)
    figure = make_subplots(1, 2, subplot_titles=["decoder of half 1", "decoder of half 2"], horizontal_spacing=0.08)
    table, components = {"particle": page.shown + 1}, []
    for half in (1, 2):
        plane, explained = principal_plane(np.asarray(page.run.latents[half - 1], dtype=np.float32))
        plane = plane[page.shown]
        table |= {f"half_{half}_pc_{k + 1}": plane[:, k] for k in range(2)}
        figure.add_scattergl(
            x=plane[:, 0].astype(np.float32),
            y=plane[:, 1].astype(np.float32),
            mode="markers",
            marker={"color": colours[page.shown], "size": 4.5, "opacity": 0.8},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=half,
        )
        components += [(half, k + 1, 100 * part) for k, part in enumerate(explained)]
        titles = [f"component {k + 1}, {100 * part:.0f} % of variance" for k, part in enumerate(explained)]
        figure.update_xaxes(title=titles[0], row=1, col=half)
        figure.update_yaxes(title=titles[1], row=1, col=half)
    table |= {f"direction_{axis}": page.displacement[page.shown, i] for i, axis in enumerate("xyz")}
    values = {"drawn": None if page.few else MAX_POINTS, "full": full}
    columns = ["half", "component", "explained_variance_percent"]
    tables = {"latents": pd.DataFrame(table), "latent_components": pd.DataFrame(components, columns=columns)}
    return Part(values, {"latents": figure.update_layout(height=540)}, tables)


def _direction_colours(direction: Array) -> tuple[Array, float]:
    """Return (n,) colours of (n, 3) mean displacements, and the size (A) that has full saturation."""
    plane, _ = principal_plane(direction)
    size = np.hypot(*plane.T)
    full = float(max(np.quantile(size, 0.95), 1e-6))
    hue = np.arctan2(plane[:, 1], plane[:, 0]) / (2 * np.pi) % 1
    rgb = hsv_to_rgb(np.column_stack([hue, np.clip(size / full, 0, 1) * 0.85, np.full(len(hue), 0.82)]))
    # Few enough colours that their names compress; the eye does not see the steps.
    levels = (np.round(rgb * 31) * 255 / 31).astype(int)
    return np.array([f"#{r:02x}{g:02x}{b:02x}" for r, g, b in levels]), full
