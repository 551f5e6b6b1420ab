"""Where particles are drawn: along motions, in the shape of a distribution, or in a UMAP; and all pairs of motions."""

import numpy as np

from dynamight_core.analysis.arguments import check_motion
from dynamight_core.analysis.embedding import read_umap
from dynamight_core.run import Run

# Numbers in place of motions, which count from 1: particles in the shape of their distribution, and in the UMAP.
HISTOGRAM, UMAP = 0, [-1, -2]
# Bins of a histogram, and bins along each side of a picture of a pair.
_BINS, _PAIR_BINS = 60, 48
# Quantiles of a coordinate at the ends of such a picture.
_ENDS = (0.001, 0.999)


def particle_places(run: Run, plane: list[int]) -> np.ndarray:
    """Return the (n, d) places of the particles along d motions (A rms), numbered from 1.

    With `HISTOGRAM` in place of the second motion, particles stand at random heights in the shape of their distribution
    along the first. `UMAP` is the plane of the run's UMAP, without a unit.

    Raises
    ------
    InputError
        if there is no such motion, or no UMAP.
    """
    if plane == UMAP:
        return read_umap(run)
    coordinates = run.motions.coordinates.numpy()
    if plane[1:] == [HISTOGRAM]:
        check_motion(plane[0], coordinates.shape[1])
        x = coordinates[:, plane[0] - 1].astype(np.float64)
        counts, edges = np.histogram(x, _BINS, density=True)
        heights = np.interp(x, (edges[1:] + edges[:-1]) / 2, counts)
        return np.column_stack([x, heights * np.random.default_rng(1).random(len(x))])
    for motion in plane:
        check_motion(motion, coordinates.shape[1])
    return coordinates[:, [motion - 1 for motion in plane]].astype(np.float64)


def pair_counts(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how (n, k) coordinates are distributed, alone and in pairs.

    Returns
    -------
    tuple
        (k, bins) counts along each; (k, k, bins, bins) counts of each pair, the first coordinate first; and (k, 2)
        ends of their bins.
    """
    k = coordinates.shape[1]
    ends = np.quantile(coordinates, _ENDS, axis=0).T + [-1e-6, 1e-6]
    bins = ((coordinates - ends[:, 0]) / (ends[:, 1] - ends[:, 0]) * _PAIR_BINS).astype(int)
    inside = (coordinates >= ends[:, 0]) & (coordinates < ends[:, 1])
    alone = np.stack([np.bincount(bins[inside[:, i], i], minlength=_PAIR_BINS) for i in range(k)])
    pairs = np.zeros((k, k, _PAIR_BINS, _PAIR_BINS), dtype=int)
    for i in range(k):
        for j in range(i):
            both = inside[:, i] & inside[:, j]
            found = np.bincount(bins[both, i] * _PAIR_BINS + bins[both, j], minlength=_PAIR_BINS**2)
            pairs[i, j] = found.reshape(_PAIR_BINS, _PAIR_BINS)
            pairs[j, i] = pairs[i, j].T
    return alone, pairs, ends
