"""A deformation field as an object and as files: NumPy (.npz), and MRC with three components. See docs/fields.md."""

import json
import re
import zipfile
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import mrcfile
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, check_is_file, header_origin, read_map
from dynamight_core.imaging.geometry import grid_points

FORMAT = 1
# Distance (A) from a point of a field up to which another point is the same.
_SAME_POINT = 0.02
# The label in the header of an MRC file that relates it to the reference map.
_LABEL = "DYNAMIGHT FIELD box={} pixel={:.7g} origin={:.7g},{:.7g},{:.7g}"
_LABEL_PATTERN = re.compile(r"DYNAMIGHT FIELD box=(\d+) pixel=(\S+) origin=([^,\s]+),([^,\s]+),([^,\s]+)")


@dataclass
class Reference:
    """The map whose frame a field is in.

    Parameters
    ----------
    box, pixel_size
        voxels and A.
    origin
        (x, y, z) of its first voxel according to its header, A.
    path
        of the map, as the run names it.
    """

    box: int
    pixel_size: float
    origin: tuple[float, float, float]
    path: str = ""

    @classmethod
    def of_map(cls, path: str | Path) -> "Reference":
        """Return the reference that a map is."""
        volume, pixel_size = read_map(path)
        x, y, z = map(float, header_origin(path))
        return cls(len(volume), pixel_size, (x, y, z), str(path))

    @property
    def centre(self) -> np.ndarray:
        """(x, y, z) of the centre of the box in coordinates of the map's header, A."""
        return np.array(self.origin) + self.box // 2 * self.pixel_size


@dataclass
class DeformationField:
    """Displacements from the consensus frame to a conformation, or along a motion.

    Points are in the consensus frame, with the origin at the centre of the box.

    Parameters
    ----------
    displacement
        (nz, ny, nx, 3) or (m, 3) displacements x, y, z, A.
    reference
        map of the frame.
    corner, spacing
        (x, y, z) of the first point of a grid, and its spacing, A.
    points
        (m, 3) A, if the field is not on a grid.
    error
        (nz, ny, nx) or (m,) standard error of the displacement, A; None if unknown.
    difference
        of the same shape: length of the difference between the fields of both half-sets, A; None if unknown.
    name
        of its files.
    kind
        "motion", "state", "particle" or "imported".
    coordinates
        (K,) along the principal motions, A rms; empty if unknown.
    particle
        its row in particles.star, from 1; 0 if it is not of a particle.
    run
        folder that it is from.
    """

    displacement: np.ndarray
    reference: Reference
    corner: np.ndarray = field(default_factory=lambda: np.zeros(3))
    spacing: float = 0.0
    points: np.ndarray | None = None
    error: np.ndarray | None = None
    difference: np.ndarray | None = None
    name: str = "field"
    kind: str = "imported"
    coordinates: list[float] = field(default_factory=list)
    particle: int = 0
    run: str = ""

    def positions(self) -> np.ndarray:
        """Return the (m, 3) points of the field, A, in the order of its flattened displacements."""
        if self.points is not None:
            return self.points
        nz, ny, nx = self.displacement.shape[:3]
        z, y, x = np.meshgrid(np.arange(nz), np.arange(ny), np.arange(nx), indexing="ij")
        return self.corner + np.stack([x, y, z], -1).reshape(-1, 3) * self.spacing

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the (m, 3) displacements (A) at (m, 3) points (A): on a grid by cubic splines, 0 outside.

        Raises
        ------
        InputError
            if the field is on points, and one of these is not among them.
        """
        if self.points is None:
            where = ((points - self.corner) / self.spacing)[:, ::-1].T
            read = [ndimage.map_coordinates(part, where, prefilter=False, cval=0.0) for part in self._splines]
            return np.stack(read, -1)
        distance, nearest = cKDTree(self.points).query(points)
        if distance.max(initial=0.0) > _SAME_POINT:
            raise InputError(
                f"the field {self.name} is on points, and {(distance > _SAME_POINT).sum()} of {len(points)} atoms are "
                "not among them; write the field on a grid (without --points), or for this model"
            )
        return self.displacement[nearest]

    @cached_property
    def _splines(self) -> list[np.ndarray]:
        return [ndimage.spline_filter(self.displacement[..., axis].astype(float), 3) for axis in range(3)]

    def write(self, stem: Path) -> list[Path]:
        """Write STEM.npz and, of a field on a grid, STEM.mrc; return the paths."""
        paths = [stem.with_name(f"{stem.name}.npz")]
        self._write_npz(paths[0])
        if self.points is None:
            paths.append(stem.with_name(f"{stem.name}.mrc"))
            self._write_mrc(paths[1])
        return paths

    def _write_npz(self, path: Path) -> None:
        about = {"format": FORMAT, "name": self.name, "kind": self.kind, "coordinates": list(self.coordinates)}
        about |= {"particle": self.particle, "run": self.run, "reference": asdict(self.reference)}
        arrays: dict[str, np.ndarray] = {"displacement": self.displacement.astype(np.float32)}
        arrays |= {
            name: v.astype(np.float32) for name in ("error", "difference") if (v := getattr(self, name)) is not None
        }
        if self.points is None:
            arrays |= {"corner": np.asarray(self.corner, float), "spacing": np.array(self.spacing)}
        else:
            arrays["points"] = self.points.astype(np.float64)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, about=np.array(json.dumps(about)), **arrays)

    def _write_mrc(self, path: Path) -> None:
        with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as mrc:
            # A stack of three volumes: the displacements along x, y and z.
            mrc.set_data(np.ascontiguousarray(np.moveaxis(self.displacement, -1, 0), dtype=np.float32))
            mrc.voxel_size = self.spacing
            mrc.header.origin = tuple(self.corner + self.reference.centre)
            mrc.header.label[0] = _LABEL.format(self.reference.box, self.reference.pixel_size, *self.reference.origin)
            mrc.header.label[1] = "Displacement along x, y, z (A), one volume each. See docs/fields.md"
            mrc.header.nlabl = 2


def read_field(path: str | Path, reference: str | Path | None = None) -> DeformationField:
    """Read a field from an .npz or .mrc file that `DeformationField.write` wrote, or from another program's MRC file.

    Parameters
    ----------
    path
        of the file. An MRC file holds three volumes, displacements along x, y and z in A; one without our label is
        taken to be on the voxels of the reference map.
    reference
        path of the reference map, if it is elsewhere, or the file does not describe it.

    Raises
    ------
    InputError
        if the file is not a field.
    """
    path = Path(path)
    check_is_file(path, "field", "give an .npz or .mrc file of dynamight fields")
    read = {".npz": _read_npz, ".mrc": _read_mrc}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"field {path} has an unknown file type; give an .npz or .mrc file")
    found = read(path, None if reference is None else Reference.of_map(reference))
    if not np.isfinite(found.displacement).all():
        raise InputError(f"field {path} has NaN or infinite displacements; write it again")
    return found


def _read_npz(path: Path, reference: Reference | None) -> DeformationField:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(str(arrays.pop("about")))
        if about["format"] != FORMAT:
            raise InputError(f"field {path} has format {about['format']}; install the version that wrote it")
        spacing = float(arrays.pop("spacing", 0.0))
        found = DeformationField(
            reference=reference or Reference(**about["reference"]),
            spacing=spacing,
            **{name: about[name] for name in ("name", "kind", "coordinates", "particle", "run")},
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"field {path} cannot be read ({error}); give a file of dynamight fields") from error
    expected = 2 if found.points is not None else 4
    if found.displacement.ndim != expected or found.displacement.shape[-1] != 3:
        raise InputError(f"field {path} has displacements of shape {found.displacement.shape}; write it again")
    return found


def _read_mrc(path: Path, reference: Reference | None) -> DeformationField:
    try:
        with mrcfile.open(path, permissive=True) as mrc:
            values = None if mrc.data is None else np.array(mrc.data, dtype=np.float32)
            labels = " ".join(label.decode(errors="replace") for label in mrc.header.label)
            spacing = float(mrc.voxel_size.x)
    except (ValueError, OSError) as error:
        raise InputError(f"field {path} cannot be read as MRC ({error}); give three volumes in one file") from error
    if values is not None and values.ndim == 3 and len(values) % 3 == 0:
        # Three volumes one after the other, from a program that does not mark stacks.
        values = values.reshape(3, -1, *values.shape[1:])
    if values is None or values.ndim != 4 or len(values) != 3:
        raise InputError(f"field {path} has not three components; give displacements along x, y and z as three volumes")
    if not spacing > 0:
        raise InputError(f"field {path} has no voxel size in its header; write it there")
    described = _LABEL_PATTERN.search(labels)
    first = header_origin(path)
    if described:
        box, pixel_size, *origin = described.groups()
        x, y, z = map(float, origin)
        own = Reference(int(box), float(pixel_size), (x, y, z))
    else:
        own = reference or Reference(values.shape[-1], spacing, (float(first[0]), float(first[1]), float(first[2])))
        first = np.array(own.origin)
    return DeformationField(
        displacement=np.ascontiguousarray(np.moveaxis(values, 0, -1)),
        reference=reference or own,
        corner=first - own.centre,
        spacing=spacing,
        name=path.stem,
    )


def cubic_grid(extent: float, spacing: float) -> tuple[np.ndarray, int, float]:
    """Return the (n^3, 3) points of a grid over a box, A, x running fastest; n, and the spacing that fits the box."""
    n = max(2, round(extent / spacing)) + 1
    step = extent / (n - 1)
    return grid_points((np.arange(n) - (n - 1) / 2) * step), n, step
