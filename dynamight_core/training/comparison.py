"""Whether images and map belong together: contrast, hand, axes and centre of the map.

Images are backprojected in groups, each filtered by its CTF. Their correlation with the map, and with the map turned,
mirrored and shifted, is compared between groups. The best alternative is chosen on half of the groups and tested on the
others, so that one of very many cannot win by chance.
"""

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    image_to_fourier,
    lowpass_volume,
    resample_volume,
    shell_means,
)
from dynamight_core.imaging.slices import SliceSums
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.preprocess import Preprocessing, read_prepared

# Images of a sample, groups of them, and the size at which they are compared (pixels).
_SAMPLE, _GROUPS, _BOX = 512, 32, 48
# Low-pass filter of the map, A: all maps of one molecule are alike there.
_RESOLUTION = 15.0
# Standard errors beyond which a correlation or a difference is no chance, and the least gain of an alternative.
_CERTAIN, _GAIN = 6.0, 1.1
# Shifts by less than this fraction of the box are no error of the centre.
_SHIFT = 0.04
_AXES = "xyz"


@torch.no_grad()
def compare_with_map(
    reader: ImageReader, preprocessing: Preprocessing, volume: torch.Tensor, path: str, seed: int
) -> float:
    """Compare a sample of the images with the (box, box, box) map of `path`.

    Returns
    -------
    float
        their correlation in standard errors.

    Raises
    ------
    InputError
        if the contrast is inverted, or another hand, axis order or centre of the map fits better.
    """
    p, sums = reader.particles, _grouped_sums(reader, preprocessing, seed)
    box, volume = sums.shape[-1], _coarse(volume, p.pixel_size, sums.shape[-1])
    given = _correlations(sums, volume)
    certainty = _certainty(given)
    if certainty < -_CERTAIN:
        raise InputError(
            "the particles correlate negatively with the map; set --invert-contrast if they are dark, omit it if they "
            "are white, or check the map"
        )
    name, shift, best = _best_alternative(sums, volume)
    # The first half of the groups chose it.
    tested = slice(len(sums) // 2, None)
    better = best[tested].mean() > _GAIN * max(0.0, float(given[tested].mean()))
    if better and _certainty((best - given)[tested]) > _CERTAIN:
        found = f"with {name}" if name else ""
        if np.abs(shift).max() > _SHIFT * box:
            angstroms = ", ".join(f"{value:.3g}" for value in shift * p.pixel_size * p.box / box)
            found += f"{' and ' if found else ''}shifted by ({angstroms}) A along x, y and z"
        if found:
            raise InputError(
                f"the images fit map {path} better {found}; use the map as the refinement that gave the poses wrote it"
            )
    return certainty


@torch.no_grad()
def correlation_with_map(reader: ImageReader, preprocessing: Preprocessing, volume: torch.Tensor, seed: int) -> float:
    """Return the correlation of a sample of the images with a (box, box, box) map, in standard errors."""
    sums = _grouped_sums(reader, preprocessing, seed)
    return _certainty(_correlations(sums, _coarse(volume, reader.particles.pixel_size, sums.shape[-1])))


def _coarse(volume: torch.Tensor, pixel_size: float, box: int) -> torch.Tensor:
    """Return the map at low resolution on a grid of `box` voxels, its mean zero."""
    volume = resample_volume(lowpass_volume(volume, pixel_size, _RESOLUTION), box)
    return volume - volume.mean()


def _grouped_sums(reader: ImageReader, preprocessing: Preprocessing, seed: int) -> torch.Tensor:
    """Return (groups, box, box, box) backprojections of a random sample, in groups."""
    p = reader.particles
    box = preprocessing.working_box
    chosen = np.random.default_rng(seed).permutation(p.n_images)[:_SAMPLE]
    groups = [np.sort(rows) for rows in np.array_split(chosen, min(_GROUPS, len(chosen)))]
    images = [image_to_fourier(read_prepared(reader, rows, preprocessing)) for rows in groups]
    power = torch.stack([shell_means(image.abs().square(), box).mean(0) for image in images]).mean(0)
    weights = expand_shells(1 / power.clamp(min=1e-6 * float(power.max())), box)
    sums = []
    for rows, image in zip(groups, images, strict=True):
        transfer = evaluate_ctf(p.ctf[rows], box, p.pixel_size * p.box / box)
        if p.premultiplied:
            transfer = transfer.abs()
        slices = SliceSums(box, torch.device("cpu"))
        slices.add(p.matrices[rows][:, :2], image * transfer.conj() * weights, transfer.abs().square())
        sums.append(slices.images())
    return torch.stack(sums)


def comparison_box(box: int) -> int:
    """Return the size at which images of `box` pixels are compared with the map."""
    return min(_BOX, box - box % 2)


def _correlations(sums: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    return (sums * volume).flatten(1).sum(1)


def _certainty(values: torch.Tensor) -> float:
    """Return the mean of independent values in units of its standard error."""
    return float(values.mean() / (values.std() / len(values) ** 0.5).clamp(min=1e-30))


def _best_alternative(sums: torch.Tensor, volume: torch.Tensor) -> tuple[str, np.ndarray, torch.Tensor]:
    """Return the name and shift (x, y, z; voxels) of the map that fits the first half best, and its correlations."""
    box = volume.shape[0]
    target = torch.fft.rfftn(sums[: len(sums) // 2].mean(0)).conj()
    best: tuple[float, str, tuple[int, ...], torch.Tensor] | None = None
    for name, turned in _alternatives(volume):
        # At t, the correlation of the images with the map shifted by -t.
        found = torch.fft.irfftn(torch.fft.rfftn(turned) * target, s=(box,) * 3)
        at = int(found.argmax())
        if best is None or float(found.flatten()[at]) > best[0]:
            best = float(found.flatten()[at]), name, tuple(int(i) for i in np.unravel_index(at, found.shape)), turned
    assert best is not None
    shift = [-((part + box // 2) % box - box // 2) for part in best[2]]
    moved = torch.roll(best[3], shift, (0, 1, 2))
    return best[1], np.array(shift[::-1]), _correlations(sums, moved)


def _alternatives(volume: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names of all exchanges and mirrorings of axes, and the [z, y, x] map after each; first, unchanged."""
    for order in permutations(range(3)):
        exchanged = volume.permute(order)
        for mirrored in product((False, True), repeat=3):
            axes = [axis for axis in range(3) if mirrored[axis]]
            # Voxel box // 2 stays where it is.
            turned = exchanged.flip(axes).roll([1] * len(axes), axes) if axes else exchanged
            names = []
            if order != (0, 1, 2):
                names.append(f"axes {', '.join(_AXES[2 - order[2 - axis]] for axis in range(3))} as x, y, z")
            if axes:
                names.append(f"{' and '.join(_AXES[2 - axis] for axis in reversed(axes))} mirrored")
            yield " and ".join(names), turned
