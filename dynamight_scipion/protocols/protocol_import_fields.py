"""Deformation fields from files: of another project, or of another program."""

import json
import os
import shutil
from glob import glob

import mrcfile
import numpy as np
import pyworkflow.protocol.params as params
from pwem.protocols import ProtImport
from pyworkflow import BETA
from pyworkflow.utils import cleanPath, makePath

from dynamight_scipion import convert
from dynamight_scipion.objects import DeformationField, SetOfDeformationFields

from .fields import createFields


class DynamightProtImportFields(ProtImport):
    """Import deformation fields from files.

    Fields of 'estimate deformations' and 'states and movies' are .npz and .mrc files (extra/fields); import either of
    the two. A field of another program is an MRC file with three volumes, the displacements along x, y and z in A, on
    the voxels of the reference map.
    """

    _label = "import deformation fields"
    _devStatus = BETA
    _possibleOutputs = {"outputFields": SetOfDeformationFields}

    def _defineParams(self, form):
        form.addSection(label="Import")
        form.addParam(
            "filesPath",
            params.PathParam,
            label="Files",
            help="File of a field (.npz or .mrc), or a pattern, such as /path/to/fields/motion*.npz.",
        )
        form.addParam(
            "referenceVolume",
            params.PointerParam,
            pointerClass="Volume",
            important=True,
            label="Reference map",
            help="Map that the displacements start from: the consensus map of the run that the fields are of.",
        )

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        self._insertFunctionStep(self.importStep, self.filesPath.get(), self.referenceVolume.get().getFileName())

    def importStep(self, pattern, reference):
        """Copy the fields and the reference map, and register the fields."""
        cleanPath(self._getExtraPath("fields"))
        makePath(self._getExtraPath("fields"))
        volume = self.referenceVolume.get()
        grid = volume.getXDim(), volume.getSamplingRate()
        convert.writeVolume(volume, *grid, self._getExtraPath("reference.mrc"), "reference map")
        fields = []
        for path in self._getFiles():
            target = self._getExtraPath("fields", os.path.basename(path))
            shutil.copyfile(path, target)
            field = DeformationField(target)
            field.setObjLabel(os.path.splitext(os.path.basename(path))[0])
            field.setReference(self._getExtraPath("reference.mrc"), *grid)
            spacing, about = readField(target)
            field._samplingRate.set(spacing)
            field._kind.set(about.get("kind", DeformationField.IMPORTED))
            field._zFlex.set([float(value) for value in about.get("coordinates", [])])
            fields.append(field)
        output = createFields(self._getPath(), fields)
        self._defineOutputs(outputFields=output)
        self._defineSourceRelation(self.referenceVolume, output)

    def _getFiles(self):
        return sorted(glob(self.filesPath.get("")))

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        files, volume = self._getFiles(), self.referenceVolume.get()
        if not files:
            return [f"No file is called '{self.filesPath.get('')}': give the path of a field, or a pattern."]
        try:
            found = [(path, readField(path)) for path in files]
        except convert.ConversionError as error:
            return [str(error)]
        if volume is None:
            return []
        if not os.path.exists(convert.plainPath(volume.getFileName() or "")):
            return ["The file of the reference map is missing: import the map again."]
        errors, grid = [], (volume.getXDim(), volume.getSamplingRate())
        for path, (_, about) in found:
            box, sampling = about.get("box", grid[0]), about.get("pixel_size", grid[1])
            if box != grid[0] or abs(sampling / grid[1] - 1) > 0.005:
                errors.append(
                    f"{path} is of a map of {box} voxels of {sampling:.4g} Å, not of {grid[0]} voxels of "
                    f"{grid[1]:.4g} Å: give its own reference map."
                )
        return errors

    def _summary(self):
        if not hasattr(self, "outputFields"):
            return ["No results yet."]
        return [str(field) for field in self.outputFields.iterItems()]


def readField(path):
    """Return the spacing (Å; 0 on points) and what is known of a field in a file, a dict with box and pixel_size.

    Raises
    ------
    ConversionError
        if the file is not a field.
    """
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as archive:
                about = json.loads(str(archive["about"]))
                spacing = float(archive["spacing"]) if "spacing" in archive.files else 0.0
                shape = archive["displacement"].shape
            about.update({name: about["reference"][name] for name in ("box", "pixel_size")})
        elif path.endswith(".mrc"):
            with mrcfile.open(path, permissive=True, header_only=True) as mrc:
                spacing, about = float(mrc.voxel_size.x), {}
                shape = (int(mrc.header.nz) // 3, int(mrc.header.ny), int(mrc.header.nx), 3)
                if mrc.header.nz % 3:
                    raise ValueError("it has not three volumes")
        else:
            raise ValueError("its name ends neither in .npz nor in .mrc")
        if shape[-1] != 3:
            raise ValueError("its displacements have not three components")
    except (OSError, ValueError, KeyError) as error:
        raise convert.ConversionError(f"{path} is not a deformation field ({error}): see docs/fields.md.") from None
    return spacing, about
