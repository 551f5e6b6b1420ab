"""States of the molecule along a motion, between particles, at clusters or latents: maps and a movie."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.clusters import cluster_coordinates, density_ridge, shortest_order
from dynamight_core.analysis.exports import write_shift_arrows
from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, header_origin, write_map
from dynamight_core.model.motions import motion_fields
from dynamight_core.options import HALVES, StatesOptions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Frames a second, and how often an MP4 goes along the states and back.
_FRAME_RATE, _MP4_TURNS = 8, 3
# What is written beside the maps of states.
_BESIDE = (
    "movie.gif",
    "movie.mp4",
    "difference.mrc",
    "arrows.bild",
    "arrows.csv",
    "states.cxc",
    "states.csv",
)
# Share of a map's voxels below the surface that ChimeraX shows.
_LEVEL = 0.98


@dataclass
class States:
    """s states of a molecule.

    Parameters
    ----------
    name
        of the folder that they are written to.
    labels
        s names of files, without suffix.
    coordinates
        (s, K) A rms, one per principal motion; None where `latents` say it.
    latents, half
        (s, d) latents of one half's decoder, and which.
    particles
        (s,) how many particles each state stands for, or None.
    ordered
        whether the states follow a path, which a movie can show.
    """

    name: str
    labels: list[str]
    coordinates: np.ndarray | None
    latents: torch.Tensor | None = None
    half: int | None = None
    particles: np.ndarray | None = None
    ordered: bool = True

    def __len__(self) -> int:
        return len(self.labels)


class StateModels:
    """Renders the Gaussian models of a run at states; what all states share is computed once.

    Parameters
    ----------
    run
        finished and summarised.
    half
        "1", "2", or "both" for the average.
    box
        of the maps, pixels, over the same extent as the particles' images; theirs if None.
    """

    def __init__(self, run: Run, half: str = "both", box: int | None = None):
        if str(half) not in HALVES:
            raise InputError(f"--half is '{half}'; choose one of {', '.join(HALVES)}")
        self.run = run
        self.numbers = (1, 2) if str(half) == "both" else (int(half),)
        self.box = run.box if box is None else box
        self.pixel_size = run.box * run.pixel_size / self.box
        self._motions: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def positions(self, half: int, coordinates) -> torch.Tensor:
        """Return the (..., n, 3) positions (A) of a half's Gaussians at (..., K) coordinates (A rms)."""
        model = self.run.models[half - 1]
        mean, fields = self._fields(half)
        factors = torch.as_tensor(np.asarray(coordinates), dtype=mean.dtype, device=mean.device)
        return model.consensus_positions + mean + torch.tensordot(factors, fields, 1)

    def volume(self, coordinates) -> np.ndarray:
        """Return the (box, box, box) map of the state at (K,) coordinates, the chosen halves averaged.

        At (b, K) coordinates, the mean of the maps of b states.
        """
        return np.mean([self._render(half, self.positions(half, coordinates)) for half in self.numbers], 0)

    def write(self, path: Path, volume: np.ndarray) -> None:
        """Write a (box, box, box) map, placed as the consensus map is by its header."""
        write_map(path, volume, self.pixel_size, header_origin(self.run.config.inputs.map))

    @torch.no_grad()
    def volume_at_latent(self, half: int, latent: torch.Tensor) -> np.ndarray:
        """Return the (box, box, box) map of one half's model at a (d,) latent of its own decoder."""
        model = self.run.models[half - 1]
        shift = model.displacements(latent[None].to(model.gaussians.positions))[0]
        return self._render(half, model.gaussians.positions + shift)

    @torch.no_grad()
    def _render(self, half: int, positions: torch.Tensor) -> np.ndarray:
        model = self.run.models[half - 1]
        volume = model.gaussians.render(self.box, self.pixel_size, positions)
        # Images are sums over voxels: over coarser ones, as in training, the same image needs more density.
        return volume.cpu().numpy() * (self.run.pixel_size / model.pixel_size)

    def _fields(self, half: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean (n, 3) and motions (K, n, 3) at a half's Gaussians, A and A per A rms."""
        if half not in self._motions:
            run, model = self.run, self.run.models[half - 1]
            own = torch.as_tensor(run.halves) == half
            coordinates = torch.as_tensor(run.motions.coordinates)[own]
            mean, fields = motion_fields(model, run.latents[half - 1][own], coordinates, model.consensus_positions)
            self._motions[half] = torch.as_tensor(mean), torch.as_tensor(fields)
        return self._motions[half]


def choose_states(run: Run, options: StatesOptions) -> States:
    """Return the states that the options ask for.

    Raises
    ------
    InputError
        if they cannot be had, or two kinds are asked for.
    """
    o = options
    asked = [name for name in ("between", "clusters", "ridge", "through", "at", "latent") if getattr(o, name)]
    if o.clusters == 0:
        asked.append("clusters")
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} are two kinds of states; give one of them")
    if o.clusters is None and (o.tour or o.mixture):
        raise InputError(f"--{'tour' if o.tour else 'mixture'} is of the --clusters; say how many")
    if o.between:
        return states_between(run, *o.between, o.n)
    if o.clusters is not None:
        return states_of_clusters(run, o.clusters, o.seed, o.mixture, o.n if o.tour else None)
    if o.ridge:
        return states_through(run, list(density_ridge(_all_coordinates(run))), o.n, "ridge")
    if o.through:
        return states_through(run, [parse_numbers(text, "--through") for text in o.through], o.n)
    if o.at:
        return states_at_coordinates(run, [parse_numbers(text, "--at") for text in o.at])
    if o.latent:
        if o.half == "both":
            raise InputError("--latent needs --half 1 or 2; latents of the two halves are not comparable")
        return states_at_latents(run, int(o.half), [parse_numbers(text, "--latent") for text in o.latent])
    return states_along_motion(run, o.motion, o.n, tuple(o.percentiles), o.deviations)


def state_volume(run: Run, coordinates, half: str = "both") -> np.ndarray:
    """Return the (box, box, box) map of a state, in the particles' box and pixel size.

    Parameters
    ----------
    run
        finished and summarised.
    coordinates
        (K,) A rms along each principal motion.
    half
        "1", "2", or "both" for the average of both halves' Gaussian models.
    """
    return StateModels(run, half).volume(_coordinates(run, coordinates))


def states_along_motion(
    run: Run,
    motion: int,
    n: int = 10,
    percentiles: tuple[float, float] = (2.5, 97.5),
    deviations: float | None = None,
) -> States:
    """Return n states evenly along one motion, the others at their mean.

    Parameters
    ----------
    run
        finished and summarised.
    motion
        from 1.
    n
        number of states.
    percentiles
        of the particles' coordinates where the first and last state lie.
    deviations
        instead of percentiles, standard deviations of the coordinates to either side of their mean.

    Raises
    ------
    InputError
        if there is no such motion, or the extent is empty.
    """
    coordinates = _all_coordinates(run)
    check_motion(motion, coordinates.shape[1])
    if n < 1:
        raise InputError(f"--n is {n}; give at least 1 state")
    values = coordinates[:, motion - 1]
    if deviations is not None:
        if not deviations > 0:
            raise InputError(f"--deviations is {deviations:g}; give a positive number of standard deviations")
        low, high = values.mean() + np.array([-1, 1]) * deviations * values.std()
    else:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise InputError(
                f"--percentiles is {percentiles[0]:g} {percentiles[1]:g}; give two rising numbers, 0 to 100"
            )
        low, high = np.percentile(values, percentiles)
    path = np.tile(coordinates.mean(0), (n, 1))
    path[:, motion - 1] = np.linspace(low, high, n) if n > 1 else (low + high) / 2
    labels = [f"motion{motion}_state{i + 1:02d}_{path[i, motion - 1]:+.1f}A" for i in range(n)]
    return States(f"motion{motion}", labels, path)


def states_between(run: Run, first: int, last: int, n: int = 10) -> States:
    """Return n states on the straight line from one particle's conformation to another's; rows from 1.

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
    """Return n states, evenly spaced, on the straight lines from point to point.

    Parameters
    ----------
    run
        finished and summarised.
    points
        coordinates (A rms) of two points or more; motions left out at the end are at zero.
    n
        number of states.
    name
        of the states.

    Raises
    ------
    InputError
        if these are no path.
    """
    if len(points) < 2:
        raise InputError(f"--through names {len(points)} point; give at least 2 points of a path")
    if n < 2:
        raise InputError(f"--n is {n}; give at least 2 states on a path")
    corners = np.stack([_coordinates(run, point) for point in points])
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    if not lengths.any():
        raise InputError("the points of the path are all the same; give points that differ")
    # Points that repeat the one before have no line of their own.
    kept = np.concatenate([[True], lengths > 0])
    along = np.concatenate([[0.0], np.cumsum(lengths[lengths > 0])])
    where = np.linspace(0, along[-1], n)
    path = np.stack([np.interp(where, along, values) for values in corners[kept].T], 1)
    return States(name, [f"{name}_state{i + 1:02d}" for i in range(n)], path)


def states_of_clusters(run: Run, n: int, seed: int = 0, mixture: bool = False, tour: int | None = None) -> States:
    """Return the centres of n clusters of the particles' coordinates, the first motion ascending.

    Parameters
    ----------
    run
        finished and summarised.
    n, seed, mixture
        see `clusters.cluster_coordinates`.
    tour
        instead, so many states on a path through the centres, each the nearest to the one before.
    """
    labels, centres = cluster_coordinates(_all_coordinates(run), n, seed, mixture)
    n = len(centres)
    if tour is not None:
        return states_through(run, list(centres[shortest_order(centres)]), tour, f"clusters{n}_tour")
    counts = np.bincount(labels, minlength=n)
    names = [f"cluster{i + 1:02d}_{counts[i]}particles" for i in range(n)]
    return States(f"clusters{n}", names, centres, particles=counts, ordered=False)


def states_at_latents(run: Run, half: int, latents: list) -> States:
    """Return the states at (s, d) latents of one half's decoder.

    Raises
    ------
    InputError
        if the half is not 1 or 2, or latents have another dimension.
    """
    if half not in (1, 2):
        raise InputError(f"--half is {half}; latents belong to one half: give 1 or 2")
    wanted = run.models[half - 1].n_latents
    for latent in latents:
        if len(latent) != wanted:
            raise InputError(f"a latent has {len(latent)} numbers, this run's have {wanted}; give {wanted}")
    latents = torch.tensor(np.asarray(latents, dtype=np.float32))
    labels = [f"half{half}_latent{i + 1:02d}" for i in range(len(latents))]
    return States(f"latents_half{half}", labels, None, latents, half, ordered=len(latents) > 2)


def states_at_coordinates(run: Run, coordinates: list) -> States:
    """Return the states at s given coordinates (A rms); motions left out at the end are at zero."""
    rows = np.stack([_coordinates(run, row) for row in coordinates])
    return States("coordinates", [f"state{i + 1:02d}" for i in range(len(rows))], rows, ordered=len(rows) > 2)


def write_states(
    run: Run,
    states: States,
    out: str | Path | None = None,
    half: str = "both",
    movie: bool = True,
    maps: bool = True,
    reporter: Reporter = PRINT,
    difference: bool = False,
    full: bool = False,
) -> Path:
    """Write a map of every state, their coordinates and, along a path, a movie and arrows.

    Parameters
    ----------
    run
        finished and summarised.
    states
        to write.
    out
        folder; ``RUN/analysis/states/<name>`` if None.
    half
        "1", "2" or "both"; states at latents are of their own half.
    movie
        whether states along a path become ``movie.gif`` and ``movie.mp4``.
    maps
        False writes the coordinates alone.
    reporter
        takes lines for the user, and progress.
    difference
        whether to write also the last map minus the first.
    full
        whether maps are the reconstruction pushed along the field, not the Gaussian model.

    Returns
    -------
    Path
        the folder, with one ``.mrc`` per state, ``states.csv``, ``states.cxc`` for ChimeraX, and perhaps the movie,
        ``arrows.bild`` and ``.csv`` from the first state to the last, and ``difference.mrc``.

    Raises
    ------
    InputError
        if a difference of maps is asked for where there are none, or one alone, or full resolution of latents.
    """
    if full and states.latents is not None:
        raise InputError("--full moves the map by principal motions; give --at coordinates in place of --latent")
    if difference and (len(states) < 2 or not maps):
        raise InputError("--difference is the last map minus the first; ask for at least two states, with maps")
    out = Path(run.path) / "analysis" / "states" / states.name if out is None else Path(out)
    models = PushedMap(run, half) if full else StateModels(run, half)
    _remove_earlier(out)
    if not maps:
        _write_table(out, states, maps)
        reporter.say(f"states.csv, with {len(states)} states, is in {out}.")
        return out
    projections, ends = [], []
    for i, label in enumerate(states.labels):
        if states.latents is not None:
            volume = models.volume_at_latent(states.half, states.latents[i])
        else:
            volume = models.volume(states.coordinates[i])
        models.write(out / f"{label}.mrc", volume)
        if i in (0, len(states) - 1):
            ends.append(volume)
        projections.append(_projections(volume))
        reporter.progress("rendering states", i + 1, len(states))
    _write_table(out, states, maps)
    _write_script(out, states, float(np.quantile(ends[0], _LEVEL)))
    reporter.say(f"{len(states)} maps and states.csv are in {out}; states.cxc shows them in ChimeraX.")
    if states.coordinates is not None and states.ordered and len(states) > 1:
        write_shift_arrows(run, states.coordinates[0], states.coordinates[-1], out / "arrows")
    if movie and states.ordered and len(states) > 1:
        movies = write_movie(out / "movie", np.stack(projections), states.labels, run.pixel_size, reporter)
        reporter.say(f"The movie is {' and '.join(map(str, movies))}.")
    if difference:
        models.write(out / "difference.mrc", ends[1] - ends[0])
        reporter.say(f"The last map minus the first is {out / 'difference.mrc'}.")
    return out


def serve_states(run: Run, requests: Iterable[str], answer: Callable[[str], None], half: str = "both") -> None:
    """Write maps of states as they are asked for, until there are no more requests.

    Parameters
    ----------
    run
        finished and summarised.
    requests
        lines of JSON: `at`, coordinates (A rms), motions left out at the end at zero; `out`, path of the map.
    answer
        takes a line of JSON for every request: `out`, or `error`, a sentence.
    half
        "1", "2" or "both".
    """
    models = StateModels(run, half)
    for line in filter(str.strip, requests):
        try:
            request = json.loads(line)
            volume = models.volume(_coordinates(run, request["at"]))
            models.write(Path(request["out"]), volume)
            reply = {"out": request["out"]}
        except (InputError, OSError) as error:
            reply = {"error": str(error)}
        except (KeyError, TypeError, ValueError):
            reply = {"error": f"the request '{line.strip()}' cannot be understood; give JSON with 'at' and 'out'"}
        answer(json.dumps(reply))


def write_movie(
    stem: Path, projections: np.ndarray, labels: list[str], pixel_size: float, reporter: Reporter = PRINT
) -> list[Path]:
    """Write a movie that runs along the states and back, as GIF and, where the package imageio-ffmpeg is, as MP4.

    Parameters
    ----------
    stem
        path of the files, without suffix.
    projections
        (s, 3, box, box) sums of each state along z, y and x.
    labels
        s titles.
    pixel_size
        A.
    reporter
        takes lines for the user.

    Returns
    -------
    list
        the files.
    """
    from PIL import Image

    frames = _frames(projections, labels, pixel_size)
    frames += frames[-2:0:-1]
    movies = [stem.with_suffix(".gif")]
    pictures = [Image.fromarray(frame) for frame in frames]
    with atomic_path(movies[0]) as path:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 / _FRAME_RATE, loop=0)
    try:
        import imageio_ffmpeg

        # Raises RuntimeError where the package came without its program, and there is none on the machine.
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        reporter.say("Note: without the package imageio-ffmpeg the movie is written as GIF alone.")
        return movies
    movies.append(stem.with_suffix(".mp4"))
    height, width = frames[0].shape[:2]
    with atomic_path(movies[1]) as path:
        # Players that do not repeat by themselves show a motion once only: a few turns of it.
        writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=_FRAME_RATE, macro_block_size=2)
        writer.send(None)
        for frame in frames * _MP4_TURNS + frames[:1]:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return movies


def _frames(projections: np.ndarray, labels: list[str], pixel_size: float) -> list[np.ndarray]:
    """Return the (height, width, 3) uint8 pictures of a movie, both sides even."""
    # A figure without pyplot: nothing is left in a caller's session, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    box = projections.shape[-1]
    # Pixel box // 2 lies at 0, the others to both sides.
    first = (-(box // 2) - 0.5) * pixel_size
    place = {"origin": "lower", "extent": (first, first + box * pixel_size) * 2}
    window = min(box // 2, _window_pixels(projections)) * pixel_size
    views = [("x", "y"), ("x", "z"), ("y", "z")]
    top = projections.max((0, 2, 3))
    levels = 0.2 * top
    middle = projections[len(projections) // 2]
    frames = []
    for number, state in enumerate(projections):
        figure = Figure(figsize=(9.0, 3.3), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for i, (axis, (across, up)) in enumerate(zip(figure.subplots(1, 3), views, strict=True)):
            axis.imshow(state[i], cmap="gray_r", vmin=0, vmax=top[i], interpolation="bilinear", **place)
            axis.contour(middle[i], [levels[i]], colors="tab:blue", linewidths=0.8, **place)
            axis.contour(state[i], [levels[i]], colors="tab:red", linewidths=1.2, **place)
            axis.set(xlim=(-window, window), ylim=(-window, window))
            axis.set(xlabel=f"{across} (Å)", ylabel=f"{up} (Å)")
        figure.suptitle(f"{labels[number].replace('_', ' ')}   (red; blue: the middle state)", fontsize=10)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def read_states(path: str | Path, run: Run) -> States:
    """Read the states of a table that `write_states` wrote, or of one made by hand with its columns.

    Parameters
    ----------
    path
        of a CSV file: `state` (names; optional) and `motion1_A`, `motion2_A`, ... (A rms).
    run
        finished and summarised.

    Raises
    ------
    InputError
        if the file cannot be read, or has no coordinates.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"states {path} do not exist; give the states.csv that dynamight states wrote")
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"states {path} cannot be read ({error}); give a CSV file") from error
    wanted = [f"motion{k + 1}_A" for k in range(_all_coordinates(run).shape[1])]
    if "motion1_A" not in table or not len(table):
        raise InputError(f"states {path} hold no coordinates; give a table with the columns {', '.join(wanted)}")
    try:
        coordinates = table.reindex(columns=wanted, fill_value=0.0).to_numpy(dtype=float)
    except ValueError as error:
        raise InputError(f"states {path}: {error}; give numbers in the columns {', '.join(wanted)}") from error
    if not np.isfinite(coordinates).all():
        raise InputError(f"states {path} hold empty or infinite coordinates; give finite numbers in A rms")
    labels = table["state"].astype(str) if "state" in table else [f"state{i + 1:02d}" for i in range(len(table))]
    if len(set(labels)) < len(labels) or any("/" in label for label in labels):
        raise InputError(f"states {path}: names in the column state become names of files; make them unique, without /")
    return States(path.stem, list(labels), coordinates)


def parse_numbers(text: str, option: str, kind: type = float) -> list:
    """Return the numbers that a comma-separated text holds.

    Raises
    ------
    InputError
        naming the option.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is '{text}'; give numbers separated by commas") from error


def check_motion(motion: int, n_motions: int) -> None:
    """Refuse a motion that the run has not.

    Raises
    ------
    InputError
        naming the motions that there are.
    """
    if not 1 <= motion <= n_motions:
        raise InputError(f"motion {motion} is not in this run; give a number from 1 to {n_motions}")


def check_row(row: int, n: int) -> None:
    """Refuse a row, from 1, that the particles have not.

    Raises
    ------
    InputError
        naming the rows that there are.
    """
    if not 1 <= row <= n:
        raise InputError(f"particle {row} is not in this run; give a row of particles.star from 1 to {n}")


def _all_coordinates(run: Run) -> np.ndarray:
    return np.asarray(torch.as_tensor(run.motions.coordinates).cpu(), dtype=float)


def _coordinates(run: Run, values) -> np.ndarray:
    """Return (K,) coordinates of fewer or as many values, zero where none is given."""
    n_motions = _all_coordinates(run).shape[1]
    values = np.asarray(values, dtype=float).ravel()
    if len(values) > n_motions:
        raise InputError(f"a state has {len(values)} coordinates, the run {n_motions}; give fewer")
    return np.concatenate([values, np.zeros(n_motions - len(values))])


def _projections(volume: np.ndarray) -> np.ndarray:
    """Return the (3, box, box) sums of a [z, y, x] volume along z, y and x, density alone."""
    positive = np.clip(volume, 0, None)
    return np.stack([positive.sum(axis) for axis in range(3)]).astype(np.float32)


def _window_pixels(projections: np.ndarray) -> int:
    """Return half the side, in pixels, of the centred square that holds all density."""
    shown = (projections > 0.03 * projections.max()).any((0, 1))
    return int(np.abs(np.argwhere(shown) - projections.shape[-1] // 2).max(initial=0)) + 3


def _remove_earlier(out: Path) -> None:
    """Remove the files of states that were written to the same folder before."""
    table = out / "states.csv"
    if table.exists():
        for name in [*pd.read_csv(table).get("file", []), *_BESIDE]:
            (out / name).unlink(missing_ok=True)


def _write_script(out: Path, states: States, level: float) -> None:
    """Write states.cxc, which opens the maps in ChimeraX: along a path as a series that plays, else side by side."""
    files = " ".join(f"{label}.mrc" for label in states.labels)
    series = states.ordered and len(states) > 1
    lines = ["# States of a molecule; open this file in ChimeraX.", "close session"]
    lines += (
        [f"open {files} vseries true", "vseries play #1 direction oscillate loop true"] if series else [f"open {files}"]
    )
    lines += [f"volume all step 1 level {level:.4g}", "view"]
    with atomic_path(out / "states.cxc") as path:
        path.write_text("\n".join(lines) + "\n")


def _write_table(out: Path, states: States, maps: bool) -> None:
    """Write states.csv; with `maps`, it names their files."""
    table = pd.DataFrame({"state": states.labels})
    if maps:
        table["file"] = [f"{label}.mrc" for label in states.labels]
    if states.coordinates is not None:
        for k in range(states.coordinates.shape[1]):
            table[f"motion{k + 1}_A"] = states.coordinates[:, k]
    else:
        table["half"] = states.half
        for k in range(states.latents.shape[1]):
            table[f"latent{k + 1}"] = states.latents[:, k].numpy()
    if states.particles is not None:
        table["particles"] = states.particles
    with atomic_path(out / "states.csv") as path:
        table.to_csv(path, index=False, float_format="%.4f")
