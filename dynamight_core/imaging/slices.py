"""Sums over undeformed particles as Fourier slices: N^2 operations per particle, not N^3 as for reading every voxel.

Without motion, the value at a voxel x is the sum over the image's frequencies k of G(k) exp(2 pi i (A^T k) . x / box):
the adjoint of a non-uniform Fourier transform at the points A^T k of a slice. Slices are spread on a Fourier grid
finer than the map's with a compact kernel, whose transform is divided out in real space. The sum is exact to the
accuracy of the kernel.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.imaging.compiled import Floats, compiled, in_threads, part_of_a_loop, shares
from dynamight_core.imaging.fourier import shells

# Per axis: Fourier voxels of the grid to one of the map, and voxels that a point is spread over. With this width the
# "exponential of semicircle" kernel (Barnett, Magland & af Klinteberg 2019) has an error of 2e-4 for white slices.
PADDING, WIDTH = 1.5, 5
_TABLE = 1024
# Extra columns beyond both ends of the half space, for points near the ends.
_MARGIN = WIDTH // 2 + 2
_CHUNK = 2**25
# Real and imaginary part of images, and power, side by side: one pass over the memory sums all three.
_CHANNELS = 3
# Numbers that a point adds to a row of voxels, and a zero: they fill two registers.
_ROW = _CHANNELS * WIDTH + 1


def _kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the kernel at distances in Fourier voxels."""
    beta = 0.97 * np.pi * WIDTH * (1 - 1 / (2 * PADDING))
    inside = np.clip(1 - (2 * distance / WIDTH) ** 2, 0, None)
    return np.where(np.abs(distance) <= WIDTH / 2, np.exp(beta * (np.sqrt(inside) - 1)), 0)


@lru_cache(maxsize=1)
def _kernel_table() -> Floats:
    """Return (_TABLE + 2, WIDTH) weights of a point's voxels, by the fraction of a voxel before the first one."""
    fraction = np.arange(_TABLE + 2)[:, None] / _TABLE
    return _kernel(fraction - WIDTH / 2 + np.arange(WIDTH)).astype(np.float32)


def _correction(box: int, grid: int) -> Floats:
    """Return (box,) one over the kernel's transform along an axis of the map."""
    nodes, weights = np.polynomial.legendre.leggauss(64)  # type: ignore[no-untyped-call]  # numpy has no type for it
    nodes, weights = nodes * WIDTH / 2, weights * WIDTH / 2
    phases = np.cos(2 * np.pi * np.outer(np.arange(box) - box // 2, nodes) / grid)
    correction: Floats = (1 / (phases @ (weights * _kernel(nodes)))).astype(np.float32)
    return correction


def padded_size(box: int) -> int:
    """Return the size of the Fourier grid that slices of `box` pixels are summed on: even, with small factors."""
    size = int(np.ceil(box * PADDING / 2)) * 2
    while _largest_factor(size) > 5:
        size += 2
    return size


def _largest_factor(number: int) -> int:
    factor, largest = 2, 1
    while number > 1:
        while number % factor == 0:
            number, largest = number // factor, factor
        factor += 1
    return largest


class SliceSums:
    """Sums over particles of their images and of their point spreads, without deformation.

    Parameters
    ----------
    box
        of the images, pixels; even.
    size
        of the volumes, voxels; even, `box` if None. Beyond the box, images are continued periodically.
    """

    def __init__(self, box: int, device: torch.device, size: int | None = None):
        self.box, self.device, self.size = box, device, box if size is None else size
        self.grid = padded_size(self.size)
        self.columns = self.grid // 2 + 1 + 2 * _MARGIN
        self.sums = torch.zeros(self.grid, self.grid, self.columns, _CHANNELS, device=device)
        ky = torch.fft.fftfreq(box, 1 / box, device=device)
        kx = torch.arange(box // 2 + 1, device=device, dtype=torch.float32)
        # A half plane cannot represent Nyquist. Rows of the first column occur twice, as conjugates of each other.
        used = (ky[:, None].abs() < box // 2) & (kx < box // 2) & (shells(box, 2, device) <= box // 2)
        self._pixels = used.flatten().nonzero()[:, 0]
        self._kx, self._ky = kx.repeat(box)[self._pixels], ky.repeat_interleave(len(kx))[self._pixels]
        self._weights = torch.where(self._kx == 0, 0.5, 1.0)

    def add(self, matrices: torch.Tensor, transforms: torch.Tensor, power: torch.Tensor) -> None:
        """Add particles.

        Parameters
        ----------
        matrices
            (b, 2, 3) rotations including magnification.
        transforms
            (b, box, box//2+1) complex, of the images.
        power
            (b, box, box//2+1) real, of the point spreads.
        """
        if self.device.type != "cpu":
            self._add_torch(matrices, transforms, power)
            return
        values, scaled = self._points(matrices, transforms, power)
        # Each thread works on its own planes of the grid.
        bounds = shares(self.grid, torch.get_num_threads())
        in_threads(
            _spread_slices,
            bounds,
            scaled.numpy(),
            self._kx.numpy(),
            self._ky.numpy(),
            values.numpy(),
            _kernel_table(),
            self.sums.numpy(),
        )

    def _points(
        self, matrices: torch.Tensor, transforms: torch.Tensor, power: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (b, p, 3) values of a slice's points, and (b, 2, 3) matrices from pixels to Fourier voxels."""
        values = torch.view_as_real(transforms.flatten(1)[:, self._pixels]).float()
        values = torch.cat([values, power.flatten(1)[:, self._pixels, None]], 2) * self._weights[:, None]
        return values, (matrices[:, :2].float() * (self.grid / self.box)).contiguous()

    def _add_torch(self, matrices: torch.Tensor, transforms: torch.Tensor, power: torch.Tensor) -> None:
        values, matrices = self._points(matrices, transforms, power)
        table = torch.from_numpy(_kernel_table()).to(values.device)
        flat = self.sums.view(-1, _CHANNELS)
        points = self._kx[:, None] * matrices[:, None, 0] + self._ky[:, None] * matrices[:, None, 1]
        points, values = points.flatten(0, 1), values.flatten(0, 1)  # (b p, 3)
        negative = points[:, 0] < 0
        points = torch.where(negative[:, None], -points, points)
        values[:, 1] = torch.where(negative, -values[:, 1], values[:, 1])
        kept = (points.abs() <= self.grid // 2 + 1).all(1)
        points, values = points[kept], values[kept]
        first = (points - WIDTH / 2).ceil()
        at = (first - (points - WIDTH / 2)) * _TABLE
        row = at.long()
        weights = torch.lerp(table[row], table[row + 1], (at - row)[..., None])  # (b p, 3, width)
        first = first.long()
        for z in range(WIDTH):
            for y in range(WIDTH):
                line = (first[:, 2] + z) % self.grid * self.grid + (first[:, 1] + y) % self.grid
                scaled = values * (weights[:, 2, z] * weights[:, 1, y])[:, None]
                for x in range(WIDTH):
                    index = line * self.columns + first[:, 0] + x + _MARGIN
                    flat.index_add_(0, index, scaled * weights[:, 0, x, None])

    def images(self) -> torch.Tensor:
        """Return the (size, size, size) sum of images at every voxel."""
        return self._volume(lambda part: torch.view_as_complex(part[..., :2].contiguous()))

    def point_spread(self) -> torch.Tensor:
        """Return the (size, size, size) sum of point spreads at every voxel."""
        return self._volume(lambda part: part[..., 2].to(torch.complex64))

    def _volume(self, channel: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        size, grid, half = self.size, self.grid, self.grid // 2
        middle = torch.arange(-(size // 2), size - size // 2, device=self.device)
        inside = middle % grid
        # Planes of the map first, so that only these of the fine grid are held as complex numbers.
        rows = torch.empty(size, grid, half + 1, dtype=torch.complex64, device=self.device)
        step = max(1, _CHUNK // (8 * grid * self.columns))
        for start in range(0, grid, step):
            chosen = torch.arange(start, min(start + step, grid), device=self.device)
            part = channel(self.sums[:, chosen])
            mirrored = channel(self.sums[:, (-chosen) % grid])[(-torch.arange(grid, device=self.device)) % grid]
            columns = part[:, :, _MARGIN : _MARGIN + half + 1].clone()
            # Values beyond an end of the half space belong to the conjugate on the other side.
            near = slice(0, _MARGIN + 1)
            columns[:, :, near] += mirrored[:, :, near].flip(2).conj()
            far = slice(_MARGIN + half, _MARGIN + half + _MARGIN + 1)
            columns[:, :, half - _MARGIN :] += mirrored[:, :, far].flip(2).conj()
            rows[:, chosen] = torch.fft.ifft(columns, dim=0, norm="forward")[inside]
        correction = torch.from_numpy(_correction(size, grid)).to(self.device)
        volume = torch.empty(size, size, size, device=self.device)
        step = max(1, _CHUNK // (8 * grid * (half + 1)))
        for start in range(0, size, step):
            planes = slice(start, start + step)
            lines = torch.fft.ifft(rows[planes], dim=1, norm="forward")[:, inside]
            values = torch.fft.irfft(lines, n=grid, dim=2, norm="forward")[:, :, inside]
            volume[planes] = values * correction[planes, None, None] * correction[:, None] * correction
        return volume / self.box**2


@part_of_a_loop
def _add_row(to: Floats, weight: np.float32, row: tuple[np.float32, ...]) -> None:
    """Add a weighted row of `_ROW` numbers."""
    to[0] += weight * row[0]
    to[1] += weight * row[1]
    to[2] += weight * row[2]
    to[3] += weight * row[3]
    to[4] += weight * row[4]
    to[5] += weight * row[5]
    to[6] += weight * row[6]
    to[7] += weight * row[7]
    to[8] += weight * row[8]
    to[9] += weight * row[9]
    to[10] += weight * row[10]
    to[11] += weight * row[11]
    to[12] += weight * row[12]
    to[13] += weight * row[13]
    to[14] += weight * row[14]
    to[15] += weight * row[15]


@compiled
def _spread_slices(
    first: int, last: int, matrices: Floats, kx: Floats, ky: Floats, values: Floats, table: Floats, sums: Floats
) -> None:
    """Spread the points of slices on the planes from `first` to `last` of the grid.

    Parameters
    ----------
    first, last
        range of planes to work on.
    matrices
        (b, 2, 3) from pixels to Fourier voxels.
    kx, ky
        (p,) frequencies of the pixels.
    values
        (b, p, 3) real and imaginary part, and power.
    table
        of `_kernel_table`.
    sums
        (z, y, x, 3); columns begin with the margin.
    """
    grid, columns = sums.shape[0], sums.shape[2]
    # Magnification moves a few frequencies beyond those of the map.
    reachable = np.float32(grid // 2 + 1)
    reach, steps = np.float32(WIDTH / 2), np.float32(_TABLE)
    flat = sums.reshape(-1)
    weights = np.empty((3, WIDTH), np.float32)
    lines = np.empty(WIDTH, np.int64)
    for i in range(len(matrices)):
        ax, ay, az = matrices[i, 0, 0], matrices[i, 0, 1], matrices[i, 0, 2]
        bx, by, bz = matrices[i, 1, 0], matrices[i, 1, 1], matrices[i, 1, 2]
        for p in range(len(kx)):
            x, y, z = ax * kx[p] + bx * ky[p], ay * kx[p] + by * ky[p], az * kx[p] + bz * ky[p]
            real, imaginary, power = values[i, p, 0], values[i, p, 1], values[i, p, 2]
            if x < 0:
                x, y, z, imaginary = -x, -y, -z, -imaginary
            if x > reachable or abs(y) > reachable or abs(z) > reachable:
                continue
            start = np.int64(np.ceil(z - reach))
            planes = np.int64(0)
            for t in range(WIDTH):
                planes += first <= (start + t) % grid < last
            if planes == 0:
                continue
            for axis in range(3):
                before = (x if axis == 0 else (y if axis == 1 else z)) - reach
                at = (np.ceil(before) - before) * steps
                k = np.int64(at)
                fraction = at - np.float32(k)
                for t in range(WIDTH):
                    weights[axis, t] = table[k, t] + fraction * (table[k + 1, t] - table[k, t])
            a, b, c, d, e = weights[0, 0], weights[0, 1], weights[0, 2], weights[0, 3], weights[0, 4]
            row = (
                a * real,
                a * imaginary,
                a * power,
                b * real,
                b * imaginary,
                b * power,
                c * real,
                c * imaginary,
                c * power,
                d * real,
                d * imaginary,
                d * power,
                e * real,
                e * imaginary,
                e * power,
                np.float32(0),
            )
            column = np.int64(np.ceil(x - reach)) + _MARGIN
            low = np.int64(np.ceil(y - reach))
            for t in range(WIDTH):
                line = low + t
                line = line + grid if line < 0 else (line - grid if line >= grid else line)
                lines[t] = (line * columns + column) * 3
            for t in range(WIDTH):
                plane = start + t
                plane = plane + grid if plane < 0 else (plane - grid if plane >= grid else plane)
                if plane < first or plane >= last:
                    continue
                offset = plane * grid * columns * 3
                for u in range(WIDTH):
                    to = offset + lines[u]
                    _add_row(flat[to : to + _ROW], weights[2, t] * weights[1, u], row)
