"""Image stacks on disk: their location, and their MRC headers."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.mrcfile import MrcFile
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.files import pixel_type

# MRC modes of real images and their bytes per pixel: int8, int16, float32, uint16, float16
_PIXEL_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}


# First bytes of compressed files.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2"}


@dataclass(frozen=True)
class StackHeader:
    """The header of a valid stack of `n_images` square images of `box` pixels.

    The images begin at byte `start`, and have pixels of the type `pixel`.
    """

    n_images: int
    box: int
    start: int
    pixel: np.dtype[Any]


def find_stack(name: str, folders: Iterable[Path]) -> Path | None:
    """Return the first existing file `name` (relative to one of `folders`, or absolute), or None."""
    # Joining an absolute name to a folder gives the absolute name.
    return next((folder / name for folder in folders if os.path.isfile(folder / name)), None)


def search_folders(star: Path, project: str | Path | None) -> list[Path]:
    """Return the folders that names in a STAR file may be relative to, in the order in which they are tried."""
    folder = star.absolute().parent
    # The file may be a link into another project.
    target = star.resolve().parent
    folders = [folder, *folder.parents, target, *target.parents, Path.cwd()]
    if project is not None:
        folders.insert(0, Path(project))
    return list(dict.fromkeys(folders))


def read_stack_header(path: Path) -> StackHeader:
    """Read and check the header of a stack of square images; the images are not read.

    Raises
    ------
    InputError
        if the file is missing or no MRC file, its pixel type is not supported, its images are not square, or it is
        shorter than its header implies.
    """
    try:
        with open(path, "rb") as file:
            compressed = _COMPRESSED.get(file.read(2))
        if compressed is not None:
            raise InputError(f"stack {path} is compressed by {compressed}; decompress it and correct rlnImageName")
        with warnings.catch_warnings():
            # Some programs omit the map identifier or the machine stamp, which does no harm.
            warnings.simplefilter("ignore", RuntimeWarning)
            with MrcFile(str(path), permissive=True, header_only=True) as mrc:
                header = mrc.header
                nx, ny, n_images, mode = (int(header[key]) for key in ("nx", "ny", "nz", "mode"))
                start = 1024 + int(header["nsymbt"])
    except FileNotFoundError as error:
        raise InputError(f"stack {path} does not exist; restore it or correct rlnImageName") from error
    except InputError:
        raise
    except Exception as error:  # Libraries have many exceptions for damaged files.
        raise InputError(f"stack {path} cannot be read as MRC ({error}); give an intact MRC stack") from error
    if mode not in _PIXEL_BYTES:
        raise InputError(
            f"stack {path} has MRC mode {mode}, which is not supported; convert it to mode 0, 1, 2, 6 or 12"
        )
    if nx != ny:
        raise InputError(f"stack {path} holds images of {nx} x {ny} pixels; extract the particles in square boxes")
    needed, size = start + nx * ny * n_images * _PIXEL_BYTES[mode], path.stat().st_size
    if size < needed:
        raise InputError(f"stack {path} is truncated ({size} bytes, {needed} by its header); copy or extract it again")
    return StackHeader(n_images, nx, start, pixel_type(header))


class OpenStack:
    """An open stack. Indexing reads one (box, box) image and nothing else.

    It is not memory-mapped: if a mapped file is truncated, the system ends the program.
    """

    def __init__(self, path: Path):
        self._path, self._header = path, read_stack_header(path)
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise InputError(f"stack {path} cannot be read ({error.strerror}); restore it") from error
        self._state = self._now()

    def __getitem__(self, frame: int) -> NDArray[Any]:
        if self._file.closed:
            raise ValueError("the stack is closed")
        box, kind = self._header.box, self._header.pixel
        size = box * box * kind.itemsize
        contents = os.pread(self._file.fileno(), size, self._header.start + int(frame) * size)
        if len(contents) < size or self._now() != self._state:
            raise InputError(f"stack {self._path} was changed while it was read; restore it and run the command again")
        return np.frombuffer(contents, kind).reshape(box, box)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def close(self) -> None:
        """Close the file."""
        self._file.close()
