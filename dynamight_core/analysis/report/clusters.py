"""Clusters of particles by their coordinates."""

import plotly.graph_objects as go

from dynamight_core.analysis.report.draw import HALF_COLOURS
from dynamight_core.analysis.report.page import Page, Part


def clusters(page: Page) -> Part:
    """Return the clusters that analysis found, if it did, and the criterion that their number was chosen by."""
    found = page.read("cluster_centres", "cluster_criterion")
    if found is None:
        return Part()
    centres, criterion = found
    figure = go.Figure()
    figure.add_scatter(
        x=criterion["clusters"],
        y=criterion["bic"] - criterion["bic"].min(),
        mode="lines+markers",
        line={"color": HALF_COLOURS[1]},
    )
    figure.update_xaxes(title="clusters", dtick=1)
    figure.update_yaxes(title="criterion above its least, per particle")
    figure.update_layout(height=300)
    shown = centres[[c for c in centres if not c.startswith("motion") or int(c[6:].split("_")[0]) <= 3]]
    tables = {"cluster_centres": centres, "cluster_criterion": criterion}
    return Part({"centres": shown}, {"clusters": figure}, tables)
