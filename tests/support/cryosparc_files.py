"""Files of cryoSPARC, written without the code under test."""

import numpy as np
import starfile
from scipy.spatial.transform import Rotation


def records(files, stack="particles.mrcs", sign=1.0, **fields):
    """Return the records of the 12 particles of `ParticleFiles`; `fields` replace or add, None takes one away.

    Names have / for their first double underscore.
    """
    n, numbers = files.n, np.arange(files.n)
    given = {
        "uid": numbers[::-1].astype(np.uint64) + 10**18,
        "blob/path": np.array([stack] * n, dtype="S64"),
        "blob/idx": numbers.astype(np.uint32),
        "blob/shape": np.full((n, 2), files.box, np.uint32),
        "blob/psize_A": np.full(n, files.pixel_size),
        "blob/sign": np.full(n, sign),
        "ctf/type": np.array(["imported"] * n, dtype="S9"),
        "ctf/exp_group_id": np.zeros(n, np.uint32),
        "ctf/accel_kv": np.full(n, 200.0),
        "ctf/cs_mm": np.full(n, 1.4),
        "ctf/amp_contrast": np.full(n, 0.07),
        "ctf/df1_A": files.defocus[:, 0],
        "ctf/df2_A": files.defocus[:, 1],
        "ctf/df_angle_rad": np.full(n, np.deg2rad(30.0)),
        "ctf/phase_shift_rad": np.zeros(n),
        "alignments3D/split": (numbers % 2).astype(np.uint32),
        "alignments3D/shift": files.shifts / files.pixel_size,
        # RELION's matrix takes the volume to the image; cryoSPARC's vector rotates the image into the volume.
        "alignments3D/pose": Rotation.from_euler("ZYZ", files.angles, degrees=True).as_rotvec(),
        "alignments3D/psize_A": np.full(n, files.pixel_size),
    }
    given |= {name.replace("__", "/", 1): values for name, values in fields.items()}
    return structured({name: values for name, values in given.items() if values is not None})


def structured(columns):
    """Return columns as records, real numbers in single precision."""
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    arrays = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    out = np.empty(len(arrays["uid"]), [(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    for name, values in arrays.items():
        out[name] = values
    return out


def fields_of(given, *prefixes):
    """Return the records with uid and the fields of some prefixes alone."""
    names = [name for name in given.dtype.names if name == "uid" or name.split("/")[0] in prefixes]
    return structured({name: given[name] for name in names})


def save(path, given):
    """Write records as a .cs file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, given)
    return path


def from_relion(star):
    """Return records of the particles of a RELION 3.1 STAR file with one optics group."""
    blocks = starfile.read(star)
    rows, optics = blocks["particles"], blocks["optics"]
    optics = {label: np.ravel(optics[label])[0] for label in dict(optics)}
    n, pixel_size = len(rows), optics["rlnImagePixelSize"]
    frames, stacks = zip(*(name.split("@") for name in rows["rlnImageName"]), strict=True)
    angles = rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    columns = {
        "uid": np.arange(n, dtype=np.uint64) * 7 + 3,
        "blob/path": np.array(stacks, dtype=bytes),
        "blob/idx": np.array(frames, dtype=np.uint32) - 1,
        "blob/shape": np.full((n, 2), optics["rlnImageSize"], np.uint32),
        "blob/psize_A": np.full(n, pixel_size),
        "ctf/exp_group_id": np.ones(n, np.uint32),
        "ctf/accel_kv": np.full(n, optics["rlnVoltage"]),
        "ctf/cs_mm": np.full(n, optics["rlnSphericalAberration"]),
        "ctf/amp_contrast": np.full(n, optics["rlnAmplitudeContrast"]),
        "ctf/df1_A": rows["rlnDefocusU"],
        "ctf/df2_A": rows["rlnDefocusV"],
        "ctf/df_angle_rad": np.deg2rad(rows["rlnDefocusAngle"]),
        "alignments3D/split": rows["rlnRandomSubset"].to_numpy(np.uint32) - 1,
        "alignments3D/shift": rows[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy() / pixel_size,
        "alignments3D/pose": Rotation.from_euler("ZYZ", angles, degrees=True).as_rotvec(),
        "alignments3D/psize_A": np.full(n, pixel_size),
    }
    return structured(columns)
