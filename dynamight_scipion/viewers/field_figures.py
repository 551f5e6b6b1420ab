"""Figures of deformation fields. Every function draws on an empty matplotlib figure that it is given."""

import numpy as np
from matplotlib.colors import Normalize

from .figures import SOFT, frameView


def drawArrows(figure, points, shift, error):
    """Draw displacements as arrows, seen along z, y and x.

    Parameters
    ----------
    figure
        to draw on.
    points, shift
        (n, 3) starts and displacements, Å.
    error
        (n,) uncertainties, Å, which colour the arrows; not a number where they are not known.
    """
    ends = np.concatenate([points, points + shift])
    low, high = ends.min(0) - 5, ends.max(0) + 5
    extent = high - low
    known = np.isfinite(error).any()
    scale = Normalize(0, float(np.nanmax(error)) if known else 1.0)
    grid = figure.subplots(1, 3, width_ratios=[extent[0], extent[0], extent[1]])
    for axes, depth in zip(grid, (2, 1, 0)):
        across, up = (axis for axis in range(3) if axis != depth)
        axes.scatter(points[:, across], points[:, up], s=4, color=SOFT, linewidths=0)
        arrows = axes.quiver(
            points[:, across],
            points[:, up],
            shift[:, across],
            shift[:, up],
            np.nan_to_num(error),
            cmap="viridis",
            norm=scale,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.006,
        )
        frameView(axes, (across, up, depth), low, high, "displacement")
    if known:
        bar = figure.colorbar(arrows, ax=grid, shrink=0.7, aspect=35, pad=0.02)
        bar.set_label("uncertainty (Å)")
        bar.outline.set_visible(False)
