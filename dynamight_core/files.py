"""Files that appear whole or not at all: tables and maps."""

import errno
import glob
import os
import re
import shutil
import socket
import stat
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
from mrcfile.utils import data_dtype_from_header

from dynamight_core import processes
from dynamight_core.errors import InputError

# What a user can mend: permissions, names, room, and limits of the system.
_UNWRITABLE = {
    getattr(errno, name)
    for name in (
        "EACCES EPERM EROFS ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP ENOSPC EDQUOT EFBIG EMFILE ENFILE EIO ESTALE"
    ).split()
}
# Tells parts of this machine's processes from those of others that share a file system.
_MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
# Where IMOD's stamp and flags are in the header's second extra space, bytes, and the stamp.
_IMOD, _IMOD_STAMP = 40, 1146047817
# Pixel sizes of the axes that count as the same.
_SAME_AXES = 1.005


def write_error(path: str | Path, error: OSError) -> InputError:
    """Return the error for the user of a file or folder that cannot be written."""
    reason = (error.strerror or str(error)).lower()
    return InputError(f"cannot write {path}: {reason}; choose a writable folder with enough space")


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an error is, or tells (as those of safetensors do), or None."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, and remove it if it fails.

    It keeps the suffix, by which many writers choose the format. Parent folders are created. The file has the
    permissions of the user's umask, whatever the writer chose. Of several processes, the first one writes; what others
    write is discarded. What a killed process has left of this file is removed.

    Raises
    ------
    InputError
        if the path cannot be written.
    """
    path = Path(path)
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    temporary = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_parts(path)
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        with open(temporary, "rb") as written:
            os.fchmod(written.fileno(), stat.S_IMODE(mode))
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except Exception as error:
        found = system_error(error)
        if found is None or found.errno not in _UNWRITABLE:
            raise
        raise write_error(path, found) from error
    finally:
        # If the folder does not exist, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(*paths: Path) -> Iterator[Path]:
    """Yield a folder to write files in that belong together, and put all in place if the block succeeds.

    Parameters
    ----------
    paths
        of the files, all in one folder, and of folders, whose files are put among those that they have. The last one is
        what programs open: it is removed before the first file is replaced, and is put in place after all others, so
        that whoever finds it finds files of one set.

    Raises
    ------
    InputError
        if they cannot be written.
    """
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere)
        return
    folder = _part(paths[-1])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_parts(paths[-1])
        folder.mkdir()
        yield folder
        paths[-1].unlink(missing_ok=True)
        for path in paths:
            for source in [*(folder / path.name).rglob("*"), folder / path.name]:
                if source.is_file():
                    target = path.parent / source.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source, target)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise write_error(paths[-1], error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part(path: Path) -> Path:
    """Return where this process writes a file before it is whole."""
    return path.with_name(f".{path.stem}.{_MACHINE}.{os.getpid()}.part{path.suffix}")


def _remove_dead_parts(path: Path) -> None:
    """Remove what processes of this machine that are dead have left of a file."""
    before, after = f".{path.stem}.{_MACHINE}.", f".part{path.suffix}"
    for part in path.parent.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
        number = part.name[len(before) : -len(after)]
        if number.isdecimal() and not processes.is_alive(int(number)):
            # In a shared folder, it may be another user's, who can remove it.
            with suppress(OSError):
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink()


def write_table(path: str | Path, table: pd.DataFrame, number: str = "%.6g") -> None:
    """Write a table as CSV, with numbers in the format `number`."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format=number)


def write_tables(folder: Path, tables: dict[str, pd.DataFrame], number: str = "%.6g") -> list[Path]:
    """Write tables by name to FOLDER/NAME.csv as `write_table` does; return the paths."""
    paths = [folder / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        write_table(path, table, number)
    return paths


def write_map(
    path: str | Path,
    volume: np.ndarray,
    pixel_size: float,
    origin: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0),
    note: str | None = None,
) -> None:
    """Write a [z, y, x] volume as float32 MRC.

    The header has `pixel_size` (A), `origin` (x, y, z; A) and `note`, up to 80 characters, as a label.
    """
    with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as mrc:
        mrc.set_data(np.ascontiguousarray(volume, dtype=np.float32))
        mrc.set_volume()
        mrc.voxel_size = pixel_size
        mrc.header.origin = tuple(origin)
        # Without mrcfile's label, which has the time, the same map gives the same bytes.
        mrc.header.label[0] = "dynamight-core"
        if note is not None:
            mrc.header.label[1] = note
            mrc.header.nlabl = 2


def read_map(path: str | Path, what: str = "map", constant: bool = False) -> tuple[np.ndarray, float]:
    """Read a cubic map.

    Parameters
    ----------
    path
        of the file.
    what
        its name in messages.
    constant
        whether to accept a volume with one value everywhere, such as an open mask.

    Returns
    -------
    tuple
        (box, box, box) float32 [z, y, x] and the pixel size in A.

    Raises
    ------
    InputError
        if the file is missing, not MRC, not cubic, constant, or has values that are not finite.
    """
    path = Path(path)
    check_is_file(path, what, "use the path of an MRC volume")
    try:
        with _quietly(), mrcfile.open(path, permissive=True) as mrc:
            volume = None
            if mrc.data is not None:
                volume = mrc.data.view(pixel_type(mrc.header)).astype(np.float32)
            header = mrc.header.copy()
    except Exception as error:  # Libraries have many exceptions for damaged files.
        raise InputError(f"{what} {path} cannot be read as MRC ({error}); use an MRC volume") from error
    if volume is None:
        raise InputError(f"{what} {path} is truncated; use an intact MRC volume")
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        shape = " x ".join(map(str, volume.shape))
        raise InputError(f"{what} {path} is {shape}, not a cube; use a cubic {what} with the particles' box")
    if not np.isfinite(volume).all():
        raise InputError(f"{what} {path} has NaN or infinite values; use a {what} with finite values")
    if volume.std() == 0 and not constant:
        raise InputError(f"{what} {path} is constant; use a {what} that is not empty")
    return volume, _voxel(path, header, what)


def _voxel(path: Path, header: np.recarray, what: str) -> float:
    """Return the pixel size (A) of a map; refuse one that is missing, differs by axis, or whose axes are exchanged."""
    with np.errstate(all="ignore"):
        size = np.array([header.cella[axis] for axis in "xyz"], float) / [int(header[f"m{axis}"]) for axis in "xyz"]
    if not (np.isfinite(size) & (size > 0)).all():
        raise InputError(f"{what} {path} has no pixel size in its header (cell and sampling); write it there")
    if size.max() > _SAME_AXES * size.min():
        told = " x ".join(f"{value:.4g}" for value in size)
        raise InputError(f"{what} {path} has pixels of {told} A; resample it to the same size along all axes")
    order = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if order not in ((1, 2, 3), (0, 0, 0)):
        raise InputError(f"{what} {path} has the axis order {order}; write it with columns along x (1, 2, 3)")
    return float(size[0])


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what a library says of headers: it is checked here, and said in sentences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def check_is_file(path: str | Path, what: str, cure: str) -> None:
    """Refuse a path that is missing, or a folder, pipe or device, which a reader would wait for.

    Raises
    ------
    InputError
        with `what` the file is and `cure`.
    """
    if not os.path.exists(path):
        raise InputError(f"{what} {path} does not exist; {cure}")
    if not os.path.isfile(path):
        kind = "folder" if os.path.isdir(path) else "pipe or device"
        raise InputError(f"{what} {path} is a {kind}, not a file; {cure}")


def pixel_type(header: np.recarray) -> np.dtype[Any]:
    """Return the type of the pixels of an MRC file, in its byte order.

    Bytes are signed in MRC; IMOD writes unsigned ones, and says so by its stamp and a flag that is not set.
    """
    kind = np.dtype(data_dtype_from_header(header))
    if kind.kind == "i" and kind.itemsize == 1:
        integer = header["nx"].dtype
        stamp, flags = np.frombuffer(header["extra2"].tobytes(), integer, 2, _IMOD)
        if stamp == _IMOD_STAMP and not flags & 1:
            return np.dtype(np.uint8)
    return kind


def header_origin(path: str | Path) -> np.ndarray:
    """Return the (x, y, z) of a map's first voxel according to its header, A.

    Raises
    ------
    InputError
        if the file does not exist.
    """
    check_is_file(path, "map", "restore the consensus map of the training")
    with _quietly(), mrcfile.open(path, permissive=True, header_only=True) as mrc:
        header, voxel = mrc.header, float(mrc.voxel_size.x)
        origin = np.array([float(header.origin[axis]) for axis in "xyz"])
        start = np.array([float(header[f"n{axis}start"]) for axis in "xyz"]) * voxel
    # Programs write one or the other.
    return origin if origin.any() else start
