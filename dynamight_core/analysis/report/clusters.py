"""Clusters of particles by their coordinates."""

import pandas as pd
import plotly.graph_objects as go

from dynamight_core.analysis.report.draw import HALF_COLOURS
from dynamight_core.analysis.report.page import Page, Part, needs_tables


@needs_tables("cluster_centres", "cluster_criterion")
def clusters(page: Page, centres: pd.DataFrame, criterion: pd.DataFrame) -> Part:
    """Return the clusters that analysis found, if it did, and the criterion that their number was chosen by."""
    figure = go.Figure()
    figure.add_scatter(
        x=criterion["clusters"],
        y=criterion["bic"] - criterion["bic"].min(),
        mode="lines+markers",
        line={"color": HALF_COLOURS[1]},
    )
    figure.update_xaxes(title="number of clusters", dtick=1)
    figure.update_yaxes(title="ΔBIC per particle")
    figure.update_layout(height=300)
    names = {"half_1": "half 1", "half_2": "half 2"} | {f"motion{k}_A": f"motion {k} (Å)" for k in (1, 2, 3)}
    shown = centres[[c for c in centres if c in names or not c.startswith("motion")]].rename(columns=names)
    shown["method"] = shown["method"].replace({"mixture": "Gaussian mixture", "kmeans": "k-means"})
    # The mean of all particles is zero, not 1e-9 or -0.
    shown = shown.round(3).replace(-0.0, 0.0)
    tables = {"cluster_centres": centres, "cluster_criterion": criterion}
    return Part({"centres": shown}, {"clusters": figure}, tables)
