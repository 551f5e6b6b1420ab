"""Volumes and masks in the box and sampling rate of the particles."""

import os

import mrcfile
import numpy as np
from pwem.emlib.image import ImageHandler
from pyworkflow.utils import cleanPath, makePath
from scipy import ndimage

from .errors import ConversionError
from .stacks import MRC, plainPath

# Sampling rates with a smaller relative difference are equal.
_SAME_SAMPLING = 0.005


def describeVolume(volume, box, samplingRate, name):
    """Describe the conversion of a volume without reading it.

    Parameters
    ----------
    volume
        Volume.
    box, samplingRate
        of the particles, pixels and Å.
    name
        for the sentence, such as "consensus map".

    Returns
    -------
    tuple
        an error and a warning, each a sentence or None.
    """
    path = plainPath(volume.getFileName() or "")
    if not os.path.exists(path):
        return f"The file of the {name} is missing ({path}): restore it, or import it again.", None
    if not volume.getSamplingRate():
        return f"The {name} has no sampling rate: import it with a sampling rate.", None
    changes = _changes(volume, box, samplingRate)
    return None, f"The {name} has {', and '.join(changes)}: it will be resampled." if changes else None


def _changes(volume, box, samplingRate):
    """Return in words how a volume differs from the particles' grid."""
    changes = []
    dimensions = tuple(volume.getDim())
    if dimensions != (box,) * 3:
        changes.append(f"{' x '.join(map(str, dimensions))} voxels (particles: {box} pixels)")
    if abs(volume.getSamplingRate() / samplingRate - 1) > _SAME_SAMPLING:
        changes.append(f"{volume.getSamplingRate():.4g} Å per voxel (particles: {samplingRate:.4g} Å)")
    offset = originOffset(volume)
    if offset.any():
        changes.append(f"an origin ({', '.join(f'{value:.4g}' for value in offset)}) Å from its centre")
    return changes


def originOffset(volume):
    """Return the offset (x, y, z; Å) of a volume's centre from the particles' centre, according to its origin.

    Without an origin, the offset is zero. An origin in the corner of the box is the convention of atomic models and
    does not describe particles, so it also counts as zero.
    """
    if not volume.hasOrigin() or hasOriginInCorner(volume):
        return np.zeros(3)
    samplingRate = volume.getSamplingRate()
    offset = np.array(volume.getOrigin().getShifts(), dtype=float) + np.array(volume.getDim()) / 2 * samplingRate
    return np.where(np.abs(offset) < 0.01 * samplingRate, 0.0, offset)


def hasOriginInCorner(volume):
    """Whether a volume's origin is its first voxel."""
    return volume.hasOrigin() and np.allclose(volume.getOrigin().getShifts(), 0, atol=volume.getSamplingRate())


def writeVolume(volume, box, samplingRate, target, name, isMask=False, path=None):
    """Write a volume in the box and sampling rate of the particles.

    Parameters
    ----------
    volume
        Volume.
    box, samplingRate
        of the particles, pixels and Å.
    target
        path of the MRC file.
    name
        for the sentences.
    isMask
        keep values between 0 and 1, and interpolate linearly.
    path
        of the file, if not the volume's own (for half-maps).

    Returns
    -------
    list
        sentences about changes.

    Raises
    ------
    ConversionError
        if it cannot be read, or a mask has values outside 0 to 1.
    """
    source = plainPath(path or volume.getFileName())
    data = _readVolume(source, target, name)
    if isMask and (data.min() < -0.01 or data.max() > 1.01):
        raise ConversionError(
            f"The {name} has values from {data.min():.2g} to {data.max():.2g}: give a mask from 0 to 1, with a soft "
            "edge."
        )
    changes = _changes(volume, box, samplingRate)
    if data.shape != tuple(reversed(volume.getDim())):
        raise ConversionError(f"{source} and the {name} have different boxes: give maps of one refinement.")
    if changes:
        data = resample(data, volume.getSamplingRate(), box, samplingRate, originOffset(volume), 1 if isMask else 3)
    if isMask:
        data = data.clip(0, 1)
    makePath(os.path.dirname(target))
    with mrcfile.new(target, overwrite=True) as mrc:
        mrc.set_data(np.ascontiguousarray(data, dtype=np.float32))
        mrc.set_volume()
        mrc.voxel_size = samplingRate
        # Where Scipion displays the volume; the engine places atoms accordingly.
        mrc.header.origin = (0.0 if hasOriginInCorner(volume) else -box / 2 * samplingRate,) * 3
    return [f"The {name} has {', and '.join(changes)}: it was resampled."] if changes else []


def _readVolume(path, target, name):
    """Return a volume as float32 [z, y, x]."""
    if not os.path.exists(path):
        raise ConversionError(f"The file of the {name} is missing ({path}): restore it, or import it again.")
    converted = None
    if os.path.splitext(path)[1].lower() not in MRC:
        converted = os.path.splitext(target)[0] + "_converted.mrc"
        ImageHandler().convert(path, converted)
    with mrcfile.open(converted or path, permissive=True) as mrc:
        if mrc.data is None:
            raise ConversionError(f"The file of the {name} ({path}) cannot be read: give an intact volume.")
        data = np.array(mrc.data, dtype=np.float32)
    if converted:
        cleanPath(converted)
    # Some programs write a volume as a stack of one.
    return data[0] if data.ndim == 4 else data


def resample(data, samplingRate, box, newSamplingRate, offset=(0, 0, 0), order=3):
    """Resample a volume around its centre (index size // 2).

    Parameters
    ----------
    data
        [z, y, x].
    samplingRate, newSamplingRate
        Å.
    box
        of the result, voxels.
    offset
        (x, y, z) of the volume's centre relative to the result's centre, Å.
    order
        of the interpolating splines.

    Returns
    -------
    array
        (box, box, box) float32.
    """
    ratio = newSamplingRate / samplingRate
    if ratio > 1 + _SAME_SAMPLING and order > 1:
        data = _lowpass(data, 1 / ratio)
    shape = np.array(data.shape)
    start = shape // 2 - ratio * (box // 2) - np.array(offset)[::-1] / samplingRate
    return ndimage.affine_transform(
        data, np.diag([ratio] * 3), start, (box,) * 3, output=np.float32, order=order, mode="constant", cval=0.0
    )


def _lowpass(data, fraction):
    """Remove frequencies beyond a fraction of the Nyquist frequency."""
    z, y, x = data.shape
    frequency = np.meshgrid(np.fft.fftfreq(z), np.fft.fftfreq(y), np.fft.rfftfreq(x), indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in frequency) <= (fraction / 2) ** 2
    return np.fft.irfftn(np.fft.rfftn(data) * inside, s=data.shape).astype(np.float32)
