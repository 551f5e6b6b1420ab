"""Optics groups: of sets with one table, of joined sets with several, and of those that lost theirs."""

import io
import os

from emtable import Table

from .errors import ConversionError
from .stacks import plainPath

OPTICS_LABELS = (
    "rlnOpticsGroupName",
    "rlnOpticsGroup",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
)
# Lost by Scipion's import of RELION particles, and got back from the STAR file itself.
_LOST_LABELS = ("rlnNormCorrection",)


def opticsText(acquisition):
    """Return the optics table that an acquisition carries (as STAR), or '' if it has none."""
    return "" if acquisition is None else acquisition.opticsGroupInfo.get("") or ""


def opticsKey(acquisition):
    """Return what tells acquisitions apart: optics table, voltage (kV), spherical aberration (mm), contrast."""
    numbers = acquisition.getVoltage(), acquisition.getSphericalAberration(), acquisition.getAmplitudeContrast()
    return opticsText(acquisition), *numbers


def readOptics(text):
    """Return the rows of an optics table given as STAR, each a dict of texts."""
    table = Table()
    table.readStar(io.StringIO(text), tableName="optics", guessType=False)
    return [dict(row._asdict()) for row in table]


def isOpticsLost(particles, first):
    """Whether several optics groups are known, but not which particle belongs to which."""
    if first.hasAttribute("_rlnOpticsGroup"):
        return False
    texts = {opticsText(particles.getAcquisition()), opticsText(first.getAcquisition())}
    return any(len(readOptics(text)) > 1 for text in texts if text)


def collectOptics(collected, acquisition):
    """Return the optics groups of all particles, as dicts, and each particle's number.

    The acquisition of the set holds: that of its particles may be of an earlier step. But particles of a joined set
    carry different ones, in which the same number means different things: the groups are numbered anew.
    """
    acquisitions = collected.acquisitions
    if len(acquisitions) == 1 and (opticsText(acquisition) or acquisition.getVoltage()):
        acquisitions = [opticsKey(acquisition)]
    rows, numbers, chosen = [], {}, []
    tables = []
    for text, voltage, aberration, contrast in acquisitions:
        table = readOptics(text) if text else []
        if not table:
            values = (voltage, aberration, contrast)
            if None in values:
                raise ConversionError(
                    "The particles' acquisition lacks voltage, spherical aberration or amplitude contrast: import them "
                    "with these."
                )
            table = [dict(zip(OPTICS_LABELS[2:5], values, strict=True))]
        tables.append(table)
    for which, group in zip(collected.acquisition, collected.group, strict=True):
        if (which, group) not in numbers:
            row = _findGroup(tables[which], group)
            numbers[which, group] = len(rows) + 1
            name = row.get("rlnOpticsGroupName") or f"opticsGroup{len(rows) + 1}"
            if any(name == other["rlnOpticsGroupName"] for other in rows):
                name = f"{name}_{len(rows) + 1}"
            rows.append(row | {"rlnOpticsGroupName": name, "rlnOpticsGroup": len(rows) + 1})
        chosen.append(numbers[which, group])
    return rows, chosen


def _findGroup(table, number):
    """Return the row of an optics table with a group's number; the first if the particle has none."""
    if number is None:
        return table[0]
    for row in table:
        if int(row.get("rlnOpticsGroup", 1)) == int(number):
            return row
    raise ConversionError(
        f"Particles have the optics group {number}, which the acquisition's optics table does not list: give the STAR "
        "file that they come from as 'Optics groups from'."
    )


def takeFromStar(starFile, collected):
    """Return the optics rows and the columns of the particles that a STAR file of the same particles gives."""
    with open(starFile) as file:
        optics = readOptics(file.read())
    found, labels = {}, []
    with open(starFile) as file:
        reader = Table.Reader(file, tableName="particles", guessType=False)
        labels = ["rlnOpticsGroup", *(label for label in _LOST_LABELS if reader.hasColumn(label))]
        if not reader.hasAllColumns(["rlnImageName", "rlnOpticsGroup"]):
            raise ConversionError(
                f"{starFile} has no columns rlnImageName and rlnOpticsGroup: give a STAR file of RELION 3.1 or later."
            )
        for row in reader:
            index, _, path = row.rlnImageName.rpartition("@")
            found[int(index or 1), path] = [getattr(row, label) for label in labels]
    renamed = _matchPaths(collected.files, {path for _, path in found}, starFile)
    values = []
    for index, path, number in zip(collected.index, collected.path, collected.columns["rlnImageId"], strict=True):
        value = found.get((max(index, 1), renamed[path]))
        if value is None:
            raise ConversionError(
                f"{starFile} does not list image {index} of {path} (particle {number}): give the STAR file that the "
                "particles were imported from."
            )
        values.append(value)
    return optics, dict(zip(labels, zip(*values, strict=True), strict=True))


def _matchPaths(files, names, starFile):
    """Return for each of Scipion's files the name that a STAR file has for it.

    An import puts the images into a folder of its own, so names agree in their last parts only.
    """
    byBase = {}
    for name in names:
        byBase.setdefault(os.path.basename(name), []).append(name)
    matched = {}
    for path in files:
        candidates = byBase.get(os.path.basename(plainPath(path)), [])
        if len(candidates) > 1:
            candidates = [name for name in candidates if plainPath(path).endswith("/" + name.lstrip("./"))]
        if len(candidates) != 1:
            raise ConversionError(
                f"{starFile} lists {len(candidates) or 'no'} files that could be {path}: give the STAR file that the "
                "particles were imported from."
            )
        matched[path] = candidates[0]
    return matched
