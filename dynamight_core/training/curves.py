"""The curves of a training, for figures."""

from typing import Any

import pandas as pd

LOSS = "Change in data loss (%)"
# Terms of the loss that have curves of their own; others are drawn by their names.
_TITLED = ("data", "kl", "regularity", "repulsion")


def training_curves(metrics: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the curves of a training: a row for each curve, half-set and epoch.

    Parameters
    ----------
    metrics
        lines of metrics.jsonl, as dictionaries.

    Returns
    -------
    DataFrame
        columns curve (its title), half, epoch, kind (of the epoch) and value; curve by curve, and in each in the order
        of the metrics. Values are missing for epochs of other kinds; curves without values are omitted.
    """
    table = pd.DataFrame(metrics)
    # Of the same images in the same units; older runs lack it.
    loss = pd.to_numeric(table.get("fixed_loss", pd.Series(float("nan"), table.index)))
    first = loss.groupby(table["half"]).transform("first")
    moves = table["kind"].isin(["encoder", "refinement"])
    curves = {
        LOSS: 100 * (loss / first - 1),
        "KL term (encoder epochs)": table["kl"].where(table["kind"] == "encoder"),
        "Distance restraints (Å²)": (table["regularity"] + table["repulsion"]).where(moves),
        "Motion (Å rms)": table["motion"].where(moves),
    }
    losses = pd.DataFrame([line.get("losses", {}) for line in metrics], table.index)
    for name in losses.columns.difference(_TITLED, sort=False):
        curves[name.replace("_", " ").capitalize()] = losses[name]
    shown = {name: values for name, values in curves.items() if values.notna().any()}
    epochs = table[["half", "epoch", "kind"]]
    parts = [epochs.assign(curve=name, value=values) for name, values in shown.items()]
    columns = ["curve", "half", "epoch", "kind", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
