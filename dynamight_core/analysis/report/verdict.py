"""What was found: the conclusion, headline numbers, warnings."""

import base64
import math
import re

import numpy as np
import pandas as pd

from dynamight_core.analysis.overview import overview
from dynamight_core.analysis.report.fsc import read_fsc
from dynamight_core.analysis.report.page import Page, Part

# Commands that the advice names.
_COMMAND = re.compile(r"\((reconstruct|analyse|states|select)\)")


def verdict(page: Page) -> Part:
    """Return the first screen: the conclusion, and the pictures of the molecule and of what its map gained."""
    conclusion, shown = page.conclusion, overview(page.run, page.conclusion)
    steps = _COMMAND.findall(conclusion.advice)
    gain = shown.values["gain"]
    values = {
        "conclusion": conclusion,
        "data": base64.b64encode(shown.pack()).decode(),
        "gain": gain,
        "film": shown.values["surface"] is not None,
        "plays": bool(shown.values["motions"]),
        "steps": steps,
        "warnings": page.run.summary["warnings"],
    }
    return Part(values)


def certainty(page: Page) -> Part:
    """Return what the conclusion rests on: held-out images, controls, and the run's numbers."""
    found, conclusion = page.run.summary["verdict"], page.conclusion
    headline = _headline(page)
    gains = pd.DataFrame(
        [
            ("each particle's own deformation", found["gain"], found["gain_error"]),
            ("another particle's deformation (null)", found["null"], found["null_error"]),
        ],
        columns=["gain in log-likelihood on held-out pixels (nats per particle)", "mean", "standard error"],
    )
    values = {"conclusion": conclusion, "sentence": found["sentence"], "gains": gains, "headline": headline}
    return Part(values, tables={"summary": headline, "verdict": gains})


def _headline(page: Page) -> pd.DataFrame:
    """Return the numbers on top of the page: number, value, unit."""
    summary = page.run.summary
    rows = [
        ("particles", len(page.halves), ""),
        ("validation particles, held out from training", int(page.validation.sum()), ""),
        ("rms motion relative to the reference", summary["motion_rms"], "Å"),
        ("rms motion about the mean conformation", summary["motion_between_particles_rms"], "Å"),
        ("rms uncertainty of a displacement", summary["error_rms"], "Å"),
        ("uncertainty: disagreement between the halves' decoders", summary["error_disagreement_rms"], "Å"),
        ("uncertainty: noise in the particle's own image", summary["error_posterior_rms"], "Å"),
        ("uncertainty: systematic error shared by both halves, and undetected motion", _remaining_error(summary), "Å"),
        ("detection limit of motion, rms", summary["unseen_motion_rms"], "Å"),
        ("variance explained by motion 1", 100 * float(page.explained[0]), "%"),
    ]
    for name, part in (("without deformation", "reconstruction/rigid"), ("of the map", "reconstruction")):
        found = read_fsc(page.folder / part / "fsc.star")
        if found is not None:
            rows.append((f"resolution {name} (FSC 0.143)", found[1], "Å"))
            if np.isfinite(found[2]):
                rows.append((f"conservative resolution {name}", found[2], "Å"))
    return pd.DataFrame(rows, columns=["number", "value", "unit"]).astype({"value": object})


def _remaining_error(summary: dict[str, float]) -> float:
    """Return the part of the error, A rms, that is neither disagreement between the halves nor noise in the images."""
    parts = summary["error_disagreement_rms"] ** 2 + summary["error_posterior_rms"] ** 2
    return math.sqrt(max(0.0, summary["error_rms"] ** 2 - parts))
