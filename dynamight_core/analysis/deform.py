"""A deformation field applied to a map or to an atomic model."""

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from dynamight_core.analysis.displace import PointSet, write_model
from dynamight_core.analysis.field_files import DeformationField, Reference, read_field
from dynamight_core.analysis.fields import exact_displacements
from dynamight_core.analysis.pushed import sources
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_files, atomic_path, header_origin, read_map, write_map
from dynamight_core.options import DeformOptions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run
from dynamight_core.structures import ATOMIC, ORIGIN_NAMES, read_structure, zero_of_coordinates


def deform(
    field: str | Path,
    source: str | Path,
    out: str | Path,
    options: DeformOptions | None = None,
    reporter: Reporter = PRINT,
) -> Path:
    """Apply a deformation field to a map or to an atomic model.

    Parameters
    ----------
    field
        .npz or .mrc file, see `read_field`.
    source
        .mrc map, or .pdb or .cif model, in the frame of the field's reference map. The origin in the header says where
        a map lies.
    out
        .mrc or .cif. Beside a model, an .npz holds `positions` (1, m, 3) and `points` (m, 3) as given, A.
    options
        how it is applied.
    reporter
        takes lines for the user.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        if a file cannot be used, or `options.run` is given for a map.
    """
    o, source, out = options or DeformOptions(), Path(source), Path(out)
    check_outputs([out], [field, source, o.map], "--out")
    found = read_field(field, o.map)
    is_model = source.suffix.lower() in ATOMIC
    if not is_model and source.suffix.lower() not in (".mrc", ".map", ".ccp4"):
        raise InputError(f"{source} has an unknown file type; give a map (.mrc) or an atomic model (.pdb, .cif)")
    wanted = ".cif" if is_model else ".mrc"
    if out.suffix.lower() != wanted:
        raise InputError(f"--out is {out}; give a name that ends in {wanted}")
    if is_model:
        _deform_model(found, source, out, o, reporter)
    else:
        _deform_map(found, source, out, o)
    reporter.say(f"{source} deformed by {found.name}: {out}.")
    return out


def _deform_model(found: DeformationField, source: Path, out: Path, options: DeformOptions, reporter: Reporter) -> None:
    structure = read_structure(source)
    positions = np.array([atom.atom.pos.tolist() for atom in structure[0].all()])
    origin, offset = _zero(found.reference, positions, options.origin)
    reporter.say(f"Coordinate origin of {source}: {ORIGIN_NAMES[origin]} (--origin).")
    points = positions - offset
    if options.run is None:
        shift = found.at(points)
    else:
        shift = exact_displacements(Run(options.run), found, points)
    moved = torch.from_numpy(points + options.scale * shift)
    with atomic_files(out.with_suffix(".npz"), out) as folder:
        write_model(folder / out.name, PointSet(torch.from_numpy(points), offset, origin, structure), moved)
        with atomic_path(folder / f"{out.stem}.npz") as temporary:
            np.savez(temporary, positions=(moved.numpy() + offset)[None], points=positions)
    sizes = np.linalg.norm(options.scale * shift, axis=1)
    reporter.say(f"Displacement of {len(sizes)} atoms: {np.sqrt(np.square(sizes).mean()):.2f} A rms.")


def _zero(reference: Reference, positions: np.ndarray, origin: str) -> tuple[str, np.ndarray]:
    """Return the origin of a model's (m, 3) coordinates (A) in the reference map, and the offset to subtract."""
    known = {"corner": np.full(3, reference.box // 2 * reference.pixel_size), "centre": np.zeros(3)}
    known["map"] = reference.centre
    if origin in known:
        return origin, known[origin]
    if not Path(reference.path).is_file():
        raise InputError(
            f"the field's reference map '{reference.path}' is not there, to find the origin of the atomic model; set "
            "--map, or --origin to centre, corner or map"
        )
    return zero_of_coordinates(positions, origin, reference.path, reference.box, reference.pixel_size)


def _deform_map(found: DeformationField, source: Path, out: Path, options: DeformOptions) -> None:
    if options.run is not None:
        raise InputError("--run evaluates the field at the atoms of a model; omit it for a map")
    if found.points is not None:
        raise InputError(f"the field {found.name} is on points; write it on a grid (without --points) to deform a map")
    volume, pixel_size = read_map(source)
    first = header_origin(source)
    # Of the first voxel from the first point of the grid, in voxels of the map, z, y, x.
    start = ((first - found.reference.centre - found.corner) / pixel_size)[::-1].reshape(3, 1, 1, 1)
    shift = options.scale * found.displacement[..., ::-1] / pixel_size

    def displacement(voxels: np.ndarray) -> np.ndarray:
        where = (voxels + start) * (pixel_size / found.spacing)
        return np.stack([ndimage.map_coordinates(shift[..., axis], where, order=1, cval=0.0) for axis in range(3)])

    voxels = np.stack(np.meshgrid(*[np.arange(len(volume), dtype=float)] * 3, indexing="ij"))
    moved = ndimage.map_coordinates(volume, sources(voxels, displacement), order=3, mode="nearest")
    write_map(out, moved.astype(np.float32), pixel_size, first)
