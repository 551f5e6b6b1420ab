"""Deformation fields that the engine wrote, as objects of Scipion."""

import csv
import os

import mrcfile

from dynamight_scipion import convert
from dynamight_scipion.objects import DeformationField, SetOfDeformationFields

# Tables of the fields, with their files beside them.
TABLE = "fields.csv"


def readFields(folder, model, idOfRow=None):
    """Return the fields in a folder that the engine wrote, a list of DeformationField.

    Parameters
    ----------
    folder
        relative to the project.
    model
        DynamightModel that they are from.
    idOfRow
        for fields of particles, the particles' ids by their rows from 1.
    """
    with open(os.path.join(folder, TABLE), newline="") as file:
        table = list(csv.DictReader(file))
    fields = []
    for row in table:
        field = DeformationField(os.path.join(folder, row["file"]))
        field.setObjLabel(row["field"])
        field._kind.set(row["kind"])
        field._runFolder.set(model.getRunFolder())
        field.setReference(model.getConsensusMap(), model.getBoxSize(), model.getSamplingRate())
        field._samplingRate.set(spacingOf(field.getFileName()))
        field._zFlex.set([float(value) for name, value in row.items() if name.startswith("motion")])
        if row["particle"]:
            field._particleId.set(int(idOfRow[int(row["particle"])]))
        for name, column in (("_rms", "displacement"), ("_error", "error"), ("_difference", "difference_of_halves")):
            getattr(field, name).set(float(row[f"{column}_rms_A"]))
        fields.append(field)
    return fields


def spacingOf(path):
    """Return the spacing (Å) of the grid of a field that the engine wrote as .npz; 0 of a field on points."""
    other = f"{os.path.splitext(path)[0]}.mrc"
    if not os.path.exists(other):
        return 0.0
    with mrcfile.open(other, permissive=True, header_only=True) as mrc:
        return float(mrc.voxel_size.x)


def createFields(path, fields):
    """Return a new set of fields in the folder of a protocol."""
    output = SetOfDeformationFields.create(path, prefix="fields")
    for field in fields:
        output.append(field)
    return output


def fieldsOf(given):
    """Return the fields that a pointer's object is or has, a list."""
    if isinstance(given, DeformationField):
        return [given]
    # Items of a set are one object, filled again and again.
    return [field.clone() for field in given.iterItems()]


def rowsOfParticles(model, ids):
    """Return the rows (from 1) of particles in the engine's table by their ids.

    Raises
    ------
    ValueError
        if there is no such particle.
    """
    table = convert.readColumns(model.getParticlesStar(), lambda label: False)["rlnImageId"].tolist()
    rows = {number: row for row, number in enumerate(table, 1)}
    for number in ids:
        if number not in rows:
            raise ValueError(f"The model has no particle with id {number}: see the table of its particles.")
    return [rows[number] for number in ids]


def checkFields(fields):
    """Return why fields cannot be used, as a list of sentences."""
    missing = [field.getFileName() for field in fields if not os.path.exists(field.getFileName() or "")]
    return [f"The file of a field is missing ({missing[0]}): make or import the fields again."] if missing else []
