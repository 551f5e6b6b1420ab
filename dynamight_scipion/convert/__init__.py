"""Conversion of Scipion's objects to the engine's files, and back.

Particles become a STAR file in the format of RELION 3.1, which refers to the original stacks; only stacks that are not
MRC are converted. Every row has the particle's id (rlnImageId), which identifies its results. Volumes are written in
the box and sampling rate of the particles.

Functions that write return sentences about their changes, for the log and the protocol's summary.
"""

from .errors import ConversionError
from .particles import checkParticles, writeParticles
from .results import fillParticles, motionCoordinates, readColumns, readMotions
from .stacks import plainPath
from .volumes import describeVolume, hasOriginInCorner, resample, writeVolume

__all__ = [
    "ConversionError",
    "checkParticles",
    "describeVolume",
    "fillParticles",
    "hasOriginInCorner",
    "motionCoordinates",
    "plainPath",
    "readColumns",
    "readMotions",
    "resample",
    "writeParticles",
    "writeVolume",
]
