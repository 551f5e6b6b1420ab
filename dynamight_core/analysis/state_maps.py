"""Maps of states, the files beside them, and states rendered on request."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.deviations import state_deviations
from dynamight_core.analysis.exports import write_shift_arrows
from dynamight_core.analysis.molecule import half_motions, half_numbers
from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.analysis.state_movie import PathPositions, film_box, write_scripts, write_states_movie
from dynamight_core.analysis.states import States, state_coordinates
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError
from dynamight_core.files import header_origin, write_map, write_table
from dynamight_core.judging.conclusion import require_motion
from dynamight_core.options.analyse import StatesOptions
from dynamight_core.reconstruction.local_states import LocalStates
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, whole_set

# Files beside the maps of states.
_OTHER_FILES = (
    *(f"movie.{suffix}" for suffix in ("gif", "mp4", "png")),
    *("difference.mrc", "displacement.mrc", "arrows.bild", "arrows.csv", "deviations.csv"),
    *("states.cxc", "film.cxc", "states.csv"),
)


class StateModels:
    """Renders the Gaussian models of a run at states; their motions are computed once.

    Parameters
    ----------
    run
        finished and summarised.
    half
        "1", "2", or "both" for the average.
    box
        of the maps, pixels, with the same extent (A) as the particles; their box if None.
    """

    def __init__(self, run: Run, half: str = "both", box: int | None = None):
        self.run, self.numbers = run, half_numbers(half)
        self.box = run.box if box is None else box
        self.pixel_size = run.box * run.pixel_size / self.box
        # Of each half-set, at its Gaussians.
        self._motions: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def positions(self, half: int, coordinates) -> torch.Tensor:
        """Return the (..., n, 3) positions (A) of the Gaussians of a half-set at (..., K) coordinates (A rms)."""
        model = self.run.models[half - 1]
        if half not in self._motions:
            self._motions[half] = half_motions(self.run, half, model.consensus_positions)
        mean, fields = self._motions[half]
        factors = torch.as_tensor(np.asarray(coordinates), dtype=mean.dtype, device=mean.device)
        return model.consensus_positions + mean + torch.tensordot(factors, fields, 1)

    def volume(self, coordinates) -> np.ndarray:
        """Return the (box, box, box) map of the state at (K,) coordinates, averaged over the chosen half-sets.

        At (b, K) coordinates, return the mean map of b states.
        """
        return np.mean([self._render(half, self.positions(half, coordinates)) for half in self.numbers], 0)

    def write(self, path: Path, volume: np.ndarray) -> None:
        """Write a (box, box, box) map with the origin of the consensus map's header."""
        write_map(path, volume, self.pixel_size, header_origin(self.run.config.inputs.map))

    @torch.no_grad()
    def volume_at_latent(self, half: int, latent: torch.Tensor) -> np.ndarray:
        """Return the (box, box, box) map of a half-set's model at a (d,) latent of its own decoder."""
        return self._render(half, self.positions_at_latents(half, latent[None])[0])

    @torch.no_grad()
    def positions_at_latents(self, half: int, latents: torch.Tensor) -> torch.Tensor:
        """Return the (f, n, 3) positions (A) of a half-set's Gaussians at (f, d) latents of its own decoder."""
        model = self.run.models[half - 1]
        positions = model.gaussians.positions
        return positions + model.displacements(latents.to(positions))

    @torch.no_grad()
    def _render(self, half: int, positions: torch.Tensor) -> np.ndarray:
        model = self.run.models[half - 1]
        volume = model.gaussians.render(self.box, self.pixel_size, positions)
        # Images are sums over voxels: with the coarser voxels of training, the same image needs more density.
        return volume.cpu().numpy() * (self.run.pixel_size / model.pixel_size)


@whole_set("states")
def write_states(
    run: Run,
    states: States,
    options: StatesOptions | None = None,
    out: str | Path | None = None,
    reporter: Reporter = PRINT,
) -> Path:
    """Write a map of every state, a table of coordinates and, along a path, a movie and arrows.

    Parameters
    ----------
    run
        finished and summarised.
    states
        to write.
    options
        whether to write maps, a movie and the last map minus the first, and from which model or map.
    out
        folder; ``RUN/analysis/states/<name>`` if None.
    reporter
        takes lines for the user, and progress.

    Returns
    -------
    Path
        the folder, with one ``.mrc`` per state, ``states.csv``, ``deviations.csv`` between states by region,
        ``states.cxc`` for ChimeraX, and optionally the movie, ``arrows.bild`` and ``arrows.csv`` from the first state
        to the last, and ``difference.mrc``.

    Raises
    ------
    InputError
        if the motion of the run is not supported and `options.use_unsupported_motion` not set, `options.difference` is
        set without at least two maps, `options.full` for latents, or `options.method` with what it cannot use.
    """
    o = options or StatesOptions()
    _check(states, o)
    require_motion(run, o.use_unsupported_motion, reporter)
    out = Path(run.path) / "analysis" / "states" / states.name if out is None else Path(out)
    check_outputs([out / f"{label}.mrc" for label in states.labels], run.files(), "--out")
    models = PushedMap(run, o.half) if o.full else StateModels(run, o.half)
    local = LocalStates(run, reporter) if o.maps and o.method == "local" else None
    _remove_earlier(out)
    if not o.maps:
        _write_table(out, states, o.maps)
        what = f"{len(states)} states" if len(states) > 1 else "one state"
        reporter.say(f"Coordinates of {what}: {out / 'states.csv'}.")
        return out
    ends, rows = [], []
    for i, label in enumerate(states.labels):
        if local is not None:
            volume, row = local.write(local.reconstruct(states.coordinates[i]), out / label)
            rows.append(row)
        elif states.latents is None or isinstance(models, PushedMap):
            volume = models.volume(states.coordinates[i])
        else:
            volume = models.volume_at_latent(states.half, states.latents[i])
        models.write(out / f"{label}.mrc", volume)
        if i in (0, len(states) - 1):
            ends.append(volume)
        reporter.progress("rendering states", i + 1, len(states))
    _write_table(out, states, o.maps, rows)
    positions = _path_positions(run, states, o.half)
    write_scripts(run, states, out, positions)
    what = f"Maps of {len(states)} states" if len(states) > 1 else "Map of one state"
    reporter.say(f"{what} and states.csv: {out}. Open states.cxc in ChimeraX.")
    if states.latents is None and len(states) > 1:
        write_table(out / "deviations.csv", state_deviations(run, states.labels, states.coordinates), "%.4g")
    path = states.ordered and len(states) > 1
    if path and states.latents is None:
        write_shift_arrows(run, states.coordinates[0], states.coordinates[-1], out / "arrows")
    if path and o.movie:
        rendered = states.latents is None and o.method == "model" and not o.full
        between = StateModels(run, o.half, film_box(run.box)).volume if rendered else None
        movies = write_states_movie(run, states, o, out, positions, between, reporter)
        reporter.say(f"Movie: {' and '.join(map(str, movies))}.")
    if o.difference:
        models.write(out / "difference.mrc", ends[1] - ends[0])
        reporter.say(f"Last map minus first: {out / 'difference.mrc'}.")
    return out


def serve_states(run: Run, requests: Iterable[str], answer: Callable[[str], None], half: str = "both") -> None:
    """Write maps of states on request, until there are no more requests.

    Parameters
    ----------
    run
        finished and summarised.
    requests
        lines of JSON: `at`, coordinates (A rms; motions omitted at the end are zero); `out`, path of the map.
    answer
        takes one line of JSON per request: `out`, or `error` with a sentence.
    half
        "1", "2" or "both".
    """
    models = StateModels(run, half)
    for line in filter(str.strip, requests):
        try:
            request = json.loads(line)
            volume = models.volume(state_coordinates(run, request["at"]))
            models.write(Path(request["out"]), volume)
            reply = {"out": request["out"]}
        except (InputError, OSError) as error:
            reply = {"error": str(error)}
        except (KeyError, TypeError, ValueError):
            reply = {"error": f"the request '{line.strip()}' is invalid; give JSON with 'at' and 'out'"}
        answer(json.dumps(reply))


def _check(states: States, options: StatesOptions) -> None:
    """Refuse options of `write_states` that contradict each other."""
    o = options
    if o.full and states.latents is not None:
        raise InputError("--full deforms the map along principal motions; use --at instead of --latent")
    if o.difference and (len(states) < 2 or not o.maps):
        raise InputError("--difference is the last map minus the first; write at least two states, with maps")
    if o.method != "local":
        return
    if states.latents is not None:
        raise InputError("--method local finds particles by their coordinates; use --at instead of --latent")
    if o.full:
        raise InputError("--full deforms one map to all states; omit it with --method local")
    if o.half != "both":
        raise InputError(f"--half {o.half} is for Gaussian models; omit it: --method local writes both half-maps")


def _remove_earlier(out: Path) -> None:
    """Remove the files of earlier states from the folder."""
    path = out / "states.csv"
    if path.exists():
        table = pd.read_csv(path)
        for name in [*table.get("file", []), *_OTHER_FILES]:
            (out / name).unlink(missing_ok=True)
        for name in table.get("folder", []):
            shutil.rmtree(out / name, ignore_errors=True)


def _path_positions(run: Run, states: States, half: str) -> PathPositions:
    """Return where the Gaussians of one or both half-sets are along states."""
    models = StateModels(run, half)
    return PathPositions(
        states,
        lambda coordinates: np.concatenate([models.positions(h, coordinates).numpy() for h in models.numbers], 1),
        lambda latents: models.positions_at_latents(states.half, latents).numpy(),
    )


def _write_table(out: Path, states: States, maps: bool, rows: Sequence[dict[str, float]] = ()) -> None:
    """Write states.csv, with the names of the map files if there are `maps`, and how local ones were made."""
    table = pd.DataFrame({"state": states.labels})
    if maps:
        table["file"] = [f"{label}.mrc" for label in states.labels]
    for k in range(states.coordinates.shape[1]):
        table[f"motion{k + 1}_A"] = states.coordinates[:, k]
    if states.latents is not None:
        table["half"] = states.half
        for k in range(states.latents.shape[1]):
            table[f"latent{k + 1}"] = states.latents[:, k].numpy()
    if states.particles is not None:
        table["particles"] = states.particles
    if rows:
        table["folder"] = states.labels
        table = table.join(pd.DataFrame(rows))
    write_table(out / "states.csv", table, "%.4f")
