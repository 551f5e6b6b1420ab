"""Sets of particles: checks, and the engine's STAR file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pyworkflow.utils import makePath

from .errors import ConversionError
from .optics import OPTICS_LABELS, collectOptics, isOpticsLost, opticsKey, readOptics, takeFromStar
from .poses import findImproper, posesOfMatrices
from .stacks import plainPath, stackPaths
from .star import word, writeLoop

# The engine refuses fewer particles.
MIN_PARTICLES = 200
# Columns made from the particles' objects, not from attributes of these names.
_OWN_LABELS = ("rlnOpticsGroup", "rlnPhaseShift", "rlnImageId")


def checkParticles(particles, opticsStar=None, fewest=MIN_PARTICLES):
    """Check a set of particles before a run.

    Parameters
    ----------
    particles
        SetOfParticles.
    opticsStar
        STAR file with the optics groups to use instead, or None.
    fewest
        number of particles that a run needs.

    Returns
    -------
    tuple
        errors, which make a run impossible, and warnings, about lost or assumed information: sentences for the user.
    """
    errors: list[str] = []
    warnings: list[str] = []
    if particles.isStreamOpen():
        errors.append("The set of particles is still open: wait until its protocol has finished.")
    if not len(particles):
        errors.append("The set of particles is empty: give the particles of a 3D refinement.")
    if errors:
        return errors, warnings
    first = particles.getFirstItem()
    if not particles.hasAlignmentProj() or not first.hasTransform():
        errors.append(
            "The particles have no 3D alignment: give the particles of a 3D refinement. (The import of a STAR file "
            "assumes a 2D alignment if the first particle has rlnAngleRot 0: put another particle first.)"
        )
    if not particles.hasCTF() or not first.hasCTF():
        errors.append("The particles have no CTF: give particles with estimated CTFs.")
    if particles.isPhaseFlipped() or particles.isAmplitudeCorrected():
        errors.append("The particles are marked as CTF-corrected (phase flipped): extract them without correction.")
    if not particles.getSamplingRate():
        errors.append("The particles have no sampling rate: import them with a sampling rate.")
    missing = [path for path in map(plainPath, particles.getFiles()) if not os.path.exists(path)]
    if missing:
        errors.append(
            f"Image files of the particles are missing ({len(missing)}, e.g. {missing[0]}): restore them, or repair "
            "the links in the folder of the import protocol."
        )
    enabled = len(particles.getUniqueValues("id", where="enabled=1"))
    if enabled < fewest:
        errors.append(f"There are {enabled} enabled particles, too few to estimate motion: give at least {fewest}.")
    _checkHalves(particles, first, errors, warnings)
    if opticsStar:
        if not os.path.exists(opticsStar):
            errors.append(f"The STAR file with optics groups {opticsStar} does not exist: give its path.")
    elif isOpticsLost(particles, first):
        warnings.append(
            "The acquisition has several optics groups, but the group of each particle is unknown: Scipion's import of "
            "RELION particles drops it (and rlnNormCorrection). All particles will be assigned to the first group. To "
            "avoid this, give the imported STAR file as 'Optics groups from'."
        )
    return errors, warnings


def _checkHalves(particles, first, errors, warnings):
    if not first.hasAttribute("_rlnRandomSubset"):
        warnings.append(
            "The particles have no half-sets (rlnRandomSubset), so they will be split at random. Their poses are not "
            "independent, so resolutions will be too optimistic."
        )
        return
    halves = set(particles.getUniqueValues("_rlnRandomSubset", where="enabled=1"))
    if len(halves) == 1:
        errors.append(
            f"All particles are in half-set {halves.pop()} (rlnRandomSubset): give the particles of both half-sets."
        )
    elif not halves <= {1, 2}:
        odd = sorted(str(half) for half in halves - {1, 2})[0]
        errors.append(
            f"Some particles have half-set {odd} (rlnRandomSubset) instead of 1 or 2: give the particles of one "
            "refinement."
        )


def writeParticles(particles, starFile, folder, opticsStar=None):
    """Write the enabled particles of a set as a STAR file.

    Parameters
    ----------
    particles
        SetOfParticles with 3D alignment and CTFs.
    starFile
        path of the file.
    folder
        for stacks that must be converted or linked.
    opticsStar
        RELION STAR file of the same particles, or None. Its optics table, rlnOpticsGroup and rlnNormCorrection are
        used, matched by image name.

    Returns
    -------
    list
        sentences about changes.

    Raises
    ------
    ConversionError
        if a particle cannot be used.
    """
    notes = []
    collected = _collect(particles)
    n = len(collected.columns["rlnImageId"])
    if not n:
        raise ConversionError("All particles are disabled: enable the particles to use.")
    disabled = len(particles) - n
    if disabled:
        notes.append(f"{disabled} disabled particles are omitted.")
    columns = {**collected.columns, **_poses(collected, particles.getSamplingRate())}
    if opticsStar:
        optics, taken = takeFromStar(opticsStar, collected)
        columns.update(taken)
        notes.append(f"Optics groups ({len(optics)}) are from {opticsStar}.")
    else:
        optics, columns["rlnOpticsGroup"] = collectOptics(collected, particles.getAcquisition())
        if collected.opticsLost:
            notes.append("The optics group of each particle is unknown: all particles are assigned to the first group.")
    for row in optics:
        # The set is authoritative, as for every program that Scipion starts.
        row["rlnImagePixelSize"] = particles.getSamplingRate()
        row["rlnImageSize"] = particles.getXDim()
        row["rlnImageDimensionality"] = 2
        if particles.hasCoordinates():
            # Scipion's extraction counts them in pixels of the particles; its table has a placeholder of 1 A.
            row["rlnMicrographPixelSize"] = particles.getSamplingRate()
            row.pop("rlnMicrographOriginalPixelSize", None)
    paths, changes = stackPaths(collected.files, folder)
    notes += changes
    columns["rlnImageName"] = [
        f"{max(index, 1):06d}@{paths[path]}" for index, path in zip(collected.index, collected.path)
    ]
    makePath(os.path.dirname(starFile))
    with open(starFile + ".part", "w") as file:
        labels = list(dict.fromkeys([*OPTICS_LABELS, *(label for row in optics for label in row)]))
        writeLoop(file, "optics", {label: [row.get(label, "0") for row in optics] for label in labels})
        writeLoop(file, "particles", columns)
    os.replace(starFile + ".part", starFile)
    return notes


@dataclass
class _Collected:
    """Result of one pass over the particles: finished columns, and values to convert."""

    columns: dict
    matrices: np.ndarray
    index: list
    path: list
    # For each particle: index of its acquisition in `acquisitions`, and its optics group there (or None)
    acquisition: list
    group: list
    acquisitions: list
    opticsLost: bool

    @property
    def files(self):
        """The image files, in order of appearance."""
        return list(dict.fromkeys(self.path))


def _collect(particles):
    first = particles.getFirstItem()
    extra = [
        name.lstrip("_")
        for name, _ in first.getAttributes()
        if name.startswith("_rln") and name.lstrip("_") not in _OWN_LABELS
    ]
    hasPhase = first.getCTF().hasPhaseShift()
    hasCoordinate = first.hasCoordinate()
    hasGroup = first.hasAttribute("_rlnOpticsGroup")
    ids, index, path, matrices, acquisition, group = [], [], [], [], [], []
    ctf, coordinates, classes, extras = [], [], [], []
    known: dict[tuple, int] = {}
    for particle in particles.iterItems():
        if not particle.isEnabled():
            continue
        ids.append(particle.getObjId())
        index.append(particle.getIndex())
        path.append(particle.getFileName())
        if particle.getTransform() is None or particle.getCTF() is None:
            raise ConversionError(
                f"Particle {particle.getObjId()} has no alignment or no CTF: remove it, or give complete particles."
            )
        matrices.append(particle.getTransform().getMatrix().ravel())
        model = particle.getCTF()
        phase = model.getPhaseShift() if hasPhase else None
        ctf.append((*model.getDefocus(), phase or 0.0, model.getResolution() or 0.0, model.getFitQuality() or 0.0))
        if hasCoordinate:
            where = particle.getCoordinate()
            coordinates.append((where.getX() or 0, where.getY() or 0, where.getMicName() or where.getMicId() or "none"))
        classes.append(particle.getClassId() or 0)
        extras.append([particle.getAttributeValue(f"_{name}") for name in extra])
        taken = particle.getAcquisition() or particles.getAcquisition()
        acquisition.append(known.setdefault(opticsKey(taken), len(known)))
        group.append(particle.getAttributeValue("_rlnOpticsGroup") if hasGroup else None)
    columns: dict[str, Sequence] = {"rlnImageId": ids}
    if coordinates:
        x, y, name = zip(*coordinates)
        columns.update(rlnCoordinateX=x, rlnCoordinateY=y, rlnMicrographName=[word(text) for text in name])
    labels = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"]
    labels += ["rlnCtfMaxResolution", "rlnCtfFigureOfMerit"]
    columns.update(zip(labels, zip(*ctf)))
    if not hasPhase:
        columns.pop("rlnPhaseShift", None)
    if any(classes):
        columns["rlnClassNumber"] = classes
    for name, values in zip(extra, zip(*extras)):
        # Some particles of a joined set may lack a column, which then cannot be written.
        if None not in values and name not in columns:
            columns[name] = [word(value) if isinstance(value, str) else value for value in values]
    lost = not hasGroup and any(len(readOptics(key[0])) > 1 for key in known if key[0])
    return _Collected(
        columns, np.array(matrices, dtype=float).reshape(-1, 4, 4), index, path, acquisition, group, list(known), lost
    )


def _poses(collected, samplingRate):
    improper = findImproper(collected.matrices)
    if improper.any():
        raise ConversionError(
            f"Particle {collected.columns['rlnImageId'][int(improper.argmax())]} has an alignment that is not a "
            "rotation (mirrored or scaled): give the particles of a 3D refinement."
        )
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    return dict(zip(labels, posesOfMatrices(collected.matrices, samplingRate)))
