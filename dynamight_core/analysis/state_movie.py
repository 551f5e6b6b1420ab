"""The movie of states, and the ChimeraX scripts that show and record them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree

from dynamight_core.analysis.explorer.shapes import contour_level
from dynamight_core.analysis.film import Film, largest_displacements
from dynamight_core.analysis.movie import projection_frames, projections_of, write_movie
from dynamight_core.analysis.states import States
from dynamight_core.analysis.surfaces import MOTION_COLOURS, can_render
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, header_origin, read_map, write_map
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.imaging.geometry import grid_points, to_points
from dynamight_core.judging.conclusion import SUPPORTED, conclude
from dynamight_core.options.analyse import StatesOptions
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run

# Frames from one state to the next, where the model can be rendered between them.
_FRAMES_PER_STATE = 4
# Boxes of the densities that are rendered, pixels: smaller ones look faceted, larger ones take long.
_MIN_BOX, _MAX_BOX = 128, 192
# Grid of the displacement that colours ChimeraX's surfaces, and how far from the Gaussians it goes, A.
_SPACING, _REACH = 4.0, 12.0
# Numbers of ChimeraX's models: far from those of the user.
_STATES, _SURFACE, _COLOURS, _ARROWS = 901, 902, 903, 904
# Frames of ChimeraX's movie between two states, and pieces of a surface that are hidden as dust, A.
_CHIMERAX_FRAMES, _CHIMERAX_DUST = 12, 15


class PathPositions:
    """Where the Gaussians are along a path of states.

    Parameters
    ----------
    states
        s states that follow a path.
    at_coordinates
        returns the (f, m, 3) Gaussians of the chosen half-sets at (f, K) coordinates, A.
    at_latents
        returns those at (f, d) latents.
    """

    def __init__(
        self,
        states: States,
        at_coordinates: Callable[[np.ndarray], np.ndarray],
        at_latents: Callable[[torch.Tensor], np.ndarray],
    ):
        self._states, self._at_coordinates, self._at_latents = states, at_coordinates, at_latents

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the (f, m, 3) Gaussians at (f,) places on the path, from 0 to s - 1."""
        if self._states.latents is None:
            return self._at_coordinates(coordinates_at(places, self._states))
        return self._at_latents(self._states.latents[np.round(places).astype(int)])


def frame_places(n: int) -> np.ndarray:
    """Return the (f,) places of frames on a path of n states, from 0 to n - 1; the film begins and ends slowly."""
    time = np.linspace(0, np.pi, (n - 1) * _FRAMES_PER_STATE + 1)
    return (1 - np.cos(time)) / 2 * (n - 1)


def coordinates_at(places: np.ndarray, states: States) -> np.ndarray:
    """Return the (f, K) coordinates (A rms) at (f,) places on a path of s states, from 0 to s - 1."""
    return np.stack([np.interp(places, np.arange(len(states)), column) for column in states.coordinates.T], 1)


def film_box(box: int) -> int:
    """Return the box (pixels) of a density that is rendered, for a map with this box."""
    return int(np.clip(box, _MIN_BOX, _MAX_BOX))


def write_states_movie(
    run: Run,
    states: States,
    options: StatesOptions,
    out: Path,
    positions: PathPositions,
    volume: Callable[[np.ndarray], np.ndarray] | None,
    reporter: Reporter,
) -> list[Path]:
    """Write a movie of states that follow a path: of shaded surfaces, or of projections where these cannot be rendered.

    Parameters
    ----------
    run
        finished and summarised.
    states
        whose maps are in `out`.
    options
        caption and background.
    out
        folder.
    positions
        of the Gaussians along the path.
    volume
        returns the [z, y, x] density of the model at (K,) coordinates, in a box of `film_box` pixels; None if the movie
        shows the maps that were written, and nothing between them.
    reporter
        takes lines for the user, and progress.

    Returns
    -------
    list
        the files.
    """
    places = np.arange(len(states)) if volume is None else frame_places(len(states))

    def density(number: int) -> np.ndarray:
        if volume is not None:
            return volume(coordinates_at(places[number : number + 1], states)[0])
        written = read_map(out / f"{states.labels[number]}.mrc")[0]
        return resample_volume(torch.from_numpy(written), film_box(len(written))).numpy()

    pixel_size = run.box * run.pixel_size / film_box(run.box)
    conclusion = conclude(run)
    warning = "" if conclusion.motion == SUPPORTED else f"{conclusion.title}: this may be noise"
    captions = _captions(states, places) if options.caption else []
    frames: list[Image.Image] = []
    try:
        if not can_render():
            raise InputError("surfaces need the package pyvista; install dynamight-core[film] for them")
        film = Film(positions.at(places), density, pixel_size, captions, warning, options.transparent)
        for frame in film.frames():
            frames.append(frame)
            reporter.progress("rendering the movie", len(frames), len(places))
    except InputError as error:
        reporter.note(f"the movie shows projections: {error}")
        maps = [read_map(out / f"{label}.mrc")[0] for label in states.labels]
        frames = projection_frames(np.stack(list(map(projections_of, maps))), states.labels, run.pixel_size)
    return write_movie(out / "movie", frames, options.transparent, reporter)


def _captions(states: States, places: np.ndarray) -> list[str]:
    """Return what to write below frames at (f,) places on the path of states."""
    name = states.name.removeprefix("motion")
    if name.isdigit() and states.coordinates.shape[1]:
        values = coordinates_at(places, states)[:, int(name) - 1].round(1) + 0.0
        return [f"Motion {name}: {value:+.1f} Å rms".replace("-", "−") for value in values]
    return [f"{100 * place / max(len(states) - 1, 1):.0f} % of the path" for place in places]


def write_scripts(run: Run, states: States, out: Path, positions: PathPositions) -> None:
    """Write states.cxc, which opens the maps in ChimeraX, and along a path film.cxc, which also records a movie.

    Along a path, the maps are one surface that moves. It is coloured by displacement.mrc, the largest displacement of
    the Gaussians from the first state. The scripts close nothing but what an earlier call opened.
    """
    first = read_map(out / f"{states.labels[0]}.mrc")[0]
    top = float(first.max())
    level = contour_level(first, top) * top
    path = states.ordered and len(states) > 1
    files = " ".join(f"{label}.mrc" for label in states.labels)
    lines = [
        "# States of a molecule; open this file in ChimeraX. It closes no model of yours.",
        f"close #{_STATES}-{_ARROWS}",
        f"open {files}{' vseries true' if path else ''} name dynamight_states",
        f"rename ##name=dynamight_states id #{_STATES}",
        f"volume #{_STATES} style surface step 1 level {level:.4g}",
    ]
    shown = f"#{_SURFACE if path else _STATES}"
    if path:
        moved = positions.at(np.arange(len(states)))
        displacements = largest_displacements(moved)
        _write_displacement(run, moved, displacements, out / "displacement.mrc")
        lines += _moving_surface(len(states), float(np.quantile(displacements, 0.98)), states.latents is None)
    lines += [f"surface dust {shown} size {_CHIMERAX_DUST}", "set bgColor white", "lighting soft"]
    lines += ["graphics silhouettes true", f"view {shown}"]
    with atomic_path(out / "states.cxc") as target:
        target.write_text("\n".join(lines) + "\n")
    if path:
        _write_recording(out / "film.cxc", len(states))


def _moving_surface(n: int, top: float, arrows: bool) -> list[str]:
    """Return commands that show n maps as one surface that moves, coloured by displacement up to `top`."""
    frames = 2 * (n - 1) * _CHIMERAX_FRAMES
    stops = zip(np.linspace(0, max(top, 0.1), len(MOTION_COLOURS)), MOTION_COLOURS, strict=True)
    palette = ":".join(f"{value:.3g},{colour}" for value, colour in stops)
    lines = [
        f"volume morph #{_STATES} frames {frames} playStep {2 / frames:.5f} interpolateColors false slider true "
        f"modelId #{_SURFACE}",
        "open displacement.mrc name dynamight_displacement",
        f"rename ##name=dynamight_displacement id #{_COLOURS}",
        f"hide #!{_COLOURS} models",
        f"color sample #{_SURFACE} map #{_COLOURS} palette {palette}",
    ]
    if arrows:
        lines += ["open arrows.bild name dynamight_arrows", f"rename ##name=dynamight_arrows id #{_ARROWS}"]
    return lines


def _write_recording(target: Path, n: int) -> None:
    lines = [
        "# Opens states.cxc and records the moving surface as chimerax.mp4.",
        "open states.cxc",
        f"hide #!{_ARROWS} models",
        "movie record size 1920,1080 supersample 3",
        f"wait {2 * (n - 1) * _CHIMERAX_FRAMES}",
        "movie encode chimerax.mp4 framerate 25 quality high",
    ]
    with atomic_path(target) as path:
        path.write_text("\n".join(lines) + "\n")


def _write_displacement(run: Run, positions: np.ndarray, displacements: np.ndarray, path: Path) -> None:
    """Write a map of the displacement around the Gaussians in all conformations, A; 0 elsewhere."""
    box = max(2, round(run.box * run.pixel_size / _SPACING))
    spacing = run.box * run.pixel_size / box
    grid = grid_points(to_points(np.arange(float(box)), box, spacing))
    tree = cKDTree(positions.reshape(-1, 3))
    distance, nearest = tree.query(grid, distance_upper_bound=_REACH)
    near = np.isfinite(distance)
    values = np.zeros(len(grid), dtype=np.float32)
    values[near] = np.tile(displacements, len(positions))[nearest[near]]
    corner = header_origin(run.config.inputs.map) + run.box // 2 * run.pixel_size - box // 2 * spacing
    write_map(path, values.reshape(box, box, box), spacing, corner)
