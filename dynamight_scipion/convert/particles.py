"""A set of particles as the engine's STAR file, and what has to be said of it before."""

import os
from dataclasses import dataclass

import numpy as np
from pyworkflow.utils import makePath

from .errors import ConversionError
from .optics import OPTICS_LABELS, collectOptics, isOpticsLost, opticsKey, readOptics, takeFromStar
from .poses import findImproper, posesOfMatrices
from .stacks import plainPath, stackPaths
from .star import word, writeLoop

# Fewer particles than this the engine refuses.
LEAST_PARTICLES = 200
# What comes from the particles' own objects, and not from an attribute of its name.
_OWN_LABELS = ("rlnOpticsGroup", "rlnPhaseShift", "rlnImageId")


def checkParticles(particles, opticsStar=None):
    """Look for what makes a set of particles unusable, or loses information, before anything is run.

    Parameters
    ----------
    particles
        SetOfParticles.
    opticsStar
        STAR file that optics groups are taken from instead, or None.

    Returns
    -------
    tuple
        errors and warnings, sentences for the user: what makes a run impossible, and what it would lose or decide.
    """
    errors, warnings = [], []
    if particles.isStreamOpen():
        errors.append("The particles are still being produced (an open set): wait until their protocol is done.")
    if not len(particles):
        errors.append("The set of particles is empty: give the particles of a 3D refinement.")
    if errors:
        return errors, warnings
    first = particles.getFirstItem()
    if not particles.hasAlignmentProj() or not first.hasTransform():
        errors.append(
            "The particles have no 3D alignment: give the particles of a 3D refinement. (The import of a STAR file "
            "takes an alignment for a 2D one if the first particle has the angle rlnAngleRot 0: put another first.)"
        )
    if not particles.hasCTF() or not first.hasCTF():
        errors.append("The particles have no CTF: give particles with estimated CTFs.")
    if particles.isPhaseFlipped() or particles.isAmplitudeCorrected():
        errors.append("The particles are marked as CTF-corrected (phase flipped): extract them without that.")
    if not particles.getSamplingRate():
        errors.append("The particles have no sampling rate: import them with one.")
    missing = [path for path in map(plainPath, particles.getFiles()) if not os.path.exists(path)]
    if missing:
        errors.append(
            f"The particles' image files are not all there (missing: {len(missing)}, e.g. {missing[0]}): bring them "
            "back, or mend the links in the folder of the protocol that imported them."
        )
    enabled = len(particles.getUniqueValues("id", where="enabled=1"))
    if enabled < LEAST_PARTICLES:
        errors.append(
            f"There are {enabled} enabled particles, too few to learn motion from: give at least {LEAST_PARTICLES}."
        )
    _checkHalves(particles, first, errors, warnings)
    if opticsStar:
        if not os.path.exists(opticsStar):
            errors.append(f"The STAR file with optics groups {opticsStar} does not exist: give its path.")
    elif isOpticsLost(particles, first):
        warnings.append(
            "The acquisition lists several optics groups, but the particles do not say to which they belong: Scipion's "
            "import of RELION particles drops that (and rlnNormCorrection). All would be taken for the first group: "
            "give the STAR file that was imported as 'Optics groups from'."
        )
    return errors, warnings


def _checkHalves(particles, first, errors, warnings):
    if not first.hasAttribute("_rlnRandomSubset"):
        warnings.append(
            "The particles have no half-sets (rlnRandomSubset): they will be split at random, although their poses "
            "come from one refinement of all. Resolutions will look better than they are."
        )
        return
    halves = set(particles.getUniqueValues("_rlnRandomSubset", where="enabled=1"))
    if len(halves) == 1:
        errors.append(
            f"All particles are in half-set {halves.pop()} (rlnRandomSubset): give the particles of both halves."
        )
    elif not halves <= {1, 2}:
        odd = sorted(str(half) for half in halves - {1, 2})[0]
        errors.append(
            f"Some particles have the half-set {odd} (rlnRandomSubset), which should be 1 or 2: give all particles of "
            "one refinement."
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
        where stacks go that had to be converted or linked.
    opticsStar
        RELION STAR file of the same particles, or None: its optics table, rlnOpticsGroup and rlnNormCorrection are
        taken over, matched by image name.

    Returns
    -------
    list
        sentences on what was changed.

    Raises
    ------
    ConversionError
        if a particle cannot be used.
    """
    notes = []
    collected = _collect(particles)
    n = len(collected.columns["rlnImageId"])
    if not n:
        raise ConversionError("All particles are disabled: enable those that shall be used.")
    disabled = len(particles) - n
    if disabled:
        notes.append(f"{disabled} disabled particles are left out.")
    columns = collected.columns | _poses(collected, particles.getSamplingRate())
    if opticsStar:
        optics, taken = takeFromStar(opticsStar, collected)
        columns |= taken
        notes.append(f"Optics groups ({len(optics)}) are those of {opticsStar}.")
    else:
        optics, columns["rlnOpticsGroup"] = collectOptics(collected, particles.getAcquisition())
        if collected.opticsLost:
            notes.append(
                "Several optics groups are known, but not which particle belongs to which: all are taken for the first."
            )
    for row in optics:
        # What the set says holds, as for every program that Scipion starts.
        row["rlnImagePixelSize"] = particles.getSamplingRate()
        row["rlnImageSize"] = particles.getXDim()
        row["rlnImageDimensionality"] = 2
    paths, changes = stackPaths(collected.files, folder)
    notes += changes
    columns["rlnImageName"] = [
        f"{max(index, 1):06d}@{paths[path]}" for index, path in zip(collected.index, collected.path, strict=True)
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
    """What one pass over the particles gathers: columns as lists, and what needs more thought."""

    columns: dict
    matrices: np.ndarray
    index: list
    path: list
    # Of each particle: the number of its acquisition among `acquisitions`, and its optics group in that (or None)
    acquisition: list
    group: list
    acquisitions: list
    opticsLost: bool

    @property
    def files(self):
        """The files that the images are in, in order of appearance."""
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
    known = {}
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
    columns = {"rlnImageId": ids}
    if coordinates:
        x, y, name = zip(*coordinates, strict=True)
        columns |= {"rlnCoordinateX": x, "rlnCoordinateY": y, "rlnMicrographName": [word(text) for text in name]}
    labels = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
    labels += ("rlnCtfMaxResolution", "rlnCtfFigureOfMerit")
    columns |= dict(zip(labels, zip(*ctf, strict=True), strict=False))
    if not hasPhase:
        columns.pop("rlnPhaseShift", None)
    if any(classes):
        columns["rlnClassNumber"] = classes
    for name, values in zip(extra, zip(*extras, strict=True), strict=False):
        # A column that some particles of a joined set lack cannot be written.
        if None not in values and name not in columns:
            columns[name] = [word(value) if isinstance(value, str) else value for value in values]
    lost = not hasGroup and any(len(readOptics(key[0])) > 1 for key in known if key[0])
    return _Collected(
        columns, np.array(matrices, dtype=float).reshape(-1, 4, 4), index, path, acquisition, group, list(known), lost
    )


def _poses(collected, samplingRate):
    wrong = findImproper(collected.matrices)
    if wrong.any():
        raise ConversionError(
            f"Particle {collected.columns['rlnImageId'][int(wrong.argmax())]} has an alignment that is no rotation (it "
            "is mirrored or scaled): give the particles of a 3D refinement."
        )
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    return dict(zip(labels, posesOfMatrices(collected.matrices, samplingRate), strict=True))
