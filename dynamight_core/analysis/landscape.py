"""How particles are spread over two coordinates: their density, its logarithm, and how well either is known."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

# Bins an axis, and the shares of the particles at either end that may lie outside.
BINS = 96
_OUTSIDE = 0.0005


@dataclass
class Landscape:
    """Density of particles over a plane.

    Parameters
    ----------
    x_edges, y_edges
        (bins + 1,) of the axes.
    counts
        (bins, bins) particles in each bin, [x, y].
    density
        (bins, bins) particles per unit area, smoothed.
    relative_error
        (bins, bins) standard error of the density over the density, from counting; infinite where there are none.
    bandwidth
        (2,) standard deviations of the smoothing, in the axes' units.
    """

    x_edges: np.ndarray
    y_edges: np.ndarray
    counts: np.ndarray
    density: np.ndarray
    relative_error: np.ndarray
    bandwidth: np.ndarray

    @property
    def free_energy(self) -> np.ndarray:
        """(bins, bins) minus the logarithm of the density over its maximum: kT, if particles are in equilibrium.

        Errors of the coordinates widen the density, and so flatten this.
        """
        with np.errstate(divide="ignore"):
            return -np.log(self.density / max(self.density.max(), 1e-300))

    @property
    def free_energy_error(self) -> np.ndarray:
        """(bins, bins) standard error of `free_energy` from counting, to first order: that of ln(density)."""
        return self.relative_error


def plane_landscape(x: np.ndarray, y: np.ndarray, bins: int = BINS) -> Landscape:
    """Return the density of n particles over two coordinates, smoothed.

    Parameters
    ----------
    x, y
        (n,) coordinates.
    bins
        per axis.
    """
    ranges = [_range(values) for values in (x, y)]
    counts, x_edges, y_edges = np.histogram2d(x, y, bins, ranges)
    steps = np.array([x_edges[1] - x_edges[0], y_edges[1] - y_edges[0]])
    # Scott's rule is for one normal peak; half of it keeps two peaks, or a curved valley, apart. Not less than about
    # the width of a bin, which is smoothed over anyway.
    widths = 0.5 * np.array([values.std() for values in (x, y)]) * len(x) ** (-1 / 6)
    sigma = np.maximum(widths / steps, 0.6)
    smooth = gaussian_filter(counts, sigma, mode="constant", truncate=4)
    # The variance of a sum of Poisson counts with weights w is the sum of counts with weights w squared; the square of
    # a Gaussian is a narrower one.
    squared = gaussian_filter(counts, sigma / np.sqrt(2), mode="constant", truncate=4)
    variance = squared * _peak(sigma) ** 2 / _peak(sigma / np.sqrt(2))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(smooth > 0, np.sqrt(variance) / smooth, np.inf)
    return Landscape(x_edges, y_edges, counts, smooth / steps.prod(), relative, sigma * steps)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [_OUTSIDE, 1 - _OUTSIDE])
    margin = max(0.04 * (high - low), 1e-3)
    return float(low - margin), float(high + margin)


def _peak(sigma: np.ndarray) -> float:
    """Return the largest weight of the discrete Gaussian filter of these widths, in bins."""
    peak = 1.0
    for width in sigma:
        reach = int(4 * width + 0.5)
        peak /= np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2).sum()
    return peak
