"""Raw particle images, read one by one from memory-mapped stacks."""

from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import Index
from dynamight_core.particles.grid import resample_to_grid
from dynamight_core.particles.metadata import Particles
from dynamight_core.particles.stacks import OpenStack, read_stack_header

_MAX_OPEN = 64


class ImageReader:
    """Reads the images of particles; its constructor checks the headers of all stacks.

    Only the requested images are read. The most recently used stacks stay open.

    Parameters
    ----------
    particles
        whose images are the indices of `read`.

    Raises
    ------
    InputError
        if a stack is missing, unreadable or truncated, its box differs, or it has fewer images than the rows name.
    """

    def __init__(self, particles: Particles):
        self.particles = particles
        self._rows = np.arange(particles.n_images)
        self._open: OrderedDict[int, OpenStack] = OrderedDict()
        self._check_stacks()

    def read(self, indices: Index) -> torch.Tensor:
        """Return the (b, box, box) float32 images of the selected rows, the contrast of dark particles inverted.

        Raises
        ------
        InputError
            if an image is constant or has values that are not finite.
        """
        rows = self._rows[indices if isinstance(indices, slice) else np.asarray(indices)]
        p = self.particles
        images = torch.empty(len(rows), p.box, p.box)
        if p.sizes is None:
            images[:] = self._read_raw(rows, p.box)
        else:
            for box, pixel_size in np.unique(p.sizes[rows], axis=0):
                some = np.flatnonzero((p.sizes[rows] == (box, pixel_size)).all(1))
                raw = self._read_raw(rows[some], int(box))
                images[some] = resample_to_grid(raw, pixel_size, p.box, p.pixel_size)
        return images * p.contrast[rows][:, None, None]

    def _read_raw(self, rows: NDArray[np.int64], box: int) -> torch.Tensor:
        """Return the (b, box, box) images of rows as they are in their stacks."""
        p = self.particles
        images = np.empty((len(rows), box, box), dtype=np.float32)
        # In the order in which they lie on disk
        for i in np.lexsort((p.frame[rows], p.stack_index[rows])):
            images[i] = self._stack(p.stack_index[rows[i]])[p.frame[rows[i]]]
        self._check_values(images, rows)
        return torch.from_numpy(images)

    def usable(self, indices: Index) -> NDArray[np.bool_]:
        """Return (b,) whether the image of each selected row is finite and not constant."""
        rows = self._rows[indices if isinstance(indices, slice) else np.asarray(indices)]
        found = [self._stack(self.particles.stack_index[row])[self.particles.frame[row]] for row in rows]
        return np.array([bool(np.isfinite(image).all() and image.min() < image.max()) for image in found], dtype=bool)

    def close(self) -> None:
        """Close the open stacks."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stack(self, index: int) -> OpenStack:
        if index in self._open:
            self._open.move_to_end(index)
        else:
            if len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[index] = OpenStack(self.particles.stacks[index])
        return self._open[index]

    def _check_stacks(self) -> None:
        p = self.particles
        last = np.full(len(p.stacks), -1)
        np.maximum.at(last, p.stack_index, p.frame)
        boxes = _boxes_by_stack(p)
        for index in np.flatnonzero(last >= 0):
            path, header = p.stacks[index], read_stack_header(p.stacks[index])
            said = boxes.get(int(index), {p.box})
            if said != {header.box}:
                raise InputError(
                    f"stack {path} holds images of {header.box} pixels where {p.star_path} says "
                    f"{' and '.join(map(str, sorted(said)))} (rlnImageSize, or the first stack); give each optics "
                    "group the box of its images"
                )
            if last[index] >= header.n_images:
                row = int(np.argmax((p.stack_index == index) & (p.frame >= header.n_images)))
                raise InputError(
                    f"{p.star_path} names in row {p.image_rows[row] + 1} of column rlnImageName image "
                    f"{p.frame[row] + 1} of {path}, which holds {header.n_images}; give the stack that belongs to the "
                    "file"
                )

    def _check_values(self, images: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        if not len(rows):
            return
        # NaN and infinities propagate to the extremes.
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        if not (np.isfinite(low) & np.isfinite(high)).all():
            name = self.particles.image_name(rows[np.argmin(np.isfinite(low) & np.isfinite(high))])
            raise InputError(f"image {name} holds NaN or infinite values; remove the particle or extract it again")
        if (low == high).any():
            name = self.particles.image_name(rows[np.argmax(low == high)])
            raise InputError(f"image {name} is constant; remove the particle or extract it again")


def _boxes_by_stack(particles: Particles) -> dict[int, set[int]]:
    """Return the boxes that rows say of the images of each stack, if there are several."""
    p, boxes = particles, dict[int, set[int]]()
    if p.sizes is not None:
        for index, box in np.unique(np.stack([p.stack_index, p.sizes[:, 0].astype(int)], -1), axis=0).tolist():
            boxes.setdefault(index, set()).add(box)
    return boxes
