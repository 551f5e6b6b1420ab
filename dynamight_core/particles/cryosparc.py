"""Particles of cryoSPARC: .cs files as RELION's tables, and results as .cs files that cryoSPARC imports.

A .cs file is a numpy array with a record per particle, whose fields have names such as ``alignments3D/pose``. A job
writes the fields that it changed, and the others in passthrough files, matched by ``uid``. docs/conventions.md has the
conversion of poses and aberrations.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_files, atomic_path
from dynamight_core.imaging.ctf import electron_wavelength
from dynamight_core.imaging.poses import euler_angles, rotmat_to_rotvec, rotvec_to_rotmat

# One record per particle.
Records = NDArray[Any]

# Fields ctf/NAME_A with their number of terms.
_ABERRATIONS = {"tilt": 2, "trefoil": 2, "tetra": 4}
_MAGIC, _COMPRESSED = b"\x93NUMPY", b"\x95CSDAT"
_ELSEWHERE = "or name the file that has it with --passthrough"
_POSE_CURE, _IMAGE_CURE = (
    f"give the particles of a 3D refinement, {_ELSEWHERE}",
    f"give extracted particles, {_ELSEWHERE}",
)
_CTF_CURE = f"give particles with estimated CTFs, {_ELSEWHERE}"
_NEEDED = {"uid": "give a .cs file as cryoSPARC wrote it"}
_NEEDED |= {f"blob/{name}": _IMAGE_CURE for name in ("path", "idx", "shape", "psize_A")}
_NEEDED |= {f"alignments3D/{name}": _POSE_CURE for name in ("pose", "shift")}
_NEEDED |= {f"ctf/{name}": _CTF_CURE for name in "accel_kv cs_mm amp_contrast df1_A df2_A df_angle_rad".split()}
# Index of each term in rlnOddZernike and rlnEvenZernike, by degree and order.
_ODD = {(1, -1): 0, (1, 1): 1, (3, -3): 2, (3, -1): 3, (3, 1): 4, (3, 3): 5}
_EVEN = {(0, 0): 0, (2, -2): 1, (2, 0): 2, (2, 2): 3, (4, -4): 4, (4, -2): 5, (4, 0): 6, (4, 2): 7, (4, 4): 8}


def read_records(path: Path, passthrough: Sequence[str | Path] = ()) -> Records:
    """Return the records of a .cs file, with the fields that only its passthrough files have.

    Parameters
    ----------
    path
        of the file.
    passthrough
        files with further fields; if empty, those beside the file whose names contain "passthrough" and that have all
        of its particles, of the same job if the names tell.

    Raises
    ------
    InputError
        if a file cannot be read, or a given passthrough file lacks particles.
    """
    records = _read(path)
    for other in passthrough or _beside(path):
        further = _read(Path(other))
        if "uid" not in _names(records) or "uid" not in _names(further):
            continue
        order = np.argsort(further["uid"], kind="stable")
        place = np.searchsorted(further["uid"], records["uid"], sorter=order)
        at = order[np.minimum(place, len(order) - 1)]
        missing = int((further["uid"][at] != records["uid"]).sum())
        if missing and passthrough:
            raise InputError(
                f"--passthrough {other} lacks {missing} of the {len(records)} particles of {path}; give the "
                "passthrough file of the same job"
            )
        if not missing:
            records = _with_fields(records, {name: further[name][at] for name in _names(further)})
    return records


def relion_tables(path: Path, records: Records) -> dict[str, pd.DataFrame]:
    """Return the tables `optics` and `particles` of records, every value as text.

    Particles that are dark in their images (blob/sign -1) have -1 in the column dynContrast. If all are of one half-set
    (alignments3D/split), there is no rlnRandomSubset.

    Parameters
    ----------
    path
        of the file, for messages.
    records
        of its n particles.

    Raises
    ------
    InputError
        if a field is missing.
    """
    names = _names(records)
    for field, cure in _NEEDED.items():
        if field not in names:
            if field.startswith("alignments3D/") and "alignments3D_multi/pose" in names:
                cure = "its poses are of several classes: refine one class, and give the particles of that job"
            raise InputError(f"{path} has no field {field}; {cure}")
    if not len(records):
        raise InputError(f"{path} has no particles; give a .cs file with particles")
    optics, groups = _optics(path, records)
    pixel_size = records["alignments3D/psize_A" if "alignments3D/psize_A" in names else "blob/psize_A"]
    origins = records["alignments3D/shift"].astype(float) * pixel_size[:, None].astype(float)
    if "ctf/shift_A" in names:
        # A particle at minus its origin is displaced by the phase ramp.
        origins = origins - records["ctf/shift_A"]
    poses = torch.from_numpy(records["alignments3D/pose"].astype(float))
    angles = torch.rad2deg(euler_angles(rotvec_to_rotmat(-poses))).numpy()
    paths = _texts(records["blob/path"])
    images = [f"{index + 1:06d}@{name}" for index, name in zip(records["blob/idx"], paths, strict=True)]
    columns: dict[str, Any] = {"rlnImageName": images}
    columns |= _places(records)
    columns |= {f"rlnAngle{name}": np.round(angles[:, i], 7) for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    columns |= {f"rlnOrigin{name}Angst": np.round(origins[:, i], 7) for i, name in enumerate("XY")}
    columns |= {"rlnDefocusU": records["ctf/df1_A"], "rlnDefocusV": records["ctf/df2_A"]}
    columns["rlnDefocusAngle"] = _degrees(records["ctf/df_angle_rad"])
    if "ctf/phase_shift_rad" in names:
        columns["rlnPhaseShift"] = _degrees(records["ctf/phase_shift_rad"])
    for label, field in (("rlnCtfBfactor", "ctf/bfactor"), ("rlnCtfScalefactor", "ctf/scale")):
        if field in names and (records[field] != (field == "ctf/scale")).any():
            columns[label] = records[field]
    columns["rlnOpticsGroup"] = groups
    split = records["alignments3D/split"] if "alignments3D/split" in names else np.zeros(1)
    if len(np.unique(split)) > 1:
        columns["rlnRandomSubset"] = split.astype(int) + 1
    if "blob/sign" in names and (records["blob/sign"] < 0).any():
        columns["dynContrast"] = np.where(records["blob/sign"] < 0, -1, 1)
    # pyem's label, by which particles are found again in cryoSPARC.
    columns["ucsfUid"] = records["uid"]
    return {"optics": optics, "particles": _as_text(columns)}


def expanded_records(records: Records, matrices: NDArray[Any], copies: NDArray[Any]) -> Records:
    """Return records in the poses of (n, 3, 3) matrices, of (n,) copies from 0 of each image of a symmetric molecule.

    Every record has a uid of its own; sym_expand/src_uid is that of its image, as in cryoSPARC.
    """
    poses = -rotmat_to_rotvec(torch.from_numpy(matrices)).numpy()
    # An odd multiplier gives different uids to different ones.
    uids = records["uid"] + copies.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    replaced = {"alignments3D/pose": poses.astype(np.float32), "uid": uids}
    replaced |= {"sym_expand/src_uid": records["uid"], "sym_expand/idx": copies.astype(np.uint32)}
    return _with_fields(records, {}, replaced)


def write_records(
    path: Path, records: Records, halves: NDArray[Any] | None, stacks: Iterable[Path], columns: dict[str, NDArray[Any]]
) -> None:
    """Write records as a .cs file, with a .csg file beside it for cryoSPARC's job Import Result Group.

    Parameters
    ----------
    path
        of the .cs file.
    records
        of n particles, as they were read. The uids stay.
    halves
        (n,) 1 or 2, for alignments3D/split, which otherwise stays.
    stacks
        n paths of the images; they replace names that are relative to the file that was read.
    columns
        (n,) arrays by name, added as fields ``dynamight/NAME``.
    """
    added = {f"dynamight/{name}": np.asarray(values) for name, values in columns.items()}
    names = records["blob/path"]
    if np.char.startswith(names, b">").any():
        absolute = [str(stack.absolute()).encode() for stack in stacks]
        names = np.where(np.char.startswith(names, b">"), np.array(absolute), names)
    replaced = {"blob/path": names}
    if halves is not None:
        replaced["alignments3D/split"] = (halves - 1).astype(np.uint32)
    out = _with_fields(records, added, replaced)
    prefixes = dict.fromkeys(name.split("/")[0] for name in _names(records) if "/" in name)
    group = {
        "group": {
            "name": "particles",
            "title": path.stem,
            "type": "particle",
            "description": "Particles written by dynamight",
        },
        "results": {
            prefix: {"metafile": f">{path.name}", "num_items": len(out), "type": f"particle.{prefix}"}
            for prefix in prefixes
        },
        "version": "v4.0.0",
    }
    with atomic_files(path, path.with_suffix(".csg")) as folder:
        with atomic_path(folder / path.name) as temporary, open(temporary, "wb") as file:
            np.save(file, out, allow_pickle=False)
        with atomic_path(folder / f"{path.stem}.csg") as temporary:
            temporary.write_text(yaml.safe_dump(group))


def _read(path: Path) -> Records:
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic == _COMPRESSED:
            raise InputError(
                f"{path} is compressed; save it as an uncompressed .cs file with cryosparc-tools, or export the "
                "particles in cryoSPARC"
            )
        if magic != _MAGIC:
            raise InputError(f"{path} is not a .cs file of cryoSPARC; give the file as cryoSPARC wrote it")
        records: Records = np.load(path, allow_pickle=False, max_header_size=1 << 20)  # type: ignore[call-arg]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the .cs file of the particles") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a readable .cs file") from error
    except InputError:
        raise
    except Exception as error:  # Libraries have many exceptions for damaged files.
        raise InputError(f"{path} is damaged ({error}); copy or export it again") from error
    if records.dtype.names is None or records.ndim != 1:
        raise InputError(f"{path} has no records of particles; give a .cs file of cryoSPARC")
    return records


def _beside(path: Path) -> list[Path]:
    """Return the passthrough files in the folder of a .cs file, of its job if its name has a job number."""
    found = sorted(other for other in path.parent.glob("*passthrough*.cs") if other.name != path.name)
    job = _job(path)
    return [other for other in found if job is None or _job(other) in (None, job)]


def _job(path: Path) -> str | None:
    match = re.search(r"(?:^|_)(J\d+)(?=_|\.)", path.name)
    return match[1] if match else None


def _names(records: Records) -> tuple[str, ...]:
    return records.dtype.names or ()


def _with_fields(records: Records, added: dict[str, Any], replaced: dict[str, Any] | None = None) -> Records:
    """Return records with the fields of `added` that they lack, and those of `replaced` in any case."""
    columns = {name: records[name] for name in _names(records)}
    columns = columns | (replaced or {})
    columns |= {name: values for name, values in added.items() if name not in columns}
    kinds = {name: np.asarray(values) for name, values in columns.items()}
    out = np.empty(len(records), dtype=[(name, values.dtype, values.shape[1:]) for name, values in kinds.items()])
    for name, values in kinds.items():
        out[name] = values
    return out


def _places(records: Records) -> dict[str, Any]:
    """Return where each particle was picked: columns of micrographs, coordinates (pixels) and filaments, if known."""
    names = _names(records)
    columns: dict[str, Any] = {}
    if "location/micrograph_path" in names:
        columns["rlnMicrographName"] = _texts(records["location/micrograph_path"])
    if {"location/center_x_frac", "location/center_y_frac", "location/micrograph_shape"} <= set(names):
        height, width = records["location/micrograph_shape"].T.astype(float)
        columns["rlnCoordinateX"] = np.round(records["location/center_x_frac"] * width, 3)
        columns["rlnCoordinateY"] = np.round((1 - records["location/center_y_frac"].astype(float)) * height, 3)
    if "location/micrograph_psize_A" in names:
        columns["rlnMicrographPixelSize"] = records["location/micrograph_psize_A"]
    if "filament/filament_uid" in names:
        columns["rlnHelicalTubeID"] = np.unique(records["filament/filament_uid"], return_inverse=True)[1] + 1
    return columns


def _optics(path: Path, records: Records) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the optics table, and (n,) the group of each particle, from 1: particles of the same optics."""
    n, names = len(records), _names(records)

    def field(name: str, width: int) -> NDArray[np.float64]:
        """Return a field as (n, width), zeros where it is missing."""
        values = records[name] if name in names else np.zeros((n, width))
        return values.reshape(n, width).astype(float)

    keys = {"ctf/exp_group_id": 1, "ctf/accel_kv": 1, "ctf/cs_mm": 1, "ctf/amp_contrast": 1, "blob/psize_A": 1}
    keys |= {"blob/shape": 2, "ctf/tilt_A": 2, "ctf/trefoil_A": 2, "ctf/tetra_A": 4, "ctf/anisomag": 4}
    stacked = np.concatenate([field(name, width) for name, width in keys.items()], 1)
    _, first, groups = np.unique(stacked, axis=0, return_index=True, return_inverse=True)
    exposure = field("ctf/exp_group_id", 1)[first, 0].astype(int)
    numbers = pd.Series(exposure).groupby(exposure).cumcount()
    titles = [
        f"group{group}" + (f"_{number}" if number else "") for group, number in zip(exposure, numbers, strict=True)
    ]
    optics: dict[str, Any] = {"rlnOpticsGroupName": titles, "rlnOpticsGroup": range(1, len(first) + 1)}
    optics |= {
        "rlnVoltage": records["ctf/accel_kv"][first],
        "rlnSphericalAberration": records["ctf/cs_mm"][first],
        "rlnAmplitudeContrast": records["ctf/amp_contrast"][first],
        "rlnImagePixelSize": records["blob/psize_A"][first],
        "rlnImageSize": records["blob/shape"][first, 0],
        "rlnImageDimensionality": np.full(len(first), 2),
    }
    wavelength = electron_wavelength(torch.from_numpy(records["ctf/accel_kv"][first].astype(float))).numpy()
    tilt, trefoil, tetra = (field(f"ctf/{name}_A", width)[first] for name, width in _ABERRATIONS.items())
    if tilt.any():
        coma_per_mrad = records["ctf/cs_mm"][first].astype(float) * 1e4
        if (tilt[coma_per_mrad <= 0] != 0).any():
            raise InputError(f"{path} has a beam tilt (ctf/tilt_A) where ctf/cs_mm is 0; set one of them")
        optics |= {f"rlnBeamTilt{axis}": tilt[:, i] / coma_per_mrad.clip(1e-9) for i, axis in enumerate("XY")}
    if trefoil.any():
        odd = np.zeros((len(first), len(_ODD)))
        odd[:, _ODD[3, 3]], odd[:, _ODD[3, -3]] = (-2 * np.pi / 3 * wavelength[:, None] ** 2 * trefoil).T
        optics["rlnOddZernike"] = [_list(row) for row in odd]
    if tetra.any():
        optics["rlnEvenZernike"] = [_list(row) for row in _even_zernike(tetra, wavelength)]
    anisomag = field("ctf/anisomag", 4)[first]
    if anisomag.any():
        matrices = anisomag + np.array([1.0, 0.0, 0.0, 1.0])
        optics |= {f"rlnMagMat{i}{j}": matrices[:, 2 * i + j] for i in range(2) for j in range(2)}
    return _as_text(optics), groups.ravel() + 1


def _even_zernike(tetra: NDArray[np.float64], wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return RELION's even coefficients (g, 9) of cryoSPARC's (g, 4) fourth-order terms (A).

    The phase is lambda^3 s^4 (2 pi (a1 cos 2t + a2 sin 2t) + pi/2 (a3 cos 4t + a4 sin 4t)), and s^4 cos 2t is
    (Z(4, 2) + 3 Z(2, 2)) / 4.
    """
    out: NDArray[np.float64] = np.zeros((len(tetra), len(_EVEN)))
    scale = wavelength[:, None] ** 3 * np.array([2, 2, 0.5, 0.5]) * np.pi * tetra
    for order, value in ((2, scale[:, 0]), (-2, scale[:, 1])):
        out[:, _EVEN[4, order]], out[:, _EVEN[2, order]] = value / 4, 3 * value / 4
    out[:, _EVEN[4, 4]], out[:, _EVEN[4, -4]] = scale[:, 2], scale[:, 3]
    return out


def _texts(names: NDArray[Any]) -> list[str]:
    """Return paths as text, without the sign with which cryoSPARC marks paths relative to the file."""
    return [(name.decode() if isinstance(name, bytes) else str(name)).removeprefix(">") for name in names.tolist()]


def _degrees(radians: NDArray[Any]) -> NDArray[np.float64]:
    degrees: NDArray[np.float64] = np.round(np.rad2deg(radians.astype(float)), 7)
    return degrees


def _list(values: NDArray[np.float64]) -> str:
    return f"[{','.join(f'{value:.9g}' for value in values)}]"


def _as_text(columns: dict[str, Any]) -> pd.DataFrame:
    """Return a table of text; numpy writes a number with the fewest digits that restore it."""
    return pd.DataFrame({name: np.asarray(values).astype(str) for name, values in columns.items()})
