"""Image stacks on disk: their location, and their MRC headers."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrcfile.mrcfile import MrcFile
from mrcfile.mrcmemmap import MrcMemmap
from numpy.typing import NDArray

from dynamight_core.errors import InputError

# MRC modes of real images and their bytes per pixel: int8, int16, float32, uint16, float16
_PIXEL_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}


@dataclass(frozen=True)
class StackHeader:
    """The header of a valid stack of `n_images` square images of `box` pixels."""

    n_images: int
    box: int


def find_stack(name: str, folders: Iterable[Path]) -> Path | None:
    """Return the first existing file `name` (relative to one of `folders`, or absolute), or None."""
    # Joining an absolute name to a folder gives the absolute name.
    return next((folder / name for folder in folders if os.path.isfile(folder / name)), None)


def read_stack_header(path: Path) -> StackHeader:
    """Read and check the header of a stack of square images; the images are not read.

    Raises
    ------
    InputError
        if the file is missing or no MRC file, its pixel type is not supported, its images are not square, or it is
        shorter than its header implies.
    """
    try:
        with warnings.catch_warnings():
            # Some programs omit the map identifier or the machine stamp, which does no harm.
            warnings.simplefilter("ignore", RuntimeWarning)
            with MrcFile(str(path), permissive=True, header_only=True) as mrc:
                header = mrc.header
                nx, ny, n_images, mode = (int(header[key]) for key in ("nx", "ny", "nz", "mode"))
                start = 1024 + int(header["nsymbt"])
    except FileNotFoundError as error:
        raise InputError(f"stack {path} does not exist; restore it or correct rlnImageName") from error
    except (OSError, ValueError) as error:
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
    return StackHeader(n_images, nx)


class OpenStack:
    """A memory-mapped stack. Indexing reads one (box, box) image and nothing else."""

    def __init__(self, path: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self._mrc = MrcMemmap(str(path), permissive=True)
        height, width = self._mrc.data.shape[-2:]
        # One image, a stack and a volume differ only in their number of axes.
        self._images: NDArray[Any] | None = self._mrc.data.reshape(-1, height, width)

    def __getitem__(self, frame: int) -> NDArray[Any]:
        if self._images is None:
            raise ValueError("the stack is closed")
        image: NDArray[Any] = self._images[frame]
        return image

    def close(self) -> None:
        """Unmap the file."""
        self._images = None
        self._mrc.close()
