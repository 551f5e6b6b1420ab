"""What the report and the explorer show first: the molecule with its motion, and the map before and after.

Both pages draw the same arrays: the map as bytes with the displacement of each place along the motions that count, and
the moving part of the map without and with motion corrected, as volumes, as a slice and by its FSC.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter, label, map_coordinates
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dynamight_core.analysis.explorer.answer import Answer
from dynamight_core.analysis.explorer.shapes import contour_level, first_view
from dynamight_core.files import read_map
from dynamight_core.judging.conclusion import NOT_SUPPORTED, Conclusion, counted_motions
from dynamight_core.judging.distribution import consensus_coordinates
from dynamight_core.judging.evidence import DENSITIES, GAINS, read_resolutions, read_rows
from dynamight_core.model.motions import moving_points
from dynamight_core.particles.star import read_blocks
from dynamight_core.run import Run

# A (box, box, box) map and the size of its voxels, A.
Map = tuple[np.ndarray, float]
# Largest size of a volume on the page, voxels per axis, and motions that are played.
_MAX_VOXELS, _MOTIONS = 80, 3
# Density farther than this from the points is not shown, and how much is shown around the moving part (A).
_REACH, _MARGIN = 10.0, 9.0
# Points whose displacements are averaged at a voxel, and the distance (A) over which their weight falls.
_NEIGHBOURS, _FALL = 8, 3.0
# Points at most this far apart, A, are of one moving part; parts with less than this fraction of the motion of the
# largest are not counted.
_CONNECTED, _PART = 9.0, 0.1
# Quantiles of the coordinates between which a motion plays.
_ENDS = (0.05, 0.95)
# Smallest part of the density that is shown, as a fraction of the largest; and of a slice, its pixels.
_DUST, _SLICE_PIXELS = 0.03, 160

# States that are dots: percentiles along a motion, most of a table, and colours in the order of the states.
_PERCENTILES, _MAX_STATES = (2.5, 25, 50, 75, 97.5), 10
_COLOURS = (
    "#3b4cc0",
    "#4f6fd8",
    "#2f7fa0",
    "#2a7d65",
    "#587d27",
    "#8a6f16",
    "#b5611d",
    "#c2502e",
    "#c43c39",
    "#97183a",
)


def overview(run: Run, conclusion: Conclusion) -> Answer:
    """Return what both pages show first of a run with this conclusion.

    Values: `motions`, the motions that play, with the coordinates (A rms) between which they do and the one that the
    map is at; `states`, see `chosen_states`; `surface`, where the bytes of the map are; `gain`, see `_gain`, or None
    where there is no map to compare.

    Arrays: view (3, 3), the rotation to the first view; points (m, 3) A and error (m,) A; density (d, h, w) uint8
    [z, y, x], and on every second voxel of it beyond uint8, the rms motion that exceeds its uncertainty, 255 at `top`
    A, and shifts (K, d', h', w', 3) uint16, the displacement of motions, 0 to 65535 from -1 to 1 times `reach` A.
    """
    numbers = shown_motions(run, conclusion)[:_MOTIONS]
    points, components = run.motions.points.numpy(), run.motions.components.numpy()
    motion, error = (np.asarray(run.summary[name]) for name in ("point_motion", "point_error"))
    moves = moving_points(torch.from_numpy(motion)).numpy()
    view = first_view(points, components[numbers[0] - 1 if numbers else 0])
    values = {
        "motion": conclusion.motion,
        "motions": [_played(run, number) for number in numbers],
        "states": chosen_states(run, numbers),
        "share": float(moves.mean()) if numbers else 0.0,
    }
    arrays = {"view": view, "points": points, "error": error}
    beyond = np.sqrt(np.maximum(motion**2 - error**2, 0)) if numbers else np.zeros(len(points))
    maps = _read_maps(run)
    values["surface"], values["gain"] = None, None
    if maps:
        place = MapPart.around(next(iter(maps.values())), points)
        values["surface"], more = place.moved(points, components[[number - 1 for number in numbers]], beyond)
        arrays |= more | {"density": place.quantised(place.top)}
        shown, parts = largest_part(points[moves], motion[moves]) if numbers else (points, 1)
        values["gain"], more = _gain(run, maps, shown, bool(numbers), view)
        values["parts"] = parts
        arrays |= more
    plain = {name: array.astype("<f4") if array.dtype.kind == "f" else array for name, array in arrays.items()}
    return Answer(values, plain)


def shown_motions(run: Run, conclusion: Conclusion) -> list[int]:
    """Return the numbers, from 1, of the motions that are shown first: those that count, unless none is found."""
    return [] if conclusion.motion == NOT_SUPPORTED else counted_motions(run)


def chosen_states(run: Run, numbers: list[int]) -> list[dict]:
    """Return states to show as dots in the landscape: name, colour, and coordinates along all motions (A rms).

    They are those that ``dynamight states`` wrote last, if there are few enough, or else are spread along the first of
    the motions that are given.
    """
    if not numbers:
        return []
    tables = sorted(
        (Path(run.path) / "analysis" / "states").glob("*/states.csv"), key=lambda path: path.stat().st_mtime
    )
    columns = [f"motion{k + 1}_A" for k in range(run.motions.coordinates.shape[1])]
    for table in map(pd.read_csv, reversed(tables)):
        if set(columns) <= set(table) and 2 <= len(table) <= _MAX_STATES:
            places, names = table[columns].to_numpy(dtype=float), [str(i + 1) for i in range(len(table))]
            break
    else:
        coordinates = run.motions.coordinates.numpy().astype(float)
        places = np.tile(coordinates.mean(0), (len(_PERCENTILES), 1))
        places[:, numbers[0] - 1] = np.percentile(coordinates[:, numbers[0] - 1], _PERCENTILES)
        names = [str(i + 1) for i in range(len(places))]
    steps = np.linspace(0, len(_COLOURS) - 1, len(places)).round().astype(int)
    return [
        {"name": name, "colour": _COLOURS[step], "at": at.tolist()}
        for name, step, at in zip(names, steps, places, strict=True)
    ]


def map_paths(run: Run) -> dict[str, Path]:
    """Return the paths of the maps that are there: the delivered one, that without deformation, and the consensus."""
    folder = Path(run.path) / "reconstruction"
    consensus = Path(run.config.inputs.map)
    paths = {"after": folder / "map.mrc", "before": folder / "rigid" / "map.mrc", "consensus": consensus}
    return {name: path for name, path in paths.items() if path.is_file()}


def _read_maps(run: Run) -> dict[str, Map]:
    """Return the delivered map and the one to compare it with; without a delivered map, one to show."""
    paths = map_paths(run)
    chosen = [name for name in ("after", "before", "consensus") if name in paths][:2]
    return {name: read_map(paths[name]) for name in (chosen if "after" in chosen else chosen[:1])}


def _played(run: Run, number: int) -> dict:
    coordinates = run.motions.coordinates.numpy()[:, number - 1]
    low, high = (float(value) for value in np.quantile(coordinates, _ENDS))
    at_map = float(consensus_coordinates(run)[number - 1])
    share = float(run.motions.shares[number - 1])
    return {"number": number, "low": low, "high": high, "map": at_map, "explained": share}


class MapPart:
    """Part of a map around points.

    Parameters
    ----------
    volume
        (d, h, w) [z, y, x], zero away from the points.
    first
        (3,) position of the first voxel, x, y, z, A.
    spacing
        of voxels, A.
    """

    def __init__(self, volume: np.ndarray, first: np.ndarray, spacing: float):
        self.volume, self.first, self.spacing = volume, first, spacing
        self.top = max(float(volume.max()), 1e-12)
        self.level = contour_level(volume, self.top)

    @classmethod
    def around(cls, volume_and_spacing: Map, points: np.ndarray, reach: float = _REACH) -> "MapPart":
        """Return the part of a map near (m, 3) points, A, in voxels that are few enough for the page."""
        full, spacing = volume_and_spacing
        middle = len(full) // 2
        low = np.floor((points.min(0) - reach) / spacing).astype(int) + middle
        high = np.ceil((points.max(0) + reach) / spacing).astype(int) + middle + 1
        low, high = np.clip(low, 0, len(full) - 2), np.clip(high, 2, len(full))
        volume = full[tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))]
        first = (low - middle) * spacing
        factor = -(-max(volume.shape) // _MAX_VOXELS)
        if factor > 1:
            volume = gaussian_filter(volume, 0.4 * factor)[::factor, ::factor, ::factor]
        finer = max(1, _MAX_VOXELS // max(volume.shape))
        if finer > 1:
            steps = [np.arange(finer * (n - 1) + 1) / finer for n in volume.shape]
            volume = map_coordinates(volume, np.meshgrid(*steps, indexing="ij"), order=3)
        part = cls(volume, first, spacing * factor / finer)
        distance = cKDTree(points).query(part.places(1).reshape(-1, 3), distance_upper_bound=reach)[0]
        return cls(_without_dust(np.where(np.isfinite(distance).reshape(volume.shape), volume, 0)), first, part.spacing)

    def places(self, step: int) -> np.ndarray:
        """Return the (d', h', w', 3) positions, x, y, z, of every step-th voxel, A."""
        axes = [self.first[2 - i] + np.arange(0, self.volume.shape[i], step) * self.spacing for i in range(3)]
        return np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1)

    def quantised(self, top: float) -> np.ndarray:
        """Return the volume as bytes, 255 at a density."""
        return np.clip(np.rint(self.volume / top * 255), 0, 255).astype(np.uint8)

    def place(self) -> dict:
        """Return where the bytes of the part are."""
        return {"first": self.first.tolist(), "spacing": self.spacing, "level": self.level}

    def moved(
        self, points: np.ndarray, components: np.ndarray, beyond: np.ndarray
    ) -> tuple[dict, dict[str, np.ndarray]]:
        """Return the displacement of every second voxel, and the motion beyond its uncertainty there."""
        places = self.places(2)
        distance, near = cKDTree(points).query(places.reshape(-1, 3), k=min(_NEIGHBOURS, len(points)))
        distance, near = distance.reshape(len(near), -1), near.reshape(len(near), -1)
        weights = np.exp(-((distance - distance[:, :1]) / _FALL))
        weights /= weights.sum(1, keepdims=True)
        colours = (weights * beyond[near]).sum(1)
        shifts = np.einsum("vk,mvki->mvi", weights, components[:, near])
        top, reach = max(float(beyond.max()), 1e-3), max(float(np.abs(shifts).max(initial=0)), 1e-3)
        arrays = {
            "beyond": np.rint(255 * colours / top).astype(np.uint8).reshape(places.shape[:3]),
            "shifts": np.rint((shifts / reach + 1) / 2 * 65535).astype("<u2").reshape(-1, *places.shape),
        }
        return self.place() | {"top": top, "reach": reach}, arrays


def _without_dust(volume: np.ndarray) -> np.ndarray:
    """Return a volume without the small pieces that its surface would have."""
    pieces, n = label(volume > contour_level(volume, max(float(volume.max()), 1e-12)) * volume.max() * 0.6)
    if n < 2:
        return volume
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.where((pieces == 0) | (sizes > _DUST * sizes.max())[pieces], volume, 0)


def largest_part(points: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the points of the connected part that moves most, of (m, 3) points, and how many parts there are."""
    near = cKDTree(points).sparse_distance_matrix(cKDTree(points), _CONNECTED)
    labels = connected_components(near)[1]
    sizes = np.bincount(labels, motion**2)
    return points[labels == sizes.argmax()], int((sizes > _PART * sizes.max()).sum())


def _gain(
    run: Run, maps: dict[str, Map], points: np.ndarray, moves: bool, view: np.ndarray
) -> tuple[dict | None, dict[str, np.ndarray]]:
    """Return what the map gained where the molecule moves, and pictures at points; None if no motion was corrected.

    Arrays: before and after (d, h, w) uint8 around the points; slice_before and slice_after (s, s) uint8 through their
    middle, seen as the molecule; fsc (3, shells) of 1 / A, before and after.
    """
    if len(maps) < 2 or not run.config.stages.get("reconstruct", {}).get("motion_used", True):
        return None, {}
    (_, delivered), (name, compared) = maps.items()
    after, before = (MapPart.around(each, points, _MARGIN) for each in (delivered, compared))
    if before.volume.shape != after.volume.shape:
        return None, {}
    scale = after.top if name == "before" else before.top
    arrays = {
        "before": before.quantised(scale),
        "after": after.quantised(after.top),
        "fsc": _curves(Path(run.path) / "reconstruction", "moving" if moves else ""),
    }
    middle, size = points.mean(0), 2 * (np.abs((points - points.mean(0)) @ view[:2].T).max() + _MARGIN)
    for part, each in (("before", compared), ("after", delivered)):
        arrays[f"slice_{part}"] = _slice(each, middle, view, size)
    values = after.place() | {"rigid": name == "before", "size": float(size), "moving": moves}
    return values | _resolutions(Path(run.path) / "reconstruction"), arrays


def _slice(volume_and_spacing: Map, middle: np.ndarray, view: np.ndarray, size: float) -> np.ndarray:
    """Return a (s, s) picture, rows from the top, of the plane through a point that the view looks onto, in bytes."""
    volume, spacing = volume_and_spacing
    steps = np.linspace(-size / 2, size / 2, _SLICE_PIXELS)
    places = middle + steps[:, None] * view[0] - steps[:, None, None] * view[1]
    voxels = places[..., ::-1] / spacing + len(volume) // 2
    picture = map_coordinates(volume, np.moveaxis(voxels, -1, 0), order=1)
    low, high = np.quantile(volume, [0.01, 0.9995])
    return np.clip(np.rint((picture - low) / max(high - low, 1e-12) * 255), 0, 255).astype(np.uint8)


def _curves(folder: Path, region: str) -> np.ndarray:
    """Return (3, shells): 1 / A, and the FSC before and after, of a region; NaN where it was not measured."""
    columns = [f"dynRegion_{region}"] if region else []
    columns += ["rlnFourierShellCorrelationCorrected"]
    tables = [read_blocks(path)["fsc"] for path in (folder / "rigid/fsc.star", folder / "fsc.star") if path.is_file()]
    if len(tables) < 2:
        return np.zeros((3, 0))
    column = next(column for column in columns if all(column in table for table in tables))
    rows = [tables[1]["rlnResolution"], *(table[column] for table in tables)]
    return np.array([row.astype(float) for row in rows])[:, 1:]


def _resolutions(folder: Path) -> dict:
    """Return the resolutions before and after (A), of the moving part and of the whole, and the gain of the FSC."""
    densities, gains = read_rows(folder / DENSITIES, "region"), read_rows(folder / GAINS, "region")
    found: Mapping = densities.get("moving", {})
    keys = ("rigid_resolution_A", "resolution_A")
    whole = [read_resolutions(folder / name) for name in ("rigid/fsc.star", "fsc.star")]
    gain = gains.get("moving", gains.get("molecule", {}))
    return {
        "region_resolutions": [float(found[key]) for key in keys] if set(keys) <= found.keys() else None,
        "whole_resolutions": [pair[0] for pair in whole if pair is not None],
        "fsc_gain": [float(gain[key]) for key in ("fsc_gain", "fsc_gain_error")] if gain else None,
    }
