"""The molecule as the engine will find it in the map, computed here so that a wizard can show it at once.

This is the engine's rule, and tests compare the two. A run does not use it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

# Resolution at which the engine separates the molecule from noise, Å.
RESOLUTION = 15.0
# Voxels that still show this resolution, Å: a slider must move smoothly with large boxes.
_COARSEST = 4.0
# Mass of a residue (kDa), and volume of protein (Å³ per kDa, at 1.35 g/cm³).
RESIDUE_MASS = 0.11
VOLUME_OF_MASS = 1230.0


@dataclass(frozen=True)
class SmoothMap:
    """A consensus map, low-pass filtered to find the molecule.

    Parameters
    ----------
    volume
        [z, y, x], low-pass filtered.
    samplingRate
        Å.
    automatic
        default threshold of the engine.
    strongest
        density that hardly any voxel exceeds.
    """

    volume: np.ndarray
    samplingRate: float
    automatic: float
    strongest: float

    @classmethod
    def of(cls, volume, samplingRate):
        """Return the filtered map of a consensus map [z, y, x]."""
        smooth, samplingRate = _lowpass(volume, samplingRate, max(RESOLUTION, 3 * samplingRate))
        box = len(smooth)
        distance = _distances(box)
        solvent = smooth[distance > 0.45 * box]
        noise = 1.4826 * float(np.median(np.abs(solvent - np.median(solvent))))
        strongest = float(np.quantile(smooth[distance <= 0.45 * box], 0.999))
        return cls(smooth, samplingRate, max(4 * noise, 0.08 * strongest), strongest)

    def findMolecule(self, threshold):
        """Return a mask [z, y, x] of where Gaussians will be placed; empty if nothing exceeds the threshold."""
        box = len(self.volume)
        labels, count = ndimage.label((self.volume > threshold) & (_distances(box) <= box / 2 - 1))
        if not count:
            return np.zeros(self.volume.shape, dtype=bool)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        keep = sizes >= max(0.02 * sizes.max(), (12.0 / self.samplingRate) ** 3)
        keep[sizes.argmax()] = True
        return keep[labels]


def _distances(box):
    """Return the distance of every voxel from the centre, voxels."""
    axis = (np.arange(box) - box // 2).astype(float)
    return np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)


def _lowpass(volume, samplingRate, resolution):
    """Low-pass filter a volume at a resolution (Å), on a grid no finer than necessary.

    The filter has a raised-cosine edge of three Fourier voxels, like the engine's.

    Returns
    -------
    tuple
        the volume, and its sampling rate (Å).
    """
    box = len(volume)
    size = min(box, 2 * int(np.ceil(box * samplingRate / _COARSEST / 2)))
    whole = (np.arange(size) + size // 2) % size - size // 2
    half = np.arange(size // 2 + 1)
    radius = np.sqrt(whole[:, None, None] ** 2 + whole[None, :, None] ** 2 + half**2)
    edge = ((radius - box * samplingRate / resolution + 1.5) / 3).clip(0, 1)
    kept = fft.rfftn(volume)[np.ix_(whole, whole, half)] * (0.5 + 0.5 * np.cos(np.pi * edge))
    return fft.irfftn(kept, s=(size,) * 3) * (size / box) ** 3, samplingRate * box / size


def fill(mask, count):
    """Return (count, 3) random positions [z, y, x] in a mask (voxels), like the initial Gaussians; none if empty."""
    random = np.random.default_rng(0)
    voxels = np.argwhere(mask)
    if not len(voxels):
        return voxels
    return voxels[random.integers(len(voxels), size=count)] + random.random((count, 3)) - 0.5


def spacing(volume, count):
    """Return the spacing (Å) of `count` Gaussians in a volume (Å³)."""
    return (volume / count) ** (1 / 3)


def gaussiansOfMass(mass, perResidue):
    """Return the number of Gaussians for a molecular mass (kDa)."""
    return max(50, round(mass / RESIDUE_MASS * perResidue))


def massOfVolume(volume):
    """Return the mass (kDa) of protein in a volume (Å³)."""
    return volume / VOLUME_OF_MASS
