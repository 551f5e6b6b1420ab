"""Distribution of the molecule along a motion, corrected for the errors of the particles' coordinates.

A particle's coordinate is the mean c of its posterior, whose variance is w: it is drawn towards the mean of all
particles, and it is uncertain. The variance T of the molecule itself is the variance of c over particles plus the mean
of w (law of total variance). Without the prior, an image gives the estimate l c / w with variance l, where
1 / l = 1 / w - 1 / T. Expectation maximisation on a grid finds the distribution that makes these estimates most likely
(Richardson-Lucy, smoothed in every iteration: Silverman et al., J. R. Stat. Soc. B 1990). The smoothing is the widest
that predicts held-out particles as well as the best one. Smoothing in every iteration draws peaks together, so the
result is stretched to variance T.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter1d

from dynamight_core.analysis.domains import Domains
from dynamight_core.files import write_tables
from dynamight_core.judging.errors import coordinate_variances
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Grid points, half width of the grid in standard deviations, and iterations.
_GRID, _HALF_WIDTH, _ITERATIONS = 121, 3.0, 60
# Smoothings to choose from (grid points), groups held out in turn, and the loss that still counts as equal (nats).
_SMOOTHINGS, _GROUPS, _TOLERANCE = (2.0, 1.0, 0.5), 2, 1.5
# Particles used at most, resamplings for the error, and motions.
_MAX_PARTICLES, _RESAMPLINGS, _MOTIONS = 10_000, 16, 3
# The posterior variance is limited to this fraction of T: an image without information has a variance too.
_MAX_POSTERIOR = 0.95


@dataclass
class Distribution:
    """Distribution of a molecule along one coordinate.

    Parameters
    ----------
    values
        (g,) evenly spaced coordinates.
    density
        (g,) per unit of the coordinate, corrected for errors.
    error
        (g,) standard error of the density, from resampled particles.
    spread
        standard deviation of the distribution.
    """

    values: np.ndarray
    density: np.ndarray
    error: np.ndarray
    spread: float

    def cumulative(self, at: np.ndarray) -> np.ndarray:
        """Return the fraction of particles below each of (m,) values."""
        step = self.values[1] - self.values[0]
        edges = np.append(self.values - step / 2, self.values[-1] + step / 2)
        return np.interp(at, edges, np.append(0.0, np.cumsum(self.density * step)))


def corrected_distribution(means: np.ndarray, variances: np.ndarray, seed: int = 0) -> Distribution:
    """Return the distribution of n coordinates, corrected for their errors.

    Parameters
    ----------
    means, variances
        (n,) means and variances of the posteriors.
    seed
        random seed for resampling.
    """
    centre, total = means.mean(), means.var() + variances.mean()
    posterior = np.minimum(variances, _MAX_POSTERIOR * total)
    variance = 1 / (1 / posterior - 1 / total)
    estimates = variance * (means - centre) / posterior
    grid = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, _GRID) * np.sqrt(total)
    exponent = -0.5 * (estimates[:, None] - grid) ** 2 / variance[:, None]
    kernel = np.exp(exponent - exponent.max(1, keepdims=True)).astype(np.float32)
    smoothing = _chosen_smoothing(kernel)
    # The first column weights all particles equally, the others are resamplings.
    draws = np.random.default_rng(seed).multinomial(len(means), np.full(len(means), 1 / len(means)), _RESAMPLINGS)
    weights = np.vstack([np.ones(len(means)), draws]).T
    probability = _most_likely(kernel, weights, smoothing).astype(float)
    mean = probability[:, 0] @ grid
    stretch = np.sqrt(total / (probability[:, 0] @ (grid - mean) ** 2))
    grid = mean + stretch * (grid - mean)
    density = probability / (grid[1] - grid[0])
    return Distribution(grid + centre, density[:, 0], density[:, 1:].std(1), float(np.sqrt(total)))


def _most_likely(kernel: np.ndarray, weights: np.ndarray, smoothing: float) -> np.ndarray:
    """Return the most likely (g, r) probabilities of grid points, given (n, g) likelihoods and (n, r) weights."""
    weights = (weights / weights.sum(0)).astype(np.float32)
    probability = np.full((kernel.shape[1], weights.shape[1]), 1 / kernel.shape[1], dtype=np.float32)
    for _ in range(_ITERATIONS):
        probability *= kernel.T @ (weights / (kernel @ probability))
        probability = gaussian_filter1d(probability, smoothing, axis=0, mode="constant")
        probability /= probability.sum(0)
    return probability


def _chosen_smoothing(kernel: np.ndarray) -> float:
    """Return the widest smoothing that predicts held-out particles as well as the best one."""
    group = np.arange(len(kernel)) % _GROUPS
    weights = np.stack([group != held_out for held_out in range(_GROUPS)], 1)
    log_likelihoods = []
    for smoothing in _SMOOTHINGS:
        likelihood = kernel @ _most_likely(kernel, weights, smoothing)
        log_likelihoods.append(float(np.log(likelihood[np.arange(len(kernel)), group] + 1e-30).sum()))
    needed = max(log_likelihoods) - _TOLERANCE
    return next(s for s, value in zip(_SMOOTHINGS, log_likelihoods, strict=True) if value >= needed)


def motion_distributions(run: Run, domains: Domains) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the distributions along the first motions, where the coordinates vary by more than their error.

    Parameters
    ----------
    run
        finished and summarised.
    domains
        of the run, for their rotation at each coordinate.

    Returns
    -------
    tuple
        the distributions, one row per motion and coordinate: `motion`, `coordinate_A`, `density_per_A` (corrected) and
        its `error_per_A`, `as_estimated_per_A` (uncorrected), and `domainD_angle_deg`; and their standard deviations,
        one row per motion, A rms: `as_estimated_A`, `error_A` (rms over particles) and `errors_taken_out_A`.
    """
    n = len(run.halves)
    rows = torch.linspace(0, n - 1, min(n, _MAX_PARTICLES)).long().unique()
    coordinates = run.motions.coordinates.numpy().astype(float)
    variances = coordinate_variances(run, rows).numpy().astype(float)
    # Where the error exceeds the variation, the coordinates do not determine a distribution.
    n_motions = min(_MOTIONS, coordinates.shape[1])
    chosen = [k for k in range(n_motions) if coordinates[:, k].var() > variances[:, k].mean()]
    curves, widths = [], []
    for k in chosen:
        means = coordinates[rows.numpy(), k]
        found = corrected_distribution(means, variances[:, k])
        step = found.values[1] - found.values[0]
        edges = np.append(found.values - step / 2, found.values[-1] + step / 2)
        curve = {
            "motion": k + 1,
            "coordinate_A": found.values,
            "density_per_A": found.density,
            "error_per_A": found.error,
            "as_estimated_per_A": np.histogram(means, edges)[0] / len(means) / step,
        }
        for domain in range(1, len(domains)):
            angle = domains.angles[:, domain]
            slope = np.cov(angle, coordinates[:, k])[0, 1] / coordinates[:, k].var(ddof=1)
            curve[f"domain{domain + 1}_angle_deg"] = angle.mean() + slope * (found.values - coordinates[:, k].mean())
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


def write_distributions(run: Run, domains: Domains, reporter: Reporter = PRINT) -> None:
    """Write `motion_distributions` to RUN/analysis/distributions.csv and distribution_widths.csv."""
    folder = run.path / "analysis"
    curves, widths = motion_distributions(run, domains)
    write_tables(folder, {"distributions": curves, "distribution_widths": widths}, "%.5g")
    reporter.say(f"Distributions along the motions, corrected for errors: {folder / 'distributions.csv'}.")
