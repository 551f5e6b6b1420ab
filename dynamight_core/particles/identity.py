"""Which particles and files a result belongs to: numbers for each row, and size and checksum of each file."""

import hashlib
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.util import hash_array

from dynamight_core.errors import InputError
from dynamight_core.particles.metadata import Particles
from dynamight_core.particles.star import unquoted

# What a row is recognised by, in words, and what may not change.
PARTS = {"image": "image", "pose": "pose", "ctf": "CTF or normalisation", "optics": "optics"}
# Pieces of a file that its checksum reads, their size, and files of which more than the size is compared.
_PIECES, _PIECE, _SAMPLED_FILES = 16, 4096, 256

Hashes = NDArray[np.uint64]


def row_identity(particles: Particles) -> dict[str, torch.Tensor]:
    """Return (n,) int64 numbers that change with the name, pose, CTF or optics of an image, by `PARTS`."""
    p, ctf = particles, particles.ctf
    codes, unique = pd.factorize(p.table["rlnImageName"].map(lambda name: unquoted(name).rpartition("@")[2]))
    # Names may have bytes that are not UTF-8.
    paths = [os.fsencode(os.path.normpath(name)).decode("latin-1") for name in unique]
    stacks = hash_array(np.array(paths, dtype=object))[codes][p.image_rows]
    values = {
        "pose": (p.angles, p.shifts),
        "ctf": (
            *(ctf.defocus_u, ctf.defocus_v, ctf.defocus_angle, ctf.phase_shift, ctf.b_factor, ctf.scale),
            p.norm_correction,
            *((ctf.exposure,) if ctf.exposure.any() else ()),
        ),
        "optics": (
            *(ctf.voltage, ctf.spherical_aberration, ctf.amplitude_contrast, ctf.beam_tilt, ctf.odd_zernike),
            *(ctf.even_zernike, ctf.magnification, torch.full((p.n_images,), p.pixel_size)),
        ),
    }
    found = {"image": _combined([stacks, hash_array(p.frame)])}
    for part, tensors in values.items():
        # Adding zero makes -0 the same as 0.
        columns = [column + 0.0 for tensor in tensors for column in tensor.reshape(p.n_images, -1).T.numpy()]
        found[part] = _combined([hash_array(column) for column in columns])
    return {part: torch.from_numpy(numbers.view(np.int64)) for part, numbers in found.items()}


def match_rows(
    trained: dict[str, torch.Tensor], now: dict[str, torch.Tensor], parts: tuple[str, ...] = tuple(PARTS)
) -> NDArray[np.int64]:
    """Return (n,) the row in `now` of each row in `trained`, which may be in another order.

    Rows of one image (symmetry expansion) are told apart by their other parts.

    Raises
    ------
    Difference
        if a row is missing, new or changed.
    """
    before, after = ([_unsigned(rows[part]) for part in PARTS] for rows in (trained, now))
    # The last key, the image, counts most.
    first, second = np.lexsort(before[::-1]), np.lexsort(after[::-1])
    images = before[0][first], after[0][second]
    if len(images[0]) != len(images[1]) or (images[0] != images[1]).any():
        _refuse_other_images(before[0], after[0])
    for number, part in enumerate(PARTS):
        different = before[number][first] != after[number][second]
        if part in parts and different.any():
            at = np.flatnonzero(different)[first[different].argmin()]
            raise Difference(int(first[at]), int(second[at]), PARTS[part])
    order = np.empty(len(first), dtype=np.int64)
    order[first] = second
    return order


class Difference(Exception):
    """The first difference of two lists of rows.

    Parameters
    ----------
    before, after
        row from 0, None if it is not there.
    part
        what has changed, in words.
    """

    def __init__(self, before: int | None, after: int | None, part: str):
        super().__init__(before, after, part)
        self.before, self.after, self.part = before, after, part


def file_record(path: str | Path, sampled: bool = True) -> dict[str, Any]:
    """Return the size (bytes) of a file and, if `sampled`, a checksum of pieces of it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not sampled:
            return {"size": size}
        digest = hashlib.blake2b(digest_size=16)
        for start in np.unique(np.linspace(0, max(0, size - _PIECE), _PIECES).astype(np.int64)).tolist():
            file.seek(start)
            digest.update(file.read(_PIECE))
    return {"size": size, "checksum": digest.hexdigest()}


def file_records(paths: list[Path]) -> list[dict[str, Any]]:
    """Return the records of files; of very many, only some have a checksum."""
    step = -(-len(paths) // _SAMPLED_FILES)
    return [file_record(path, number % max(1, step) == 0) for number, path in enumerate(paths)]


def ordered_stacks(particles: Particles) -> list[Path]:
    """Return the stacks in the order of their first rows."""
    used, first = np.unique(particles.stack_index, return_index=True)
    return [particles.stacks[index] for index in used[np.argsort(first)]]


def check_file(path: str | Path, record: dict[str, Any], owner: str | Path, cure: str) -> None:
    """Refuse a file that is not the one of a record.

    Raises
    ------
    InputError
        with `owner`, what was made with the file, and `cure`.
    """
    now = file_record(path, "checksum" in record)
    if now != record:
        what = "other contents"
        if now["size"] != record["size"]:
            what = f"{now['size']} bytes, and had {record['size']}"
        raise InputError(f"{path} is not the file that belongs to {owner} ({what}); {cure}")


def _refuse_other_images(before: Hashes, after: Hashes) -> NoReturn:
    gone = ~np.isin(before, after)
    new = ~np.isin(after, before)
    if gone.any():
        raise Difference(int(gone.argmax()), None, "image")
    if new.any():
        raise Difference(None, int(new.argmax()), "image")
    # The same images, but not as often.
    images, counts = np.unique(before, return_counts=True)
    others, now = np.unique(after, return_counts=True)
    row = int(np.argmax(np.isin(after, images[counts != now[np.searchsorted(others, images)]])))
    raise Difference(None, row, "number of rows for the image")


def _combined(columns: list[Hashes]) -> Hashes:
    """Return one number for the (n,) numbers of several columns."""
    total = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        total = total * np.uint64(0x9E3779B97F4A7C15) + column
        total ^= total >> np.uint64(29)
    return total


def _unsigned(numbers: torch.Tensor) -> Hashes:
    return numbers.numpy().view(np.uint64)
