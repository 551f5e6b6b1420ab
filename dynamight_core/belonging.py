"""What belongs to a run: its particles, the files it was made from, and its own files. Checked when a run is opened.

``identity.safetensors`` has a number for image, pose, CTF and optics of each row, and the records of the input files;
it is written when a training starts. ``files.json`` has the records of what the training made.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError, option_name, understood
from dynamight_core.files import atomic_path
from dynamight_core.image_series import ImageSeries
from dynamight_core.options import InputOptions
from dynamight_core.particles.identity import (
    PARTS,
    Difference,
    check_file,
    file_record,
    file_records,
    match_rows,
    ordered_stacks,
    row_identity,
)
from dynamight_core.particles.metadata import Particles

IDENTITY, FILES = "identity.safetensors", "files.json"
# Files of a training that later stages read and do not change.
_OWN = (
    "half1/model.safetensors",
    "half2/model.safetensors",
    "latents.safetensors",
    "particles.star",
    "analysis/motions.safetensors",
)
_CURE = "restore it, or train again into a new folder"


def record_inputs(run: Path, particles: Particles, inputs: InputOptions) -> None:
    """Write RUN/identity.safetensors: what the rows and the input files of a training are."""
    files = {name: {"name": Path(path).name, **file_record(path)} for name, path in input_files(inputs)}
    records = {"files": files, "stacks": file_records(ordered_stacks(particles))}
    with atomic_path(run / IDENTITY) as path:
        safetensors.torch.save_file(row_identity(particles), path, {"records": json.dumps(records)})


def forget_files(run: Path) -> None:
    """Remove RUN/files.json before the files of a training are written again."""
    (run / FILES).unlink(missing_ok=True)


def record_files(run: Path) -> None:
    """Write RUN/files.json: what the files of a finished training are."""
    records = {name: file_record(run / name) for name in _OWN}
    with atomic_path(run / FILES) as path:
        path.write_text(json.dumps(records, indent=1))


def check_files(run: Path, inputs: InputOptions) -> None:
    """Refuse a run with files of another training, or whose map, mask or atomic model has changed.

    Files that are missing are refused where they are read. Runs of earlier versions have no records.

    Raises
    ------
    InputError
        naming the first file that does not belong to the run.
    """
    if (run / FILES).exists():
        with understood(run / FILES, _CURE):
            for name, record in json.loads((run / FILES).read_text()).items():
                if (run / name).exists():
                    check_file(run / name, record, run, _CURE)
    stored = _read(run)
    if stored is not None:
        for name, path in input_files(inputs):
            record = dict(stored[1]["files"].get(name, {}))
            # A file of another name was chosen in config.yaml, to replace it.
            if record.pop("name", None) == Path(path).name and os.path.exists(path):
                check_file(path, record, f"{run} (its {name})", _CURE)


def arranged(run: Path, particles: Particles, checksum: str | None = None) -> Particles:
    """Return the particles in the order of a run's training.

    Parameters
    ----------
    run
        folder of the run.
    particles
        of its STAR file, in any order.
    checksum
        SHA-256 of the STAR file at the training, for runs of earlier versions.

    Raises
    ------
    InputError
        with the first difference, if the particles are not those of the training, or a stack has changed.
    """
    stored = _read(run)
    if stored is None:
        if checksum not in (None, hashlib.sha256(particles.star_path.read_bytes()).hexdigest()):
            raise InputError(f"{particles.star_path} has changed since {run} was trained; restore the original file")
        return particles
    rows, records = stored
    if _same_in_other_images(rows, particles):
        return particles
    order = rows_of(run, rows, particles)
    if particles.series is not None:
        order = particles_in_order(particles.series, order)
    if (order != np.arange(len(order))).any():
        particles = particles.subset(order)
    stacks = ordered_stacks(particles)
    if len(stacks) != len(records["stacks"]):
        raise InputError(f"{run / IDENTITY} is damaged (it has {len(records['stacks'])} stacks); {_CURE}")
    for path, record in zip(stacks, records["stacks"], strict=True):
        check_file(path, record, run, _CURE)
    return particles


def particles_in_order(series: ImageSeries, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (P,) particles in the order of their first images among (n,) images in another order."""
    particles: NDArray[np.int64] = pd.unique(series.owner.numpy()[images])
    return particles


def _same_in_other_images(rows: dict[str, torch.Tensor], particles: Particles) -> bool:
    """Whether particles have the poses and CTFs of the rows, row by row, in images none of which the rows name.

    Such are the particles of a run whose images were binned or extracted again.
    """
    now = row_identity(particles)
    known = torch.isin(now["image"], rows["image"]).any()
    return not known and all(torch.equal(now[part], rows[part]) for part in ("pose", "ctf"))


def rows_of(
    run: Path, rows: dict[str, torch.Tensor], particles: Particles, parts: tuple[str, ...] | None = None
) -> NDArray[np.int64]:
    """Return (n,) the image among those of particles of each image of a run, see `match_rows`.

    Raises
    ------
    InputError
        with the first difference.
    """
    try:
        now = row_identity(particles)
        return match_rows(rows, now) if parts is None else match_rows(rows, now, parts)
    except Difference as found:
        star = particles.star_path
        if found.after is None:
            told = f"{star} lacks the image of row {(found.before or 0) + 1} of {run / 'particles.star'}"
        else:
            name = particles.image_name(found.after)
            row = particles.image_rows[found.after] + 1
            told = f"{star} has in row {row} ({name}) another {found.part} than {run} was trained on"
        raise InputError(f"{told}; restore the original file, or train again into a new folder") from found


def trained_rows(run: Path) -> dict[str, torch.Tensor] | None:
    """Return the identity of each row of a run, None for runs of earlier versions."""
    stored = _read(run)
    return None if stored is None else stored[0]


def _read(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    path = run / IDENTITY
    if not path.exists():
        return None
    with understood(path, _CURE), safetensors.safe_open(path, "pt") as file:
        rows = {name: file.get_tensor(name) for name in file.keys()}
        records = json.loads(file.metadata()["records"])
        whole = [rows[part].dtype == torch.int64 and rows[part].shape == rows["image"].shape for part in PARTS]
        sizes = [int(record["size"]) for record in (*records["files"].values(), *records["stacks"])]
        if not all(whole) or rows["image"].ndim != 1 or min(sizes, default=0) < 0:
            raise ValueError("its parts do not belong together")
        return rows, records


def input_files(inputs: InputOptions) -> Iterator[tuple[str, str]]:
    """Yield option and path of the input files of a training, without the particles."""
    for field in ("map", "mask", "atomic_model", "tomograms"):
        path = getattr(inputs, field)
        if path:
            yield option_name(field), path
    for field in ("half_maps", "bodies"):
        for number, path in enumerate(getattr(inputs, field) or [], 1):
            yield f"{option_name(field)} ({number})", path
