"""Distribution of particles over two coordinates: density and free energy, with standard errors."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

# Fraction of the particles that may lie outside, at either end of an axis.
_OUTSIDE = 0.0005


@dataclass
class Landscape:
    """Density of particles over a plane.

    Parameters
    ----------
    x_edges, y_edges
        (bins + 1,) edges of the bins.
    counts
        (bins, bins) numbers of particles, [x, y].
    density
        (bins, bins) particles per unit area, smoothed.
    relative_error
        (bins, bins) relative standard error of the density, from counting statistics; infinite where it is zero. To
        first order, the standard error of the free energy in kT.
    """

    x_edges: np.ndarray
    y_edges: np.ndarray
    counts: np.ndarray
    density: np.ndarray
    relative_error: np.ndarray

    @property
    def free_energy(self) -> np.ndarray:
        """(bins, bins) minus the logarithm of the relative density, in kT if the particles are in equilibrium.

        Errors of the coordinates widen the density and flatten the free energy.
        """
        with np.errstate(divide="ignore"):
            return -np.log(self.density / max(self.density.max(), 1e-300))


def plane_landscape(x: np.ndarray, y: np.ndarray, bins: int = 96) -> Landscape:
    """Return the density of n particles over two coordinates, smoothed.

    Parameters
    ----------
    x, y
        (n,) coordinates.
    bins
        number of bins per axis.
    """
    ranges = [_range(values) for values in (x, y)]
    counts, x_edges, y_edges = np.histogram2d(x, y, bins, ranges)
    steps = np.array([x_edges[1] - x_edges[0], y_edges[1] - y_edges[0]])
    # Scott's rule assumes one normal peak. Half of it keeps two peaks, or a curved valley, apart. Bins smooth already,
    # so the width is at least about one bin.
    widths = 0.5 * np.array([values.std() for values in (x, y)]) * len(x) ** (-1 / 6)
    sigma = np.maximum(widths / steps, 0.6)
    smooth = gaussian_filter(counts, sigma, mode="constant", truncate=4)
    # The variance of a sum of Poisson counts with weights w is the sum of the counts with weights w squared. The square
    # of a Gaussian is a narrower Gaussian.
    squared = gaussian_filter(counts, sigma / np.sqrt(2), mode="constant", truncate=4)
    variance = squared * _peak(sigma) ** 2 / _peak(sigma / np.sqrt(2))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(smooth > 0, np.sqrt(variance) / smooth, np.inf)
    return Landscape(x_edges, y_edges, counts, smooth / steps.prod(), relative)


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
