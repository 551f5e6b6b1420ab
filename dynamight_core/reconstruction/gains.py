"""What a map gained over the rigid one in each region, with the error of that.

The gain is the difference of the FSC of half-maps, a mean over the shells that either map resolves. Both maps are made
of the same images, so most of their noise is the same and only where they differ it counts. Two maps that correlate by
c differ by 2 (1 - c) of their power, and a half-map that correlates by r with the other one has 1 - r of noise:
by chance, the correlation changes with the variance 2 (1 - c) (1 - r) / n if one of the half-maps is replaced, and
with twice that if both are (see `competition`). Here n is the number of independent values of a shell in the mask;
neighbouring shells share some of them.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from dynamight_core.files import write_tables
from dynamight_core.imaging.correlation import THRESHOLD, fourier_shell_correlation, shell_covariance
from dynamight_core.judging.evidence import GAINS

Pair = tuple[torch.Tensor, torch.Tensor]


def gain_over_rigid(pair: Pair, rigid: Pair, mask: torch.Tensor) -> tuple[float, float]:
    """Return the mean change of the half-maps' FSC from the rigid maps to others, and its standard error.

    Parameters
    ----------
    pair, rigid
        half-maps (box, box, box) of the same images.
    mask
        (box, box, box) of the region, 0 to 1.
    """
    new, old = fourier_shell_correlation(*pair, mask), fourier_shell_correlation(*rigid, mask)
    resolved = torch.maximum(new, old)[1:] >= THRESHOLD
    last = int(resolved.int().cumprod(0).sum())
    if last == 0:
        return 0.0, 1.0
    same = torch.stack([fourier_shell_correlation(a, b, mask) for a, b in zip(pair, rigid, strict=True)]).mean(0)
    noise = 1 - ((new + old) / 2).clamp(0, 1)
    deviation = (4 * (1 - same).clamp(min=0) * noise).sqrt()[1 : last + 1]
    variance = deviation @ shell_covariance(mask, last) @ deviation / last**2
    return float((new - old)[1 : last + 1].mean()), float(variance.sqrt())


def write_gains(folder: Path, maps: Mapping[bool, Pair], regions: Mapping[str, torch.Tensor]) -> None:
    """Write gains.csv to a folder, or remove that of an earlier map if there is no rigid one.

    Parameters
    ----------
    folder
        of the maps.
    maps
        half-maps by whether motion is used.
    regions
        masks (box, box, box) by name.
    """
    if len(maps) < 2:
        (folder / GAINS).unlink(missing_ok=True)
        return
    rows = []
    for name, mask in regions.items():
        gain, error = gain_over_rigid(maps[True], maps[False], mask)
        rows.append({"region": name, "fsc_gain": gain, "fsc_gain_error": error})
    write_tables(folder, {Path(GAINS).stem: pd.DataFrame(rows)}, "%.5g")
