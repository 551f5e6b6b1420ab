"""Points or atoms of the consensus frame, displaced by the deformation of every particle or to states."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
import torch

from dynamight_core.analysis.arguments import check_row, parse_numbers
from dynamight_core.analysis.molecule import half_motions
from dynamight_core.analysis.states import read_states, state_coordinates
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_files, atomic_path, check_is_file
from dynamight_core.judging.conclusion import require_motion
from dynamight_core.lock import writes_run
from dynamight_core.options import DisplaceOptions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run
from dynamight_core.structures import ATOMIC, ORIGIN_NAMES, read_structure, zero_of_coordinates

# Points evaluated by a decoder together, and displacements (particles times points) held in memory.
_POINTS = 2**15
_PAIRS = 2**20


@dataclass
class PointSet:
    """Points to displace.

    Parameters
    ----------
    positions
        (m, 3) A in the consensus frame, origin at the centre of the box.
    offset
        (3,) A, subtracted from the coordinates in the file.
    origin
        of the coordinates in the file, see `read_points`.
    structure
        atomic model that the points are atoms of, in order, or None.
    """

    positions: torch.Tensor
    offset: np.ndarray
    origin: str
    structure: gemmi.Structure | None = None

    def __len__(self) -> int:
        return len(self.positions)


def read_points(path: str | Path, run: Run, origin: str = "auto") -> PointSet:
    """Read points from a ``.npy`` array (m, 3) or the atoms of a PDB or mmCIF file's first model.

    Parameters
    ----------
    path
        of the file.
    run
        whose consensus frame the points are in.
    origin
        of the coordinates in the file: "centre" of the box (index box // 2, as everywhere in this program), "corner"
        (first voxel) or "map" (origin in the header of the consensus map). "auto" is "centre" for ``.npy``; for atomic
        models, it is the origin that places the atoms in most density.

    Raises
    ------
    InputError
        if the file cannot be read, holds no points, or its points are not finite or outside the box.
    """
    path = Path(path)
    check_is_file(path, "points", "give a .npy, .pdb or .cif file")
    structure = None
    if path.suffix.lower() == ".npy":
        positions = _read_array(path)
    elif path.suffix.lower() in ATOMIC:
        structure = read_structure(path)
        positions = np.array([found.atom.pos.tolist() for found in structure[0].all()])
    else:
        raise InputError(f"points {path} have an unknown file type; give a .npy, .pdb or .cif file")
    if not np.isfinite(positions).all():
        raise InputError(f"points {path} contain NaN or infinite values; give finite coordinates in A")
    box, pixel_size = run.particles.box, run.particles.pixel_size
    if origin == "auto" and structure is None:
        origin = "centre"
    origin, offset = zero_of_coordinates(positions, origin, run.config.inputs.map, box, pixel_size)
    positions = positions - offset
    if (np.abs(positions) > box * pixel_size / 2).any(1).mean() > 0.1:
        raise InputError(
            f"points {path} are outside the box of {box * pixel_size:.0f} A; check that they are in A and in "
            "the frame of the consensus map, or set --origin"
        )
    return PointSet(torch.from_numpy(positions.astype(np.float32)), offset, origin, structure)


class Displacer:
    """Displaces fixed points by the deformations of particles, each from its own half-set's decoder.

    Input and output are in the consensus frame; see `HalfModel.consensus_evaluator`.

    Parameters
    ----------
    run
        finished and summarised.
    positions
        (m, 3) A in the consensus frame.
    """

    def __init__(self, run: Run, positions: torch.Tensor):
        self.run, self.positions = run, positions
        self.halves = np.asarray(run.halves)
        with torch.no_grad():
            self._evaluators = [
                [model.consensus_evaluator(part.to(model.gaussians.positions)) for part in positions.split(_POINTS)]
                for model in run.models
            ]

    @torch.no_grad()
    def of_particles(self, rows: np.ndarray) -> torch.Tensor:
        """Return the (b, m, 3) positions (A) of the points in (b,) particles, rows from 0."""
        moved = torch.empty(len(rows), len(self.positions), 3)
        for index, model in enumerate(self.run.models):
            mine = np.flatnonzero(self.halves[rows] == index + 1)
            if not len(mine):
                continue
            latents = self.run.latents[index][torch.from_numpy(rows[mine])].to(model.gaussians.positions)
            parts = [evaluate(latents).cpu() for evaluate in self._evaluators[index]]
            moved[torch.from_numpy(mine)] = self.positions + torch.cat(parts, 1)
        return moved

    @torch.no_grad()
    def at_state(self, coordinates) -> torch.Tensor:
        """Return the (m, 3) positions (A) at coordinates along the motions (A rms), averaged over both half-sets.

        Coordinates omitted at the end are zero; more than the run has motions raise `InputError`.
        """
        coordinates = state_coordinates(self.run, coordinates)
        total = torch.zeros(len(self.positions), 3)
        for mean, fields in self._motions:
            factors = torch.as_tensor(coordinates, dtype=fields.dtype, device=fields.device)
            total += (mean + torch.tensordot(factors, fields, 1)).cpu() / 2
        return self.positions + total

    @cached_property
    def _motions(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Principal motions at the points, from both half-sets' decoders; see `half_motions`."""
        return [half_motions(self.run, half, self.positions) for half in (1, 2)]

    def chunks(self, rows: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield `of_particles` for all rows in order, a bounded number at a time."""
        size = max(1, _PAIRS // max(1, len(self.positions)))
        for start in range(0, len(rows), size):
            yield self.of_particles(rows[start : start + size])


@writes_run
def displace(
    run: Run, points: str | Path, out: str | Path, options: DisplaceOptions | None = None, reporter: Reporter = PRINT
) -> list[Path]:
    """Displace points or an atomic model by the deformation of each particle, or to states.

    The ``.npz`` holds `positions` (n, m, 3) float32 and `points` (m, 3) float32 (as given), in A and with the origin of
    the points' file. For particles it also holds `half` (n,) int64, the half-set whose decoder moved them, and `rows`
    (n,) int64, rows of particles.star from 0; for states, `coordinates` (n, K) float64, A rms. It is written in pieces
    and need not fit in memory. Atomic models are written beside it, as ``<out>_particle<row>.cif``,
    ``<out>_state.cif`` and, for states of a table, ``<out>_<name>.cif``.

    Parameters
    ----------
    run
        finished and summarised.
    points
        ``.npy``, ``.pdb`` or ``.cif`` file, see `read_points`.
    out
        path of the ``.npz``.
    options
        which particles or states.
    reporter
        takes lines for the user, and progress.

    Returns
    -------
    list
        all files written.

    Raises
    ------
    InputError
        if points, rows or states cannot be used, or the motion is not supported and `options.use_unsupported_motion`
        not set.
    """
    options = options or DisplaceOptions()
    out = Path(out)
    if out.suffix != ".npz":
        raise InputError(f"--out is {out}; give a name that ends in .npz")
    check_outputs([out], [*run.files(), points, options.states], "--out")
    point_set = read_points(points, run, options.origin)
    require_motion(run, options.use_unsupported_motion, reporter)
    if point_set.structure is not None:
        reporter.say(f"Coordinate origin of {points}: {ORIGIN_NAMES[point_set.origin]} (--origin).")
    if options.states is not None:
        if options.particles is not None or options.state is not None or options.models:
            raise InputError("--states cannot be combined with --particles, --models or --state; omit them")
        return _displace_to_states(run, point_set, out, *read_states(options.states, run), reporter)
    n = len(run.halves)
    rows = None if options.particles is None else parse_numbers(options.particles, "--particles", int)
    state = None if options.state is None else state_coordinates(run, parse_numbers(options.state, "--state"))
    for row in rows or []:
        check_row(row, n)
    if (state is not None or options.models) and point_set.structure is None:
        raise InputError(
            f"--state and --models need an atomic model, but --points is {points}; give a .pdb or .cif file"
        )
    if options.models and not rows:
        raise InputError("--models needs --particles; name the particles to write models for")
    chosen = np.arange(n) if rows is None else np.array(rows) - 1
    displacer = Displacer(run, point_set.positions)
    labels = {"half": displacer.halves[chosen].astype(np.int64), "rows": chosen.astype(np.int64)}
    targets: dict[str, torch.Tensor] = {}
    if options.models and rows:
        targets |= {f"particle{row}": displacer.of_particles(np.array([row - 1]))[0] for row in rows}
    if state is not None:
        targets["state"] = displacer.at_state(state)
    written = _write_all(out, point_set, displacer.chunks(chosen), len(chosen), labels, targets, reporter)
    reporter.say(f"Positions of {len(point_set)} points in {len(chosen)} particles: {out}.")
    for path in written[1:]:
        reporter.say(f"Displaced model: {path}.")
    return written


def write_model(path: Path, point_set: PointSet, moved: torch.Tensor) -> None:
    """Write the atomic model as mmCIF, with its atoms at (m, 3) `moved` (A, origin at the centre of the box)."""
    assert point_set.structure is not None
    structure = point_set.structure.clone()
    while len(structure) > 1:
        del structure[1]
    for found, position in zip(structure[0].all(), moved.double().numpy() + point_set.offset, strict=True):
        found.atom.pos = gemmi.Position(*position)
    structure.setup_entities()
    with atomic_path(path) as temporary:
        structure.make_mmcif_document().write_file(str(temporary))


def _displace_to_states(
    run: Run, point_set: PointSet, out: Path, labels: list[str], coordinates: np.ndarray, reporter: Reporter
) -> list[Path]:
    """Write points, and the atomic model if they are its atoms, at s states; return the paths."""
    displacer = Displacer(run, point_set.positions)
    moved = [displacer.at_state(row) for row in coordinates]
    models = {} if point_set.structure is None else dict(zip(labels, moved, strict=True))
    chunks, values = (part[None] for part in moved), {"coordinates": coordinates}
    written = _write_all(out, point_set, chunks, len(moved), values, models, reporter)
    reporter.say(f"Positions of {len(point_set)} points at {len(moved)} states: {out}.")
    if models:
        reporter.say(f"Displaced models: {out.with_name(f'{out.stem}_*.cif')}.")
    return written


def _write_all(
    out: Path,
    point_set: PointSet,
    chunks: Iterator[torch.Tensor],
    n: int,
    labels: dict[str, np.ndarray],
    models: dict[str, torch.Tensor],
    reporter: Reporter,
) -> list[Path]:
    """Write what `_write_npz` does, and the atomic model at (m, 3) positions by name; return all paths."""
    paths = [out.with_name(f"{out.stem}_{name}.cif") for name in models]
    with atomic_files(*paths, out) as folder:
        _write_npz(folder / out.name, point_set, chunks, n, labels, reporter)
        for path, moved in zip(paths, models.values(), strict=True):
            write_model(folder / path.name, point_set, moved)
    return [out, *paths]


def _write_npz(
    out: Path,
    point_set: PointSet,
    chunks: Iterator[torch.Tensor],
    n: int,
    labels: dict[str, np.ndarray],
    reporter: Reporter,
) -> None:
    """Write n sets of positions (A, origin at the centre of the box), the points as given, and arrays of `labels`."""
    offset = torch.from_numpy(point_set.offset.astype(np.float32))
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, values in (labels | {"points": (point_set.positions + offset).numpy()}).items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, values)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, len(point_set), 3)}
        # numpy.savez needs the whole array, which may not fit in memory.
        with archive.open("positions.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            done = 0
            for moved in chunks:
                file.write((moved + offset).numpy().astype("<f4").tobytes())
                done += len(moved)
                reporter.progress("displacing points", done, n)


def _read_array(path: Path) -> np.ndarray:
    try:
        positions = np.load(path, allow_pickle=False)
    except Exception as error:  # Libraries have many exceptions for damaged files.
        raise InputError(f"points {path} cannot be read as .npy ({error}); give a NumPy array") from error
    if positions.dtype.kind not in "fiu" or positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise InputError(f"points {path} have shape {positions.shape}; give numbers of shape (points, 3)")
    return positions.astype(float)
