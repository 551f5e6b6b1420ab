"""Control experiments: verdicts, and the curves and gains behind them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamight_core.analysis.report.draw import GREEN, GREY, HALF_COLOURS, INK, LEGEND_ABOVE, OCHRE, resolution_axis
from dynamight_core.analysis.report.page import Page, Part
from dynamight_core.judging.evidence import read_controls

_PERMUTED = "#c9a0b4"
_COLOURS = [*HALF_COLOURS.values(), GREEN, OCHRE]
_UNDECIDED = ("undecided", "no difference", "no motion", "partly from the motion")


@dataclass(frozen=True)
class _Kind:
    """What a kind of control asks, and how its figure is labelled.

    Parameters
    ----------
    title
        of its part of the page.
    good
        verdicts that are good news.
    quantity
        that the curves show.
    curves
        labels of the curves by their names.
    gains
        names of the gains by their labels.
    unit
        of the gains.
    """

    title: str
    good: tuple[str, ...]
    quantity: str
    curves: dict[str, str]
    gains: dict[str, str] = field(default_factory=dict)
    unit: str = ""


_KINDS = {
    "shuffled-latents": _Kind(
        "Deformations permuted among particles",
        ("from the motion",),
        "FSC between half-maps in the moving region",
        {"own": "own deformations", "rigid": "no deformation"},
        {"own deformations": "gain", "map permuted": "permuted_map_gain", "all permuted": "permuted_gain"},
        "gain over the rigid map (nats per image)",
    ),
    "held-out": _Kind(
        "Reconstruction from held-out particles",
        ("improves the map",),
        "FSC with the other half's map in the moving region",
        {"deformed": "both maps deformed", "rigid": "both maps rigid", "deformed_to_rigid": "only this map deformed"},
        {"own deformations": "gain", "permuted": "permuted_gain"},
        "relative gain in density of the moving region",
    ),
    "noise-particles": _Kind(
        "Noise in place of particles",
        ("nothing appears from noise", "a trace appears from noise"),
        "FSC between half-maps of noise",
        {
            "beside": "deformations from noise and signal",
            "alone": "deformations from noise alone",
            "rigid": "no deformation",
        },
        {"noise and signal": "share_of_model", "noise alone": "share_of_model_alone"},
        "fraction of the moving region's density",
    ),
    "wrong-model": _Kind(
        "Deliberately wrong atomic model",
        ("follows the data",),
        "FSC of the map in the altered region",
        {
            "deformed_right": "with the correct structure",
            "deformed_wrong": "with the wrong structure",
            "rigid_right": "rigid map, correct structure",
            "rigid_wrong": "rigid map, wrong structure",
        },
    ),
}


def controls(page: Page) -> Part:
    """Return the controls that were run, and which were not."""
    found = read_controls(page.folder)
    asked = [kind for kind in _KINDS if kind != "wrong-model" or page.run.config.inputs.atomic_model]
    shown, figures = [], {}
    for name, kind in _KINDS.items():
        if name not in found:
            continue
        control = found[name]
        numbers = control["figures"]
        # Controls of other versions may lack some.
        gains = {label: gain for label, gain in kind.gains.items() if f"{gain}_error" in numbers}
        verdict = control["verdict"]
        good = "supported" if verdict in kind.good else "undecided" if verdict in _UNDECIDED else "not-supported"
        words = {"kind": name, "title": kind.title, "quantity": kind.quantity, "unit": kind.unit if gains else ""}
        shown.append(words | {"verdict": verdict, "good": good, "sentence": control["sentence"]})
        if "curves" in numbers:
            figures[name] = _draw(numbers, kind, gains)
    return Part({"controls": shown, "missing": [kind for kind in asked if kind not in found]}, figures)


def _lines(numbers: dict[str, Any], kind: _Kind) -> Iterator[dict[str, Any]]:
    """Yield the values and plotly's settings of each line of a control's curves."""
    curves = numbers["curves"]
    if "three_deviations" in numbers:
        # A correlation cannot stray farther than 1.
        band = np.array(numbers["three_deviations"]).clip(max=1)
        line = {"color": GREY, "dash": "dot"}
        yield {"y": band[1:], "name": "three standard deviations", "line": line}
        yield {"y": -band[1:], "name": "", "showlegend": False, "line": line}
    permuted = [name for name in curves if name.startswith("permuted")]
    for name in permuted:
        more = {"legendgroup": "permuted", "showlegend": name == permuted[0]}
        yield {"y": curves[name][1:], "name": "permuted", "line": {"color": _PERMUTED, "width": 1.2}} | more
    shown = [(name, label) for name, label in kind.curves.items() if name in curves]
    for (name, label), colour in zip(shown, _COLOURS, strict=False):
        yield {"y": curves[name][1:], "name": label, "line": {"color": colour, "width": 2.4}}


def _draw(numbers: dict[str, Any], kind: _Kind, gains: dict[str, str]) -> go.Figure:
    figure = make_subplots(1, 2 if gains else 1, column_widths=[0.62, 0.38] if gains else [1.0])
    frequency = np.array(numbers["resolution"])
    for line in _lines(numbers, kind):
        figure.add_scatter(x=frequency[1:], mode="lines", row=1, col=1, **line)
    figure.update_xaxes(resolution_axis(float(frequency[-1])), row=1, col=1)
    figure.update_yaxes(title="FSC", row=1, col=1)
    if gains:
        figure.add_bar(
            x=list(gains),
            y=[numbers[name] for name in gains.values()],
            showlegend=False,
            error_y={"array": [3 * numbers[f"{name}_error"] for name in gains.values()], "color": INK},
            marker={"color": [HALF_COLOURS[1], *[_PERMUTED] * 2][: len(gains)]},
            width=0.5,
            row=1,
            col=2,
        )
        figure.update_yaxes(title=kind.unit, row=1, col=2)
    return figure.update_layout(legend=LEGEND_ABOVE | {"y": 1.04}, height=420)
