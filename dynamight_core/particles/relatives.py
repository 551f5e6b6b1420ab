"""Particles that show the same: what one half-set, or the validation particles, learn from one is known to the other.

Relatives are rows of one image, images made from one original image (particle subtraction), segments of one helical
tube, and picks so near to each other in a micrograph or tomogram that they show the same molecule. A relative of a
relative counts.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dynamight_core.particles.metadata import Particles

# Picks that are nearer than this fraction of the particle's diameter show the same molecule; the diameter as a fraction
# of the box where it is not known.
_NEAR, _DIAMETER = 0.3, 0.9
_MICROGRAPH_PIXEL_SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")
_COORDINATES = ["rlnCoordinateX", "rlnCoordinateY"]
_CENTRED = ["rlnCenteredCoordinateXAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateZAngst"]

Links = tuple[NDArray[np.int64], NDArray[np.int64]]


def default_distance(particles: Particles, diameter: float | None) -> float:
    """Return the distance (A) of picks below which they are relatives, for particles of a diameter (A) if known."""
    return _NEAR * (diameter or _DIAMETER * particles.box * particles.pixel_size)


def find_relatives(particles: Particles, distance: float) -> torch.Tensor:
    """Return the (n,) int64 numbers of groups of relatives.

    Parameters
    ----------
    particles
        n particles.
    distance
        A; picks nearer than this in one micrograph are relatives. 0 compares no picks.
    """
    n = len(particles)
    links = list(_links(particles, distance))
    first, second = (np.concatenate(each) for each in zip(*links, strict=True))
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))


def _links(particles: Particles, distance: float) -> Iterator[Links]:
    """Yield pairs of particles that are relatives, which connect all of a group."""
    table = particles.particle_table
    yield _equal(particles.copies.numpy())
    if "rlnImageOriginalName" in table:
        yield _equal(_codes(table["rlnImageOriginalName"]))
    micrographs = _codes(table["rlnMicrographName"]) if "rlnMicrographName" in table else None
    if micrographs is not None and "rlnHelicalTubeID" in table:
        tubes = _codes(table["rlnHelicalTubeID"])
        known = (micrographs >= 0) & (tubes >= 0)
        yield _equal(np.where(known, micrographs * (tubes.max() + 1) + tubes, -1))
    if distance > 0 and "rlnTomoName" in table and set(_CENTRED) <= set(table.columns):
        places = table[_CENTRED].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        yield from _near(_codes(table["rlnTomoName"]), places, distance)
    # Places of tilt series are of their images.
    elif (
        micrographs is not None
        and distance > 0
        and set(_COORDINATES) <= set(table.columns)
        and particles.series is None
    ):
        yield from _near(micrographs, _positions(particles), distance)


def _codes(column: pd.Series) -> NDArray[np.int64]:
    """Return an (n,) number for each text of a column, -1 where there is none."""
    codes: NDArray[np.int64] = pd.factorize(column.mask(column.isin(["", "None", "<NA>"])))[0].astype(np.int64)
    return codes


def _equal(codes: NDArray[np.int64]) -> Links:
    """Return the pairs that connect rows of equal (n,) numbers in a chain; -1 is like no other."""
    order = np.argsort(codes, kind="stable")
    same = (codes[order[1:]] == codes[order[:-1]]) & (codes[order[1:]] >= 0)
    return order[:-1][same], order[1:][same]


def _positions(particles: Particles) -> NDArray[np.float64]:
    """Return the (n, 2) positions of the particles' centres in their micrographs, A; NaN where there is none."""
    table, optics = particles.table, particles.optics
    places = table[_COORDINATES].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    size: NDArray[np.float64] | float = particles.pixel_size
    for label in reversed(_MICROGRAPH_PIXEL_SIZES):
        if label in table:
            size = pd.to_numeric(table[label], errors="coerce").to_numpy()[:, None]
        elif optics is not None and label in optics and "rlnOpticsGroup" in table:
            by_group = dict(zip(optics["rlnOpticsGroup"], pd.to_numeric(optics[label], errors="coerce"), strict=True))
            size = table["rlnOpticsGroup"].map(by_group).to_numpy(dtype=np.float64)[:, None]
    positions: NDArray[np.float64] = places * size - particles.shifts.numpy()
    return positions


def _near(micrographs: NDArray[np.int64], positions: NDArray[np.float64], distance: float) -> Iterator[Links]:
    """Yield the pairs of rows whose (n, 2) or (n, 3) positions (A) in one micrograph are nearer than a distance (A)."""
    rows = np.flatnonzero((micrographs >= 0) & np.isfinite(positions).all(1))
    # Coordinates that are all alike were never set.
    if not len(rows) or np.ptp(positions[rows], axis=0).max() < distance:
        return
    axes = list("xyz")[: positions.shape[1]]
    places = pd.DataFrame(dict(zip(axes, positions[rows].T, strict=True))).assign(micrograph=micrographs[rows])
    # Many rows at one place, as of symmetry expansion, would make as many pairs as their square.
    codes = places.groupby(["micrograph", *axes], sort=False).ngroup().to_numpy()
    first, second = _equal(codes)
    yield rows[first], rows[second]
    single = np.unique(codes, return_index=True)[1]
    # Micrographs are far from each other along one more axis.
    points = places.iloc[single][[*axes, "micrograph"]].to_numpy() * [*[1] * len(axes), 2 * distance]
    pairs = cKDTree(points).query_pairs(distance, output_type="ndarray")
    yield rows[single[pairs[:, 0]]], rows[single[pairs[:, 1]]]
