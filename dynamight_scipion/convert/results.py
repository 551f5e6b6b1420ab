"""Results of the engine, assigned to Scipion's particles by their ids."""

import numpy as np
from emtable import Table
from pwem.objects import ParticleFlex, Transform
from pyworkflow.object import CsvList, Float, Integer

from dynamight_scipion.objects import FLEX_PROGRAM

from .errors import ConversionError
from .poses import matricesOfPoses

# Columns of the engine that become attributes of a particle, with an underscore before their names.
_RESULTS = {
    "dynHalf": Integer,
    "dynValidation": Integer,
    "dynMotionRms": Float,
    "dynMotionError": Float,
    "dynMotionDisagreement": Float,
}
# Latents of a particle under the decoders of both half-sets.
_LATENTS = "_dynLatents1", "_dynLatents2"
_OWN_ATTRIBUTES = ("_flexInfo", "_zFlex", "_zRed", *_LATENTS, *(f"_{name}" for name in _RESULTS))


def readColumns(starFile, wanted):
    """Read columns of the particles in a STAR file.

    Parameters
    ----------
    starFile
        written by the engine.
    wanted
        function that returns whether to read the column with a label.

    Returns
    -------
    dict
        (n,) float64 arrays by label, and rlnImageId as int64.
    """
    with open(starFile) as file:
        reader = Table.Reader(file, tableName="particles", guessType=False)
        labels = [label for label in reader.getColumnNames() if label == "rlnImageId" or wanted(label)]
        if "rlnImageId" not in labels:
            raise ConversionError(f"{starFile} has no column rlnImageId: estimate the deformations again.")
        at = [reader.getColumnNames().index(label) for label in labels]
        values = np.array([[float(row[i]) for i in at] for row in reader])
    columns = dict(zip(labels, values.T))
    columns["rlnImageId"] = columns["rlnImageId"].astype(np.int64)
    return columns


def readMotions(starFile):
    """Return the engine's columns (dynHalf, dynMotion1, ...) and rlnImageId, as `readColumns` does."""
    return readColumns(starFile, lambda label: label.startswith("dyn"))


def motionCoordinates(columns):
    """Return the (n, K) coordinates along the principal motions (Å rms) from the columns of `readMotions`."""
    count = sum(1 for label in columns if label.startswith("dynMotion") and label[len("dynMotion") :].isdigit())
    return np.stack([columns[f"dynMotion{number + 1}"] for number in range(count)], -1)


def fillParticles(output, particles, columns, embedding, latents=(), coordinates=None):
    """Fill a set with the particles that have results, and add their motions.

    A particle keeps all its attributes. It gets zFlex, zRed (two coordinates for plots), and the attributes _dynHalf,
    _dynValidation, _dynMotionRms, _dynMotionError and _dynMotionDisagreement (Å), _dynLatents1 and _dynLatents2.
    Refined poses, if any, become its alignment.

    Parameters
    ----------
    output
        empty SetOfParticlesFlex.
    particles
        SetOfParticles that was the engine's input.
    columns
        as `readMotions` returns them.
    embedding
        (n, 2) in the order of `columns`.
    latents
        two (n, d) arrays, in this order: under the decoders of half-sets 1 and 2; none to omit them.
    coordinates
        (n, K), in this order, that become zFlex; along the principal motions if None.

    Raises
    ------
    ConversionError
        if results and particles do not belong together.
    """
    rowOf = {number: row for row, number in enumerate(columns["rlnImageId"].tolist())}
    coordinates = np.asarray(motionCoordinates(columns) if coordinates is None else coordinates, dtype=float).tolist()
    reduced = np.asarray(embedding, dtype=float).tolist()
    results = {f"_{name}": columns[name].tolist() for name in _RESULTS}
    matrices = _refinedMatrices(columns, particles.getSamplingRate())
    filled = ParticleFlex(progName=FLEX_PROGRAM)
    for name, kind in _RESULTS.items():
        setattr(filled, f"_{name}", kind())
    ofDecoders = {name: values.tolist() for name, values in zip(_LATENTS, latents)}
    for name in ofDecoders:
        setattr(filled, name, CsvList(pType=float))
    halfSets = Integer()
    hadHalves = particles.getFirstItem().hasAttribute("_rlnRandomSubset")
    for particle in particles.iterItems():
        row = rowOf.pop(particle.getObjId(), None)
        if row is None:
            continue
        filled.setObjId(particle.getObjId())
        filled.setObjLabel(particle.getObjLabel())
        filled.setObjComment(particle.getObjComment())
        # The set stores the values of the attributes, so these can be the particle's own objects.
        for name, attribute in particle.getAttributes():
            if name not in _OWN_ATTRIBUTES:
                setattr(filled, name, attribute)
        if not hadHalves:
            halfSets.set(results["_dynHalf"][row])
            filled._rlnRandomSubset = halfSets
        if matrices is not None:
            filled.setTransform(Transform(matrices[row]))
        filled.setZFlex(coordinates[row])
        filled.setZRed(reduced[row])
        for name, values in {**results, **ofDecoders}.items():
            getattr(filled, name).set(values[row])
        output.append(filled)
    if rowOf:
        raise ConversionError(
            f"{len(rowOf)} particles of the run are no longer in the input set (e.g. id {next(iter(rowOf))}): run the "
            "protocol again."
        )


def _refinedMatrices(columns, samplingRate):
    """Return Scipion's (n, 4, 4) matrices of the refined poses, or None if the engine kept the poses."""
    labels = ("dynAngleRot", "dynAngleTilt", "dynAnglePsi", "dynOriginXAngst", "dynOriginYAngst")
    if labels[0] not in columns:
        return None
    rot, tilt, psi, x, y = (columns[label] for label in labels)
    return matricesOfPoses(rot, tilt, psi, x, y, samplingRate)
