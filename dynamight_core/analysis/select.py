"""Subsets of a run's particles by motion, error, conformation, region, cluster or half-set, as STAR files."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.path import Path as Polygon

from dynamight_core.analysis.arguments import check_motion, parse_numbers
from dynamight_core.analysis.clusters import cluster_coordinates
from dynamight_core.analysis.embedding import read_umap
from dynamight_core.analysis.states import state_coordinates
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError
from dynamight_core.judging.conclusion import require_motion
from dynamight_core.lock import writes_run
from dynamight_core.options import SelectOptions
from dynamight_core.particles.metadata import write_particles
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

Range = tuple[float, float]


def parse_range(text: str, option: str) -> Range:
    """Return the range given as ``LOW:HIGH``; either may be omitted.

    Raises
    ------
    InputError
        naming the option.
    """
    try:
        low, high = (float(part) if part.strip() else None for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"{option} is '{text}'; give LOW:HIGH; either may be omitted") from error
    values = (-np.inf if low is None else low, np.inf if high is None else high)
    if not values[0] <= values[1]:
        raise InputError(f"{option} is '{text}', an empty range; give LOW:HIGH with LOW below HIGH")
    return values


def parse_polygon(text: str) -> tuple[tuple[int, int] | None, np.ndarray]:
    """Return the two motions (from 1) and the (m, 2) corners (A rms) given as ``K,L:X,Y:X,Y:X,Y``.

    Corners in the UMAP of the run, ``umap:X,Y:X,Y:X,Y``, have no motions.

    Raises
    ------
    InputError
        if the text is not a polygon.
    """
    plane, *points = text.split(":")
    motions = None if plane.strip() == "umap" else parse_numbers(plane, "--polygon", int)
    corners = [parse_numbers(point, "--polygon") for point in points]
    is_plane = motions is None or len(motions) == 2
    if not is_plane or len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise InputError(
            f"--polygon is '{text}'; give K,L:X,Y:X,Y:X,Y with two motions, or umap:X,Y:X,Y:X,Y, and at least three "
            "corners"
        )
    return None if motions is None else (motions[0], motions[1]), np.array(corners)


def inside_polygon(run: Run, text: str) -> np.ndarray:
    """Return an (n,) mask of the particles inside a polygon, see `parse_polygon`.

    Raises
    ------
    InputError
        if the text is not a polygon, a motion is not in the run, or there is no UMAP.
    """
    motions, corners = parse_polygon(text)
    if motions is None:
        return Polygon(corners).contains_points(read_umap(run))
    coordinates = run.motions.coordinates.numpy()
    for motion in motions:
        check_motion(motion, coordinates.shape[1])
    # In double precision, as the corners are.
    places = coordinates[:, [motion - 1 for motion in motions]].astype(np.float64)
    return Polygon(corners).contains_points(places)


def within_column(table: pd.DataFrame, text: str) -> np.ndarray:
    """Return which rows of a table are within the range ``COLUMN:LOW:HIGH``, (n,) bool.

    Raises
    ------
    InputError
        if there is no such column, or it does not hold numbers.
    """
    # Names of a user's columns may have colons.
    parts = text.split(":")
    column, limits = ":".join(parts[:-2]), ":".join(parts[-2:])
    if column not in table:
        raise InputError(f"--where is '{text}'; give COLUMN:LOW:HIGH with a column of particles.star")
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    if np.isnan(values).all():
        raise InputError(f"--where is '{text}', but column {column} does not hold numbers; choose another column")
    return _within(values, parse_range(limits, "--where"))


def select_particles(run: Run, options: SelectOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the particles that meet all conditions of the options, and their clusters.

    Returns
    -------
    tuple
        (n,) mask, and (n,) clusters from 1, or None without --clusters.

    Raises
    ------
    InputError
        if there is no condition, or a motion, cluster or half-set is not in the run.
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
    conditions += [within_column(table, text) for text in o.where]
    if o.near is not None:
        numbers, _, radius = o.near.rpartition(":")
        try:
            distance = float(radius)
        except ValueError:
            raise InputError(f"--near is '{o.near}'; give COORDINATES:DISTANCE, such as 1.5,-2:3") from None
        centre = state_coordinates(run, parse_numbers(numbers, "--near"))
        conditions.append(np.linalg.norm(coordinates - centre, axis=1) <= distance)
    if o.polygon is not None:
        conditions.append(inside_polygon(run, o.polygon))
    clusters = None
    if o.mixture and o.clusters is None:
        raise InputError("--mixture needs --clusters; set the number of clusters (0: chosen automatically)")
    if o.cluster and o.clusters is None:
        raise InputError("--cluster needs --clusters; set the number of clusters")
    if o.clusters is not None:
        clusters = cluster_coordinates(coordinates, o.clusters, o.seed, o.mixture)[0] + 1
        for cluster in o.cluster:
            if not 1 <= cluster <= clusters.max():
                raise InputError(f"--cluster is {cluster}; give a number from 1 to {clusters.max()}")
        conditions.append(np.isin(clusters, o.cluster) if o.cluster else np.ones(len(clusters), dtype=bool))
    if o.half is not None:
        conditions.append(np.asarray(run.halves) == o.half)
    if not conditions:
        raise InputError(
            "there is no condition; give --motion, --error, --disagreement, --along, --where, --near, --polygon, "
            "--clusters or --half"
        )
    kept = np.logical_and.reduce(conditions)
    return ~kept if o.complement else kept, clusters


@writes_run
def write_selection(
    run: Run, options: SelectOptions, name: str = "selection", out: str | Path | None = None, reporter: Reporter = PRINT
) -> Path:
    """Write the selected particles with all input columns, the dyn columns, clusters and the optics table.

    Parameters
    ----------
    run
        finished and summarised.
    options
        conditions.
    name
        of the file in ``RUN/analysis/selections``.
    out
        path of the STAR file, instead of `name`.
    reporter
        takes lines for the user.

    Returns
    -------
    Path
        of the STAR file.

    Raises
    ------
    InputError
        if the selection is empty, or uses motion that is not supported without `options.use_unsupported_motion`.
    """
    kept, clusters = select_particles(run, options)
    if not kept.any():
        raise InputError(f"the selection is empty (0 of {len(kept)} particles); widen its ranges")
    if _uses_motion(options):
        require_motion(run, options.use_unsupported_motion, reporter)
    path = Path(run.path) / "analysis" / "selections" / f"{name}.star" if out is None else Path(out)
    check_outputs([path], [*run.files(), *run.particles.stacks], "--out")
    write_rows(run, path, np.flatnonzero(kept), clusters)
    halves = np.asarray(run.halves)[kept]
    reporter.say(
        f"{int(kept.sum())} of {len(kept)} particles ({int((halves == 1).sum())} of half-set 1, "
        f"{int((halves == 2).sum())} of half-set 2): {path}."
    )
    return path


def _uses_motion(options: SelectOptions) -> bool:
    """Return whether particles are selected by more than their half-set."""
    o = options
    values = (o.motion, o.error, o.disagreement, o.along, o.near, o.polygon, o.clusters)
    return any(value not in (None, []) for value in values)


def write_rows(run: Run, path: Path, rows: np.ndarray, clusters: np.ndarray | None = None) -> Path:
    """Write (b,) rows of particles.star, from 0, with all input columns and the optics table; return the path.

    `clusters` (n,), if any, go to the column dynCluster. `write_particles` writes a .cs file if the input was one.
    """
    # Input columns keep their text, results are numbers.
    results = run.table.columns.difference(run.particles.table.columns, sort=False)
    columns = {name: run.table[name].to_numpy()[rows] for name in results}
    if clusters is not None:
        columns["dynCluster"] = clusters[rows]
    write_particles(path, run.particles.subset(rows), columns)
    return path


def _within(values: np.ndarray, limits: Range) -> np.ndarray:
    return (values >= limits[0]) & (values <= limits[1])
