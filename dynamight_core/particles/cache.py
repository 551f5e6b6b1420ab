"""Preprocessed images kept in half precision: on the device, in memory or in a file, by size."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dynamight_core.config import STORAGES
from dynamight_core.errors import InputError
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.preprocess import Preprocessing, batch_size, read_prepared

_SHARE = 0.5  # of what is free, so that the rest of the run has room
# Half precision has 11 bits down to 6e-5; weaker images would lose them.
_LEAST_RMS = 1e-3


class ImageCache:
    """The preprocessed images of particles, read and prepared once.

    Rows that show one image at one shift (symmetry expansion) share its memory.

    Parameters
    ----------
    reader
        of the particles; its rows are the indices of `images`.
    preprocessing
        of every image.
    device
        where images are prepared and handed out.
    storage
        "device", "memory" or "file"; "auto" takes the first of these where the images fill at most half of
        what is free.
    folder
        for the file of storage "file". It has no name there: its room is free again when the cache is closed or the
        program ends, however it ends.
    progress
        called with the number of images done and in all.

    Raises
    ------
    InputError
        if an image cannot be used, or there is no room.
    """

    def __init__(
        self,
        reader: ImageReader,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
        storage: str = "auto",
        folder: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        if storage not in STORAGES:
            raise InputError(f"the image storage is '{storage}'; choose one of {', '.join(STORAGES)}")
        self.device = torch.device(device)
        rows, slots = _distinct_images(reader.particles)
        self._slots = torch.from_numpy(slots)
        shape = (len(rows), preprocessing.working_box, preprocessing.working_box)
        self.storage = self._choose_storage(2 * shape[0] * shape[1] ** 2) if storage == "auto" else storage
        self._images = self._allocate(shape, folder)
        try:
            self._fill(reader, rows, preprocessing, progress)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    def images(self, indices) -> torch.Tensor:
        """Return (b, w, w) float32 images on `device`; `indices` is a slice, a mask or indices of rows."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, device="cpu")
        slots = self._slots[indices].to(self._images.device)
        return self._images[slots].to(self.device).float()

    def close(self) -> None:
        """Let go of the images and of the file, if there is one."""
        self._images = None

    def __enter__(self) -> "ImageCache":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _choose_storage(self, needed: int) -> str:
        if self.device.type == "cuda" and needed <= _SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        return "memory" if needed <= _SHARE * available_memory() else "file"

    def _allocate(self, shape: tuple[int, int, int], folder: str | Path | None) -> torch.Tensor:
        if self.storage != "file":
            return torch.empty(shape, dtype=torch.half, device=self.device if self.storage == "device" else "cpu")
        if folder is None:
            raise InputError("the images do not fit in memory and no folder was given for them; give one")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="images-", suffix=".float16", dir=folder)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror.lower()}; choose another folder") from error
        try:
            # A hole that the disk cannot fill would end the program at some later write, without a word.
            os.posix_fallocate(descriptor, 0, 2 * int(np.prod(shape)))
            return torch.from_numpy(np.memmap(name, dtype=np.float16, mode="r+", shape=shape))
        except OSError as error:
            raise InputError(
                f"folder {folder} has no room for {2 * np.prod(shape) / 1e9:.1f} GB of images "
                f"({error.strerror.lower()}); choose another folder"
            ) from error
        finally:
            os.close(descriptor)
            os.unlink(name)

    def _fill(self, reader: ImageReader, rows: np.ndarray, preprocessing: Preprocessing, progress) -> None:
        step = batch_size(reader.particles.box)
        for start in range(0, len(rows), step):
            batch = rows[start : start + step]
            images = read_prepared(reader, batch, preprocessing, self.device)
            half = images.half()
            rms = images.square().mean(dim=(1, 2)).sqrt()
            fits = half.isfinite().all(dim=2).all(dim=1) & (rms >= _LEAST_RMS)
            if not fits.all():
                bad = int((~fits).int().argmax())
                raise InputError(
                    f"image {reader.particles.image_name(batch[bad])} does not fit half precision "
                    f"(rms {float(rms[bad]):.2g}); choose normalise 'image' or 'set'"
                )
            self._images[start : start + len(batch)] = half.to(self._images.device)
            if progress is not None:
                progress(start + len(batch), len(rows))


def _distinct_images(particles) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows whose images differ, in file order, and (n,) which of them each row shows."""
    keys = np.column_stack([particles.image_groups, particles.shifts, particles.norm_correction])
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.ravel()]
