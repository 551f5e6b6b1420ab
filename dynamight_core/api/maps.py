"""Maps in memory, and those of a reconstruction on disk."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamight_core.api.arguments import PathLike, check_known
from dynamight_core.files import header_origin, read_map, write_map


@dataclass(frozen=True, eq=False)
class Volume:
    """A map in memory; ``numpy.asarray`` takes its values.

    Parameters
    ----------
    values
        (box, box, box) float32, indexed [z, y, x].
    pixel_size
        A.
    origin
        (x, y, z) of its first voxel as the header of the consensus map has it, A.
    """

    values: NDArray[np.float32]
    pixel_size: float
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def read(cls, path: PathLike) -> "Volume":
        """Read an MRC file.

        Raises
        ------
        InputError
            if it holds no cubic map.
        """
        values, pixel_size = read_map(Path(path), constant=True)
        return cls(values, pixel_size, tuple(header_origin(Path(path)).tolist()))

    def write(self, path: PathLike) -> None:
        """Write an MRC file that lies on the consensus map in ChimeraX."""
        write_map(Path(path), self.values, self.pixel_size, self.origin)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = np.asarray(self.values, dtype)
        return values.copy() if copy else values

    def __repr__(self) -> str:
        return f"Volume({' x '.join(map(str, self.values.shape))} voxels of {self.pixel_size:.4g} A)"


@dataclass(frozen=True)
class Maps:
    """Paths of the maps of a reconstruction.

    Parameters
    ----------
    half1, half2
        half-maps, unfiltered and unmasked.
    map
        of both halves, weighted by their FSC.
    sharpened
        the same, sharpened.
    mask
        of the FSC.
    rigid
        maps of the same particles without deformation, or None.
    """

    half1: Path
    half2: Path
    map: Path
    sharpened: Path
    mask: Path
    rigid: "Maps | None" = None

    @classmethod
    def in_folder(cls, folder: Path, rigid: "Maps | None" = None) -> "Maps":
        """Return the maps that a reconstruction wrote to a folder."""
        return cls(
            half1=folder / "half1_unfil.mrc",
            half2=folder / "half2_unfil.mrc",
            map=folder / "map.mrc",
            sharpened=folder / "map_sharpened.mrc",
            mask=folder / "mask.mrc",
            rigid=rigid,
        )

    def read(self, name: str = "map") -> Volume:
        """Return one of the maps: "map", "half1", "half2", "sharpened" or "mask".

        Raises
        ------
        InputError
            if there is none of this name.
        """
        check_known("map", name, [field.name for field in fields(self) if field.name != "rigid"])
        return Volume.read(getattr(self, name))
