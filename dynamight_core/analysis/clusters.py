"""Groups of particles with like conformations, and the way through them: k-means, a Gaussian mixture, the ridge."""

from pathlib import Path

import numpy as np
import pandas as pd

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# The most groups that a criterion chooses from, and the particles that it looks at.
_MOST_CLUSTERS, _SAMPLE = 8, 20_000
# Of the ridge: particles that it is found from, turns, and the share of particles at either end that it leaves out.
_RIDGE_SAMPLE, _RIDGE_TURNS, _RIDGE_ENDS = 10_000, 50, 0.025


def cluster_coordinates(
    coordinates: np.ndarray, n: int, seed: int = 0, mixture: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters of (p, K) coordinates, numbered by their centre on the first motion.

    Coordinates are in A rms along every motion, so that distances mean the same in all directions.

    Parameters
    ----------
    coordinates
        (p, K) A rms.
    n
        how many; with a mixture 0 takes as many as the Bayesian information criterion wants.
    seed
        of the starts.
    mixture
        a mixture of normal distributions in the place of k-means.

    Returns
    -------
    tuple
        (p,) cluster of each particle, from 0, and (n, K) centres.

    Raises
    ------
    InputError
        if there are fewer than 1 or more clusters than particles.
    """
    # Slow to import, and most states need it not.
    from sklearn.cluster import KMeans

    if mixture and n == 0:
        n = int(mixture_criterion(coordinates, seed)["bic"].argmin()) + 1
    if not 1 <= n <= len(coordinates):
        raise InputError(f"--clusters is {n}; give a number from 1 to that of particles, {len(coordinates)}")
    if mixture:
        fitted = _mixture(coordinates, n, seed)
        labels, centres = fitted.predict(coordinates), fitted.means_
    else:
        # Centres of many particles are those of a part of them.
        fitted = KMeans(n, n_init=10, random_state=seed).fit(_some(coordinates, max(n, _SAMPLE)))
        labels, centres = fitted.predict(coordinates), fitted.cluster_centers_
    order = np.argsort(centres[:, 0])
    return np.argsort(order)[labels], centres[order]


def mixture_criterion(coordinates: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Return the Bayesian information criterion, `bic` per particle, of mixtures of 1, 2, ... `clusters`."""
    most = min(_MOST_CLUSTERS, max(1, len(coordinates) // 20))
    sample = _some(coordinates, _SAMPLE)
    values = [_mixture(sample, n, seed).bic(sample) / len(sample) for n in range(1, most + 1)]
    return pd.DataFrame({"clusters": range(1, most + 1), "bic": values})


def _mixture(coordinates: np.ndarray, n: int, seed: int):
    from sklearn.mixture import GaussianMixture

    # A thin, curved valley is no row of groups: nothing narrower than a tenth of the largest spread counts as one.
    floor = 1e-2 * max(float(coordinates.var(0).max()), 1e-6)
    return GaussianMixture(n, reg_covar=floor, random_state=seed).fit(_some(coordinates, _SAMPLE))


def _some(coordinates: np.ndarray, n: int) -> np.ndarray:
    return coordinates[np.linspace(0, len(coordinates) - 1, min(len(coordinates), n)).astype(int)]


def shortest_order(centres: np.ndarray) -> np.ndarray:
    """Return the order in which (n, K) centres are passed, each the nearest to the one before, from the first."""
    order, left = [0], list(range(1, len(centres)))
    while left:
        order.append(min(left, key=lambda i: np.linalg.norm(centres[i] - centres[order[-1]])))
        left.remove(order[-1])
    return np.array(order)


def density_ridge(coordinates: np.ndarray, n: int = 16) -> np.ndarray:
    """Return (n, K) points along the ridge of the density of (p, K) coordinates, from low to high along motion 1.

    At each value along the first motion the others go uphill to where particles are densest (mean shift).
    """
    sample = _some(coordinates, _RIDGE_SAMPLE)
    low, high = np.quantile(sample[:, 0], [_RIDGE_ENDS, 1 - _RIDGE_ENDS])
    width = np.maximum(sample.std(0), 1e-6) * len(sample) ** (-1 / (sample.shape[1] + 4))
    ridge = []
    for value in np.linspace(low, high, n):
        near = np.exp(-0.5 * ((sample[:, 0] - value) / width[0]) ** 2)
        place = near @ sample[:, 1:] / near.sum()
        for _ in range(_RIDGE_TURNS):
            weight = near * np.exp(-0.5 * (((sample[:, 1:] - place) / width[1:]) ** 2).sum(1))
            place = weight @ sample[:, 1:] / weight.sum()
        ridge.append([value, *place])
    return np.array(ridge)


def write_clusters(run: Run, reporter: Reporter = PRINT) -> list[Path]:
    """Write how particles group, to RUN/analysis.

    ``clusters.csv`` has the cluster of every particle, in the order of particles.star, from 1: `mixture`, of normal
    distributions as many as the Bayesian information criterion wants, and `kmeans` of the same number.
    ``cluster_centres.csv`` has their sizes, counts per half and centres (A rms), ``cluster_criterion.csv`` the
    criterion.
    """
    coordinates = run.motions.coordinates.numpy().astype(float)
    seed = run.config.train.seed
    criterion = mixture_criterion(coordinates, seed)
    n = int(criterion["clusters"][criterion["bic"].argmin()])
    halves = run.halves.numpy()
    found, rows = {}, []
    for method in ("mixture", "kmeans"):
        labels, centres = cluster_coordinates(coordinates, n, seed, method == "mixture")
        found[method] = labels + 1
        for cluster, centre in enumerate(centres):
            mine = labels == cluster
            counts = [int((halves[mine] == half).sum()) for half in (1, 2)]
            place = {f"motion{k + 1}_A": value for k, value in enumerate(centre)}
            rows.append(
                {
                    "method": method,
                    "cluster": cluster + 1,
                    "particles": int(mine.sum()),
                    "half_1": counts[0],
                    "half_2": counts[1],
                    **place,
                }
            )
    tables = {"clusters": pd.DataFrame(found), "cluster_centres": pd.DataFrame(rows), "cluster_criterion": criterion}
    written = []
    for name, table in tables.items():
        written.append(run.path / "analysis" / f"{name}.csv")
        with atomic_path(written[-1]) as path:
            table.to_csv(path, index=False, float_format="%.6g")
    groups = "one group" if n == 1 else f"{n} groups"
    reporter.say(
        f"Coordinates are best told as {groups} (Gaussian mixture); clusters of particles are in {written[0]}."
    )
    return written
