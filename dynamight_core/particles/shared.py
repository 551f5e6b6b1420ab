"""Arrays that all processes on a machine share: each fills its part, and all read the whole."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.groups import neighbours

# Files here are memory, and may be limited (containers).
_MEMORY = Path("/dev/shm")


def shared_halves(shape: tuple[int, ...], folder: str | Path | None = None, in_memory: bool = True) -> torch.Tensor:
    """Return an uninitialised half-precision array on the CPU, which the processes on this machine share.

    Parameters
    ----------
    shape
        of the array.
    folder
        for its file, if it is not in memory or the machine's shared memory has no room. The file has no name there: its
        space is freed when the array is, or the program ends, even if it is killed.
    in_memory
        whether it should be in memory.

    Raises
    ------
    InputError
        if there is no room.
    """
    group = neighbours()
    if group.size == 1 and in_memory:
        return torch.empty(shape, dtype=torch.half)
    folders = [_MEMORY] if in_memory else []
    folders += [Path(folder)] if folder is not None else [Path(tempfile.gettempdir())] if in_memory else []
    if not folders:
        raise InputError("the images do not fit in memory and no folder was given for them; give one")
    name = group.once(lambda: _new_file(2 * int(np.prod(shape)), folders))
    try:
        array = np.memmap(name, dtype=np.float16, mode="r+", shape=shape)
        group.wait()
    finally:
        group.once(lambda: os.unlink(name))
    return torch.from_numpy(array)


def _new_file(size: int, folders: list[Path]) -> str:
    """Return the name of a new file of a size, in the first folder that has room for it."""
    *others, last = folders
    for folder in others:
        try:
            return _allocated(size, folder)
        except OSError:
            continue
    try:
        last.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=last):
            pass
    except OSError as error:
        raise InputError(f"cannot write {last}: {str(error.strerror).lower()}; choose another folder") from error
    try:
        return _allocated(size, last)
    except OSError as error:
        raise InputError(
            f"folder {last} has no room for {size / 1e9:.1f} GB of images ({str(error.strerror).lower()}); choose "
            "another folder"
        ) from error


def _allocated(size: int, folder: Path) -> str:
    descriptor, name = tempfile.mkstemp(prefix="images-", suffix=".float16", dir=folder)
    try:
        # On a full disk a sparse file would kill the program without a message at some later write.
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    return name
