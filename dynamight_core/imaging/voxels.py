"""Voxels as pseudo-atoms: read in particle images or spread into them, at rest or displaced by a field.

Compiled loops do this on a CPU (`compiled`), torch on other devices, by the same rule. A field is evaluated on a
lattice as coarse as its smoothness allows, projected by the pose, and interpolated between the nodes.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dynamight_core.imaging.compiled import BORDER, Integers, in_threads, read_rows, shares, spread_rows
from dynamight_core.imaging.geometry import Evaluator, Field, LinearEvaluator
from dynamight_core.sampling import evenly

# Particles as `read` and `spread` take them: poses and displacements, both in pixels; see `Voxels.place`.
Placed = tuple[torch.Tensor, torch.Tensor]

# Planes and lines of a tile: its rows cross the same part of an image.
_TILE = 8
# Lattice spacings to try, voxels; the largest rms error of interpolation over particles, voxels; points it is
# measured at.
_SPACINGS, _MAX_ERROR, _SAMPLE = (8, 4, 2), 0.01, 400
# Bytes of a batch's displacements at a time, and what a decoder keeps for a fixed point: 32 basis fields of three
# numbers, and some room.
_SHIFTS, _BYTES_PER_POINT = 2**25, 512
# Bytes of a field's values that are kept for points where it is evaluated again.
_REMEMBERED = 2**28
# Reads of a batch at a time where each needs its own memory.
_READS = 2**24


class ModalField:
    """A deformation as a sum of a few fields, delta_i(x) = sum_k c_ik phi_k(x). Its latents are coordinates (n, K).

    Parameters
    ----------
    fields
        returns phi, (K, m, 3), at (m, 3) points (A). With c in A, phi has no unit.
    """

    def __init__(self, fields: Callable[[torch.Tensor], torch.Tensor]):
        self.fields = fields

    def remembered(self, memory: int = _REMEMBERED) -> "ModalField":
        """Return the field with its values at points where it was evaluated before kept in up to `memory` bytes."""
        kept: dict[bytes, torch.Tensor] = {}

        def fields(points: torch.Tensor) -> torch.Tensor:
            name = sha256(points.cpu().numpy().tobytes()).digest()
            if name not in kept:
                values = self.fields(points)
                if sum(each.nbytes for each in kept.values()) + values.nbytes > memory:
                    return values
                kept[name] = values
            return kept[name]

        return ModalField(fields)

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the function from (b, K) coordinates to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        return LinearEvaluator(lambda coordinates: coordinates, self.fields(points))


class CoarseField:
    """A field that is evaluated for each particle, on a lattice of every so many voxels (paper).

    Parameters
    ----------
    field
        of any kind.
    spacing
        of the lattice, voxels.
    """

    def __init__(self, field: Field, spacing: int):
        self.field, self.spacing = field, spacing

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the function from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        evaluate = self.field.evaluator(points)
        # One particle at a time: a network keeps many numbers for each point.
        return lambda latents: torch.cat([evaluate(each) for each in latents.split(1)])


def bordered(images: torch.Tensor) -> torch.Tensor:
    """Return (b, size, size) images with the border of zeros that reading and spreading need."""
    return F.pad(images, BORDER * 2)


class Voxels:
    """Voxels of a grid in particle images.

    Parameters
    ----------
    mask
        (z, y, x) bool, the voxels.
    origin
        (z, y, x) index of the grid's origin.
    pixel_size
        A.
    field
        deformation, or None.
    scale
        (z, y, x) factor on displacements; 1 if None or not of floating point.
    spacing
        of the lattice that the field is evaluated on, voxels.
    """

    def __init__(
        self,
        mask: torch.Tensor,
        origin: Sequence[int],
        pixel_size: float,
        field: Field | None = None,
        scale: torch.Tensor | None = None,
        spacing: int = 1,
    ):
        self.device, self.shape = mask.device, tuple(mask.shape)
        self.origin, self.pixel_size, self.field, self.spacing = tuple(origin), pixel_size, field, spacing
        self.scale = scale if field is not None and scale is not None and scale.is_floating_point() else None
        self._set(_runs(mask.cpu().numpy(), self.origin))

    def _set(self, runs: Integers) -> None:
        self.runs = runs
        order, self._tiles = _tiles(runs)
        self._tiled = runs[order]
        self.nodes, self.corner = np.zeros((0, 0, 0), np.int64), np.zeros(3, np.int64)
        self._shifts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __len__(self) -> int:
        return int((self.runs[:, 3] - self.runs[:, 2]).sum())

    @property
    def points(self) -> torch.Tensor:
        """(m, 3) x, y, z of the voxels, A."""
        return self._rows(self.runs)[0][:3].T.contiguous() * self.pixel_size

    def split(self, size: int) -> list["Voxels"]:
        """Return parts of about `size` voxels each."""
        lengths = self.runs[:, 3] - self.runs[:, 2]
        part = (np.cumsum(lengths) - lengths) // max(1, size)
        parts = []
        for number in np.unique(part):
            chosen = object.__new__(Voxels)
            chosen.__dict__.update(self.__dict__)
            runs = self.runs[part == number].copy()
            runs[:, 5] -= runs[0, 5]
            chosen._set(runs)
            parts.append(chosen)
        return parts

    def _prepared(self, field: Field) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the function from poses and latents to (b, 2, n) displacements in pixels; it holds the field here."""
        if self.spacing == 1:
            voxels = self._rows(self.runs)[0][:3].T.round().long()
        else:
            voxels, self.nodes, self.corner = self._lattice()
        factor = None if self.scale is None else self._scale_at(voxels, self.scale)
        points = voxels.float() * self.pixel_size
        if isinstance(field, ModalField):
            fields = field.fields(points)
            if factor is not None:
                fields = fields * factor
            # As rows of a product with poses and coordinates, (3 K, nodes).
            rows = fields.transpose(1, 2).flatten(0, 1).contiguous()

            def modal(poses: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
                moved = coordinates[:, None, :, None] * poses[:, :, None, :3]  # (b, 2, K, 3)
                return (moved.reshape(2 * len(poses), -1) @ rows).view(len(poses), 2, -1)

            return modal
        evaluate = field.evaluator(points)

        def projected(poses: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            shifts = evaluate(latents) if factor is None else evaluate(latents) * factor
            return torch.bmm(poses[:, :, :3], shifts.transpose(1, 2))

        return projected

    def release(self) -> None:
        """Free the memory that the field's values take."""
        self._shifts, self.nodes = None, np.zeros((0, 0, 0), np.int64)

    def field_memory(self) -> float:
        """Return the approximate number of bytes that the field's values take."""
        return len(self) * min(1, 2 / self.spacing**3) * _BYTES_PER_POINT

    def _scale_at(self, voxels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the (n, 1) factors at (n, 3) x, y, z in voxels from the origin; beyond the grid, those at its edge."""
        at = [
            (voxels[:, 2 - axis] + start).clamp(0, size - 1)
            for axis, (start, size) in enumerate(zip(self.origin, self.shape, strict=True))
        ]
        return scale[tuple(at)][:, None]

    def _lattice(self) -> tuple[torch.Tensor, Integers, Integers]:
        """Return (n, 3) x, y, z of the nodes around the voxels, their indices on a lattice and its first corner."""
        rows = self._rows(self.runs)[0][:3].round().long().flip(0).cpu().numpy()
        corner = rows.min(1)
        cells = (rows - corner[:, None]) // self.spacing
        used = np.zeros(cells.max(1) + 2, bool)
        for dz, dy, dx in product((0, 1), repeat=3):
            used[cells[0] + dz, cells[1] + dy, cells[2] + dx] = True
        numbers = np.where(used, np.cumsum(used.ravel()).reshape(used.shape) - 1, 0)
        nodes = np.argwhere(used) * self.spacing + corner
        return torch.from_numpy(nodes[:, ::-1].copy()).to(self.device), numbers, corner

    def place(self, poses: torch.Tensor, latents: torch.Tensor | None = None) -> Placed:
        """Return poses and displacements of particles as `read` and `spread` take them.

        Parameters
        ----------
        poses
            (b, 2, 4) from homogeneous points in A to pixels, origin at index 0.
        latents
            (b, d) of the field.

        Returns
        -------
        tuple
            (b, 2, 4) poses from voxels to pixels of bordered images, and (b, 2, n) displacements in pixels.

        Raises
        ------
        ValueError
            if there is a field but no latents.
        """
        scaled = poses.clone()
        scaled[:, :, :3] *= self.pixel_size
        scaled[:, :, 3] += BORDER[0]
        if self.field is None:
            return scaled, poses.new_zeros(len(poses), 2, 1)
        if latents is None:
            raise ValueError("voxels under a field need the latents of the particles")
        if self._shifts is None:
            self._shifts = self._prepared(self.field)
        return scaled, self._shifts(poses, latents)

    def read(self, images: torch.Tensor, placed: Placed, out: torch.Tensor) -> None:
        """Add to `out`, a whole grid, the values of (b, size, size) bordered images at the voxels, summed over b."""
        if self.device.type == "cpu":
            self._compiled(read_rows, images, placed, out.view(-1), by_tile=True)
        else:
            self._read_torch(images, placed, out)

    def spread(self, values: torch.Tensor, placed: Placed, size: int) -> torch.Tensor:
        """Return (b, size, size) images, without a border, of the values of a whole grid at the voxels."""
        width = size + sum(BORDER)
        images = values.new_zeros(len(placed[0]), width, width)
        if self.device.type == "cpu":
            self._compiled(spread_rows, values.reshape(-1), placed, images, by_tile=False)
        else:
            self._spread_torch(values, placed, images)
        return images[:, BORDER[0] : -BORDER[1], BORDER[0] : -BORDER[1]]

    def _read_torch(self, images: torch.Tensor, placed: Placed, out: torch.Tensor) -> None:
        for runs, points in self._chunks(placed):
            grid = points * (2 / (images.shape[-1] - 1)) - 1
            values = F.grid_sample(images[:, None], grid.transpose(1, 2)[:, None], align_corners=True).sum((0, 1, 2))
            out.view(-1)[self._rows(runs)[1]] += values

    def _spread_torch(self, values: torch.Tensor, placed: Placed, images: torch.Tensor) -> None:
        width, flat = images.shape[-1], images.view(len(images), -1)
        for runs, points in self._chunks(placed):
            at_voxels = values.reshape(-1)[self._rows(runs)[1]]
            points = points.clamp(0, width - 2)
            lower = points.floor()
            fraction = points - lower
            first = (lower[:, 1] * width + lower[:, 0]).long()
            for down in (0, 1):
                for right in (0, 1):
                    weight = fraction[:, 0] if right else 1 - fraction[:, 0]
                    weight = weight * (fraction[:, 1] if down else 1 - fraction[:, 1])
                    flat.scatter_add_(1, first + down * width + right, weight * at_voxels)

    def _compiled(
        self, function: Callable[..., None], source: torch.Tensor, placed: Placed, target: torch.Tensor, by_tile: bool
    ) -> None:
        poses, shifts = (part.contiguous().numpy() for part in placed)
        parts = len(self._tiles) - 1 if by_tile else len(poses)
        threads = torch.get_num_threads()
        # More parts than threads balance the load: some tiles take longer than others.
        bounds = shares(parts, 1 if threads == 1 else min(parts, 8 * threads))
        in_threads(
            function,
            bounds,
            source.contiguous().numpy(),
            poses,
            self._tiles,
            self._tiled,
            shifts,
            self.nodes,
            self.corner,
            0 if self.field is None else self.spacing,
            target.numpy(),
        )

    def _chunks(self, placed: Placed) -> Iterator[tuple[Integers, torch.Tensor]]:
        """Yield runs of voxels and their (b, 2, m) positions, pixels of bordered images."""
        poses, shifts = placed
        b = len(poses)
        lengths = self.runs[:, 3] - self.runs[:, 2]
        part = (np.cumsum(lengths) - lengths) // max(1, _READS // b)
        for number in np.unique(part):
            runs = self.runs[part == number]
            rows = self._rows(runs)[0]
            points = (poses.reshape(2 * b, 4) @ rows).view(b, 2, -1)
            if self.field is not None:
                points += self._interpolated(shifts, runs, rows)
            yield runs, points

    def _interpolated(self, shifts: torch.Tensor, runs: Integers, rows: torch.Tensor) -> torch.Tensor:
        """Return the (b, 2, m) displacements of voxels."""
        if self.spacing == 1:
            return shifts[:, :, runs[0, 5] : runs[-1, 5] + runs[-1, 3] - runs[-1, 2]]
        nodes = torch.from_numpy(self.nodes).to(rows.device)
        at = rows[:3].flip(0).round().long() - torch.from_numpy(self.corner).to(rows.device)[:, None]
        cells = at // self.spacing
        fraction = (at - cells * self.spacing).float() / self.spacing
        total = torch.zeros(*shifts.shape[:2], rows.shape[1], device=rows.device)
        for corner in product((0, 1), repeat=3):
            weight = torch.ones_like(fraction[0])
            for axis, step in enumerate(corner):
                weight = weight * (fraction[axis] if step else 1 - fraction[axis])
            number = nodes[tuple(cells[axis] + step for axis, step in enumerate(corner))]
            total = total + weight * shifts[:, :, number]
        return total

    def _rows(self, runs_of_voxels: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (4, m) x, y, z in voxels from the origin and 1, and (m,) indices in the whole grid."""
        runs = torch.from_numpy(runs_of_voxels).to(self.device)
        lengths = runs[:, 3] - runs[:, 2]
        number = torch.repeat_interleave(torch.arange(len(runs), device=self.device), lengths)
        within = torch.arange(len(number), device=self.device) - (lengths.cumsum(0) - lengths)[number]
        rows = torch.ones(4, len(number), device=self.device)
        rows[0], rows[1], rows[2] = runs[number, 2] + within, runs[number, 1], runs[number, 0]
        return rows, runs[number, 4] + within


def lattice_spacing(voxels: Voxels, coordinates: torch.Tensor) -> int:
    """Return the widest spacing (voxels) of a lattice from which the field of voxels can be interpolated accurately.

    The error of interpolation is measured at a sample of the voxels, for (n, K) coordinates of a modal field. A coarse
    field says it; other fields are evaluated at every voxel.
    """
    field = voxels.field
    if isinstance(field, CoarseField):
        return field.spacing
    if not isinstance(field, ModalField):
        return 1
    inside = voxels._rows(voxels.runs)[0][:3].T.round().long()
    origin = inside.new_tensor(voxels.origin)
    chosen = evenly(inside, _SAMPLE).flip(1) + origin
    moment = coordinates.T @ coordinates / len(coordinates)

    def fields(indices: torch.Tensor) -> torch.Tensor:
        at = (indices - origin).flip(1)
        values = field.fields(at.float() * voxels.pixel_size)
        return values if voxels.scale is None else values * voxels._scale_at(at, voxels.scale)

    exact = fields(chosen)
    corners = torch.cartesian_prod(*[torch.arange(2, device=chosen.device)] * 3)
    for spacing in _SPACINGS:
        lower = chosen // spacing * spacing
        fraction = (chosen - lower).float() / spacing
        weights = torch.where(corners[:, None].bool(), fraction, 1 - fraction).prod(2)
        values = fields((lower + corners[:, None] * spacing).flatten(0, 1)).unflatten(1, weights.shape)
        total = (values * weights[..., None]).sum(1)
        error = (total - exact).permute(1, 2, 0)
        if float(((error @ moment) * error).sum(-1).sum(-1).mean()) < (_MAX_ERROR * voxels.pixel_size) ** 2:
            return spacing
    return 1


def moving_voxels(voxels: Voxels, latents: torch.Tensor | None, batch_size: int) -> list[Voxels]:
    """Return voxels under a field in parts whose displacements for a batch of particles take a bounded memory.

    `latents` are the (n, d) latents that the field will have; they decide the spacing of its lattice.
    """
    if latents is not None:
        voxels.spacing = lattice_spacing(voxels, latents)
    # A lattice has some nodes beyond its voxels.
    nodes_per_voxel = min(1, 2 / voxels.spacing**3)
    return voxels.split(max(1024, int(_SHIFTS / (8 * batch_size * nodes_per_voxel))))


def passes_within(memory: int, parts: list[Voxels]) -> list[list[Voxels]]:
    """Group parts so that the fields of each group fit in `memory` (bytes). At least one group, which may be empty."""
    passes: list[list[Voxels]] = [[]]
    left: float = memory
    for part in parts:
        size = part.field_memory()
        if passes[-1] and size > left:
            passes.append([])
            left = memory
        passes[-1].append(part)
        left -= size
    return passes


def _runs(mask: NDArray[np.bool_], origin: Sequence[int]) -> Integers:
    """Return (r, 6) rows of voxels along x: z, y, first and end x from the origin, index in the grid and among voxels.

    Parameters
    ----------
    mask
        (z, y, x) bool.
    origin
        (z, y, x) index.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (0, 0), (1, 1))).astype(np.int8), axis=2)
    first, end = np.argwhere(edges == 1), np.argwhere(edges == -1)[:, 2]
    lengths = end - first[:, 2]
    index = (first[:, 0] * mask.shape[1] + first[:, 1]) * mask.shape[2] + first[:, 2]
    columns = [first[:, 0] - origin[0], first[:, 1] - origin[1], first[:, 2] - origin[2], end - origin[2], index]
    return np.column_stack([*columns, np.cumsum(lengths) - lengths]).astype(np.int64)


def _tiles(runs: Integers) -> tuple[Integers, Integers]:
    """Return the order of runs tile by tile, and the (t + 1,) index of the first run of each tile, and the end."""
    tile = np.stack([runs[:, 0] // _TILE, runs[:, 1] // _TILE])
    order = np.lexsort((tile[1], tile[0]))
    changes = np.any(np.diff(tile[:, order], axis=1) != 0, axis=0)
    return order, np.concatenate([[0], np.nonzero(changes)[0] + 1, [len(runs)]]).astype(np.int64)
