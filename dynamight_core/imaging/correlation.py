"""Fourier shell correlation of two maps, and the resolution at a threshold.

torch-fourier-shell-correlation would smooth the curve: its shells overlap (each voxel is divided linearly between two)
and it counts the plane kx = 0 of the half transform twice.
"""

import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.fourier import resample_volume, shell_sums, volume_to_fourier

THRESHOLD = 0.143
# Box in which the variance of a mask's shells is computed, voxels; beyond, it falls as 1 / shell.
_MASK_BOX = 64


def fourier_shell_correlation(map1: torch.Tensor, map2: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the (box//2+1,) Fourier shell correlation of two (box, box, box) maps.

    Shells are one Fourier voxel wide and every voxel of the full transform counts once. A shell without power in
    either map has correlation 0.

    Parameters
    ----------
    map1, map2
        of one box.
    mask
        (box, box, box) that both are multiplied by.

    Raises
    ------
    InputError
        if the boxes differ.
    """
    for other in (map2, mask):
        if other is not None and other.shape != map1.shape:
            raise InputError(
                f"maps of {map1.shape[-1]} and {other.shape[-1]} voxels cannot be correlated; "
                "give maps and mask of one box"
            )
    if mask is not None:
        map1, map2 = map1 * mask, map2 * mask
    return _correlate(volume_to_fourier(map1.float()), volume_to_fourier(map2.float()), map1.shape[-1])


def _correlate(a: torch.Tensor, b: torch.Tensor, box: int) -> torch.Tensor:
    cross = shell_sums((a * b.conj()).real, box, 3)
    power = (shell_sums(a.abs().square(), box, 3) * shell_sums(b.abs().square(), box, 3)).sqrt()
    return torch.where(power > 0, cross / power.clamp(min=torch.finfo(power.dtype).tiny), 0.0)


def fsc_deviation(mask: torch.Tensor) -> torch.Tensor:
    """Return the (box//2+1,) standard deviation of the FSC of two volumes of white noise in a mask.

    A mask m convolves a transform with its own: noise at voxels k and k' correlates by the transform of m^2 at k - k'.
    So the variance in a shell S is the sum of |FT(m^2)(k - k')|^2 over all pairs in S, over |S|^2 FT(m^2)(0)^2: one
    over the number of independent voxels. An FSC of c has 1 - c^2 times this deviation.

    Parameters
    ----------
    mask
        (box, box, box), 0 to 1.
    """
    box = mask.shape[-1]
    n_shells = box // 2 + 1
    coarse = resample_volume(mask.float(), _MASK_BOX) if box > _MASK_BOX else mask.float()
    size = coarse.shape[-1]
    power = torch.fft.fftn(coarse.square()).abs().square()
    # Sums over all pairs of a shell's voxels by the shell's own correlation.
    spread = torch.fft.fftn(power).real
    signed = torch.fft.fftfreq(size, 1 / size, device=mask.device)
    squares = signed.square()
    radius = (squares[:, None, None] + squares[:, None] + squares).sqrt().round()
    deviations = torch.ones(n_shells, device=mask.device)
    for shell in range(1, size // 2 + 1):
        inside = (radius == shell).float()
        pairs = (spread * torch.fft.fftn(inside).abs().square()).sum() / size**3
        deviations[shell] = (pairs / (inside.sum().square() * power[0, 0, 0])).clamp(0, 1).sqrt()
    last = size // 2
    beyond = torch.arange(last, n_shells, device=mask.device)
    deviations[last:] = deviations[last] * last / beyond
    return deviations


def shell_covariance(mask: torch.Tensor, last: int) -> torch.Tensor:
    """Return the (last, last) covariance of the FSC of two volumes of white noise in a mask, of shells 1 to `last`.

    As in `fsc_deviation`, whose square it has on the diagonal, with pairs of voxels from two shells. Shells beyond half
    of `_MASK_BOX` are as independent of each other as possible.

    Parameters
    ----------
    mask
        (box, box, box), 0 to 1.
    last
        at most box // 2.
    """
    coarse = resample_volume(mask.float(), _MASK_BOX) if mask.shape[-1] > _MASK_BOX else mask.float()
    size = coarse.shape[-1]
    power = torch.fft.fftn(coarse.square()).abs().square()
    spread = torch.fft.fftn(power).real
    squares = torch.fft.fftfreq(size, 1 / size, device=mask.device).square()
    radius = (squares[:, None, None] + squares[:, None] + squares).sqrt().round()
    covariance = torch.diag(fsc_deviation(mask)[1 : last + 1].square())
    inside = [radius == shell for shell in range(1, min(last, size // 2) + 1)]
    for one, voxels in enumerate(inside):
        # Of each voxel, how much of it the voxels of this shell contain.
        seen = torch.fft.ifftn(spread * torch.fft.fftn(voxels.float())).real
        for other in range(one):
            found = seen[inside[other]].mean() / (voxels.sum() * power[0, 0, 0])
            covariance[one, other] = covariance[other, one] = found.clamp(min=0)
    return covariance


def resolution_at(curve: torch.Tensor, box: int, pixel_size: float, threshold: float = THRESHOLD) -> float:
    """Return the resolution (A) at which an FSC curve first falls below `threshold`, interpolated linearly.

    Twice the pixel size (Nyquist) if it never does. Infinity if the first shell is below the threshold or not finite.

    Parameters
    ----------
    curve
        (box//2+1,) from shell 0.
    box, pixel_size
        of the maps, voxels and A.
    """
    values = torch.as_tensor(curve).double().nan_to_num(nan=-1.0)[1:]
    below = (values < threshold).nonzero()
    if not len(below):
        return 2 * pixel_size
    last = int(below[0])
    if last == 0:
        return float("inf")
    high, low = float(values[last - 1]), float(values[last])
    return box * pixel_size / (last + (high - threshold) / (high - low))
