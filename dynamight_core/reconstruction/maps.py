"""The final and sharpened maps of two half-maps, and the folder to which they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dynamight_core.files import write_map
from dynamight_core.imaging.correlation import fsc_deviation, resolution_at
from dynamight_core.imaging.fourier import expand_shells, fourier_to_volume, shell_means, shells, volume_to_fourier
from dynamight_core.reconstruction.fsc import (
    INFINITE,
    HalfMapFsc,
    half_map_fsc,
    local_resolution,
    soft_mask,
    write_fsc_star,
)
from dynamight_core.reconstruction.residual import conservative_fsc, include_residual_motion

# Characters of a label in the header of a map.
_LABEL = 80
# Lowest resolution of the Guinier plot, A.
_GUINIER = 10.0


def final_map(half1: torch.Tensor, half2: torch.Tensor, fsc: torch.Tensor) -> torch.Tensor:
    """Return the average of two half-maps, weighted by sqrt(2 FSC / (1 + FSC)) in every shell.

    The weight is the expected correlation of the average with the truth (C_ref). It is zero from the first shell with
    an FSC of zero or less on, and in the corners of the transform.

    Parameters
    ----------
    half1, half2
        (box, box, box).
    fsc
        (box//2+1,) of the half-maps.
    """
    box = half1.shape[-1]
    curve = fsc.to(half1.device).nan_to_num(nan=0.0).clamp(0, 1)
    curve = curve * (curve > 0).int().cumprod(0)
    weight = (2 * curve / (1 + curve)).sqrt()
    # Keep the mean of the map, whatever the masked FSC of shell 0.
    weight[0] = 1
    plane = expand_shells(weight, box, 3) * (shells(box, 3, half1.device) <= box // 2)
    return fourier_to_volume(volume_to_fourier((half1 + half2) / 2) * plane, box)


def guinier_b_factor(volume: torch.Tensor, pixel_size: float, resolution: float) -> float:
    """Return the B-factor (A^2) of a map from its Guinier plot between 10 A and its resolution.

    It is 4 times the slope of the logarithm of the mean amplitude over the squared frequency (Rosenthal and Henderson
    2003): negative if amplitudes fall with frequency, 0 if there are fewer than four shells in the range.

    Parameters
    ----------
    volume
        (box, box, box), weighted by its FSC.
    pixel_size, resolution
        A.
    """
    box = len(volume)
    frequency = torch.arange(box // 2 + 1) / (box * pixel_size)
    chosen = (frequency > 1 / _GUINIER) & (frequency <= 1 / resolution)
    power = shell_means(volume_to_fourier(volume.cpu()).abs().square(), box, 3)
    chosen &= power > 0
    if int(chosen.sum()) < 4:
        return 0.0
    x, y = frequency[chosen].square().double(), 0.5 * power[chosen].double().log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return min(0.0, 4 * float(slope))


def sharpen(volume: torch.Tensor, pixel_size: float, b_factor: float) -> torch.Tensor:
    """Return a (box, box, box) map with amplitudes times exp(-B s^2 / 4); a negative B (A^2) sharpens."""
    box = len(volume)
    squared = (torch.arange(box // 2 + 1) / (box * pixel_size)).square()
    gain = torch.exp(-b_factor / 4 * squared).to(volume.device)
    return fourier_to_volume(volume_to_fourier(volume) * expand_shells(gain, box, 3), box)


@dataclass(frozen=True)
class ReconstructionFiles:
    """The files of `write_reconstruction`, and the resolutions (A) at FSC 0.143.

    Parameters
    ----------
    half_maps, final, sharpened, fsc, mask
        paths.
    resolution
        in the mask, corrected by phase randomisation.
    b_factor
        of the sharpened map, A^2.
    curves
        of the half-maps.
    conservative_resolution
        as `resolution`, including residual motion (if known) and one standard error of the FSC.
    """

    half_maps: tuple[Path, Path]
    final: Path
    sharpened: Path
    fsc: Path
    mask: Path
    resolution: float
    b_factor: float
    curves: HalfMapFsc
    conservative_resolution: float


def write_reconstruction(
    folder: str | Path,
    half1: torch.Tensor,
    half2: torch.Tensor,
    pixel_size: float,
    mask: torch.Tensor | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
    b_factor: float | None = None,
    with_local_resolution: bool = False,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    coherence: torch.Tensor | None = None,
    mark: str = "",
) -> ReconstructionFiles:
    """Write half1_unfil.mrc, half2_unfil.mrc, map.mrc, map_sharpened.mrc, mask.mrc and fsc.star.

    Parameters
    ----------
    folder
        of the files; created if missing.
    half1, half2
        (box, box, box), unfiltered and unmasked.
    pixel_size
        A.
    mask
        (box, box, box) with a soft edge, for the FSC; made from the average of the half-maps if None.
    extra
        further columns of fsc.star, name to (box//2+1,) curve.
    seed
        of the random phases.
    b_factor
        of the sharpened map, A^2; estimated if None.
    with_local_resolution
        whether to write local_resolution.mrc.
    origin
        (x, y, z) of the maps' headers, A.
    coherence
        (box//2+1,) `motion_coherence` of the structure in the mask; None if the residual motion is not known.
    mark
        words that the headers of all maps begin with.
    """
    folder = Path(folder)
    half1, half2 = half1.float().cpu(), half2.float().cpu()
    mask = soft_mask((half1 + half2) / 2, pixel_size) if mask is None else mask.float().cpu()
    curves = half_map_fsc(half1, half2, mask, seed)
    box = half1.shape[-1]
    resolution = resolution_at(curves.corrected, box, pixel_size)
    final = final_map(half1, half2, curves.corrected)
    if b_factor is None:
        b_factor = guinier_b_factor(final * mask, pixel_size, resolution)
    conservative = conservative_fsc(curves.corrected, curves.standard_error(fsc_deviation(mask)), coherence)
    extra = dict(extra or {}) | {"dynFourierShellCorrelationAtLeast": conservative}
    if coherence is not None:
        with_motion = include_residual_motion(curves.corrected, coherence)
        extra |= {"dynResidualMotionCoherence": coherence, "dynFourierShellCorrelationWithMotion": with_motion}
    files = ReconstructionFiles(
        half_maps=(folder / "half1_unfil.mrc", folder / "half2_unfil.mrc"),
        final=folder / "map.mrc",
        sharpened=folder / "map_sharpened.mrc",
        fsc=folder / "fsc.star",
        mask=folder / "mask.mrc",
        resolution=resolution,
        b_factor=b_factor,
        curves=curves,
        conservative_resolution=resolution_at(conservative, box, pixel_size),
    )
    volumes = {
        files.half_maps[0]: (half1, "half-map 1, unfiltered and unmasked"),
        files.half_maps[1]: (half2, "half-map 2, unfiltered and unmasked"),
        files.mask: (mask, None),
        files.final: (final, f"both half-maps, weighted by their FSC, {resolution:.2f} A; not sharpened"),
        files.sharpened: (
            sharpen(final, pixel_size, b_factor),
            f"SHARPENED: both half-maps, weighted by their FSC, B-factor {b_factor:.1f} A^2",
        ),
    }
    local = folder / "local_resolution.mrc"
    if with_local_resolution:
        volumes[local] = local_resolution(half1, half2, pixel_size, mask), None
    else:
        # Remove the one of an earlier map.
        local.unlink(missing_ok=True)
    for path, (volume, note) in volumes.items():
        words = f"{mark}{note or ''}"[:_LABEL] if mark else note
        write_map(path, volume.numpy(), pixel_size, origin, words)
    general: dict[str, str | float] = {
        "dynResolutionAtLeast": min(files.conservative_resolution, INFINITE),
        "rlnBfactorUsedForSharpening": b_factor,
        "rlnUnfilteredMapHalf1": files.half_maps[0].name,
        "rlnUnfilteredMapHalf2": files.half_maps[1].name,
        "rlnPostprocessedMap": files.sharpened.name,
        "rlnMaskName": files.mask.name,
    }
    write_fsc_star(files.fsc, curves, pixel_size, mask, extra, general)
    return files
