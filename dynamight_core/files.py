"""Files that appear whole or not at all: tables and maps."""

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd

from dynamight_core.errors import InputError

# What a user can mend: permissions, names, room, and limits of the system.
_UNWRITABLE = {
    getattr(errno, name)
    for name in (
        "EACCES EPERM EROFS ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP ENOSPC EDQUOT EFBIG EMFILE ENFILE EIO ESTALE"
    ).split()
}


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
    permissions of the user's umask, whatever the writer chose.

    Raises
    ------
    InputError
        if the path cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        with mrcfile.open(path, permissive=True) as mrc:
            volume = None if mrc.data is None else np.array(mrc.data, dtype=np.float32)
            pixel_size = float(mrc.voxel_size.x)
    except (ValueError, OSError) as error:
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
    return volume, pixel_size


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


def header_origin(path: str | Path) -> np.ndarray:
    """Return the (x, y, z) of a map's first voxel according to its header, A.

    Raises
    ------
    InputError
        if the file does not exist.
    """
    check_is_file(path, "map", "restore the consensus map of the training")
    with mrcfile.open(path, permissive=True, header_only=True) as mrc:
        header, voxel = mrc.header, float(mrc.voxel_size.x)
        origin = np.array([float(header.origin[axis]) for axis in "xyz"])
        start = np.array([float(header[f"n{axis}start"]) for axis in "xyz"]) * voxel
    # Programs write one or the other.
    return origin if origin.any() else start
