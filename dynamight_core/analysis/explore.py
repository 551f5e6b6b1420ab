"""What the explorer asks of a run: the landscape, conformations, selections, and files of them.

Every action takes plain values, as they come from a page, and returns plain values and arrays. What is written is
written by the functions behind `dynamight states`, `select` and `displace`, with their options; the commands that would
have done the same are kept in RUN/analysis/explored.sh.
"""

import io
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.annotations import Colouring, colouring, read_annotations
from dynamight_core.analysis.arguments import check_motion
from dynamight_core.analysis.displace import Displacer, displace, read_points
from dynamight_core.analysis.landscape import plane_landscape
from dynamight_core.analysis.select import inside_polygon, select_particles, write_selection
from dynamight_core.analysis.state_maps import StateModels, write_states
from dynamight_core.analysis.states import choose_states
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.options import DisplaceOptions, SelectOptions, StatesOptions
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run

GROUPS = ("all", "half 1", "half 2", "validation")
QUANTITIES = ("particles", "density", "free energy", "error of the free energy")
# Maps on the page have at most so many voxels an axis, over the whole extent of the box.
_PREVIEW_BOX = 96
# Particles whose densities are averaged to the mean map of a selection.
_AVERAGED = 128
# Particles whose points are sent; of more, so many at random.
_MOST_POINTS = 400_000
# Share of the density's integral that the surface encloses at first.
_ENCLOSED = 0.8
# Particles whose coordinates are computed anew to see whether latents and motions belong together, and how far off, in
# standard deviations, they may be.
_CHECKED, _TOLERANCE = 32, 0.02
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class Answer:
    """What an action returns: plain values, and arrays beside them.

    Parameters
    ----------
    values
        what JSON can hold.
    arrays
        little-endian arrays.
    """

    values: dict
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Explorer:
    """A finished run, as the page shows it.

    Parameters
    ----------
    run
        finished and summarised.
    model
        atomic model (.pdb, .cif) that is moved along, or None.
    origin
        of its coordinates, see `displace.read_points`.
    tables
        CSV files of values to colour by.
    say
        takes lines for the user.

    Raises
    ------
    InputError
        if files of the run do not belong together, or the model or a table cannot be used.
    """

    def __init__(
        self,
        run: Run,
        model: str | Path | None = None,
        origin: str = "auto",
        tables: list[Path] | tuple = (),
        say: Callable[[str], None] = print,
    ):
        check_consistency(run)
        self.run, self.origin, self._say = run, origin, say
        self.coordinates = run.motions.coordinates.numpy().astype(np.float64)
        self.halves, self.validation = run.halves.numpy(), run.validation.numpy()
        self.model_path = None if model is None else Path(model)
        self.point_set = None if model is None else read_points(model, run, origin)
        self._annotations: list[pd.DataFrame] = []
        self._states: dict[str, StateModels] = {}
        self._orders: dict[str, np.ndarray] = {}
        self._computing, self._writing = threading.RLock(), threading.Lock()
        self._progress = ("", 0, 0)
        for table in tables:
            self._annotations.append(read_annotations(table, Path(table).name, self.table))

    def prepare(self) -> None:
        """Compute what the first click and the first colour would have to wait for."""
        self.models("both").volume(self.coordinates.mean(0))
        _ = self.table

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of RUN/particles.star, which must be those of the run."""
        with self._computing:
            table = self.run.table
            if len(table) != len(self.coordinates):
                raise InputError(
                    f"{self.run.path / 'particles.star'} has {len(table)} rows and the run {len(self.coordinates)} "
                    "particles; it was edited: write it anew with dynamight train --resume"
                )
            column = table["dynMotion1"].to_numpy(dtype=float) if "dynMotion1" in table else np.array([np.nan])
            spread = max(float(self.coordinates[:, 0].std()), 1e-6)
            if not np.allclose(column, self.coordinates[:, 0], atol=_TOLERANCE * spread):
                raise InputError(
                    f"column dynMotion1 of {self.run.path / 'particles.star'} is not what analysis/motions.safetensors "
                    "says; it was edited: write it anew with dynamight train --resume"
                )
            return table

    def models(self, half: str) -> StateModels:
        """Return what renders states of one half, or of both, at the size of a preview."""
        with self._computing:
            if half not in self._states:
                self._states[half] = StateModels(self.run, half, min(self.run.box, _PREVIEW_BOX))
                # What all states share is computed by the first one; others wait for it here.
                self._states[half].volume(self.coordinates.mean(0))
            return self._states[half]

    def annotations(self) -> dict[str, pd.Series]:
        """Return the columns of the user's tables, a value for every particle."""
        return {name: table[name] for table in self._annotations for name in table}

    # ------------------------------------------------------------------------------------------ what is there

    def about(self) -> Answer:
        """Return what the page says of the run, before anything is asked of it."""
        run, summary = self.run, self.run.summary
        c = self.coordinates
        low, high = np.quantile(c, [0.005, 0.995], axis=0)
        return Answer(
            {
                "name": run.path.resolve().name,
                "path": str(run.path),
                "verdict": summary["verdict"]["verdict"],
                "sentence": summary["verdict"]["sentence"],
                "warnings": summary["warnings"],
                "particles": len(c),
                "halves": [int((self.halves == half).sum()) for half in (1, 2)],
                "validation": int(self.validation.sum()),
                "motion": summary["motion_between_particles_rms"],
                "error": summary["error_rms"],
                "shares": run.motions.shares.tolist(),
                "mean": c.mean(0).tolist(),
                "deviations": c.std(0).tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "extent": run.box * run.pixel_size,
                "model": None if self.model_path is None else self.model_path.name,
                "groups": list(GROUPS),
                "quantities": list(QUANTITIES),
            }
        )

    def molecule(self) -> Answer:
        """Return points of the molecule and how they move: positions at c are `rest` + sum of c_k `motions`_k.

        Arrays: rest (m, 3) A, motions (K, m, 3), error (m,) A; with an atomic model the same of its chains' traces as
        trace (a, 3) and trace_motions (K, a, 3), and trace_starts (a,), 1 where a chain begins; view (3, 3), rotation
        to a view in which the first motion is seen.
        """
        motions = self.run.motions
        arrays = {
            "view": _view((motions.points + motions.mean).numpy(), motions.components[0].numpy()),
            "rest": motions.points + motions.mean,
            "motions": motions.components,
            "error": torch.tensor(self.run.summary["point_error"]),
        }
        if self.point_set is not None:
            positions, starts = trace(self.point_set.structure)
            if len(positions):
                offset = torch.from_numpy(self.point_set.offset.astype(np.float32))
                moved = Displacer(self.run, positions - offset)
                rest = moved.at_state(np.zeros(self.coordinates.shape[1]))
                units = np.eye(self.coordinates.shape[1])
                arrays["trace"] = rest
                arrays["trace_motions"] = torch.stack([moved.at_state(unit) - rest for unit in units])
                arrays["trace_starts"] = starts
        return Answer({}, {name: np.asarray(values, dtype="<f4") for name, values in arrays.items()})

    def columns(self) -> Answer:
        """Return the names of what particles can be coloured by, in groups."""
        own = [name for name in self.table if name.startswith("dyn")]
        given = [name for name in self.table if not name.startswith("dyn")]
        return Answer({"This run": own, "Input STAR file": given, "Your tables": list(self.annotations())})

    def add_table(self, name: str, text: str) -> Answer:
        """Add a user's CSV to colour by, given as text."""
        self._annotations.append(read_annotations(io.StringIO(text), Path(name).name, self.table))
        return Answer({"added": list(self._annotations[-1])})

    # ---------------------------------------------------------------------------------------- particles in a plane

    def points(self, plane: list[int], group: str = "all") -> Answer:
        """Return particles in the plane of two motions, in random order.

        Array: places (s, 2) uint16, 0 to 65535 from `low` to `high` of either axis.
        """
        rows = self._order(group)
        places = self._plane(plane)[rows]
        low, high = places.min(0), places.max(0)
        scaled = np.rint((places - low) / np.maximum(high - low, 1e-9) * 65535).astype("<u2")
        total = int(self._mask(group).sum())
        return Answer({"low": low.tolist(), "high": high.tolist(), "particles": total}, {"places": scaled})

    def colours(self, column: str, group: str = "all") -> Answer:
        """Return what to colour the particles of `points` by: levels (s,) uint8, see `annotations.Colouring`."""
        found: Colouring = colouring(self._values(column), column)
        values = {"low": found.low, "high": found.high, "labels": found.labels}
        return Answer(values, {"levels": found.levels[self._order(group)]})

    def landscape(self, plane: list[int], quantity: str = "density", group: str = "all") -> Answer:
        """Return the density of particles over the plane or what follows from it: grid (bins, bins) float32, [x, y].

        The free energy is in kT and has no value where there are no particles.
        """
        if quantity not in QUANTITIES:
            raise InputError(f"the quantity '{quantity}' is unknown; choose one of {', '.join(QUANTITIES)}")
        places = self._plane(plane)[self._mask(group)]
        found = plane_landscape(*places.T)
        # Below one particle in the area that is smoothed over nothing is known.
        known = found.relative_error < 1.0
        grid = {
            "particles": np.where(found.counts > 0, found.counts, np.nan),
            "density": np.where(known, found.density, np.nan),
            "free energy": np.where(known, found.free_energy, np.nan),
            "error of the free energy": np.where(known, found.free_energy_error, np.nan),
        }[quantity]
        edges = {"x": [float(v) for v in found.x_edges[[0, -1]]], "y": [float(v) for v in found.y_edges[[0, -1]]]}
        return Answer(edges, {"grid": grid.astype("<f4")})

    def nearest(self, plane: list[int], at: list[float], group: str = "all") -> Answer:
        """Return the particle nearest to a place in the plane, and what is around it."""
        rows = np.flatnonzero(self._mask(group))
        places = self._plane(plane)[rows]
        scale = np.maximum(places.std(0), 1e-6)
        order = (((places - np.asarray(at, dtype=float)) / scale) ** 2).sum(1)
        row = int(rows[order.argmin()])
        near = rows[np.argpartition(order, min(100, len(order) - 1))[:100]]
        table = self.table
        return Answer(
            {
                "row": row + 1,
                "coordinates": self.coordinates[row].tolist(),
                "half": int(self.halves[row]),
                "validation": bool(self.validation[row]),
                "motion": float(table["dynMotionRms"].iloc[row]),
                "error": float(table["dynMotionError"].iloc[row]),
                "error_around": float(np.sqrt(np.mean(np.square(table["dynMotionError"].to_numpy()[near])))),
            }
        )

    # ------------------------------------------------------------------------------------------ conformations

    def state(self, at: list[float], half: str = "both") -> Answer:
        """Return the density at coordinates (A rms), and how far it lies from the mean conformation.

        Arrays: density (d, h, w) uint8 [z, y, x] around the molecule, 255 at `top`; displacement (d', h', w') uint8 on
        every second voxel, 255 at `displacement_top` A.
        """
        at = self._complete(at)
        volume = self.models(half).volume(at)
        return self._shown(volume, at)

    def difference(self, first: list[float], last: list[float], half: str = "both") -> Answer:
        """Return the density at the first of two conformations, and where the last has more and less.

        Arrays: density, gain, loss (d, h, w) uint8, 255 at `top`.
        """
        first, last = self._complete(first), self._complete(last)
        models = self.models(half)
        before, after = models.volume(first), models.volume(last)
        crop = _crop(np.maximum(before, after))
        parts = {"density": before, "gain": after - before, "loss": before - after}
        answer = self._shown(before, first, crop)
        answer.arrays |= {name: self._quantised(part[crop]) for name, part in parts.items()}
        shift = torch.tensordot(torch.from_numpy(last - first).float(), self.run.motions.components, 1)
        answer.values["displacement_rms"] = float(shift.square().sum(-1).mean().sqrt())
        answer.values["displacement_most"] = float(shift.norm(dim=1).max())
        return answer

    def selection(self, polygon: str, group: str = "all", half: str = "both") -> Answer:
        """Return how many particles lie in a polygon (see `select.parse_polygon`), and their mean map.

        Arrays: as of `state`; the map is the mean of those of up to 128 of them.
        """
        kept = inside_polygon(self.coordinates, polygon) & self._mask(group)
        rows = np.flatnonzero(kept)
        if not len(rows):
            raise InputError("the region holds no particles; draw it around some")
        mean = self.coordinates[rows].mean(0)
        chosen = rows[np.linspace(0, len(rows) - 1, min(_AVERAGED, len(rows))).astype(int)]
        answer = self._shown(self.models(half).volume(self.coordinates[chosen]), mean)
        errors = self.table["dynMotionError"].to_numpy()[rows]
        answer.values |= {
            "particles": len(rows),
            "halves": [int((self.halves[rows] == number).sum()) for number in (1, 2)],
            "validation": int(self.validation[rows].sum()),
            "mean": mean.tolist(),
            "deviations": self.coordinates[rows].std(0).tolist(),
            "error": float(np.sqrt(np.mean(errors**2))),
            "averaged": len(chosen),
        }
        return answer

    # --------------------------------------------------------------------------------------------------- files

    def save_selection(self, options: dict, name: str) -> Answer:
        """Write RUN/analysis/selections/NAME.star as `dynamight select` does with these options."""
        options = _options(SelectOptions, options)
        path = self._new("selections", f"{_checked_name(name)}.star")
        with self._writing:
            write_selection(self.run, options, name, reporter=Reporter(self._say))
        kept = int(select_particles(self.run, options)[0].sum())
        return self._saved([path], [self._command("select", options, name=name)], {"particles": kept})

    def save_states(self, options: dict, name: str) -> Answer:
        """Write maps, a table and a movie of states to RUN/analysis/states/NAME as `dynamight states` does.

        With an atomic model, also the model at every state.
        """
        options = _options(StatesOptions, options)
        out = self._new("states", _checked_name(name))
        with self._writing:
            states = choose_states(self.run, options)
            write_states(
                self.run,
                states,
                out,
                options.half,
                options.movie,
                options.maps,
                Reporter(self._say, self._show_progress),
                options.difference,
                options.full,
            )
            commands = [self._command("states", options, out=out)]
            if self.point_set is not None and states.coordinates is not None:
                moved = DisplaceOptions(states=str(out / "states.csv"), origin=self.origin)
                target = out / "model.npz"
                displace(self.run, self.model_path, target, moved, Reporter(self._say, self._show_progress))
                commands.append(self._command("displace", moved, points=self.model_path, out=target))
            self._progress = ("", 0, 0)
        return self._saved(sorted(out.iterdir()), commands, {"states": len(states)})

    def progress(self) -> Answer:
        """Return the stage of what is being written, and how much of it is done."""
        stage, done, total = self._progress
        return Answer({"stage": stage, "done": done, "total": total})

    def file(self, name: str) -> Path:
        """Return the path of a file of RUN/analysis, for download.

        Raises
        ------
        InputError
            if there is none of this name.
        """
        folder = (self.run.path / "analysis").resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise InputError(f"there is no file {name} in {folder}; save it first")
        return path

    # ---------------------------------------------------------------------------------------------- behind these

    def _mask(self, group: str) -> np.ndarray:
        """Return which particles are in a group, (n,)."""
        if group not in GROUPS:
            raise InputError(f"the group '{group}' is unknown; choose one of {', '.join(GROUPS)}")
        if group == "validation":
            return self.validation
        return np.ones(len(self.halves), dtype=bool) if group == "all" else self.halves == int(group[-1])

    def _order(self, group: str) -> np.ndarray:
        """Return the rows of a group in the random order in which they are drawn, the same every time."""
        with self._computing:
            if group not in self._orders:
                rows = np.flatnonzero(self._mask(group))
                self._orders[group] = np.random.default_rng(0).permutation(rows)[:_MOST_POINTS]
            return self._orders[group]

    def _plane(self, plane: list[int]) -> np.ndarray:
        """Return (n, 2) coordinates along two motions, numbered from 1."""
        for motion in plane:
            check_motion(motion, self.coordinates.shape[1])
        return self.coordinates[:, [motion - 1 for motion in plane]]

    def _values(self, column: str) -> pd.Series:
        for table in (self.table, *self._annotations):
            if column in table:
                return table[column]
        raise InputError(f"there is no column {column}; choose one of particles.star or of your tables")

    @cached_property
    def _top(self) -> float:
        """The density that is the largest to be told apart: that of the mean conformation."""
        return float(self.models("both").volume(self.coordinates.mean(0)).max())

    def _quantised(self, part: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(part / self._top * 255), 0, 255).astype(np.uint8)

    def _complete(self, at: list[float]) -> np.ndarray:
        """Return (K,) coordinates of fewer or as many, zero where none is given."""
        n_motions = self.coordinates.shape[1]
        if len(at) > n_motions:
            raise InputError(f"a conformation has {len(at)} coordinates, the run {n_motions}; give fewer")
        return np.concatenate([np.asarray(at, dtype=float), np.zeros(n_motions - len(at))])

    def _shown(self, volume: np.ndarray, at: np.ndarray, crop: tuple | None = None) -> Answer:
        """Return a volume around the molecule, and the displacement from the mean conformation at its voxels."""
        crop = _crop(volume) if crop is None else crop
        spacing = self.run.box * self.run.pixel_size / len(volume)
        start = np.array([part.start for part in crop])
        # Voxel box // 2 is the origin; x, y, z.
        first = ((start - len(volume) // 2) * spacing)[::-1]
        density = self._quantised(volume[crop])
        motions = self.run.motions
        shift = torch.tensordot(torch.from_numpy(at).float(), motions.components, 1).numpy()
        moved = motions.points.numpy() + motions.mean.numpy() + shift
        sizes = np.linalg.norm(shift, axis=1)
        axes = [first[2 - i] + np.arange(0, density.shape[i], 2) * spacing for i in range(3)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1)
        nearest = cKDTree(moved).query(grid.reshape(-1, 3))[1]
        top = max(float(sizes.max()), 1e-3)
        displacement = np.rint(sizes[nearest] / top * 255).astype(np.uint8).reshape(grid.shape[:3])
        values = {
            "at": at.tolist(),
            "spacing": spacing,
            "first": first.tolist(),
            "top": self._top,
            "level": _level(volume, self._top),
            "displacement_top": top,
            "displacement_rms": float(np.sqrt((sizes**2).mean())),
        }
        return Answer(values, {"density": density, "displacement": displacement})

    def _new(self, kind: str, name: str) -> Path:
        path = self.run.path / "analysis" / kind / name
        if path.exists():
            raise InputError(f"{path} is there already; choose another name")
        return path

    def _show_progress(self, stage: str, done: int, total: int) -> None:
        self._progress = (stage, done, total)

    def _command(self, command: str, options, **more) -> str:
        return command_line(command, self.run.path, options, **more)

    def _saved(self, files: list[Path], commands: list[str], values: dict) -> Answer:
        """Keep the commands, and say what was written by names inside RUN/analysis."""
        log = self.run.path / "analysis" / "explored.sh"
        before = log.read_text() if log.exists() else "# What was saved from dynamight explore, as commands.\n"
        with atomic_path(log) as temporary:
            temporary.write_text(before + "\n".join(commands) + "\n")
        names = [path.relative_to(self.run.path / "analysis").as_posix() for path in files]
        return Answer(values | {"files": names, "commands": commands, "folder": str(self.run.path / "analysis")})


def check_consistency(run: Run) -> None:
    """Refuse a run whose files do not belong together, as after edits by hand.

    The coordinates of some particles are computed anew from their latents.

    Raises
    ------
    InputError
        naming the file.
    """
    motions, file = run.motions, run.path / "latents.safetensors"
    # Read here so that a run without a summary is refused at the start.
    _ = run.summary
    cure = "bring back the files as they were, or write them anew with dynamight train --resume"
    n = len(run.halves)
    if run.latents.shape[1] != n or len(motions.coordinates) != n:
        raise InputError(
            f"{file} holds {run.latents.shape[1]} particles and analysis/motions.safetensors "
            f"{len(motions.coordinates)}; {cure}"
        )
    for name, values in (("latents.safetensors", run.latents), ("analysis/motions.safetensors", motions.coordinates)):
        if not torch.isfinite(values).all():
            raise InputError(f"{run.path / name} holds values that are not finite; {cure}")
    rows = torch.linspace(0, n - 1, min(n, _CHECKED)).long().unique()
    expected = motions.coordinates[rows]
    spread = motions.coordinates.std(0).max().clamp(min=1e-3)
    for index, model in enumerate(run.models):
        mine = rows[run.halves[rows] == index + 1]
        if not len(mine):
            continue
        latents = run.latents[index][mine]
        if latents.shape[1] != model.n_latents:
            raise InputError(
                f"{file} has latents of {latents.shape[1]} numbers, half {index + 1} wants {model.n_latents}; {cure}"
            )
        with torch.no_grad():
            shift = model.consensus_evaluator(motions.points)(latents) - motions.mean
        found = torch.einsum("bmi,kmi->bk", shift, motions.components) / len(motions.points)
        expected = motions.coordinates[mine]
        if float((found - expected).abs().max()) > _TOLERANCE * float(spread) + 1e-3:
            raise InputError(f"{file} and analysis/motions.safetensors do not belong together; {cure}")


def command_line(command: str, run: Path, options, **more) -> str:
    """Return the `dynamight` command with the options that are not at their default, ready to paste.

    Parameters
    ----------
    command
        its name.
    run
        folder.
    options
        dataclass of the command.
    more
        further options.
    """
    words = ["dynamight", command, str(run)]
    for item in fields(options):
        value = getattr(options, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = list(value) if isinstance(value, tuple) else value
        if value != (list(default) if isinstance(default, tuple) else default):
            words += _words(item.name, value, repeated=isinstance(default, list))
    for name, value in more.items():
        words += _words(name, value)
    return shlex.join(words)


def _words(name: str, value, repeated: bool = False) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list) and not repeated:
        return [flag, *map(str, value)]
    # With the sign of equality: coordinates may begin with a minus.
    return [f"{flag}={part}" for part in (value if isinstance(value, list) else [value])]


def trace(structure: gemmi.Structure | None) -> tuple[torch.Tensor, np.ndarray]:
    """Return the (a, 3) positions (A, as in the file) of CA and P atoms along chains, and (a,) 1 where one begins.

    An atomic model without any is drawn by all its atoms.
    """
    positions, starts = [], []
    for chain in structure[0] if structure is not None else ():
        last = None
        for residue in chain:
            for name in ("CA", "P"):
                atom = residue.find_atom(name, "*")
                if atom is not None and atom.element.name in ("C", "P"):
                    place = np.array(atom.pos.tolist())
                    # A gap in the model is no bond.
                    starts.append(float(last is None or np.linalg.norm(place - last) > 9.0))
                    positions.append(place)
                    last = place
                    break
    return torch.tensor(np.array(positions, dtype=np.float32).reshape(-1, 3)), np.array(starts, dtype=np.float32)


def _view(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation to a view of (m, 3) points along which they move least, lying lengthwise."""
    depth = np.linalg.eigh(motion.T @ motion)[1][:, 0]
    depth = depth if depth.sum() > 0 else -depth
    length = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
    across = length - depth * (length @ depth)
    # Where the molecule's length is the direction that it moves least along, any other one.
    across = across if np.linalg.norm(across) > 0.1 else np.linalg.svd(depth[None])[2][1]
    across = across / np.linalg.norm(across)
    return np.stack([across, np.cross(depth, across), depth])


def _options(kind: type, values: dict):
    """Return the options of a command from plain values.

    Raises
    ------
    InputError
        naming an option that the command has not.
    """
    known = {item.name for item in fields(kind)}
    for name in values:
        if name not in known:
            raise InputError(f"there is no option {name}; the command has {', '.join(sorted(known))}")
    return kind(**values)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"the name '{name}' cannot be that of a file; use letters, digits, dots, - and _")
    return name


def _crop(volume: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the part of a [z, y, x] volume that holds its density, and a voxel around it."""
    strong = volume > 0.04 * volume.max()
    parts = []
    for axis in range(3):
        where = np.flatnonzero(strong.any(tuple(i for i in range(3) if i != axis)))
        parts.append(slice(max(0, where[0] - 2), min(len(volume), where[-1] + 3)))
    return tuple(parts)


def _level(volume: np.ndarray, top: float) -> float:
    """Return the density, as a share of `top`, above which lies most of the integral."""
    values = np.sort(volume[volume > 0.02 * top])[::-1]
    if not len(values):
        return 0.3
    enclosed = np.cumsum(values)
    return float(values[np.searchsorted(enclosed, _ENCLOSED * enclosed[-1])] / top)
