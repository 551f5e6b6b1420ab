"""Voxels as pseudo-atoms: read in particle images or spread into them, at rest or moved by a field.

On a CPU compiled loops do it (`compiled`), on other devices torch; both by the same rule. A field is evaluated on a
lattice of every so many voxels, as coarse as its own smoothness allows, projected by the pose, and interpolated.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from dynamight_core.imaging.compiled import BORDER, in_threads, read_rows, spread_rows

Evaluator = Callable[[torch.Tensor], torch.Tensor]

# Rows of this many planes and lines belong together: they cross the same part of an image.
_TILE = 8
# Spacings of a lattice that are tried, in voxels, and what interpolation may leave, in voxels rms over particles.
_SPACINGS, _REMAINDER, _SAMPLE = (8, 4, 2), 0.01, 400
# Bytes of a batch's displacements at a time, and what a decoder keeps for a fixed point: 32 basis fields of three
# numbers, and some room.
_SHIFTS, _BYTES_PER_POINT = 2**25, 512
# Reads of a batch at a time where they need memory of their own.
_READS = 2**24


class Field(Protocol):
    """What knows a deformation: a decoder, an inverse field, the truth of a simulation."""

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""


class ModalField:
    """A deformation as a sum of a few fields: delta_i(x) = sum_k c_ik phi_k(x); its latents are coordinates (n, K).

    Parameters
    ----------
    fields
        gives phi, (K, m, 3), at (m, 3) points (A). With c in A, phi has no unit.
    """

    def __init__(self, fields: Callable[[torch.Tensor], torch.Tensor]):
        self.fields = fields

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, K) coordinates to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        fields = self.fields(points)
        return lambda coordinates: torch.tensordot(coordinates, fields, dims=1)


def bordered(images: torch.Tensor) -> torch.Tensor:
    """Return (b, size, size) images with the border of zeros that voxels are read and spread with."""
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
        (z, y, x) factor on displacements, None for 1.
    spacing
        of the lattice that the field is evaluated on, in voxels.
    """

    def __init__(self, mask, origin, pixel_size: float, field: Field | None = None, scale=None, spacing: int = 1):
        self.device, self.shape = mask.device, tuple(mask.shape)
        self.origin, self.pixel_size, self.field, self.spacing = tuple(origin), pixel_size, field, spacing
        self.scale = scale if field is not None and scale is not None and scale.is_floating_point() else None
        self._set(_runs(mask.cpu().numpy(), self.origin))

    def _set(self, runs: np.ndarray) -> None:
        self.runs = runs
        order, self._tiles = _tiles(runs)
        self._tiled = runs[order]
        self._evaluate = self._fields = self.nodes = None

    def __len__(self) -> int:
        return int((self.runs[:, 3] - self.runs[:, 2]).sum())

    @property
    def points(self) -> torch.Tensor:
        """(m, 3) x, y, z in A."""
        return self._rows(self.runs)[0][:3].T.contiguous() * self.pixel_size

    def split(self, size: int) -> list["Voxels"]:
        """Return voxels in parts of about `size`."""
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

    def prepare(self) -> None:
        """Evaluate what of the field does not depend on the particle."""
        if self.field is None or self._evaluate is not None or self._fields is not None:
            return
        if self.spacing == 1:
            places, self.corner = self._rows(self.runs)[0][:3].T.round().long(), np.zeros(3, np.int64)
            self.nodes = np.zeros((0, 0, 0), np.int64)
        else:
            places, self.nodes, self.corner = self._lattice()
        factor = None if self.scale is None else self._scale_at(places)
        points = places.float() * self.pixel_size
        if isinstance(self.field, ModalField):
            fields = self.field.fields(points)
            if factor is not None:
                fields = fields * factor
            # As rows of a product with poses and coordinates, (3 K, nodes).
            self._fields = fields.transpose(1, 2).flatten(0, 1).contiguous()
        else:
            evaluate = self.field.evaluator(points)
            self._evaluate = evaluate if factor is None else lambda latents: evaluate(latents) * factor

    def release(self) -> None:
        """Let go of what `prepare` made."""
        self._evaluate = self._fields = self.nodes = None

    def field_memory(self) -> int:
        """Return about how many bytes `prepare` makes."""
        return len(self) * min(1, 2 / self.spacing**3) * _BYTES_PER_POINT

    def _scale_at(self, places: torch.Tensor) -> torch.Tensor:
        """Return the (n, 1) factors at (n, 3) x, y, z in voxels from the origin; that of the edge beyond the grid."""
        at = [
            (places[:, 2 - axis] + start).clamp(0, size - 1)
            for axis, (start, size) in enumerate(zip(self.origin, self.shape, strict=True))
        ]
        return self.scale[tuple(at)][:, None]

    def _lattice(self):
        """Return (n, 3) x, y, z of the nodes around the voxels, their numbers on a lattice and its first corner."""
        rows = self._rows(self.runs)[0][:3].round().long().flip(0).cpu().numpy()
        corner = rows.min(1)
        cells = (rows - corner[:, None]) // self.spacing
        used = np.zeros(cells.max(1) + 2, bool)
        for dz in (0, 1):
            for dy in (0, 1):
                for dx in (0, 1):
                    used[cells[0] + dz, cells[1] + dy, cells[2] + dx] = True
        numbers = np.where(used, np.cumsum(used.ravel()).reshape(used.shape) - 1, 0)
        places = np.argwhere(used) * self.spacing + corner
        return torch.from_numpy(places[:, ::-1].copy()).to(self.device), numbers, corner

    def place(self, poses: torch.Tensor, latents: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `read` and `spread` need to know of particles.

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
        """
        b = len(poses)
        scaled = poses.clone()
        scaled[:, :, :3] *= self.pixel_size
        scaled[:, :, 3] += BORDER[0]
        if self.field is None:
            return scaled, poses.new_zeros(b, 2, 1)
        self.prepare()
        if self._fields is not None:
            moved = latents[:, None, :, None] * poses[:, :, None, :3]  # (b, 2, K, 3)
            return scaled, (moved.reshape(2 * b, -1) @ self._fields).view(b, 2, -1)
        return scaled, torch.bmm(poses[:, :, :3], self._evaluate(latents).transpose(1, 2))

    def read(self, images: torch.Tensor, placed, out: torch.Tensor) -> None:
        """Add to `out`, a whole grid, the sums over (b, size, size) bordered images of what they hold at the voxels."""
        if self.device.type == "cpu":
            self._compiled(read_rows, images, placed, out.view(-1), by_tile=True)
        else:
            self._read_torch(images, placed, out)

    def spread(self, values: torch.Tensor, placed, size: int) -> torch.Tensor:
        """Return (b, size, size) images, without a border, of a whole grid's values at the voxels."""
        width = size + sum(BORDER)
        images = values.new_zeros(len(placed[0]), width, width)
        if self.device.type == "cpu":
            self._compiled(spread_rows, values.reshape(-1), placed, images, by_tile=False)
        else:
            self._spread_torch(values, placed, images)
        return images[:, BORDER[0] : -BORDER[1], BORDER[0] : -BORDER[1]]

    def _read_torch(self, images, placed, out):
        for runs, places in self._chunks(placed):
            grid = places * (2 / (images.shape[-1] - 1)) - 1
            values = F.grid_sample(images[:, None], grid.transpose(1, 2)[:, None], align_corners=True).sum((0, 1, 2))
            out.view(-1)[self._rows(runs)[1]] += values

    def _spread_torch(self, values, placed, images):
        width, flat = images.shape[-1], images.view(len(images), -1)
        for runs, places in self._chunks(placed):
            weights = values.reshape(-1)[self._rows(runs)[1]]
            places = places.clamp(0, width - 2)
            lower = places.floor()
            fraction = places - lower
            first = (lower[:, 1] * width + lower[:, 0]).long()
            for down in (0, 1):
                for right in (0, 1):
                    share = fraction[:, 0] if right else 1 - fraction[:, 0]
                    share = share * (fraction[:, 1] if down else 1 - fraction[:, 1])
                    flat.scatter_add_(1, first + down * width + right, share * weights)

    def _compiled(self, function, source, placed, target, by_tile):
        tiles = self._tiles
        poses, shifts = (part.contiguous().numpy() for part in placed)
        parts = len(tiles) - 1 if by_tile else len(poses)
        threads = torch.get_num_threads()
        # More parts than threads even out what they take; spread images are alike.
        bounds = np.unique(np.linspace(0, parts, 1 + (1 if threads == 1 else min(parts, 8 * threads))).astype(np.int64))
        spacing = 0 if self.field is None else self.spacing
        nodes = np.zeros((0, 0, 0), np.int64) if self.nodes is None else self.nodes
        corner = np.zeros(3, np.int64) if self.nodes is None else self.corner
        in_threads(
            function,
            bounds,
            source.contiguous().numpy(),
            poses,
            tiles,
            self._tiled,
            shifts,
            nodes,
            corner,
            spacing,
            target.numpy(),
        )

    def _chunks(self, placed):
        """Yield runs of voxels and where they lie, (b, 2, m) pixels of bordered images."""
        poses, shifts = placed
        b = len(poses)
        lengths = self.runs[:, 3] - self.runs[:, 2]
        part = (np.cumsum(lengths) - lengths) // max(1, _READS // b)
        for number in np.unique(part):
            runs = self.runs[part == number]
            rows = self._rows(runs)[0]
            places = (poses.reshape(2 * b, 4) @ rows).view(b, 2, -1)
            if self.field is not None:
                places += self._interpolated(shifts, runs, rows)
            yield runs, places

    def _interpolated(self, shifts, runs, rows):
        """Return the (b, 2, m) displacements of voxels."""
        if self.spacing == 1:
            return shifts[:, :, runs[0, 5] : runs[-1, 5] + runs[-1, 3] - runs[-1, 2]]
        nodes = torch.from_numpy(self.nodes).to(rows.device)
        at = rows[:3].flip(0).round().long() - torch.from_numpy(self.corner).to(rows.device)[:, None]
        cells = at // self.spacing
        fraction = (at - cells * self.spacing).float() / self.spacing
        total = 0.0
        for dz in (0, 1):
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = 1.0
                    for axis, step in enumerate((dz, dy, dx)):
                        weight = weight * (fraction[axis] if step else 1 - fraction[axis])
                    number = nodes[cells[0] + dz, cells[1] + dy, cells[2] + dx]
                    total = total + weight * shifts[:, :, number]
        return total

    def _rows(self, runs):
        """Return (4, m) x, y, z in voxels from the origin and 1, and (m,) places in the whole grid."""
        runs = torch.from_numpy(runs).to(self.device)
        lengths = runs[:, 3] - runs[:, 2]
        number = torch.repeat_interleave(torch.arange(len(runs), device=self.device), lengths)
        within = torch.arange(len(number), device=self.device) - (lengths.cumsum(0) - lengths)[number]
        rows = torch.ones(4, len(number), device=self.device)
        rows[0], rows[1], rows[2] = runs[number, 2] + within, runs[number, 1], runs[number, 0]
        return rows, runs[number, 4] + within


def lattice_spacing(mask, origin, pixel_size: float, field: ModalField, scale, coordinates: torch.Tensor) -> int:
    """Return the widest spacing (voxels) of a lattice that a field with (n, K) coordinates may be interpolated from.

    What interpolation leaves is measured on some of the voxels; see `Voxels` for the other parameters.
    """
    places = mask.nonzero()
    chosen = places[torch.linspace(0, len(places) - 1, min(len(places), _SAMPLE)).long()]
    moment = coordinates.T @ coordinates / len(coordinates)

    def fields(voxels):
        values = field.fields((voxels - voxels.new_tensor(origin)).flip(1).float() * pixel_size)
        if scale is not None and scale.is_floating_point():
            inside = [voxels[:, axis].clamp(0, scale.shape[axis] - 1) for axis in range(3)]
            values = values * scale[tuple(inside)][:, None]
        return values

    exact = fields(chosen)
    for spacing in _SPACINGS:
        lower = chosen // spacing * spacing
        fraction = (chosen - lower).float() / spacing
        total = torch.zeros_like(exact)
        for corner in torch.cartesian_prod(*[torch.arange(2, device=chosen.device)] * 3):
            weight = torch.where(corner.bool(), fraction, 1 - fraction).prod(1)
            total += weight[:, None] * fields(lower + corner * spacing)
        error = (total - exact).permute(1, 2, 0)
        if float(((error @ moment) * error).sum(-1).sum(-1).mean()) < (_REMAINDER * pixel_size) ** 2:
            return spacing
    return 1


def moving_voxels(mask, origin, pixel_size, field, scale, latents, batch_size: int) -> list[Voxels]:
    """Return voxels under a field, in parts whose displacements for a batch of particles take a bounded memory.

    Parameters are those of `Voxels`, and the (n, d) latents that the field will have.
    """
    modal = isinstance(field, ModalField)
    spacing = lattice_spacing(mask, origin, pixel_size, field, scale, latents) if modal else 1
    voxels = Voxels(mask, origin, pixel_size, field, scale, spacing)
    # A lattice has some nodes beyond its voxels.
    nodes_per_voxel = min(1, 2 / spacing**3)
    return voxels.split(max(1024, int(_SHIFTS / (8 * batch_size * nodes_per_voxel))))


def passes_within(memory: int, parts: list[Voxels]) -> list[list[Voxels]]:
    """Group parts so that what their fields keep fits `memory` (bytes); at least one group, that may be empty."""
    passes, left = [[]], memory
    for part in parts:
        size = part.field_memory()
        if passes[-1] and size > left:
            passes.append([])
            left = memory
        passes[-1].append(part)
        left -= size
    return passes


def _runs(mask: np.ndarray, origin) -> np.ndarray:
    """Return (r, 6) rows of voxels along x: z, y, first and end x from the origin, place in the grid and among voxels.

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
    place = (first[:, 0] * mask.shape[1] + first[:, 1]) * mask.shape[2] + first[:, 2]
    columns = [first[:, 0] - origin[0], first[:, 1] - origin[1], first[:, 2] - origin[2], end - origin[2], place]
    return np.column_stack([*columns, np.cumsum(lengths) - lengths]).astype(np.int64)


def _tiles(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that runs are worked off in, tile by tile, and the first of each tile, and the end."""
    tile = np.stack([runs[:, 0] // _TILE, runs[:, 1] // _TILE])
    order = np.lexsort((tile[1], tile[0]))
    changes = np.any(np.diff(tile[:, order], axis=1) != 0, axis=0)
    return order, np.concatenate([[0], np.nonzero(changes)[0] + 1, [len(runs)]]).astype(np.int64)
