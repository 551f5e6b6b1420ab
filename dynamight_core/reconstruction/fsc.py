"""FSC of half-maps, local resolution, and soft masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.ndimage
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.correlation import fourier_shell_correlation, resolution_at
from dynamight_core.imaging.fourier import fourier_to_volume, frequencies_3d, shells, volume_to_fourier
from dynamight_core.imaging.masks import distance_from, raised_cosine
from dynamight_core.model.initialise import find_molecule
from dynamight_core.particles.star import write_timeless

# RELION writes this for an infinite resolution.
INFINITE = 999.0
# Limit of the draws of random phases, and the box from which one is enough.
_MAX_DRAWS, _DRAWN_ONCE = 10, 256
# Limit of the bands of the local resolution, and their standard deviation as a fraction of their distance.
_MAX_BANDS, _BAND = 32, 0.6


@dataclass(frozen=True)
class HalfMapFsc:
    """FSC curves of two half-maps, (box//2+1,) each.

    Parameters
    ----------
    unmasked, masked
        without and with the mask.
    randomised
        in the mask, of the half-maps with random phases beyond the shell where the unmasked curve falls below 0.8: the
        correlation due to the mask. In a small box, the mean of several draws.
    corrected
        the masked curve corrected for it.
    draws
        number of draws of random phases.
    first_corrected
        first shell that is corrected.
    """

    unmasked: torch.Tensor
    masked: torch.Tensor
    randomised: torch.Tensor
    corrected: torch.Tensor
    draws: int = 1
    first_corrected: int = 0

    def standard_error(self, deviation: torch.Tensor) -> torch.Tensor:
        """Return the (box//2+1,) standard error of the corrected curve.

        An FSC of m has the standard error (1 - m^2) d, where d is the standard deviation of the FSC of noise in the
        mask. The mean r of n draws of random phases has the standard error (1 - r^2) d / sqrt(n). The corrected curve
        c = (m - r) / (1 - r) therefore has the standard error d (1 - c) sqrt((1 + m)^2 + (1 + r)^2 / n).

        Parameters
        ----------
        deviation
            d of every shell, from `fsc_deviation` of the mask.
        """
        deviation = deviation.to(self.masked)
        masked, randomised = self.masked.clamp(-1, 1), self.randomised.clamp(-1, 1)
        both = ((1 + masked).square() + (1 + randomised).square() / self.draws).sqrt()
        beyond = torch.arange(len(masked), device=masked.device) >= self.first_corrected
        return deviation * torch.where(beyond, (1 - self.corrected).clamp(min=0) * both, 1 - masked.square())


def half_map_fsc(half1: torch.Tensor, half2: torch.Tensor, mask: torch.Tensor, seed: int = 0) -> HalfMapFsc:
    """Return the FSC of two half-maps without and with a mask, and corrected by phase randomisation.

    Parameters
    ----------
    half1, half2
        (box, box, box), unfiltered and unmasked.
    mask
        (box, box, box) with a soft edge.
    seed
        of the random phases.
    """
    unmasked = fourier_shell_correlation(half1, half2)
    masked = fourier_shell_correlation(half1, half2, mask)
    first = _random_from(unmasked)
    generator = torch.Generator().manual_seed(seed)
    transforms = [volume_to_fourier(half.float()) for half in (half1, half2)]
    # A small mask contains few independent Fourier voxels: one draw varies too much. A large box has enough of them.
    draws = max(1, min(_MAX_DRAWS, int((_DRAWN_ONCE / half1.shape[-1]) ** 3)))
    randomised = torch.zeros_like(masked)
    for _ in range(draws):
        random1, random2 = (randomise_phases(transform, first, generator) for transform in transforms)
        randomised += fourier_shell_correlation(random1, random2, mask) / draws
    # Two shells later: the mask blurs the border between kept and random phases.
    beyond = torch.arange(len(masked), device=masked.device) >= first + 2
    # Not clamped: pure noise is below zero as often as above it.
    corrected = torch.where(beyond, (masked - randomised) / (1 - randomised).clamp(min=1e-6), masked)
    return HalfMapFsc(unmasked, masked, randomised, corrected, draws, first + 2)


def _random_from(unmasked: torch.Tensor) -> int:
    """Return the first shell where an unmasked curve is below 0.8; one after the last if there is none."""
    below = (unmasked[1:] < 0.8).nonzero()
    return int(below[0]) + 1 if len(below) else len(unmasked)


def fsc_in_part(unmasked: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the FSC of the molecule alone, estimated from an unmasked curve, and the factor f used for it.

    As in RELION and cisTEM: f FSC / (1 + (f - 1) FSC), where f is 0.476 (the fraction of protein in a usual mask) over
    the fraction of the box where the mask is above 0.5. The maps are not masked, so there is no mask to correct for.

    Parameters
    ----------
    unmasked
        (box//2+1,) FSC without a mask.
    mask
        (box, box, box).
    """
    factor = 0.476 / max(float((mask > 0.5).float().mean()), 1e-6)
    return factor * unmasked / (1 + (factor - 1) * unmasked), factor


def randomise_phases(transform: torch.Tensor, first: int, generator: torch.Generator) -> torch.Tensor:
    """Return the volume of a transform with the phases of white noise from shell `first` on."""
    box = transform.shape[0]
    noise = volume_to_fourier(torch.randn((box,) * 3, generator=generator).to(transform.device))
    random = transform.abs() * noise / noise.abs().clamp(min=1e-12)
    return fourier_to_volume(torch.where(shells(box, 3, transform.device) < first, transform, random), box)


def local_resolution(
    half1: torch.Tensor,
    half2: torch.Tensor,
    pixel_size: float,
    mask: torch.Tensor | None = None,
    window: float | None = None,
    threshold: float = 0.5,
) -> torch.Tensor:
    """Return the (box, box, box) local resolution (A) of two half-maps; 0 outside the mask.

    It is where the FSC in a Gaussian window around each voxel first falls below the threshold, interpolated between
    bands of frequencies. For all voxels at once, the products of band-pass filtered maps are averaged in the window.

    Parameters
    ----------
    half1, half2
        (box, box, box), unfiltered.
    pixel_size
        A.
    mask
        (box, box, box); voxels below 0.5 are outside.
    window
        standard deviation of the window, A; 4 voxels, but at least 10 A, if None.
    threshold
        of the local FSC. A window holds too few Fourier voxels for 0.143; 0.5 is usual.
    """
    box = len(half1)
    window = max(10.0, 4 * pixel_size) if window is None else window
    # In real space, a narrower band would spread farther than the window.
    width = max(1.0, box * pixel_size / (2 * torch.pi * _BAND * window), box / 2 / _MAX_BANDS)
    centres = torch.arange(width, box / 2, width)
    transforms = [volume_to_fourier(half.float()) for half in (half1, half2)]
    radius = frequencies_3d(box, half1.device).norm(dim=-1) * box
    smooth = torch.exp(-2 * (torch.pi * window * radius / (box * pixel_size)).square())

    def average(volume: torch.Tensor) -> torch.Tensor:
        return fourier_to_volume(volume_to_fourier(volume) * smooth, box)

    resolution = torch.zeros_like(half1)
    open_ = torch.ones_like(half1, dtype=torch.bool)
    before = torch.ones_like(half1)
    for centre in centres.tolist():
        band = torch.exp(-0.5 * ((radius - centre) / (_BAND * width)).square())
        a, b = (fourier_to_volume(transform * band, box) for transform in transforms)
        power = (average(a * a) * average(b * b)).clamp(min=0).sqrt()
        now = average(a * b) / power.clamp(min=1e-6 * float(power.max()))
        crossed = open_ & (now < threshold)
        fraction = ((before - threshold) / (before - now).clamp(min=1e-6)).clamp(0, 1)
        at = (centre - width * (1 - fraction)).clamp(min=0.5 * width)
        resolution = torch.where(crossed, box * pixel_size / at, resolution)
        open_ &= ~crossed
        before = now
    resolution = torch.where(open_, 2 * pixel_size, resolution)
    return resolution if mask is None else resolution * (mask >= 0.5)


def soft_mask(
    volume: torch.Tensor, pixel_size: float, *, threshold: float | None = None, extend: float = 6.0, edge: float = 9.0
) -> torch.Tensor:
    """Return a (box, box, box) soft mask: 1 inside the molecule, a raised-cosine edge, 0 in the solvent.

    The molecule is found by `find_molecule`, as for the initial Gaussians; holes are filled, and it is extended.

    Parameters
    ----------
    volume
        (box, box, box) map with its solvent noise.
    pixel_size
        A.
    threshold
        of the map low-pass filtered at 15 A, in map units; automatic if None.
    extend
        A, from the surface at the threshold to the edge.
    edge
        A, width of the edge.

    Raises
    ------
    InputError
        if nothing is above the threshold.
    """
    try:
        found = find_molecule(volume.float().cpu(), pixel_size, threshold)
    except ValueError as error:
        raise InputError(f"no mask can be made of the map: {error}; choose a lower threshold or set --mask") from error
    inside = scipy.ndimage.binary_fill_holes(found.mask)
    mask = raised_cosine((distance_from(inside, pixel_size) - extend) / max(edge, pixel_size))
    return torch.from_numpy(mask.astype(np.float32)).to(volume.device)


def write_fsc_star(
    path: str | Path,
    curves: HalfMapFsc,
    pixel_size: float,
    mask: torch.Tensor,
    extra: Mapping[str, torch.Tensor] | None = None,
    general: Mapping[str, str | float] | None = None,
) -> None:
    """Write FSC curves in the format of RELION's postprocess.star: a block `general` and a loop `fsc`.

    Parameters
    ----------
    path
        of the STAR file.
    curves
        of the two half-maps.
    pixel_size
        A.
    mask
        (box, box, box) of the curves.
    extra
        further columns, name to (box//2+1,) curve, such as the FSC of model and map.
    general
        further entries of the block `general`.
    """
    n_shells = len(curves.unmasked)
    box = 2 * (n_shells - 1)
    index = np.arange(n_shells)
    frequency = index / (box * pixel_size)
    in_part, factor = fsc_in_part(curves.unmasked, mask)
    table = {
        "rlnSpectralIndex": index,
        "rlnResolution": frequency,
        "rlnAngstromResolution": np.where(index > 0, 1 / np.maximum(frequency, 1e-12), INFINITE),
        "rlnFourierShellCorrelationCorrected": curves.corrected,
        "rlnFourierShellCorrelationParticleMaskFraction": in_part,
        "rlnFourierShellCorrelationUnmaskedMaps": curves.unmasked,
        "rlnFourierShellCorrelationMaskedMaps": curves.masked,
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": curves.randomised,
        **(extra or {}),
    }
    table = {name: np.asarray(values.cpu() if torch.is_tensor(values) else values) for name, values in table.items()}
    resolution = resolution_at(curves.corrected, box, pixel_size)
    block = {
        "rlnFinalResolution": min(resolution, INFINITE),
        **(general or {}),
        "rlnParticleBoxFractionSolventMask": factor,
        "rlnRandomiseFrom": box * pixel_size / _random_from(curves.unmasked),
    }
    write_timeless(path, {"general": block, "fsc": pd.DataFrame(table)}, "%.8f")
