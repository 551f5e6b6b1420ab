"""Subsets of a run's particles by motion, error, conformation, region, cluster or half, as STAR files."""

from pathlib import Path

import numpy as np
from matplotlib.path import Path as Polygon

from dynamight_core.analysis.arguments import check_motion, parse_numbers
from dynamight_core.analysis.clusters import cluster_coordinates
from dynamight_core.errors import InputError
from dynamight_core.options import SelectOptions
from dynamight_core.particles.star import write_star
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

Range = tuple[float, float]


def parse_range(text: str, option: str) -> Range:
    """Return the range that ``LOW:HIGH`` names; either may be left out.

    Raises
    ------
    InputError
        naming the option.
    """
    try:
        low, high = (float(part) if part.strip() else None for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"{option} is '{text}'; give LOW:HIGH, either of which may be left out") from error
    values = (-np.inf if low is None else low, np.inf if high is None else high)
    if not values[0] <= values[1]:
        raise InputError(f"{option} is '{text}', which holds nothing; give LOW:HIGH with LOW below HIGH")
    return values


def parse_polygon(text: str) -> tuple[tuple[int, int], np.ndarray]:
    """Return the two motions (from 1) and the (m, 2) corners, A rms, that ``K,L:X,Y:X,Y:X,Y`` names.

    Raises
    ------
    InputError
        if it names no polygon.
    """
    plane, *corners = text.split(":")
    motions = parse_numbers(plane, "--polygon", int)
    corners = [parse_numbers(corner, "--polygon") for corner in corners]
    if len(motions) != 2 or len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise InputError(f"--polygon is '{text}'; give K,L:X,Y:X,Y:X,Y with two motions and at least three corners")
    return tuple(motions), np.array(corners)


def inside_polygon(coordinates: np.ndarray, text: str) -> np.ndarray:
    """Return which of (n, K) coordinates lie inside a polygon, see `parse_polygon`: (n,) mask.

    Raises
    ------
    InputError
        if it names no polygon, or motions that the run has not.
    """
    motions, corners = parse_polygon(text)
    for motion in motions:
        check_motion(motion, coordinates.shape[1])
    return Polygon(corners).contains_points(coordinates[:, [motion - 1 for motion in motions]])


def select_particles(run: Run, options: SelectOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """Return which particles the options keep, and their clusters.

    Returns
    -------
    tuple
        (n,) mask, and (n,) numbers of the clusters from 1 if there are any, else None.

    Raises
    ------
    InputError
        if nothing is asked for, or a motion, cluster or half is not in the run.
    """
    o, table = options, run.table
    coordinates = np.asarray(run.motions.coordinates, dtype=float)
    conditions = []
    for text, option, column in (
        (o.motion, "--motion", "dynMotionRms"),
        (o.error, "--error", "dynMotionError"),
        (o.disagreement, "--disagreement", "dynMotionDisagreement"),
    ):
        if text is not None:
            conditions.append(_within(table[column].to_numpy(), parse_range(text, option)))
    for text in o.along:
        number, _, limits = text.partition(":")
        if not number.strip().isdigit():
            raise InputError(f"--along is '{text}'; give K:LOW:HIGH with K the number of a motion")
        check_motion(int(number), coordinates.shape[1])
        conditions.append(_within(coordinates[:, int(number) - 1], parse_range(limits, "--along")))
    if o.near is not None:
        place, _, distance = o.near.rpartition(":")
        try:
            distance = float(distance)
        except ValueError:
            raise InputError(f"--near is '{o.near}'; give COORDINATES:DISTANCE, such as 1.5,-2:3") from None
        place = parse_numbers(place, "--near")
        check_motion(len(place), coordinates.shape[1])
        place += [0.0] * (coordinates.shape[1] - len(place))
        conditions.append(np.linalg.norm(coordinates - np.array(place), axis=1) <= distance)
    if o.polygon is not None:
        conditions.append(inside_polygon(coordinates, o.polygon))
    clusters = None
    if o.mixture and o.clusters is None:
        raise InputError("--mixture is of the --clusters; say how many, 0 for as many as are best")
    if o.cluster and o.clusters is None:
        raise InputError("--cluster keeps one of the --clusters (how many to make); give both")
    if o.clusters is not None:
        clusters = cluster_coordinates(coordinates, o.clusters, o.seed, o.mixture)[0] + 1
        for number in o.cluster:
            if not 1 <= number <= clusters.max():
                raise InputError(f"--cluster is {number}; give a number from 1 to {clusters.max()}")
        conditions.append(np.isin(clusters, o.cluster) if o.cluster else np.ones(len(clusters), dtype=bool))
    if o.half is not None:
        conditions.append(np.asarray(run.halves) == o.half)
    if not conditions:
        raise InputError(
            "nothing is selected by; give --motion, --error, --disagreement, --along, --near, --polygon, --clusters or "
            "--half"
        )
    kept = np.logical_and.reduce(conditions)
    return ~kept if o.complement else kept, clusters


def write_selection(
    run: Run,
    options: SelectOptions,
    name: str = "selection",
    out: str | Path | None = None,
    reporter: Reporter = PRINT,
) -> Path:
    """Write the selected rows with all input columns, the dyn columns, clusters and the optics table.

    Parameters
    ----------
    run
        finished and summarised.
    options
        what to keep.
    name
        of the file in ``RUN/analysis/selections``.
    out
        path of the STAR file instead.
    reporter
        takes lines for the user.

    Returns
    -------
    Path
        of the STAR file.

    Raises
    ------
    InputError
        if no particle is left.
    """
    kept, clusters = select_particles(run, options)
    if not kept.any():
        raise InputError(f"the selection holds none of the {len(kept)} particles; widen its ranges")
    path = Path(run.path) / "analysis" / "selections" / f"{name}.star" if out is None else Path(out)
    write_rows(run, path, np.flatnonzero(kept), clusters)
    halves = np.asarray(run.halves)[kept]
    reporter.say(
        f"{int(kept.sum())} of {len(kept)} particles ({int((halves == 1).sum())} of half 1, "
        f"{int((halves == 2).sum())} of half 2) are in {path}."
    )
    return path


def write_rows(run: Run, path: Path, rows: np.ndarray, clusters: np.ndarray | None = None) -> Path:
    """Write (b,) rows of particles.star, from 0, with all input columns and the optics table; return the path.

    `clusters` (n,), if any, go to the column dynCluster.
    """
    # Input columns as the text that they were, results as numbers.
    table = run.particles.table.copy()
    for column in run.table.columns.difference(table.columns, sort=False):
        table[column] = run.table[column].to_numpy()
    if clusters is not None:
        table["dynCluster"] = clusters
    write_star(path, table.iloc[rows], run.particles.optics, run.particles.block)
    return path


def _within(values: np.ndarray, limits: Range) -> np.ndarray:
    return (values >= limits[0]) & (values <= limits[1])
