"""States of the molecule: along a motion or path, between particles, or at clusters, coordinates or latents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.arguments import check_motion, check_row, parse_numbers
from dynamight_core.analysis.clusters import cluster_coordinates, density_ridge, shortest_order
from dynamight_core.errors import InputError
from dynamight_core.files import check_is_file
from dynamight_core.options import StatesOptions
from dynamight_core.run import Run


@dataclass
class States:
    """s states of a molecule.

    Parameters
    ----------
    name
        of their folder.
    labels
        s file names, without suffix.
    coordinates
        (s, K) A rms along the principal motions; (s, 0) for states given by `latents`.
    latents, half
        (s, d) latents, and the half-set of their decoder.
    particles
        (s,) number of particles that each state represents, or None.
    ordered
        whether the states follow a path that a movie can show.
    """

    name: str
    labels: list[str]
    coordinates: np.ndarray
    latents: torch.Tensor | None = None
    half: int = 0
    particles: np.ndarray | None = None
    ordered: bool = True

    def __len__(self) -> int:
        return len(self.labels)


def choose_states(run: Run, options: StatesOptions) -> States:
    """Return the states described by the options.

    Raises
    ------
    InputError
        if there are no such states, or the options describe two kinds.
    """
    o = options
    kinds = [name for name in ("between", "clusters", "ridge", "through", "at", "latent") if getattr(o, name)]
    if o.clusters == 0:
        kinds.append("clusters")
    if len(kinds) > 1:
        raise InputError(f"--{kinds[0]} and --{kinds[1]} cannot be combined; give one of them")
    if o.clusters is None and (o.tour or o.mixture):
        raise InputError(f"--{'tour' if o.tour else 'mixture'} needs --clusters; set the number of clusters")
    if o.between:
        return states_between(run, *o.between, o.n_states)
    if o.clusters is not None:
        return states_of_clusters(run, o.clusters, o.seed, o.mixture, o.n_states if o.tour else None)
    if o.ridge:
        return states_through(run, list(density_ridge(_all_coordinates(run))), o.n_states, "ridge")
    if o.through:
        return states_through(run, [parse_numbers(text, "--through") for text in o.through], o.n_states)
    if o.at:
        return states_at_coordinates(run, [parse_numbers(text, "--at") for text in o.at])
    if o.latent:
        if o.half == "both":
            raise InputError(
                "--latent needs --half 1 or 2: latents of different half-sets cannot be compared; set --half"
            )
        return states_at_latents(run, int(o.half), [parse_numbers(text, "--latent") for text in o.latent])
    return states_along_motion(run, o.motion, o.n_states, o.percentiles, o.deviations)


def states_along_motion(
    run: Run, motion: int, n: int = 10, percentiles: tuple[float, float] = (2.5, 97.5), deviations: float | None = None
) -> States:
    """Return n evenly spaced states along one motion, with the other coordinates at their mean.

    Parameters
    ----------
    run
        finished and summarised.
    motion
        from 1.
    n
        number of states.
    percentiles
        of the particles' coordinates at the first and last state.
    deviations
        instead of percentiles: standard deviations of the coordinates to either side of their mean.

    Raises
    ------
    InputError
        if there is no such motion, or the range is empty.
    """
    coordinates = _all_coordinates(run)
    check_motion(motion, coordinates.shape[1])
    if n < 1:
        raise InputError(f"--n-states is {n}; give at least 1 state")
    values = coordinates[:, motion - 1]
    if deviations is not None:
        if not deviations > 0:
            raise InputError(f"--deviations is {deviations:g}; give a positive number of standard deviations")
        low, high = values.mean() + np.array([-1, 1]) * deviations * values.std()
    else:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise InputError(
                f"--percentiles is {percentiles[0]:g} {percentiles[1]:g}; give two increasing numbers from 0 to 100"
            )
        low, high = np.percentile(values, percentiles)
    path = np.tile(coordinates.mean(0), (n, 1))
    path[:, motion - 1] = np.linspace(low, high, n) if n > 1 else (low + high) / 2
    labels = [f"motion{motion}_state{i + 1:02d}_{path[i, motion - 1]:+.1f}A" for i in range(n)]
    return States(f"motion{motion}", labels, path)


def states_between(run: Run, first: int, last: int, n: int = 10) -> States:
    """Return n states on the straight line between the conformations of two particles (rows from 1).

    Raises
    ------
    InputError
        if there is no such row.
    """
    coordinates = _all_coordinates(run)
    for row in (first, last):
        check_row(row, len(coordinates))
    return states_through(run, [coordinates[first - 1], coordinates[last - 1]], n, f"particles{first}to{last}")


def states_through(run: Run, points: list, n: int = 10, name: str = "path") -> States:
    """Return n evenly spaced states on the straight lines from point to point.

    Parameters
    ----------
    run
        finished and summarised.
    points
        coordinates (A rms) of two or more points; motions omitted at the end are zero.
    n
        number of states.
    name
        of the states.

    Raises
    ------
    InputError
        if the points are not a path.
    """
    if len(points) < 2:
        raise InputError(f"--through has {len(points)} point; give at least 2 points of a path")
    if n < 2:
        raise InputError(f"--n-states is {n}; give at least 2 states on a path")
    corners = np.stack([state_coordinates(run, point) for point in points])
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    if not lengths.any():
        raise InputError("all points of the path are the same; give different points")
    # Skip points that repeat the previous one.
    kept = np.concatenate([[True], lengths > 0])
    along = np.concatenate([[0.0], np.cumsum(lengths[lengths > 0])])
    where = np.linspace(0, along[-1], n)
    path = np.stack([np.interp(where, along, values) for values in corners[kept].T], 1)
    return States(name, [f"{name}_state{i + 1:02d}" for i in range(n)], path)


def states_of_clusters(run: Run, n: int, seed: int = 0, mixture: bool = False, tour: int | None = None) -> States:
    """Return the centres of n clusters of the particles' coordinates, in the order of motion 1.

    Parameters
    ----------
    run
        finished and summarised.
    n, seed, mixture
        see `clusters.cluster_coordinates`.
    tour
        instead: number of states on a path that goes from each centre to the nearest one left.

    Raises
    ------
    InputError
        if there is no such number of clusters, or a tour has only one to go through.
    """
    labels, centres = cluster_coordinates(_all_coordinates(run), n, seed, mixture)
    if tour is not None and len(centres) < 2:
        raise InputError(
            f"--tour is a path through clusters, but --clusters {n} gives only one; set --clusters to 2 or more, or "
            "omit --tour"
        )
    n = len(centres)
    if tour is not None:
        return states_through(run, list(centres[shortest_order(centres)]), tour, f"clusters{n}_tour")
    counts = np.bincount(labels, minlength=n)
    names = [f"cluster{i + 1:02d}_{counts[i]}particles" for i in range(n)]
    return States(f"clusters{n}", names, centres, particles=counts, ordered=False)


def states_at_latents(run: Run, half: int, latents: list) -> States:
    """Return the states at (s, d) latents of one half-set's decoder.

    Raises
    ------
    InputError
        if the half-set is not 1 or 2, or latents have another dimension.
    """
    if half not in (1, 2):
        raise InputError(f"--half is {half}, but latents belong to one half-set; give 1 or 2")
    wanted = run.models[half - 1].n_latents
    for latent in latents:
        if len(latent) != wanted:
            raise InputError(
                f"--latent has {len(latent)} numbers, but the run has {wanted} latent dimensions; give {wanted}"
            )
    values = torch.tensor(np.asarray(latents, dtype=np.float32))
    labels = [f"half{half}_latent{i + 1:02d}" for i in range(len(latents))]
    return States(f"latents_half{half}", labels, np.zeros((len(latents), 0)), values, half, ordered=len(latents) > 2)


def states_at_coordinates(run: Run, coordinates: list) -> States:
    """Return the states at s given coordinates (A rms); motions omitted at the end are zero."""
    rows = np.stack([state_coordinates(run, row) for row in coordinates])
    return States("coordinates", [f"state{i + 1:02d}" for i in range(len(rows))], rows, ordered=len(rows) > 2)


def read_states(path: str | Path, run: Run) -> tuple[list[str], np.ndarray]:
    """Return names and (s, K) coordinates of the states in a table that `write_states` wrote, or with its columns.

    Parameters
    ----------
    path
        of a CSV file with `state` (names; optional) and `motion1_A`, `motion2_A`, ... (A rms).
    run
        finished and summarised.

    Raises
    ------
    InputError
        if the file cannot be read, or lacks coordinates.
    """
    path = Path(path)
    check_is_file(path, "states", "give the states.csv that dynamight states wrote")
    try:
        table = pd.read_csv(path)
    except Exception as error:  # Libraries have many exceptions for damaged files.
        raise InputError(f"states {path} cannot be read ({error}); give a CSV file") from error
    wanted = [f"motion{k + 1}_A" for k in range(_all_coordinates(run).shape[1])]
    if "motion1_A" not in table or not len(table):
        raise InputError(f"states {path} have no coordinates; give a table with the columns {', '.join(wanted)}")
    try:
        coordinates = table.reindex(columns=wanted, fill_value=0.0).to_numpy(dtype=float)
    except ValueError as error:
        raise InputError(f"states {path}: {error}; give numbers in the columns {', '.join(wanted)}") from error
    if not np.isfinite(coordinates).all():
        raise InputError(f"states {path} have empty or infinite coordinates; give finite numbers in A rms")
    labels = (
        table["state"].astype(str).fillna("") if "state" in table else [f"state{i + 1:02d}" for i in range(len(table))]
    )
    if len(set(labels)) < len(labels) or any(not label or "/" in label for label in labels):
        raise InputError(f"states {path}: names in the column state become file names; make them unique, without /")
    return list(labels), coordinates


def _all_coordinates(run: Run) -> np.ndarray:
    return np.asarray(torch.as_tensor(run.motions.coordinates).cpu(), dtype=float)


def state_coordinates(run: Run, values) -> np.ndarray:
    """Return (K,) coordinates (A rms) along all motions; those omitted at the end are zero."""
    n_motions = _all_coordinates(run).shape[1]
    values = np.asarray(values, dtype=float).ravel()
    if len(values) > n_motions:
        raise InputError(
            f"a state has {len(values)} coordinates, but the run has {n_motions} motions; give at most {n_motions}"
        )
    return np.concatenate([values, np.zeros(n_motions - len(values))])
