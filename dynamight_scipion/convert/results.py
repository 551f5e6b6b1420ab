"""What the engine found, brought back to Scipion's particles by their ids."""

import numpy as np
from emtable import Table
from pwem.objects import ParticleFlex, Transform
from pyworkflow.object import Float, Integer

from dynamight_scipion.objects import FLEX_PROGRAM

from .errors import ConversionError
from .poses import matricesOfPoses

_OWN_ATTRIBUTES = (
    "_flexInfo",
    "_zFlex",
    "_zRed",
    "_dynHalf",
    "_dynValidation",
    "_dynMotionRms",
    "_dynMotionError",
    "_dynMotionDisagreement",
)


def readColumns(starFile, wanted):
    """Read columns of the particles in a STAR file.

    Parameters
    ----------
    starFile
        that the engine wrote.
    wanted
        function that takes a label and says whether the column is read.

    Returns
    -------
    dict
        label to (n,) float64 array, with rlnImageId among them as int64.
    """
    with open(starFile) as file:
        reader = Table.Reader(file, tableName="particles", guessType=False)
        labels = [label for label in reader.getColumnNames() if label == "rlnImageId" or wanted(label)]
        if "rlnImageId" not in labels:
            raise ConversionError(f"{starFile} has no column rlnImageId: estimate the deformations again.")
        at = [reader.getColumnNames().index(label) for label in labels]
        values = np.array([[float(row[i]) for i in at] for row in reader])
    columns = dict(zip(labels, values.T, strict=True))
    columns["rlnImageId"] = columns["rlnImageId"].astype(np.int64)
    return columns


def readMotions(starFile):
    """Read what the engine found for every particle.

    Returns
    -------
    dict
        labels of the engine's columns (dynHalf, dynMotion1, ...) and rlnImageId to arrays.
    """
    return readColumns(starFile, lambda label: label.startswith("dyn"))


def motionCoordinates(columns):
    """Return the (n, K) coordinates along the principal motions, Å rms, of what `readMotions` gave."""
    count = sum(1 for label in columns if label.startswith("dynMotion") and label[len("dynMotion") :].isdigit())
    return np.stack([columns[f"dynMotion{number + 1}"] for number in range(count)], -1)


def fillParticles(output, particles, columns, embedding):
    """Fill a set with the particles that have results, each with its motion.

    A particle keeps everything that it had. It gets zFlex (coordinates along the principal motions, Å rms), zRed (two
    numbers for drawing), and the attributes _dynHalf, _dynValidation, _dynMotionRms, _dynMotionError and
    _dynMotionDisagreement (Å). Refined poses, if there are any, become its alignment.

    Parameters
    ----------
    output
        empty SetOfParticlesFlex.
    particles
        SetOfParticles that the engine was given.
    columns
        as `readMotions` returns them.
    embedding
        (n, 2) in the order of `columns`.

    Raises
    ------
    ConversionError
        if results and particles do not belong together.
    """
    rowOf = {number: row for row, number in enumerate(columns["rlnImageId"].tolist())}
    coordinates = motionCoordinates(columns).tolist()
    reduced = np.asarray(embedding, dtype=float).tolist()
    halves = columns["dynHalf"].astype(int).tolist()
    validation = columns["dynValidation"].astype(int).tolist()
    motion, error = columns["dynMotionRms"].tolist(), columns["dynMotionError"].tolist()
    disagreement = columns["dynMotionDisagreement"].tolist()
    matrices = _refinedMatrices(columns, particles.getSamplingRate())
    filled = ParticleFlex(progName=FLEX_PROGRAM)
    filled._dynHalf, filled._dynValidation = Integer(), Integer()
    filled._dynMotionRms, filled._dynMotionError = Float(), Float()
    filled._dynMotionDisagreement = Float()
    halfSets = Integer()
    hadHalves = particles.getFirstItem().hasAttribute("_rlnRandomSubset")
    for particle in particles.iterItems():
        row = rowOf.pop(particle.getObjId(), None)
        if row is None:
            continue
        filled.setObjId(particle.getObjId())
        filled.setObjLabel(particle.getObjLabel())
        filled.setObjComment(particle.getObjComment())
        # The set takes what it stores from the object's attributes: those of the particle can be shared.
        for name, attribute in particle.getAttributes():
            if name not in _OWN_ATTRIBUTES:
                setattr(filled, name, attribute)
        if not hadHalves:
            halfSets.set(halves[row])
            filled._rlnRandomSubset = halfSets
        if matrices is not None:
            filled.setTransform(Transform(matrices[row]))
        filled.setZFlex(coordinates[row])
        filled.setZRed(reduced[row])
        filled._dynHalf.set(halves[row])
        filled._dynValidation.set(validation[row])
        filled._dynMotionRms.set(motion[row])
        filled._dynMotionError.set(error[row])
        filled._dynMotionDisagreement.set(disagreement[row])
        output.append(filled)
    if rowOf:
        raise ConversionError(
            f"{len(rowOf)} particles of the run are not in the input set any more (e.g. id {next(iter(rowOf))}): run "
            "the protocol again."
        )


def _refinedMatrices(columns, samplingRate):
    """Return Scipion's (n, 4, 4) matrices of poses that the engine refined, or None if it left them alone."""
    labels = ("dynAngleRot", "dynAngleTilt", "dynAnglePsi", "dynOriginXAngst", "dynOriginYAngst")
    if labels[0] not in columns:
        return None
    return matricesOfPoses(*(columns[label] for label in labels), samplingRate)
