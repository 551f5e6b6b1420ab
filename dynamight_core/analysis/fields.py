"""Deformation fields of a run as files: of principal motions, states and particles, with their uncertainty."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.arguments import check_motion, check_row, parse_numbers
from dynamight_core.analysis.displace import read_points
from dynamight_core.analysis.exports import errors_from_points, write_arrow_files
from dynamight_core.analysis.field_files import DeformationField, Reference, cubic_grid
from dynamight_core.analysis.molecule import all_gaussians, half_motions
from dynamight_core.analysis.states import read_states, state_coordinates
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError
from dynamight_core.files import header_origin, write_table
from dynamight_core.imaging.masks import raised_cosine
from dynamight_core.judging.conclusion import require_motion
from dynamight_core.judging.errors import displacement_errors
from dynamight_core.options import FieldsOptions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, whole_set

# Distance from the Gaussians (A) up to which a field on a grid is complete, and width of the edge beyond. The decoder
# was not trained farther out.
REACH, EDGE = 8.0, 8.0
# Points evaluated by a decoder together.
_POINTS = 2**15


class FieldMaker:
    """Makes fields of a run on common points.

    Parameters
    ----------
    run
        finished and summarised.
    points
        (m, 3) A in the consensus frame, or None for a grid over the box.
    spacing
        of the grid, A.
    """

    def __init__(self, run: Run, points: np.ndarray | None = None, spacing: float = 4.0):
        self.run, self._points = run, points
        x, y, z = map(float, header_origin(run.config.inputs.map))
        self.reference = Reference(run.box, run.pixel_size, (x, y, z), str(run.config.inputs.map))
        if points is None:
            grid, self._n, self._spacing = cubic_grid(run.box * run.pixel_size, spacing)
            near, weight = around_molecule(run, grid)
            self._near, self._weight, positions = near, weight, grid[near]
            self._corner: np.ndarray = grid[0]
        else:
            self._near, self._weight = np.ones(len(points), bool), np.ones(len(points), np.float32)
            positions, self._spacing, self._corner = points, 0.0, np.zeros(3)
        self._positions = torch.from_numpy(positions.astype(np.float32))
        self._motions: list[tuple[np.ndarray, np.ndarray]] | None = None
        # The error is known at the common points of the molecule.
        self._errors_from = errors_from_points(run.motions.points.numpy(), positions)

    def of_motion(self, motion: int) -> DeformationField:
        """Return the field of a principal motion (from 1), by one standard deviation of the particles."""
        check_motion(motion, self.run.motions.coordinates.shape[1])
        amount = float(self.run.motions.coordinates[:, motion - 1].std())
        coordinates = np.zeros(self.run.motions.coordinates.shape[1])
        coordinates[motion - 1] = amount
        halves = [amount * fields[motion - 1] for _, fields in self._half_motions()]
        return self._field(f"motion{motion}", "motion", halves, coordinates, self._point_error())

    def at_state(self, coordinates, name: str) -> DeformationField:
        """Return the field from the consensus to the state at coordinates (A rms), averaged over the half-sets."""
        coordinates = state_coordinates(self.run, coordinates)
        halves = [mean + np.tensordot(coordinates, fields, 1) for mean, fields in self._half_motions()]
        return self._field(name, "state", halves, coordinates, self._point_error())

    @torch.no_grad()
    def of_particle(self, row: int) -> DeformationField:
        """Return the field of a particle (row of particles.star from 1) by its own half-set's decoder."""
        run = self.run
        check_row(row, len(run.halves))
        halves = []
        for index, model in enumerate(run.models):
            latent = run.latents[index][row - 1 : row].to(model.gaussians.positions)
            parts = [
                model.consensus_evaluator(part.to(latent))(latent)[0].cpu() for part in self._positions.split(_POINTS)
            ]
            halves.append(torch.cat(parts).numpy())
        error = displacement_errors(run, run.motions.points, torch.tensor([row - 1]))[0].numpy()
        coordinates = run.motions.coordinates[row - 1].double().numpy()
        own = int(run.halves[row - 1]) - 1
        return self._field(f"particle{row}", "particle", halves, coordinates, error, own, row)

    def _half_motions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return mean displacement (p, 3) and motions (K, p, 3) of both half-sets at the points."""
        if self._motions is None:
            found = [half_motions(self.run, half, self._positions) for half in (1, 2)]
            self._motions = [(mean.numpy(), fields.numpy()) for mean, fields in found]
        return self._motions

    def _point_error(self) -> np.ndarray:
        return np.asarray(self.run.summary["point_error"])

    def _field(
        self,
        name: str,
        kind: str,
        halves: list[np.ndarray],
        coordinates: np.ndarray,
        point_error: np.ndarray,
        own: int | None = None,
        particle: int = 0,
    ) -> DeformationField:
        """Return the field of both half-sets' (p, 3) displacements, their mean or that of one's `own`."""
        shift = (halves[0] + halves[1]) / 2 if own is None else halves[own]
        error = self._errors_from(point_error)
        difference = np.linalg.norm(halves[0] - halves[1], axis=-1)
        arrays = [shift * self._weight[:, None], error, difference * self._weight]
        placed = [self._placed(part) for part in arrays]
        return DeformationField(
            displacement=placed[0],
            reference=self.reference,
            error=placed[1],
            difference=placed[2],
            name=name,
            kind=kind,
            coordinates=[float(value) for value in coordinates],
            particle=particle,
            run=str(self.run.path),
            points=self._points,
            corner=self._corner,
            spacing=self._spacing,
        )

    def _placed(self, values: np.ndarray) -> np.ndarray:
        """Return values at the points as an array of the grid, 0 far from the molecule; as they are without a grid."""
        if self._points is not None:
            return values.astype(np.float32)
        everywhere = np.zeros((len(self._near), *values.shape[1:]), np.float32)
        everywhere[self._near] = values
        return everywhere.reshape(self._n, self._n, self._n, *values.shape[1:])


def around_molecule(run: Run, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of (g, 3) points (A) lie near the Gaussians of a run, (g,) bool, and the weight of the field there.

    The weight is 1 up to `REACH` from the Gaussians, and 0 beyond another `EDGE`.
    """
    distance = cKDTree(all_gaussians(run)).query(grid, distance_upper_bound=REACH + EDGE)[0]
    near = np.isfinite(distance)
    return near, raised_cosine((distance[near] - REACH) / EDGE).astype(np.float32)


@whole_set("fields")
def write_fields(
    run: Run, options: FieldsOptions | None = None, out: str | Path | None = None, reporter: Reporter = PRINT
) -> list[Path]:
    """Write deformation fields, each as .npz, as .mrc with three components (on a grid) and as arrows.

    Parameters
    ----------
    run
        finished and summarised.
    options
        which fields, and on which points.
    out
        folder; RUN/analysis/fields if None.
    reporter
        takes lines for the user, and progress.

    Returns
    -------
    list
        paths of the .npz files. Beside them is fields.csv: name, file, kind, particle, coordinates (A rms), and over
        the points of the molecule the displacement, its error and the difference between the half-sets, A rms.

    Raises
    ------
    InputError
        if there is no such motion, state or particle, or the motion is not supported and
        `options.use_unsupported_motion` not set.
    """
    o = options or FieldsOptions()
    out = run.path / "analysis" / "fields" if out is None else Path(out)
    wanted = _wanted(run, o)
    check_outputs([out / "fields.csv"], [*run.files(), o.points, o.states], "--out")
    require_motion(run, o.use_unsupported_motion, reporter)
    points = None if o.points is None else read_points(o.points, run, o.origin).positions.double().numpy()
    maker = FieldMaker(run, points, o.spacing)
    # Numbers and arrows are on the points of the molecule, whatever the fields are on.
    molecule = FieldMaker(run, run.motions.points.double().numpy())
    written, rows = [], []
    for done, (kind, name, what) in enumerate(wanted, 1):
        found, here = (_make(each, kind, name, what) for each in (maker, molecule))
        written.append(found.write(out / name)[0])
        assert here.points is not None and here.error is not None and here.difference is not None
        centre = maker.reference.centre
        write_arrow_files(here.points + centre, here.displacement, here.error, out / f"{name}_arrows", title=name)
        sizes = np.linalg.norm(here.displacement, axis=-1), here.error, here.difference
        row: dict[str, str | float] = {
            "field": name,
            "file": written[-1].name,
            "kind": kind,
            "particle": str(found.particle or ""),
        }
        row |= {f"motion{k}_A": value for k, value in enumerate(found.coordinates, 1)}
        names = ("displacement_rms_A", "error_rms_A", "difference_of_halves_rms_A")
        row |= {key: float(np.sqrt(np.square(v).mean())) for key, v in zip(names, sizes, strict=True)}
        rows.append(row)
        reporter.progress("writing fields", done, len(wanted))
    write_table(out / "fields.csv", pd.DataFrame(rows), "%.4f")
    reporter.say(f"{len(rows)} deformation fields, as .npz and {'points' if points is not None else '.mrc'}: {out}.")
    return written


def _wanted(run: Run, options: FieldsOptions) -> list[tuple[str, str, object]]:
    """Return kind, name and motion, coordinates or row of the fields that the options name."""
    o, n_motions = options, run.motions.coordinates.shape[1]
    others = bool(o.at or o.states or o.particles)
    number = (0 if others else n_motions) if o.motions is None else min(o.motions, n_motions)
    wanted: list[tuple[str, str, object]] = [("motion", f"motion{k}", k) for k in range(1, number + 1)]
    for k, text in enumerate(o.at, 1):
        wanted.append(("state", f"state{k:02d}", state_coordinates(run, parse_numbers(text, "--at"))))
    if o.states:
        labels, coordinates = read_states(o.states, run)
        wanted += [("state", label, row) for label, row in zip(labels, coordinates, strict=True)]
    for row in parse_numbers(o.particles, "--particles", int) if o.particles else []:
        check_row(row, len(run.halves))
        wanted.append(("particle", f"particle{row}", row))
    names = [name for _, name, _ in wanted]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InputError(f"two fields are called {min(repeated)}; name each once")
    if not wanted:
        raise InputError("no field is named; set --motions to 1 or more, --at, --states or --particles")
    return wanted


def _make(maker: FieldMaker, kind: str, name: str, what) -> DeformationField:
    if kind == "motion":
        return maker.of_motion(what)
    return maker.at_state(what, name) if kind == "state" else maker.of_particle(what)


def exact_displacements(run: Run, found: DeformationField, points: np.ndarray) -> np.ndarray:
    """Return the (m, 3) displacements (A) of a field of this run at (m, 3) points (A), evaluated there.

    Raises
    ------
    InputError
        if the field is of another program, or of another run.
    """
    k = run.motions.coordinates.shape[1]
    if found.kind == "imported" or len(found.coordinates) != k:
        raise InputError(f"the field {found.name} is not of the run {run.path}; omit --run to interpolate it")
    motion = int(np.abs(found.coordinates).argmax()) + 1
    what = {"motion": motion, "state": found.coordinates, "particle": found.particle}[found.kind]
    return _make(FieldMaker(run, points), found.kind, found.name, what).displacement
