"""Compiled loops over voxels and points: the position of each in an image, and a bilinear read or spread there.

A voxel costs four neighbours and some arithmetic, several times less than a library's general interpolation. Along a
row of voxels in x, the position advances by one column of the pose, and the displacement is interpolated from a coarse
lattice. Images have a border of zeros, one pixel before and two after. Positions are clamped to the border, so that
points outside the image read zero without a branch.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
# Its arguments have the types that docstrings say: whoever calls it from Python is not checked.
Loop = Callable[..., None]

# Lets the compiler turn rows of a few numbers into one instruction. It must be set before anything is compiled.
numba.config.SLP_VECTORIZE = True  # type: ignore[attr-defined]  # numba creates its settings at run time

# Pixels of the border before and after an image.
BORDER = (1, 2)

# Without nnan: a position that is not a number must end on the border.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}


def compiled(function: Loop, inline: bool = False) -> Loop:
    """Compile a function. The result is cached beside the module or, if that is read-only, in the user's cache."""
    options = _OPTIONS | {"forceinline": inline}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # No cache folder is writable: compile once per process.
        return numba.njit(**options)(function)


def part_of_a_loop(function: Loop) -> Loop:
    """Compile a function inline, as a part of the compiled functions that call it.

    A separate function would be optimised twice, alone and within its cached caller: a process that compiles and one
    that reads the cache would differ in the last digits.
    """
    return compiled(function, inline=True)


_local = threading.local()


def _pool() -> ThreadPoolExecutor:
    """Return the calling thread's own pool, with torch's number of threads."""
    threads = torch.get_num_threads()
    if getattr(_local, "threads", None) != threads:
        _local.pool, _local.threads = ThreadPoolExecutor(threads), threads
    pool: ThreadPoolExecutor = _local.pool
    return pool


def shares(n: int, parts: int) -> Integers:
    """Return the bounds of at most `parts` shares of n items, as equal as they can be, none empty; for `in_threads`."""
    bounds: Integers = np.unique(np.linspace(0, n, 1 + parts).astype(np.int64))
    return bounds


def in_threads(function: Loop, bounds: Integers, *arguments: object) -> None:
    """Call ``function(first, last, *arguments)`` for each pair of neighbours in `bounds`, on torch's threads."""
    tasks = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    if len(tasks) == 1:
        function(*tasks[0], *arguments)
        return
    list(_pool().map(lambda task: function(*task, *arguments), tasks))


@part_of_a_loop
def _displacements(run, shift, nodes, corner, spacing, across, down):
    """Write the displacement (pixels) of each voxel of a row to `across` and `down`; see `read_rows`."""
    x0, n = run[2], run[3] - run[2]
    if spacing == 1:
        first = run[5]
        for j in range(n):
            across[j] = shift[0, first + j]
            down[j] = shift[1, first + j]
        return
    inverse = np.float32(1) / np.float32(spacing)
    z, y = run[0] - corner[0], run[1] - corner[1]
    cz, cy, cx = z // spacing, y // spacing, (x0 - corner[2]) // spacing
    fz = np.float32(z - cz * spacing) * inverse
    fy = np.float32(y - cy * spacing) * inverse
    a, b = (1 - fz) * (1 - fy), (1 - fz) * fy
    c, d = fz * (1 - fy), fz * fy
    left_x = left_y = np.float32(0)
    j, first = 0, True
    while j < n:
        k = cx if first else cx + 1
        p, q = nodes[cz, cy, k], nodes[cz, cy + 1, k]
        r, s = nodes[cz + 1, cy, k], nodes[cz + 1, cy + 1, k]
        right_x = a * shift[0, p] + b * shift[0, q] + c * shift[0, r] + d * shift[0, s]
        right_y = a * shift[1, p] + b * shift[1, q] + c * shift[1, r] + d * shift[1, s]
        if not first:
            start = cx * spacing + corner[2] - x0
            end = min(start + spacing, n)
            slope_x, slope_y = (right_x - left_x) * inverse, (right_y - left_y) * inverse
            for i in range(j, end):
                step = np.float32(np.int32(i - start))
                across[i] = left_x + slope_x * step
                down[i] = left_y + slope_y * step
            j = end
            cx += 1
        first = False
        left_x, left_y = right_x, right_y


@part_of_a_loop
def _positions(run, pose, across, down, stride, index, right, lower):
    """Write the pixel before each voxel of a row to `index`, and the fraction beyond it to `right` and `lower`.

    Parameters are those of `read_rows`.
    """
    x0, n = np.float32(run[2]), run[3] - run[2]
    y, z = np.float32(run[1]), np.float32(run[0])
    step_x, step_y = pose[0, 0], pose[1, 0]
    start_x = pose[0, 3] + pose[0, 2] * z + pose[0, 1] * y + step_x * x0
    start_y = pose[1, 3] + pose[1, 2] * z + pose[1, 1] * y + step_y * x0
    zero, last, width = np.float32(0), np.float32(stride - 2), np.int32(stride)
    for j in range(n):
        step = np.float32(np.int32(j))
        x = start_x + step_x * step + across[j]
        y = start_y + step_y * step + down[j]
        x = x if x > zero else zero
        y = y if y > zero else zero
        x = x if x < last else last
        y = y if y < last else last
        column, row = np.int32(x), np.int32(y)
        right[j] = x - np.float32(column)
        lower[j] = y - np.float32(row)
        index[j] = np.int32(np.int32(row * width) + column)


@compiled
def read_rows(first, last, images, poses, tiles, runs, shifts, nodes, corner, spacing, out):
    """Add the values of images at voxels to `out`.

    Parameters
    ----------
    first, last
        range of tiles to work on. No voxel is in two tiles.
    images
        (b, size, size) float32 with their border.
    poses
        (b, 2, 4) float32 from (x, y, z, 1) in voxels to pixels of the bordered images.
    tiles
        (t + 1,) int64 index of the first run of each tile, and the end. Tiles are small, so that the pixels that one
        covers stay in the processor's cache.
    runs
        (r, 6) int64 z, y, first x and end x of voxels in a row, and the index of the first one in `out` and among all
        voxels.
    shifts
        (b, 2, n) float32 displacements in pixels, of all voxels (`spacing` 1) or of the nodes of a lattice.
    nodes
        (z, y, x) int64 index of each lattice node among the n.
    corner
        (3,) int64 z, y, x in voxels of the first node.
    spacing
        of the nodes in voxels; 0 without displacements.
    out
        (m,) float32.
    """
    stride = images.shape[2]
    length = 0
    for r in range(tiles[first], tiles[last]):
        length = max(length, runs[r, 3] - runs[r, 2])
    across, down = np.zeros(length, np.float32), np.zeros(length, np.float32)
    right, lower = np.empty(length, np.float32), np.empty(length, np.float32)
    index = np.empty(length, np.int32)
    for tile in range(first, last):
        for i in range(len(images)):
            image, pose, shift = images[i].ravel(), poses[i], shifts[i]
            for r in range(tiles[tile], tiles[tile + 1]):
                run = runs[r]
                n, start = run[3] - run[2], run[4]
                if spacing > 0:
                    _displacements(run, shift, nodes, corner, spacing, across, down)
                _positions(run, pose, across, down, stride, index, right, lower)
                row = out[start : start + n]
                for j in range(n):
                    k = np.uint64(index[j])
                    below = k + np.uint64(stride)
                    u = image[k] + right[j] * (image[k + np.uint64(1)] - image[k])
                    v = image[below] + right[j] * (image[below + np.uint64(1)] - image[below])
                    row[j] += u + lower[j] * (v - u)


@compiled
def spread_rows(first, last, values, poses, tiles, runs, shifts, nodes, corner, spacing, images):
    """Add the values of voxels to images: the transpose of `read_rows`.

    Parameters are those of `read_rows`, but `first` and `last` are a range of images, and `values` (m,) replaces `out`.
    """
    stride = images.shape[2]
    length = 0
    for r in range(len(runs)):
        length = max(length, runs[r, 3] - runs[r, 2])
    across, down = np.zeros(length, np.float32), np.zeros(length, np.float32)
    right, lower = np.empty(length, np.float32), np.empty(length, np.float32)
    index = np.empty(length, np.int32)
    for i in range(first, last):
        image, pose, shift = images[i].ravel(), poses[i], shifts[i]
        for r in range(tiles[0], tiles[-1]):
            run = runs[r]
            n, start = run[3] - run[2], run[4]
            if spacing > 0:
                _displacements(run, shift, nodes, corner, spacing, across, down)
            _positions(run, pose, across, down, stride, index, right, lower)
            for j in range(n):
                k = np.uint64(index[j])
                below = k + np.uint64(stride)
                value = values[start + j]
                bottom = value * lower[j]
                top = value - bottom
                image[k] += top - top * right[j]
                image[k + np.uint64(1)] += top * right[j]
                image[below] += bottom - bottom * right[j]
                image[below + np.uint64(1)] += bottom * right[j]


@compiled
def sum_forces(first, last, positions, forces, cells, sums):
    """Add the forces on points, and their torques about the origin, to the cells of the points.

    Parameters
    ----------
    first, last
        images.
    positions, forces
        (n, 3) float32, and (b, n, 3) float32.
    cells
        (n,) int64, the cell of each point.
    sums
        (b, cells, 6) float32.
    """
    for i in range(first, last):
        for j in range(len(positions)):
            x, y, z = positions[j, 0], positions[j, 1], positions[j, 2]
            a, b, c = forces[i, j, 0], forces[i, j, 1], forces[i, j, 2]
            total = sums[i, cells[j]]
            total[0] += a
            total[1] += b
            total[2] += c
            total[3] += y * c - z * b
            total[4] += z * a - x * c
            total[5] += x * b - y * a


@compiled
def spread_moved(first, last, positions, shifts, poses, weights, images):
    """Spread points that are displaced in each image with bilinear weights; parts outside are lost.

    Parameters
    ----------
    first, last
        images.
    positions, shifts
        (3, n) and (b, 3, n) float32: points at rest, and their displacements, A.
    poses
        (b, 2, 4) float32, from homogeneous points in A to pixels, origin at index 0.
    weights
        (n,) float32.
    images
        (b, size, size) float32, added to.
    """
    n, size = positions.shape[1], images.shape[1]
    rest_x, rest_y, rest_z = positions[0], positions[1], positions[2]
    across, down = np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(first, last):
        x, y, z, image, p = shifts[i, 0], shifts[i, 1], shifts[i, 2], images[i], poses[i]
        a, b, c, d = p[0, 0], p[0, 1], p[0, 2], p[0, 3]
        e, f, g, h = p[1, 0], p[1, 1], p[1, 2], p[1, 3]
        for j in range(n):
            across[j] = a * (rest_x[j] + x[j]) + b * (rest_y[j] + y[j]) + c * (rest_z[j] + z[j]) + d
            down[j] = e * (rest_x[j] + x[j]) + f * (rest_y[j] + y[j]) + g * (rest_z[j] + z[j]) + h
        for j in range(n):
            left, top = np.floor(across[j]), np.floor(down[j])
            # A position that is not a number is outside.
            if not (left >= -1 and left < size and top >= -1 and top < size):
                continue
            right, below = across[j] - left, down[j] - top
            column, row = np.int32(left), np.int32(top)
            upper, lower = weights[j] * (1 - below), weights[j] * below
            if column >= 0 and row >= 0 and column + 1 < size and row + 1 < size:
                image[row, column] += upper * (1 - right)
                image[row, column + 1] += upper * right
                image[row + 1, column] += lower * (1 - right)
                image[row + 1, column + 1] += lower * right
                continue
            if row >= 0 and column >= 0:
                image[row, column] += upper * (1 - right)
            if row >= 0 and column + 1 < size:
                image[row, column + 1] += upper * right
            if row + 1 < size and column >= 0:
                image[row + 1, column] += lower * (1 - right)
            if row + 1 < size and column + 1 < size:
                image[row + 1, column + 1] += lower * right
