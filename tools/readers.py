"""Every reader of files, with a small valid file of its kind, and changes to such files."""

import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pandas as pd
import safetensors.torch
import torch

from dynamight_core.analysis.displace import _read_array
from dynamight_core.analysis.explorer.annotations import read_annotations
from dynamight_core.analysis.states import read_states
from dynamight_core.belonging import record_inputs
from dynamight_core.config import RunConfig
from dynamight_core.files import read_map
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.particles.cryosparc import read_records
from dynamight_core.particles.identity import file_record
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.structures import read_structure
from dynamight_core.training.progress import read_metrics

_OPTICS = """data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
_rlnImageSize #6
1 300 2.7 0.1 2.0 8

"""
_LABELS = (
    "ImageName AngleRot AngleTilt AnglePsi OriginXAngst OriginYAngst DefocusU DefocusV DefocusAngle OpticsGroup "
    "RandomSubset"
).split()
_PDB = "".join(
    f"ATOM  {i + 1:5d}  CA  ALA A{i + 1:4d}    {3.8 * i:8.3f}{0:8.3f}{0:8.3f}  1.00 10.00           C  \n"
    for i in range(4)
)
_CIF = "data_x\nloop_\n" + "".join(
    f"_atom_site.{name}\n"
    for name in (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
        "Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id"
    ).split()
)
_CIF += "".join(f"ATOM {i + 1} C CA . ALA A 1 {i + 1} {3.8 * i} 0 0 1 10 {i + 1} A\n" for i in range(4))


def star_text(n: int = 6) -> str:
    """Return a STAR file of n particles in particles.mrcs."""
    rows = [f"{i + 1}@particles.mrcs {20 * i} {15 * i} {7 * i} 1 2 9000 8900 30 1 {1 + i % 2}" for i in range(n)]
    loop = "".join(f"_rln{label} #{k + 1}\n" for k, label in enumerate(_LABELS))
    return f"{_OPTICS}data_particles\n\nloop_\n{loop}" + "\n".join(rows) + "\n"


def mrc_bytes(shape: tuple[int, int, int], stack: bool = False) -> bytes:
    """Return an MRC file with random values."""
    with tempfile.TemporaryDirectory() as folder:
        with mrcfile.new(Path(folder) / "x.mrc") as mrc:
            mrc.set_data(np.random.default_rng(0).normal(size=shape).astype(np.float32))
            mrc.voxel_size = 2.0
            if stack:
                mrc.set_image_stack()
        return (Path(folder) / "x.mrc").read_bytes()


@dataclass(frozen=True)
class Reader:
    """A reader of files of one kind.

    Parameters
    ----------
    name
        of the file in its folder.
    seed
        a valid file.
    read
        reads the file of a path; refuses by `InputError`.
    """

    name: str
    seed: bytes
    read: Callable[[Path], object]


def make_readers(folder: Path) -> dict[str, Reader]:
    """Return all readers by name, and write to a folder what they need beside their file."""
    (folder / "particles.mrcs").write_bytes(mrc_bytes((6, 8, 8), stack=True))
    (folder / "particles.star").write_text(star_text())
    run = _write_run(folder / "run")
    table = pd.DataFrame({"rlnImageName": [f"{i + 1}@particles.mrcs" for i in range(6)]})
    moved = SimpleNamespace(motions=SimpleNamespace(coordinates=torch.zeros(6, 2)))
    array, records = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros((4, 3)))
    np.save(records, np.zeros(6, [("uid", "<u8"), ("blob/path", "S9"), ("blob/shape", "<u4", 2)]))
    readers = {
        "STAR": Reader("p.star", star_text().encode(), lambda path: read_particles(path)),
        "stack": Reader("particles.mrcs", (folder / "particles.mrcs").read_bytes(), _read_images),
        "map": Reader("map.mrc", mrc_bytes((8, 8, 8)), lambda path: read_map(path)),
        "map, gz": Reader("map.mrc.gz", gzip.compress(mrc_bytes((8, 8, 8))), lambda path: read_map(path)),
        "PDB": Reader("m.pdb", _PDB.encode(), read_structure),
        "mmCIF": Reader("m.cif", _CIF.encode(), read_structure),
        "cs": Reader("p.cs", records.getvalue(), lambda path: read_records(path)),
        "npy": Reader("p.npy", array.getvalue(), _read_array),
        "states CSV": Reader(
            "s.csv", b"state,motion1_A,motion2_A\na,1,2\nb,3,4\n", lambda path: read_states(path, moved)
        ),
        "annotations CSV": Reader(
            "a.csv", b"row,score\n1,0.5\n2,0.7\n", lambda path: read_annotations(path, "a", table)
        ),
        "metrics": Reader("metrics.jsonl", b'{"epoch": 1}\n{"epoch": 2}\n', lambda path: read_metrics(path, 9, QUIET)),
    }
    for name in ("config.yaml", "latents.safetensors", "half1/model.safetensors", "files.json", "identity.safetensors"):
        path = run / name
        seed = path.read_bytes() if path.exists() else b"{}"
        readers[name] = Reader(f"run/{name}", seed, lambda _: Run(run).particles)
    readers["summary.json"] = Reader("run/analysis/summary.json", b'{"model": {"box": 8}}', lambda _: Run(run).summary)
    motions = "run/analysis/motions.safetensors"
    readers["motions"] = Reader(motions, (folder / motions).read_bytes(), lambda _: Run(run).motions)
    return readers


def _read_images(path: Path) -> torch.Tensor:
    return ImageReader(read_particles(path.parent / "particles.star")).read(slice(None))


def _write_run(run: Path) -> Path:
    """Write a run as far as its readers look at it."""
    (run / "analysis").mkdir(parents=True)
    config = RunConfig(provenance={"run": str(run)})
    config.inputs.star = config.inputs.map = str(run.parent / "particles.star")
    config.write(run)
    for half in (1, 2):
        (run / f"half{half}").mkdir()
        model = HalfModel(GaussianModel(torch.randn(5, 3), 1.0, 1.0, 1), 8, 2.0, 2, "basis", 12.0)
        model.save(run / f"half{half}" / "model.safetensors")
    n = 6
    tensors = {
        "latents": torch.zeros(2, n, 2),
        "covariances": torch.zeros(2, n, 2, 2),
        "halves": torch.arange(n) % 2 + 1,
        "validation": torch.zeros(n, dtype=torch.bool),
    }
    safetensors.torch.save_file(tensors, run / "latents.safetensors")
    points = {"points": torch.zeros(5, 3), "mean": torch.zeros(5, 3), "components": torch.zeros(2, 5, 3)}
    moved = points | {"coordinates": torch.zeros(n, 2), "shares": torch.zeros(2)}
    safetensors.torch.save_file(moved, run / "analysis" / "motions.safetensors")
    record_inputs(run, read_particles(config.inputs.star), config.inputs)
    (run / "files.json").write_text(json.dumps({"metrics.jsonl": file_record(run / "config.yaml")}))
    return run


# Pieces that surprise parsers.
_ODD = [b"\0", b"\xff\xfe", b"nan", b"-inf", b"1e999", b"-1", b"99999999999999999999", b"\n", b"\r\n", b'"', b"'", b"#"]
_ODD += [b"loop_", b"data_", b"_", b"{", b"[", b"]]", b": ", b"&a *a", b"!!python/object:x", b"\t", b",,", b"\xc3\xa9"]


def mutated(contents: bytes, draw: random.Random) -> bytes:
    """Return contents with a few changes: bytes, numbers, pieces repeated, removed, exchanged, or the end cut off."""
    out = bytearray(contents)
    for _ in range(draw.randint(1, 5)):
        at, length = draw.randrange(len(out) + 1), draw.choice([1, 2, 4, 8, 40, 300])
        kind = draw.randrange(7)
        if kind == 0 and at < len(out):
            out[at] = draw.randrange(256)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            out[at:at] = draw.choice(_ODD)
        elif kind == 4:
            out[at : at + 4] = draw.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"])
        elif kind == 5:
            del out[at:]
        else:
            lines = bytes(out).split(b"\n")
            draw.shuffle(lines)
            out = bytearray(b"\n".join(lines))
    return bytes(out)
