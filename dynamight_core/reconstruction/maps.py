"""The maps of a reconstruction: the final map of two halves, and the folder they are written to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dynamight_core.files import write_map
from dynamight_core.imaging.fourier import expand_shells, fourier_to_volume, shells, volume_to_fourier
from dynamight_core.reconstruction.fsc import (
    HalfMapFsc,
    half_map_fsc,
    resolution_at,
    soft_mask,
    write_fsc_star,
)


def final_map(half1: torch.Tensor, half2: torch.Tensor, fsc: torch.Tensor) -> torch.Tensor:
    """Return the average of two half-maps, weighted by sqrt(2 FSC / (1 + FSC)) in every shell.

    The weight is the expected correlation of the average with the truth (C_ref); from the first shell with an FSC
    of zero or less on, and in the corners of the transform, it is zero.

    Parameters
    ----------
    half1, half2
        (box, box, box).
    fsc
        (box//2+1,) of the two.
    """
    box = half1.shape[-1]
    curve = fsc.to(half1.device).nan_to_num(nan=0.0).clamp(0, 1)
    curve = curve * (curve > 0).int().cumprod(0)
    weight = (2 * curve / (1 + curve)).sqrt()
    # The average carries the map's mean whatever the masked curve says of shell 0.
    weight[0] = 1
    plane = expand_shells(weight, box, 3) * (shells(box, 3, half1.device) <= box // 2)
    return fourier_to_volume(volume_to_fourier((half1 + half2) / 2) * plane, box)


@dataclass(frozen=True)
class ReconstructionFiles:
    """What `write_reconstruction` wrote, and the resolutions (A) at FSC 0.143 that it found.

    Parameters
    ----------
    half_maps, final, fsc, mask
        paths.
    resolution
        in the mask, corrected by random phases.
    resolution_unmasked
        without a mask.
    curves
        of the two halves.
    """

    half_maps: tuple[Path, Path]
    final: Path
    fsc: Path
    mask: Path
    resolution: float
    resolution_unmasked: float
    curves: HalfMapFsc


def write_reconstruction(
    folder: str | Path,
    half1: torch.Tensor,
    half2: torch.Tensor,
    pixel_size: float,
    mask: torch.Tensor | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> ReconstructionFiles:
    """Write half1_unfil.mrc, half2_unfil.mrc, map.mrc, fsc.star and mask.mrc, each whole or not at all.

    Parameters
    ----------
    folder
        to write to; made if missing.
    half1, half2
        (box, box, box), unfiltered and unmasked.
    pixel_size
        A.
    mask
        (box, box, box) with a soft edge, for the FSC; made from the average of the halves if None.
    extra
        more columns of fsc.star, name to (box//2+1,) curve.
    seed
        of the random phases.

    Returns
    -------
    ReconstructionFiles
    """
    folder = Path(folder)
    half1, half2 = half1.float().cpu(), half2.float().cpu()
    mask = soft_mask((half1 + half2) / 2, pixel_size) if mask is None else mask.float().cpu()
    curves = half_map_fsc(half1, half2, mask, seed)
    box = half1.shape[-1]
    files = ReconstructionFiles(
        half_maps=(folder / "half1_unfil.mrc", folder / "half2_unfil.mrc"),
        final=folder / "map.mrc",
        fsc=folder / "fsc.star",
        mask=folder / "mask.mrc",
        resolution=resolution_at(curves.corrected, box, pixel_size),
        resolution_unmasked=resolution_at(curves.unmasked, box, pixel_size),
        curves=curves,
    )
    volumes = {
        files.half_maps[0]: half1, files.half_maps[1]: half2, files.mask: mask,
        files.final: final_map(half1, half2, curves.corrected),
    }  # fmt: skip
    for path, volume in volumes.items():
        write_map(path, volume.numpy(), pixel_size)
    write_fsc_star(files.fsc, curves, pixel_size, extra)
    return files
