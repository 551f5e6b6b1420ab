"""Clusters of particles with similar conformations, and paths through them: k-means, Gaussian mixture, ridge."""

from pathlib import Path

import numpy as np
import pandas as pd

from dynamight_core.errors import InputError
from dynamight_core.files import write_tables
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Largest number of clusters that the criterion may choose, and particles used.
_MAX_CLUSTERS, _SAMPLE = 8, 20_000
# Ridge: particles used, iterations, and fraction of particles beyond either end.
_RIDGE_SAMPLE, _RIDGE_ITERATIONS, _RIDGE_ENDS = 10_000, 50, 0.025


def cluster_coordinates(
    coordinates: np.ndarray, n: int, seed: int = 0, mixture: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters of (p, K) coordinates, numbered by their centre along motion 1.

    Coordinates are in A rms along every motion, so that distances have the same meaning in all directions.

    Parameters
    ----------
    coordinates
        (p, K) A rms.
    n
        number of clusters; with a mixture, 0 lets the Bayesian information criterion choose.
    seed
        of the random initialisation.
    mixture
        use a Gaussian mixture instead of k-means.

    Returns
    -------
    tuple
        (p,) cluster of each particle, from 0, and (n, K) centres.

    Raises
    ------
    InputError
        if the number of clusters is below 1 or above the number of particles.
    """
    # Slow to import, and not needed by most states.
    from sklearn.cluster import KMeans

    if mixture and n == 0:
        n = int(mixture_criterion(coordinates, seed)["bic"].argmin()) + 1
    if not 1 <= n <= len(coordinates):
        raise InputError(f"--clusters is {n}; give a number from 1 to {len(coordinates)}, the number of particles")
    if mixture:
        fitted = _mixture(coordinates, n, seed)
        labels, centres = fitted.predict(coordinates), fitted.means_
    else:
        # A sample is enough to find the centres.
        fitted = KMeans(n, n_init=10, random_state=seed).fit(_some(coordinates, max(n, _SAMPLE)))
        labels, centres = fitted.predict(coordinates), fitted.cluster_centers_
    order = np.argsort(centres[:, 0])
    return np.argsort(order)[labels], centres[order]


def mixture_criterion(coordinates: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Return the Bayesian information criterion, `bic` per particle, of Gaussian mixtures of 1, 2, ... `clusters`."""
    largest = min(_MAX_CLUSTERS, max(1, len(coordinates) // 20))
    sample = _some(coordinates, _SAMPLE)
    values = [_mixture(sample, n, seed).bic(sample) / len(sample) for n in range(1, largest + 1)]
    return pd.DataFrame({"clusters": range(1, largest + 1), "bic": values})


def _mixture(coordinates: np.ndarray, n: int, seed: int):
    from sklearn.mixture import GaussianMixture

    # A thin, curved valley must not split into a row of clusters: none is narrower than a tenth of the largest spread.
    floor = 1e-2 * max(float(coordinates.var(0).max()), 1e-6)
    return GaussianMixture(n, reg_covar=floor, random_state=seed).fit(_some(coordinates, _SAMPLE))


def _some(coordinates: np.ndarray, n: int) -> np.ndarray:
    return coordinates[np.linspace(0, len(coordinates) - 1, min(len(coordinates), n)).astype(int)]


def shortest_order(centres: np.ndarray) -> np.ndarray:
    """Return an order of (n, K) centres that starts at the first and always goes to the nearest one left."""
    order, left = [0], list(range(1, len(centres)))
    while left:
        order.append(min(left, key=lambda i: np.linalg.norm(centres[i] - centres[order[-1]])))
        left.remove(order[-1])
    return np.array(order)


def density_ridge(coordinates: np.ndarray, n: int = 16) -> np.ndarray:
    """Return (n, K) points along the ridge of the density of (p, K) coordinates, in the order of motion 1.

    At each coordinate along motion 1, mean shift moves the other coordinates to where particles are densest.
    """
    sample = _some(coordinates, _RIDGE_SAMPLE)
    low, high = np.quantile(sample[:, 0], [_RIDGE_ENDS, 1 - _RIDGE_ENDS])
    width = np.maximum(sample.std(0), 1e-6) * len(sample) ** (-1 / (sample.shape[1] + 4))
    ridge = []
    for value in np.linspace(low, high, n):
        near = np.exp(-0.5 * ((sample[:, 0] - value) / width[0]) ** 2)
        point = near @ sample[:, 1:] / near.sum()
        for _ in range(_RIDGE_ITERATIONS):
            weight = near * np.exp(-0.5 * (((sample[:, 1:] - point) / width[1:]) ** 2).sum(1))
            point = weight @ sample[:, 1:] / weight.sum()
        ridge.append([value, *point])
    return np.array(ridge)


def write_clusters(run: Run, reporter: Reporter = PRINT) -> list[Path]:
    """Write the clusters of the particles to RUN/analysis.

    ``clusters.csv`` has the cluster of every particle, from 1, in the order of particles.star: by a Gaussian mixture
    (`mixture`; the Bayesian information criterion chooses the number), and by k-means with the same number (`kmeans`).
    ``cluster_centres.csv`` has sizes, counts for each half-set and centres (A rms), ``cluster_criterion.csv`` the
    criterion.
    """
    coordinates = run.motions.coordinates.numpy().astype(float)
    seed = run.config.train.seed
    criterion = mixture_criterion(coordinates, seed)
    n = int(criterion["clusters"][criterion["bic"].argmin()])
    halves = run.halves.numpy()
    assigned, rows = {}, []
    for method in ("mixture", "kmeans"):
        labels, centres = cluster_coordinates(coordinates, n, seed, method == "mixture")
        assigned[method] = labels + 1
        for cluster, centre in enumerate(centres):
            mine = labels == cluster
            counts = [int((halves[mine] == half).sum()) for half in (1, 2)]
            row = {"method": method, "cluster": cluster + 1, "particles": int(mine.sum())}
            row |= {"half_1": counts[0], "half_2": counts[1]}
            rows.append(row | {f"motion{k + 1}_A": value for k, value in enumerate(centre)})
    tables = {"clusters": pd.DataFrame(assigned), "cluster_centres": pd.DataFrame(rows), "cluster_criterion": criterion}
    written = write_tables(run.path / "analysis", tables)
    evidence = "No evidence for discrete clusters" if n == 1 else f"{n} clusters of particles"
    reporter.say(f"{evidence} (Gaussian mixture, Bayesian information criterion): {written[0]}.")
    return written
