"""Distribution of the molecule along a motion, corrected for the errors of the particles' coordinates.

A particle's coordinate is the mean c of its posterior, whose variance is w: it is drawn towards the mean of all
particles, and it is uncertain. The variance T of the molecule itself is the variance of c over particles plus the mean
of w (law of total variance). Without the prior, an image gives the estimate l c / w with variance l, where
1 / l = 1 / w - 1 / T. Expectation maximisation on a grid finds the distribution that makes these estimates most likely
(Richardson-Lucy, smoothed in every iteration: Silverman et al., J. R. Stat. Soc. B 1990). The smoothing is the widest
that predicts held-out particles as well as the best one. Smoothing in every iteration draws peaks together, so the
result is stretched to variance T.

In several dimensions, the distribution is a set of points with probabilities, without a grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from dynamight_core.judging.errors import coordinate_variances
from dynamight_core.run import Run

# Grid points, half width of the grid in standard deviations, and iterations.
_GRID, _HALF_WIDTH, _ITERATIONS = 121, 3.0, 60
# Smoothings to choose from (grid points), groups held out in turn, and the loss that still counts as equal (nats).
_SMOOTHINGS, _GROUPS, _TOLERANCE = (2.0, 1.0, 0.5), 2, 1.5
# Resamplings for the error.
_RESAMPLINGS = 16
# The posterior variance is limited to this fraction of T: an image without information has a variance too.
_MAX_POSTERIOR = 0.95
# In several dimensions: particles and points used at most, and the smoothing in standard deviations.
_MAX_MEASURED, _MAX_POINTS, _SMOOTHING = 2000, 500, 0.25


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


def densest_point(means: np.ndarray, variances: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """Return where the density of (n, K) coordinates is highest, corrected for errors, and how dense `other` is.

    Parameters
    ----------
    means, variances
        (n, K) means and variances of the posteriors.
    other
        (K,) point to compare with.

    Returns
    -------
    tuple
        (K,) point of highest density, and the density at `other` relative to it.
    """
    chosen = np.unique(np.linspace(0, len(means) - 1, min(len(means), _MAX_MEASURED)).astype(int))
    centre, total = means.mean(0), means.var(0) + variances.mean(0)
    posterior = np.minimum(variances[chosen], _MAX_POSTERIOR * total)
    variance = 1 / (1 / posterior - 1 / total)
    estimates = variance * (means[chosen] - centre) / posterior
    # Particles of known coordinates are at points that the molecule has.
    points = estimates[np.argsort((variance / total).sum(1))[:_MAX_POINTS]]
    exponent = np.zeros((len(estimates), len(points)))
    for axis in range(means.shape[1]):
        exponent -= 0.5 * (estimates[:, axis, None] - points[:, axis]) ** 2 / variance[:, axis, None]
    kernel = np.exp(exponent - exponent.max(1, keepdims=True))
    probability = np.full(len(points), 1 / len(points))
    for _ in range(_ITERATIONS):
        probability *= kernel.T @ (1 / (kernel @ probability)) / len(kernel)
    widths = _SMOOTHING * np.sqrt(total)
    at = np.vstack([points, other - centre]) / widths
    density = np.exp(-0.5 * ((at[:, None] - points / widths) ** 2).sum(2)) @ probability
    best = int(density[:-1].argmax())
    return points[best] + centre, float(density[-1] / density[best])


def consensus_coordinates(run: Run) -> torch.Tensor:
    """Return the (K,) coordinates (A rms) of the consensus frame, which has no displacement."""
    motions = run.motions
    components = motions.components.flatten(1).double()
    return torch.linalg.lstsq(components.T, -motions.mean.flatten().double()[:, None]).solution[:, 0].float()


def densest_conformation(run: Run) -> tuple[np.ndarray, float]:
    """Return the (K,) coordinates (A rms) of the densest conformation, and the consensus frame's relative density.

    Coordinates that vary by no more than their errors are at their mean.
    """
    n = len(run.halves)
    rows = torch.linspace(0, n - 1, min(n, _MAX_MEASURED)).long().unique()
    motions = run.motions
    means = motions.coordinates[rows].numpy().astype(float)
    variances = coordinate_variances(run, rows).numpy().astype(float)
    densest, known = means.mean(0), means.var(0) > variances.mean(0)
    if not known.any():
        return densest, 1.0
    frame = consensus_coordinates(run).numpy().astype(float)
    densest[known], ratio = densest_point(means[:, known], variances[:, known], frame[known])
    return densest, ratio
