"""How particles are spread along a motion, with the errors of their coordinates taken out.

A particle's coordinate is the mean of its posterior: drawn towards the mean of all, and uncertain. The spread of such
coordinates is neither that of the molecule nor that plus noise. With c and w mean and variance of a particle's
posterior and T the variance of the molecule's own distribution, the image by itself says l c / w with variance l,
1 / l = 1 / w - 1 / T; and by the law of total variance T is the variance of c over particles plus the mean of w. The
distribution that makes what the images say most likely is found by expectation maximisation on a grid
(Richardson-Lucy, with smoothing in every turn: Silverman et al., J. R. Stat. Soc. B 1990). The smoothing is the widest
that tells particles which were left out as well as the best does. Smoothing turn by turn draws two peaks together: the
distribution is stretched to the variance T that it must have.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter1d

from dynamight_core.analysis.domains import Domains
from dynamight_core.files import atomic_path
from dynamight_core.judging.errors import coordinate_variances
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Grid points over this many standard deviations to either side, and turns.
_GRID, _REACH, _TURNS = 121, 3.0, 60
# Smoothings to choose from, in grid points, groups of particles that are left out for it, and what is as good, nats.
_SMOOTHINGS, _GROUPS, _AS_GOOD = (2.0, 1.0, 0.5), 2, 1.5
# Particles that are looked at, resampled so many times for the error; motions.
_MOST, _RESAMPLED, _MOTIONS = 10_000, 16, 3
# An image that says nothing still has a variance: this share of T is the most a posterior's may be.
_WIDEST = 0.95


@dataclass
class Distribution:
    """Distribution of a molecule along one coordinate.

    Parameters
    ----------
    values
        (g,) of the coordinate, evenly spaced.
    density
        (g,) per unit of the coordinate, errors taken out.
    error
        (g,) its standard error, from resampled particles.
    spread
        standard deviation of the distribution.
    """

    values: np.ndarray
    density: np.ndarray
    error: np.ndarray
    spread: float

    def cumulative(self, at: np.ndarray) -> np.ndarray:
        """Return the share of particles below each of the (m,) values."""
        step = self.values[1] - self.values[0]
        edges = np.append(self.values - step / 2, self.values[-1] + step / 2)
        return np.interp(at, edges, np.append(0.0, np.cumsum(self.density * step)))


def without_errors(means: np.ndarray, variances: np.ndarray, seed: int = 0) -> Distribution:
    """Return the distribution behind n posterior means.

    Parameters
    ----------
    means, variances
        (n,) of the posteriors of the particles' coordinates.
    seed
        of the resampling.
    """
    centre, total = means.mean(), means.var() + variances.mean()
    posterior = np.minimum(variances, _WIDEST * total)
    likelihood = 1 / (1 / posterior - 1 / total)
    said = likelihood * (means - centre) / posterior
    grid = np.linspace(-_REACH, _REACH, _GRID) * np.sqrt(total)
    power = -0.5 * (said[:, None] - grid) ** 2 / likelihood[:, None]
    kernel = np.exp(power - power.max(1, keepdims=True)).astype(np.float32)
    smoothing = _chosen_smoothing(kernel)
    # The first column is of all particles, the others are resampled.
    draws = np.random.default_rng(seed).multinomial(len(means), np.full(len(means), 1 / len(means)), _RESAMPLED)
    weights = np.vstack([np.ones(len(means)), draws]).T
    share = _most_likely(kernel, weights, smoothing).astype(float)
    mean = share[:, 0] @ grid
    stretch = np.sqrt(total / (share[:, 0] @ (grid - mean) ** 2))
    grid = mean + stretch * (grid - mean)
    density = share / (grid[1] - grid[0])
    return Distribution(grid + centre, density[:, 0], density[:, 1:].std(1), float(np.sqrt(total)))


def _most_likely(kernel: np.ndarray, weights: np.ndarray, smoothing: float) -> np.ndarray:
    """Return (g, r) shares of the grid points that make (n, g) likelihoods of particles largest, for (n, r) weights."""
    weights = (weights / weights.sum(0)).astype(np.float32)
    share = np.full((kernel.shape[1], weights.shape[1]), 1 / kernel.shape[1], dtype=np.float32)
    for _ in range(_TURNS):
        share *= kernel.T @ (weights / (kernel @ share))
        share = gaussian_filter1d(share, smoothing, axis=0, mode="constant")
        share /= share.sum(0)
    return share


def _chosen_smoothing(kernel: np.ndarray) -> float:
    """Return the widest smoothing with which particles that were left out are as likely as with the best."""
    group = np.arange(len(kernel)) % _GROUPS
    weights = np.stack([group != left for left in range(_GROUPS)], 1)
    told = []
    for smoothing in _SMOOTHINGS:
        likelihood = kernel @ _most_likely(kernel, weights, smoothing)
        told.append(float(np.log(likelihood[np.arange(len(kernel)), group] + 1e-30).sum()))
    return next(s for s, value in zip(_SMOOTHINGS, told, strict=True) if value >= max(told) - _AS_GOOD)


def motion_distributions(run: Run, domains: "Domains | None" = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how particles are spread along the first motions, of those that spread by more than their error.

    Parameters
    ----------
    run
        finished and summarised.
    domains
        of its motions; their turns that go with each coordinate are told.

    Returns
    -------
    tuple
        the distributions, a row for each motion and value: `motion`, `coordinate_A`, `density_per_A` (errors taken
        out) and its `error_per_A`, `as_estimated_per_A`, and `domainD_angle_deg`; and a row for each motion with its
        standard deviations, A rms: `as_estimated_A`, `error_A` (rms over particles) and `errors_taken_out_A`.
    """
    n = len(run.halves)
    rows = torch.linspace(0, n - 1, min(n, _MOST)).long().unique()
    every = run.motions.coordinates.numpy().astype(float)
    variances = coordinate_variances(run, rows).numpy().astype(float)
    # Where the error is the larger, coordinates say nothing of the spread.
    chosen = [k for k in range(min(_MOTIONS, every.shape[1])) if every[:, k].var() > variances[:, k].mean()]
    curves, widths = [], []
    for k in chosen:
        means = every[rows.numpy(), k]
        found = without_errors(means, variances[:, k])
        step = found.values[1] - found.values[0]
        edges = np.append(found.values - step / 2, found.values[-1] + step / 2)
        curve = {
            "motion": k + 1,
            "coordinate_A": found.values,
            "density_per_A": found.density,
            "error_per_A": found.error,
            "as_estimated_per_A": np.histogram(means, edges)[0] / len(means) / step,
        }
        for domain in range(1, 0 if domains is None else len(domains)):
            angle = domains.angles[:, domain]
            slope = np.cov(angle, every[:, k])[0, 1] / every[:, k].var(ddof=1)
            curve[f"domain{domain + 1}_angle_deg"] = angle.mean() + slope * (found.values - every[:, k].mean())
        curves.append(pd.DataFrame(curve))
        widths.append(
            {
                "motion": k + 1,
                "as_estimated_A": means.std(),
                "error_A": np.sqrt(variances[:, k].mean()),
                "errors_taken_out_A": found.spread,
            }
        )
    columns = ["motion", "coordinate_A", "density_per_A", "error_per_A", "as_estimated_per_A"]
    return (
        pd.concat(curves) if curves else pd.DataFrame(columns=columns),
        pd.DataFrame(widths, columns=["motion", "as_estimated_A", "error_A", "errors_taken_out_A"]),
    )


def write_distributions(run: Run, domains: Domains, reporter: Reporter = PRINT) -> list[Path]:
    """Write `motion_distributions` to RUN/analysis/distributions.csv and distribution_widths.csv."""
    written = []
    names = ("distributions", "distribution_widths")
    for name, table in zip(names, motion_distributions(run, domains), strict=True):
        written.append(run.path / "analysis" / f"{name}.csv")
        with atomic_path(written[-1]) as path:
            table.to_csv(path, index=False, float_format="%.5g")
    reporter.say(f"How particles are spread along the motions, errors taken out, is in {written[0]}.")
    return written
