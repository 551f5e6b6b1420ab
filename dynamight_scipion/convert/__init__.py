"""From Scipion's objects to the engine's files, and back.

Particles become a STAR file in the dialect of RELION 3.1, which refers to their stacks where they are; only stacks
of other formats than MRC are converted. Every row carries the particle's id (rlnImageId), by which results are
brought back: never by order. Volumes come out in the box and sampling of the particles.

Functions that write return sentences on what they had to change, for the log and the protocol's summary.
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
