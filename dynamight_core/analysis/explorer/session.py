"""The explorer's view of a run: the landscape, conformations and selections that a person asks for.

Every action takes plain values, as they come from a page, and returns plain values and arrays.
"""

import io
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.arguments import check_motion, check_row
from dynamight_core.analysis.displace import Displacer, read_points
from dynamight_core.analysis.embedding import has_umap
from dynamight_core.analysis.explorer.annotations import colouring, read_annotations
from dynamight_core.analysis.explorer.answer import Answer
from dynamight_core.analysis.explorer.beside import Beside
from dynamight_core.analysis.explorer.consistency import check_consistency, check_table
from dynamight_core.analysis.explorer.montage import montage
from dynamight_core.analysis.explorer.places import pair_counts, particle_places
from dynamight_core.analysis.explorer.saving import Saver
from dynamight_core.analysis.explorer.shapes import chain_trace, contour_level, crop_to_density, first_view
from dynamight_core.analysis.landscape import plane_landscape
from dynamight_core.analysis.overview import map_paths, overview, shown_motions
from dynamight_core.analysis.select import inside_polygon, within_column
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.analysis.states import state_coordinates
from dynamight_core.errors import InputError
from dynamight_core.judging.conclusion import Conclusion, conclude, shared_motions
from dynamight_core.judging.distribution import corrected_distribution
from dynamight_core.judging.errors import coordinate_variances, displacement_errors
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run
from dynamight_core.sampling import evenly

GROUPS = ("all", "half-set 1", "half-set 2", "validation")
QUANTITIES = ("particle count", "density", "free energy", "free-energy uncertainty")
# Largest size of a map on the page, voxels per axis over the whole box.
_PREVIEW_BOX = 96
# Particles whose densities are averaged to the mean map of a selection.
_AVERAGED = 128
# Maximum number of particles whose points are sent; more are sampled at random.
_MAX_POINTS = 400_000
# Particles whose errors are computed for a distribution.
_MAX_MEASURED = 4000
# Particles whose images are shown.
_IMAGES = 8


class Explorer:
    """A finished run, as the page shows it; its `saver` writes files, and `beside` has the maps beside the model.

    Parameters
    ----------
    run
        finished and summarised.
    model
        atomic model (.pdb, .cif) that is moved with the molecule, or None.
    origin
        of its coordinates, see `displace.read_points`.
    tables
        CSV files of values to colour by.
    reporter
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
        reporter: Reporter = PRINT,
    ):
        check_consistency(run)
        self.run = run
        self.coordinates = run.motions.coordinates.numpy().astype(np.float64)
        self.halves, self.validation = run.halves.numpy(), run.validation.numpy()
        self.model_path = None if model is None else Path(model)
        self.point_set = None if model is None else read_points(model, run, origin)
        self._annotations: list[pd.DataFrame] = []
        self._states: dict[str, StateModels] = {}
        self._orders: dict[tuple[str, str], np.ndarray] = {}
        self._concluded: tuple[int, Conclusion] | None = None
        self._computing = threading.RLock()
        # The page begins with the conclusion and the particles: they do not wait for what `prepare` reads meanwhile.
        self._concluding, self._ordering, self._reading = threading.Lock(), threading.Lock(), threading.RLock()
        self.saver = Saver(run, self.model_path, origin, reporter)
        self.beside = Beside(run, self.saver.reporter)
        for table in tables:
            self._annotations.append(read_annotations(table, Path(table).name, self.table))

    @property
    def actions(self) -> dict[str, Callable[..., Answer]]:
        """What a page may ask for, by name."""
        first = (self.about, self.overview, self.columns, self.add_table, self.extent, self.montage)
        particles = (self.points, self.colours, self.landscape, self.distribution, self.pairs, self.nearest)
        conformations = (self.molecule, self.uncertainty, self.state, self.difference, self.selection)
        maps = (self.beside.map_beside, self.beside.local_state)
        saver = self.saver
        files = (saver.save_selection, saver.save_states, saver.save_view, saver.views, saver.progress)
        return {action.__name__: action for action in (*first, *particles, *conformations, *maps, *files)}

    def prepare(self) -> None:
        """Compute what the first click and the first colour would have to wait for."""
        self.models("both").volume(self.coordinates.mean(0))
        _ = self.table

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of RUN/particles.star, which must be those of the run."""
        with self._reading:
            table = self.run.table
            check_table(self.run, table)
            return table

    def models(self, half: str) -> StateModels:
        """Return the renderer of states of one half-set, or of both, at the size of a preview."""
        with self._computing:
            if half not in self._states:
                self._states[half] = StateModels(self.run, half, min(self.run.box, _PREVIEW_BOX))
                # The first volume computes what all states share; other threads wait for it here.
                self._states[half].volume(self.coordinates.mean(0))
            return self._states[half]

    def annotations(self) -> dict[str, pd.Series]:
        """Return the columns of the user's tables, one value per particle."""
        return {name: table[name] for table in self._annotations for name in table}

    def about(self) -> Answer:
        """Return what the page says about the run when it opens."""
        run, summary, conclusion = self.run, self.run.summary, self._conclusion()
        c = self.coordinates
        low, high = np.quantile(c, [0.005, 0.995], axis=0)
        return Answer(
            {
                "name": run.path.resolve().name,
                "path": str(run.path),
                "conclusion": asdict(conclusion) | {"lines": conclusion.lines, "lead": conclusion.lead},
                "warnings": summary["warnings"],
                "particles": len(c),
                "halves": [int((self.halves == half).sum()) for half in (1, 2)],
                "validation": int(self.validation.sum()),
                "motion": summary["motion_between_particles_rms"],
                "error": summary["error_rms"],
                "explained": run.motions.shares.tolist(),
                "shared": shared_motions(run),
                "counted": shown_motions(run, conclusion),
                "mean": c.mean(0).tolist(),
                "deviations": c.std(0).tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "extent": run.box * run.pixel_size,
                "model": None if self.model_path is None else self.model_path.name,
                "groups": list(GROUPS),
                "quantities": list(QUANTITIES),
                "umap": has_umap(run),
                "maps": list(map_paths(run)),
            }
        )

    def overview(self) -> Answer:
        """Return what the page shows first, see `analysis.overview`."""
        return overview(self.run, self._conclusion())

    def molecule(self) -> Answer:
        """Return points of the molecule and how they move: positions at c are `rest` + sum of c_k `motions`_k.

        Arrays: rest (m, 3) A, motions (K, m, 3), error (m,) A; view (3, 3), rotation to a view that shows the first
        motion. With an atomic model, its chains' traces as trace (a, 3) A and trace_motions (K, a, 3), and
        trace_starts (a,), 1 where a chain begins.
        """
        motions = self.run.motions
        arrays = {
            "view": first_view((motions.points + motions.mean).numpy(), motions.components[0].numpy()),
            "rest": motions.points + motions.mean,
            "motions": motions.components,
            "error": torch.tensor(self.run.summary["point_error"]),
        }
        if self.point_set is not None:
            positions, starts = chain_trace(self.point_set.structure)
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
        """Return the names of columns to colour particles by, in groups."""
        own = [name for name in self.table if name.startswith("dyn")]
        given = [name for name in self.table if not name.startswith("dyn")]
        return Answer({"This run": own, "Input STAR file": given, "Your tables": list(self.annotations())})

    def add_table(self, name: str, text: str) -> Answer:
        """Add a user's CSV of values to colour by, given as text."""
        self._annotations.append(read_annotations(io.StringIO(text), Path(name).name, self.table))
        return Answer({"added": list(self._annotations[-1])})

    def points(self, plane: list[int], group: str = "all", where: str = "") -> Answer:
        """Return particles in the plane of two motions, or in the space of three, in random order.

        Array: places (s, d) uint16, 0 to 65535 from `low` to `high` of each axis; see `places.particle_places`.
        """
        rows = self._order(group, where)
        if not len(rows):
            raise InputError("the filter keeps no particles; widen its range")
        places = particle_places(self.run, plane)[rows]
        low, high = places.min(0), places.max(0)
        scaled = np.rint((places - low) / np.maximum(high - low, 1e-9) * 65535).astype("<u2")
        total = int(self._mask(group, where).sum())
        return Answer({"low": low.tolist(), "high": high.tolist(), "particles": total}, {"places": scaled})

    def colours(self, column: str, group: str = "all", where: str = "") -> Answer:
        """Return colours of the particles of `points`: levels (s,) uint8, see `annotations.Colouring`."""
        found = colouring(self._values(column), column)
        values = {"low": found.low, "high": found.high, "labels": found.labels}
        return Answer(values, {"levels": found.levels[self._order(group, where)]})

    def landscape(self, plane: list[int], quantity: str = "density", group: str = "all", where: str = "") -> Answer:
        """Return one of `QUANTITIES` over the plane: grid (bins, bins) float32, [x, y].

        Free energies are in kT. Bins without particles are NaN.
        """
        if quantity not in QUANTITIES:
            raise InputError(f"unknown quantity '{quantity}'; choose one of {', '.join(QUANTITIES)}")
        places = particle_places(self.run, plane)[self._mask(group, where)]
        found = plane_landscape(*places.T)
        # With less than one particle in the smoothing area, the density is unknown.
        known = found.relative_error < 1.0
        grid = {
            "particle count": np.where(found.counts > 0, found.counts, np.nan),
            "density": np.where(known, found.density, np.nan),
            "free energy": np.where(known, found.free_energy, np.nan),
            "free-energy uncertainty": np.where(known, found.relative_error, np.nan),
        }[quantity]
        edges = {"x": [float(v) for v in found.x_edges[[0, -1]]], "y": [float(v) for v in found.y_edges[[0, -1]]]}
        return Answer(edges, {"grid": grid.astype("<f4")})

    def distribution(self, motion: int) -> Answer:
        """Return the distribution along a motion, corrected for the errors of the coordinates.

        Arrays: coordinate (g,) A rms, density (g,) per A and its error (g,); empty where the errors exceed the spread.
        """
        check_motion(motion, self.coordinates.shape[1])
        rows = evenly(torch.arange(len(self.coordinates)), _MAX_MEASURED)
        with self._computing:
            variances = coordinate_variances(self.run, rows)[:, motion - 1].numpy().astype(float)
        means = self.coordinates[rows.numpy(), motion - 1]
        parts = (np.empty(0),) * 3
        if means.var() > variances.mean():
            found = corrected_distribution(means, variances)
            parts = found.values, found.density, found.error
        names = ("coordinate", "density", "error")
        return Answer({}, {name: part.astype("<f4") for name, part in zip(names, parts, strict=True)})

    def pairs(self, motions: list[int], group: str = "all", where: str = "") -> Answer:
        """Return the distributions along motions and in all their pairs, see `places.pair_counts`.

        Arrays: alone (k, bins) and pairs (k, k, bins, bins) float32 counts, ends (k, 2) A rms.
        """
        alone, pairs, ends = pair_counts(particle_places(self.run, motions)[self._mask(group, where)])
        named = {"alone": alone, "pairs": pairs, "ends": ends}
        return Answer({}, {name: array.astype("<f4") for name, array in named.items()})

    def nearest(self, plane: list[int], at: list[float], group: str = "all", where: str = "") -> Answer:
        """Return the particle nearest to a point of the plane, and the error of the particles around it."""
        rows = np.flatnonzero(self._mask(group, where))
        places = particle_places(self.run, plane)[rows]
        scale = np.maximum(places.std(0), 1e-6)
        distance = (((places - np.asarray(at, dtype=float)) / scale) ** 2).sum(1)
        row = int(rows[distance.argmin()])
        near = rows[np.argpartition(distance, min(100, len(distance) - 1))[:100]]
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

    def uncertainty(self, row: int) -> Answer:
        """Return the uncertainty of the displacement of one particle (row from 1) at the points of `molecule`.

        Array: error_at (m,) float32, A.
        """
        check_row(row, len(self.coordinates))
        with self._computing:
            error = displacement_errors(self.run, self.run.motions.points, torch.tensor([row - 1]))[0]
        values = {"row": row, "error": float(error.square().mean().sqrt())}
        return Answer(values, {"error_at": error.numpy().astype("<f4")})

    def state(self, at: list[float], half: str = "both") -> Answer:
        """Return the density at coordinates (A rms) and its displacement from the mean conformation.

        Arrays: density (d, h, w) uint8 [z, y, x] around the molecule, 255 at `top`; displacement (d', h', w') uint8 on
        every second voxel, 255 at `displacement_top` A.
        """
        coordinates = state_coordinates(self.run, at)
        return self._shown(self.models(half).volume(coordinates), coordinates)

    def difference(self, first: list[float], last: list[float], half: str = "both") -> Answer:
        """Return the density at the first of two conformations, and where the last has more and less.

        Arrays: density, gain, loss (d, h, w) uint8, 255 at `top`; displacement as of `state`.
        """
        start, end = (state_coordinates(self.run, at) for at in (first, last))
        models = self.models(half)
        before, after = models.volume(start), models.volume(end)
        crop = crop_to_density(np.maximum(before, after))
        parts = {"density": before, "gain": after - before, "loss": before - after}
        answer = self._shown(before, start, crop)
        answer.arrays |= {name: self._quantised(part[crop]) for name, part in parts.items()}
        shift = torch.tensordot(torch.from_numpy(end - start).float(), self.run.motions.components, 1)
        answer.values["displacement_rms"] = float(shift.square().sum(-1).mean().sqrt())
        answer.values["displacement_max"] = float(shift.norm(dim=1).max())
        return answer

    def selection(self, polygon: str, group: str = "all", half: str = "both", where: str = "") -> Answer:
        """Return the number of particles in a polygon (see `select.parse_polygon`), and their mean map.

        Arrays: as of `state`. The map averages at most 128 particles.
        """
        rows = self._inside(polygon, group, where)
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

    def extent(self, column: str) -> Answer:
        """Return the lowest and the highest number of a column, to filter by."""
        numbers = pd.to_numeric(self._values(column), errors="coerce").to_numpy(dtype=float)
        if not np.isfinite(numbers).any():
            raise InputError(f"column {column} does not hold numbers; choose another column")
        own = not any(column in table for table in self._annotations)
        low, high = (float(f(numbers[np.isfinite(numbers)])) for f in (np.min, np.max))
        return Answer({"low": low, "high": high, "own": own})

    def montage(self, polygon: str, group: str = "all", where: str = "") -> Answer:
        """Return images of some particles in a polygon, see `montage.montage`."""
        rows = self._inside(polygon, group, where)
        with self._computing:
            return montage(self.run, evenly(torch.from_numpy(rows), _IMAGES))

    def _inside(self, polygon: str, group: str, where: str) -> np.ndarray:
        """Return the rows of the particles in a polygon."""
        rows = np.flatnonzero(inside_polygon(self.run, polygon) & self._mask(group, where))
        if not len(rows):
            raise InputError("the region contains no particles; draw it around some")
        return rows

    def _conclusion(self) -> Conclusion:
        """Return the conclusion, drawn again if a stage has brought the run's summary up to date."""
        changed = (self.run.path / "analysis" / "summary.json").stat().st_mtime_ns
        with self._concluding:
            if self._concluded is None or self._concluded[0] != changed:
                self._concluded = changed, conclude(self.run)
            return self._concluded[1]

    def _mask(self, group: str, where: str = "") -> np.ndarray:
        """Return which particles are in a group, and within a range of a column (see `select.within_column`), (n,)."""
        if where:
            column = where.rsplit(":", 2)[0]
            return self._mask(group) & within_column(pd.DataFrame({column: self._values(column)}), where)
        if group not in GROUPS:
            raise InputError(f"unknown group '{group}'; choose one of {', '.join(GROUPS)}")
        if group == "validation":
            return self.validation
        return np.ones(len(self.halves), dtype=bool) if group == "all" else self.halves == int(group[-1])

    def _order(self, group: str, where: str = "") -> np.ndarray:
        """Return the rows of a group in the random order in which they are drawn, the same every time."""
        with self._ordering:
            if (group, where) not in self._orders:
                rows = np.flatnonzero(self._mask(group, where))
                # Of filters, only the last one is asked for again.
                self._orders = {key: order for key, order in self._orders.items() if not key[1]}
                self._orders[group, where] = np.random.default_rng(0).permutation(rows)[:_MAX_POINTS]
            return self._orders[group, where]

    def _values(self, column: str) -> pd.Series:
        for table in (self.table, *self._annotations):
            if column in table:
                return table[column]
        raise InputError(f"there is no column {column}; choose a column of particles.star or of your tables")

    @cached_property
    def _top(self) -> float:
        """Largest density of the mean conformation; 8-bit maps are clipped here."""
        return float(self.models("both").volume(self.coordinates.mean(0)).max())

    def _quantised(self, part: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(part / self._top * 255), 0, 255).astype(np.uint8)

    def _shown(self, volume: np.ndarray, at: np.ndarray, crop: tuple | None = None) -> Answer:
        """Return a volume around the molecule, and the displacement from the mean conformation at its voxels."""
        crop = crop_to_density(volume) if crop is None else crop
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
            "level": contour_level(volume, self._top),
            "displacement_top": top,
            "displacement_rms": float(np.sqrt((sizes**2).mean())),
        }
        return Answer(values, {"density": density, "displacement": displacement})
