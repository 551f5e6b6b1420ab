"""Optics groups: of sets with one table, of joined sets with several, and of sets that lost theirs."""

from __future__ import annotations

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
# Dropped by Scipion's import of RELION particles, and read from the STAR file instead.
_LOST_LABELS = ("rlnNormCorrection",)


def opticsText(acquisition):
    """Return the optics table of an acquisition (as STAR), or '' if it has none."""
    return "" if acquisition is None else acquisition.opticsGroupInfo.get("") or ""


def opticsKey(acquisition):
    """Return what distinguishes acquisitions: optics table, voltage (kV), spherical aberration (mm), contrast."""
    numbers = acquisition.getVoltage(), acquisition.getSphericalAberration(), acquisition.getAmplitudeContrast()
    return opticsText(acquisition), *numbers


def readOptics(text):
    """Return the rows of an optics table in STAR format, each a dict of strings."""
    table = Table()
    table.readStar(io.StringIO(text), tableName="optics", guessType=False)
    return [dict(row._asdict()) for row in table]


def isOpticsLost(particles, first):
    """Whether there are several optics groups, but particles without their group."""
    if first.hasAttribute("_rlnOpticsGroup"):
        return False
    texts = {opticsText(particles.getAcquisition()), opticsText(first.getAcquisition())}
    return any(len(readOptics(text)) > 1 for text in texts if text)


def collectOptics(collected, acquisition):
    """Return the optics groups of all particles, as dicts, and the number of each particle's group.

    The acquisition of the set is used: its particles may have an older one. Particles of a joined set have
    different acquisitions, in which one number means different groups, so the groups are renumbered.
    """
    acquisitions = collected.acquisitions
    if len(acquisitions) == 1 and (opticsText(acquisition) or acquisition.getVoltage()):
        acquisitions = [opticsKey(acquisition)]
    rows: list[dict] = []
    numbers, chosen, tables = {}, [], []
    for text, voltage, aberration, contrast in acquisitions:
        table = readOptics(text) if text else []
        if not table:
            values = (voltage, aberration, contrast)
            if None in values:
                raise ConversionError(
                    "The particles' acquisition has no voltage, spherical aberration or amplitude contrast: import the "
                    "particles with these values."
                )
            table = [dict(zip(OPTICS_LABELS[2:5], values))]
        tables.append(table)
    for which, group in zip(collected.acquisition, collected.group):
        if (which, group) not in numbers:
            row = _findGroup(tables[which], group)
            numbers[which, group] = len(rows) + 1
            name = row.get("rlnOpticsGroupName") or f"opticsGroup{len(rows) + 1}"
            if any(name == other["rlnOpticsGroupName"] for other in rows):
                name = f"{name}_{len(rows) + 1}"
            rows.append({**row, "rlnOpticsGroupName": name, "rlnOpticsGroup": len(rows) + 1})
        chosen.append(numbers[which, group])
    return rows, chosen


def _findGroup(table, number):
    """Return the row of an optics table with a group's number; the first row if the particle has no group."""
    if number is None:
        return table[0]
    for row in table:
        if int(row.get("rlnOpticsGroup", 1)) == int(number):
            return row
    raise ConversionError(
        f"Particles have optics group {number}, which is not in the acquisition's optics table: give the STAR file "
        "that they were imported from as 'Optics groups from'."
    )


def takeFromStar(starFile, collected):
    """Return optics rows, and columns of the particles, from a STAR file of the same particles."""
    with open(starFile) as file:
        optics = readOptics(file.read())
    found = {}
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
    for index, path, number in zip(collected.index, collected.path, collected.columns["rlnImageId"]):
        value = found.get((max(index, 1), renamed[path]))
        if value is None:
            raise ConversionError(
                f"{starFile} does not list image {index} of {path} (particle {number}): give the STAR file that the "
                "particles were imported from."
            )
        values.append(value)
    return optics, dict(zip(labels, zip(*values)))


def _matchPaths(files, names, starFile):
    """Return the name of each of Scipion's files in a STAR file.

    Imported images are in another folder, so only the last parts of the names agree.
    """
    byBase: dict[str, list[str]] = {}
    for name in names:
        byBase.setdefault(os.path.basename(name), []).append(name)
    matched = {}
    for path in files:
        candidates = byBase.get(os.path.basename(plainPath(path)), [])
        if len(candidates) > 1:
            candidates = [name for name in candidates if plainPath(path).endswith("/" + name.lstrip("./"))]
        if len(candidates) != 1:
            raise ConversionError(
                f"{starFile} lists {len(candidates) or 'no'} files that match {path}: give the STAR file that the "
                "particles were imported from."
            )
        matched[path] = candidates[0]
    return matched
