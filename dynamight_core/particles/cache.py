"""Preprocessed images in half precision, kept on the device, in memory or in a file, depending on their size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.groups import neighbours
from dynamight_core.imaging.ctf import Index
from dynamight_core.options.train import STORAGES
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.metadata import Particles
from dynamight_core.particles.preprocess import Preprocessing, batch_size, read_prepared
from dynamight_core.particles.shared import shared_halves

# Largest fraction of the free memory to take: the rest of the run needs room.
_MAX_FRACTION = 0.5
# Half precision has 11 bits down to 6e-5; weaker images would lose them.
_MIN_RMS = 1e-3


class ImageCache:
    """The preprocessed images of particles, read and prepared once by the processes on a machine together.

    Rows of one image with the same shift (symmetry expansion) use the same memory.

    Parameters
    ----------
    reader
        of the particles; its rows are the indices of `images`.
    preprocessing
        of every image.
    device
        on which images are prepared and returned.
    storage
        "device", "memory" or "file"; "auto" takes the first of these in which the images fill at most half of the free
        space.
    folder
        for the file of storage "file". The file has no name there: its space is freed when the cache is closed or the
        program ends, even if it is killed.
    progress
        called with the number of images done and the total.

    Raises
    ------
    InputError
        if an image cannot be used, or there is not enough space.
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

    def images(self, indices: Index) -> torch.Tensor:
        """Return the (b, w, w) float32 images of the selected rows, on `device`."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, device="cpu")
        slots = self._slots[indices].to(self._images.device)
        return self._images[slots].to(self.device).float()

    def close(self) -> None:
        """Free the memory or the file of the images."""
        self._images = torch.empty(0, dtype=torch.half)

    def _choose_storage(self, needed: int) -> str:
        fits = self.device.type == "cuda" and needed <= _MAX_FRACTION * torch.cuda.mem_get_info(self.device)[0]
        if neighbours().agreed(fits):
            return "device"
        room = _MAX_FRACTION * available_memory() * neighbours().size
        return neighbours().agreed("memory" if needed <= room else "file")

    def _allocate(self, shape: tuple[int, int, int], folder: str | Path | None) -> torch.Tensor:
        if self.storage == "device" and neighbours().size == 1:
            return torch.empty(shape, dtype=torch.half, device=self.device)
        return shared_halves(shape, folder, in_memory=self.storage != "file")

    def _fill(
        self,
        reader: ImageReader,
        rows: NDArray[np.int64],
        preprocessing: Preprocessing,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        group, step = neighbours(), batch_size(reader.particles.box)
        own = group.shard(torch.arange(len(rows)))
        first, end = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)
        for start in range(first, end, step):
            batch = rows[start : min(start + step, end)]
            images = read_prepared(reader, batch, preprocessing, self.device)
            half = images.half()
            rms = images.square().mean(dim=(1, 2)).sqrt()
            fits = half.isfinite().all(dim=2).all(dim=1) & (rms >= _MIN_RMS)
            if not fits.all():
                bad = int((~fits).int().argmax())
                raise InputError(
                    f"image {reader.particles.image_name(batch[bad])} does not fit half precision "
                    f"(rms {float(rms[bad]):.2g}); choose normalise 'image' or 'set'"
                )
            self._images[start : start + len(batch)] = half.to(self._images.device)
            if progress is not None:
                progress(start + len(batch) - first, end - first)
        group.wait()
        if self.storage == "device":
            # Of several processes, each keeps all images on its device.
            self._images = self._images.to(self.device)


def _distinct_images(particles: Particles) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with distinct images, in file order, and (n,) the index of each row's image among them."""
    keys = np.column_stack([particles.image_groups, particles.shifts, particles.norm_correction])
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.ravel()]
