"""The reconstructed map deformed along the field: states of the molecule at the full resolution of the map."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from dynamight_core.analysis.field_files import cubic_grid
from dynamight_core.analysis.fields import around_molecule
from dynamight_core.analysis.molecule import half_motions, half_numbers
from dynamight_core.errors import InputError
from dynamight_core.files import header_origin, read_map, write_map
from dynamight_core.imaging.geometry import to_points
from dynamight_core.reconstruction.deformation import conformation_coordinates
from dynamight_core.run import Run

# Spacing of the grid of the field, A.
_SPACING = 4.0
# Fixed-point iterations that find where each voxel came from.
_ITERATIONS = 8


class PushedMap:
    """A map, and the displacement of its voxels in each state.

    Parameters
    ----------
    run
        finished and summarised.
    half
        "1", "2" or "both": half-set whose field is used.
    path
        of the map, in the frame of the run's maps; RUN/reconstruction/map.mrc if None.

    Raises
    ------
    InputError
        if there is no map, or it is in a frame of unknown coordinates.
    """

    def __init__(self, run: Run, half: str = "both", path: Path | None = None):
        path = run.path / "reconstruction" / "map.mrc" if path is None else Path(path)
        if not path.exists():
            raise InputError(f"{path} is missing, which --full deforms; make it with dynamight reconstruct {run.path}")
        self._map, self.pixel_size = read_map(path)
        self._frame = _frame_of_maps(run)
        self._origin = header_origin(path)
        grid, self._n_grid, self._step = cubic_grid(len(self._map) * self.pixel_size, _SPACING)
        self._near, weight = around_molecule(run, grid)
        points = torch.from_numpy(grid[self._near].astype(np.float32))
        found = [half_motions(run, number, points) for number in half_numbers(half)]
        parts = [np.concatenate([mean[None], fields]) for mean, fields in found]
        # Mean displacement (A) and K motions (A per A rms) at the grid points near the molecule.
        self._fields = np.mean(parts, 0) * weight[:, None]

    def volume(self, coordinates) -> np.ndarray:
        """Return the (box, box, box) map of the state at (K,) coordinates (A rms)."""
        box = len(self._map)
        field = self._field(coordinates)
        voxels = np.stack(np.meshgrid(*[np.arange(box, dtype=float)] * 3, indexing="ij"))
        source = sources(voxels, lambda at: self._read(field, at))
        if self._frame is not None:
            source = source + self._read(self._field(self._frame), source)
        return ndimage.map_coordinates(self._map, source, order=3, mode="nearest").astype(np.float32)

    def _field(self, coordinates) -> np.ndarray:
        """Return the displacement from the consensus to a state: z, y, x in voxels of the map, on the coarse grid."""
        grid = np.zeros((len(self._near), 3))
        grid[self._near] = np.tensordot(np.concatenate([[1.0], np.asarray(coordinates, dtype=float)]), self._fields, 1)
        return grid.reshape([self._n_grid] * 3 + [3])[..., ::-1] / self.pixel_size

    def _read(self, field: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Return the displacements at (3, ...) voxels z, y, x."""
        at = to_points(voxels, len(self._map), self.pixel_size) / self._step + (self._n_grid - 1) / 2
        return np.stack([ndimage.map_coordinates(field[..., axis], at, order=1, mode="nearest") for axis in range(3)])

    def write(self, path: Path, volume: np.ndarray) -> None:
        """Write a (box, box, box) map with the origin of the reconstruction's header."""
        write_map(path, volume, self.pixel_size, self._origin)


def sources(places: np.ndarray, displacement: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return where what is at (3, ...) places came from: x, where x + displacement(x) is the place; same units."""
    source = places.copy()
    for _ in range(_ITERATIONS):
        source = places - displacement(source)
    return source


def _frame_of_maps(run: Run) -> np.ndarray | None:
    """Return the (K,) coordinates (A rms) of the conformation that the maps of a run show, None for the consensus."""
    conformation = run.config.stages.get("reconstruct", {}).get("conformation", "reference")
    if conformation.startswith("latent:"):
        raise InputError(
            f"the maps of {run.path} are in the frame of a latent, which has no coordinates; reconstruct again without "
            "--conformation"
        )
    return conformation_coordinates(run, conformation).numpy() if ":" in conformation else None
