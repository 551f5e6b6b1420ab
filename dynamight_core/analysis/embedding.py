"""Particles in a plane by UMAP, for plots and selections."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from dynamight_core.errors import InputError
from dynamight_core.options.analyse import EMBEDDINGS
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run

# The file of RUN/analysis, and the names of its columns.
FILE, UMAP_COLUMNS = "embedding.csv", ["umap_1", "umap_2"]


def embed(coordinates: np.ndarray, method: str, seed: int, reporter: Reporter) -> tuple[np.ndarray, list[str]]:
    """Return (n, 2) coordinates of particles in a plane, for plots, and the names of its axes.

    Parameters
    ----------
    coordinates
        (n, K) along the principal motions, A rms.
    method
        one of `options.EMBEDDINGS`.
    seed
        random seed of UMAP.
    reporter
        takes lines for the user.
    """
    if method not in EMBEDDINGS:
        raise InputError(f"--embedding is '{method}'; choose one of {', '.join(EMBEDDINGS)}")
    if method != "pca" and coordinates.shape[1] > 2 and coordinates.std() > 0:
        try:
            from umap import UMAP
        except ImportError as error:
            if method == "umap":
                raise InputError(
                    "--embedding umap needs the package umap-learn; install dynamight-core[umap], or use pca"
                ) from error
            reporter.note("the package umap-learn is not installed; the embedding is motions 1 and 2")
        else:
            neighbours = max(2, min(15, len(coordinates) - 1))
            reducer = UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1)
            return reducer.fit_transform(coordinates), UMAP_COLUMNS
    plane = np.zeros((len(coordinates), 2))
    plane[:, : min(2, coordinates.shape[1])] = coordinates[:, :2]
    return plane, ["motion_1", "motion_2"]


def has_umap(run: Run) -> bool:
    """Return whether the run's analysis has UMAP coordinates of its particles."""
    path = run.path / "analysis" / FILE
    if not path.is_file():
        return False
    with path.open() as file:
        return file.readline().strip().split(",") == UMAP_COLUMNS


def read_umap(run: Run) -> np.ndarray:
    """Return the (n, 2) UMAP coordinates of the particles, without a unit.

    Raises
    ------
    InputError
        if the run's analysis has none.
    """
    if not has_umap(run):
        raise InputError(f"{run.path} has no UMAP; make it with dynamight analyse {run.path} --embedding umap")
    path = run.path / "analysis" / FILE
    return _table(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _table(path: Path, _changed: int) -> np.ndarray:
    return pd.read_csv(path).to_numpy(dtype=float)
