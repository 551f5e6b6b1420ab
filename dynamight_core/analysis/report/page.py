"""What the sections of a report share: the run, what is worked out of it once, and the parts that they return."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from sklearn.decomposition import PCA

from dynamight_core.analysis.overview import chosen_states, shown_motions
from dynamight_core.analysis.report.draw import Array
from dynamight_core.judging.conclusion import conclude, shared_motions
from dynamight_core.run import Run

# More particles than this are shown as densities: the browser and the file's size thank for it.
MAX_POINTS = 20_000


@dataclass
class Part:
    """Part of a section, without its words: those are in the template of the part's name.

    Parameters
    ----------
    values
        that the template fills in: numbers, texts, tables.
    figures
        by name.
    tables
        written to RUN/analysis/tables, by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, go.Figure] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


class Page:
    """The page of a run.

    Parameters
    ----------
    run
        of the report.
    """

    def __init__(self, run: Run):
        self.run = run
        self.folder = Path(run.path)
        self.numbers: list[tuple[str, float]] = []
        self.halves = np.asarray(run.halves).astype(int)
        self.validation = np.asarray(run.validation).astype(bool)
        self.coordinates = np.asarray(run.motions.coordinates, dtype=np.float32)
        self.rms = np.asarray(run.table["dynMotionRms"], dtype=np.float32)
        self.error = np.asarray(run.table["dynMotionError"], dtype=np.float32)
        self.points = np.asarray(run.motions.points, dtype=np.float32)
        # Points in the mean conformation, where the motions are zero.
        self.rest = self.points + np.asarray(run.motions.mean, dtype=np.float32)
        self.components = np.asarray(run.motions.components, dtype=np.float32)
        self.explained = np.asarray(run.motions.shares, dtype=float)
        self.shared = shared_motions(run)
        self.conclusion = conclude(run)
        self.counted = shown_motions(run, self.conclusion)
        self.few = len(self.halves) <= MAX_POINTS
        # Thinned the same way in every figure, so that they show the same particles.
        self.shown = np.sort(np.random.default_rng(0).permutation(len(self.halves))[:MAX_POINTS])

    @cached_property
    def states(self) -> list[dict[str, Any]]:
        """States that are dots in the landscape, see `overview.chosen_states`."""
        return chosen_states(self.run, self.counted)

    @cached_property
    def displacement(self) -> Array:
        """(n, 3) mean displacement of a particle's points about the mean conformation, linear in its coordinates."""
        return np.asarray(self.coordinates @ self.components.mean(1))

    @cached_property
    def direction(self) -> Array:
        """(n,) direction of that, degrees, in the plane in which displacements spread most."""
        plane, _ = principal_plane(self.displacement)
        return np.asarray(np.degrees(np.arctan2(plane[:, 1], plane[:, 0])), dtype=np.float32)

    def number(self, what: str, value: float, form: str = ",") -> str:
        """Return a number of the text in a format, and keep it for the table of these numbers."""
        self.numbers.append((what, float(value)))
        return format(value, form)

    def explains(self, k: int) -> str:
        """Return how much of the variance principal motion k explains, in words; counted from 0."""
        percent = 100 * self.explained[k]
        text = self.number(f"variance explained by motion {k + 1} (%)", percent, ".0f" if percent >= 9.5 else ".1f")
        return f"{text if percent >= 0.05 else 'below 0.1'} % of variance"

    def names(self, k: int) -> str:
        """Return what principal motion k is called and explains; no motion if the halves do not share it."""
        if k + 1 in self.shared:
            return f"motion {k + 1}, {self.explains(k)}"
        return f"coordinate {k + 1}, not shared by the half-sets, {self.explains(k)}"


def needs_tables(*names: str) -> Callable[[Callable[..., Part]], Callable[[Page], Part]]:
    """Give a function tables of RUN/analysis by their names without suffix; without the first, its part is empty."""

    def declare(make: Callable[..., Part]) -> Callable[[Page], Part]:
        @wraps(make)
        def part(page: Page) -> Part:
            paths = [page.folder / "analysis" / f"{name}.csv" for name in names]
            return make(page, *map(pd.read_csv, paths)) if paths[0].is_file() else Part()

        return part

    return declare


def principal_plane(values: Array) -> tuple[Array, Array]:
    """Return (n, 2) coordinates in the plane in which (n, d) values spread most, and (2,) variances over their sum."""
    with np.errstate(invalid="ignore"):  # where nothing spreads, sklearn's ratios are 0 / 0
        pca = PCA(random_state=0).fit(values)
    # One latent spans a line.
    plane = np.pad(pca.transform(values), ((0, 0), (0, 1)))[:, :2]
    variance = np.pad(pca.explained_variance_, (0, 1))
    return plane, variance[:2] / max(float(variance.sum()), 1e-30)
