"""A map deformed by deformation fields."""

import pyworkflow.protocol.params as params
from pwem.objects import SetOfVolumesFlex, Transform, Volume, VolumeFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.utils import cleanPath, makePath

from dynamight_scipion import convert
from dynamight_scipion.objects import FLEX_PROGRAM, DeformationField, SetOfDeformationFields

from .fields import checkFields, fieldsOf
from .protocol_base import EngineProtocol
from .protocol_from_model import setFlexInfoOfField


class DynamightProtApplyField(EngineProtocol, ProtAnalysis3D, ProtFlexBase):
    """Deform a map by a deformation field, or by each field of a set.

    The map must be in the frame of the field's reference map: the consensus map itself, a sharpened or masked copy, or
    a map of 'deformed reconstruction' in the consensus frame. Motions of a run, states, particles and imported fields
    can be applied. Only what is within some Å of the molecule is displaced.
    """

    _label = "apply field to volume"
    _devStatus = BETA
    _possibleOutputs = {"outputVolume": Volume, "outputVolumes": SetOfVolumesFlex}
    _stages = ("deform",)

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam(
            "inputFields",
            params.PointerParam,
            pointerClass=f"{SetOfDeformationFields.__name__}, {DeformationField.__name__}",
            important=True,
            label="Deformation fields",
            help="A field, which makes one volume, or a set of fields, which makes a set of volumes.",
        )
        form.addParam(
            "inputVolume",
            params.PointerParam,
            pointerClass="Volume",
            important=True,
            label="Volume",
            help="Map in the frame of the fields' reference map. A map with another box or sampling rate is resampled.",
        )
        self.addOption(form, "scale")
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        given = [self.inputVolume.get().getFileName(), [field.getFileName() for field in self._getFields()]]
        for step in (self.deformStep, self.createOutputStep):
            self._insertFunctionStep(step, *given, self.scale.get(), needsGPU=False)

    def deformStep(self, volume, files, scale):
        """Let the engine deform the map by each field."""
        cleanPath(self._getExtraPath("volumes"))
        makePath(self._getExtraPath("volumes"))
        fields, source = self._getFields(), self._getExtraPath("volume.mrc")
        box, samplingRate = fields[0].getReferenceGrid()
        for note in convert.writeVolume(self.inputVolume.get(), box, samplingRate, source, "volume"):
            self.info(note)
        for number, field in enumerate(fields, 1):
            # On the grid of the reference map, the map is as good a reference.
            words = ["--map", source, f"--scale={scale}", "--out", self._getVolumePath(number)]
            self.runEngine("deform", [field.getFileName(), source, *words, *self._getThreadOptions()])

    def createOutputStep(self, volume, files, scale):
        """Register the deformed maps."""
        fields = self._getFields()
        sources = [self.inputFields, self.inputVolume]
        if isinstance(self.inputFields.get(), DeformationField):
            (field,) = fields
            deformed = Volume(self._getVolumePath(1))
            self._place(deformed, field)
            self._registerOutputs(sources, outputVolume=deformed)
            return
        volumes = self._createSetOfVolumesFlex(progName=FLEX_PROGRAM)
        volumes.setSamplingRate(fields[0].getReferenceGrid()[1])
        setFlexInfoOfField(volumes, fields[0])
        for number, field in enumerate(fields, 1):
            deformed = VolumeFlex(progName=FLEX_PROGRAM)
            deformed.setFileName(self._getVolumePath(number))
            self._place(deformed, field)
            deformed.setZFlex((scale * field.getZFlex()).tolist())
            deformed.setObjLabel(field.getName())
            setFlexInfoOfField(deformed, field)
            volumes.append(deformed)
        self._registerOutputs(sources, outputVolumes=volumes)

    def _place(self, deformed, field):
        """Set sampling rate and origin of a deformed map, as the input has them."""
        deformed.setSamplingRate(field.getReferenceGrid()[1])
        deformed.setOrigin(Transform() if convert.hasOriginInCorner(self.inputVolume.get()) else None)

    def _getFields(self):
        return fieldsOf(self.inputFields.get())

    def _getVolumePath(self, number):
        return self._getExtraPath("volumes", f"field{number:02d}.mrc")

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        if self.inputFields.get() is None or self.inputVolume.get() is None:
            return []
        fields = self._getFields()
        if not fields:
            return ["The set of fields is empty: give a set with fields."]
        errors = checkFields(fields)
        if any(not field.isOnGrid() for field in fields):
            errors.append("A field on points cannot deform a map: give fields on a grid.")
        return errors + [error for error in self._describeVolume()[:1] if error]

    def _warnings(self):
        if self.inputFields.get() is None or self.inputVolume.get() is None:
            return []
        return [warning for warning in self._describeVolume()[1:] if warning]

    def _describeVolume(self):
        """Return an error and a warning about the volume, each a sentence or None."""
        box, samplingRate = self._getFields()[0].getReferenceGrid()
        return convert.describeVolume(self.inputVolume.get(), box, samplingRate, "volume")

    def _summary(self):
        if not self.isFinished():
            return ["No results yet."]
        names = ", ".join(str(field) for field in self._getFields())
        return [f"The volume was deformed by {names}, times {self.scale.get():g}."]

    def _methods(self):
        return ["The map was deformed by a deformation field [Schwab2024]."] if self.isFinished() else []
