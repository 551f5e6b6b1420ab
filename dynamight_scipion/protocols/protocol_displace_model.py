"""An atomic model at states of the molecule, or displaced by deformation fields."""

import os

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import AtomStructFlex, SetOfAtomStructFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import Float
from pyworkflow.utils import cleanPath, makePath

from dynamight_scipion.objects import FLEX_PROGRAM, DeformationField, SetOfDeformationFields

from .fields import checkFields, fieldsOf
from .protocol_base import checkStructure
from .protocol_from_model import StatesProtocol, readStates, setFlexInfo, setFlexInfoOfField, writeStates

BY_STATES, BY_FIELDS = range(2)


class DynamightProtDisplaceModel(StatesProtocol, ProtAnalysis3D, ProtFlexBase):
    """Displace an atomic model of the consensus map to states of the molecule.

    Every atom follows the deformation field, averaged over the half-sets, to states along a motion, at clusters,
    between particles, through a path, or of another protocol. Alternatively, atoms follow deformation fields, also
    imported ones. Nearby atoms move together, but bond lengths and angles are not restrained: refine a displaced model
    before you interpret it in detail.
    """

    _label = "displace atomic model"
    _devStatus = BETA
    _possibleOutputs = {"outputStructures": SetOfAtomStructFlex}
    _stages = ("displace", "states", "deform")

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam(
            "displaceBy",
            params.EnumParam,
            choices=["states of a model", "deformation fields"],
            default=BY_STATES,
            label="Displace to",
            help="*States of a model*: conformations that you choose below.\n*Deformation fields*: of motions, states "
            "or particles, or imported ones.",
        )
        byStates = f"displaceBy == {BY_STATES}"
        self._defineModelParam(form, byStates)
        form.addParam(
            "inputFields",
            params.PointerParam,
            pointerClass=f"{SetOfDeformationFields.__name__}, {DeformationField.__name__}",
            important=True,
            condition=f"displaceBy == {BY_FIELDS}",
            label="Deformation fields",
            help="A field, or a set of fields; the structure is displaced by each. Fields of a run of this project are "
            "evaluated at the atoms; others are interpolated between the points of their grid.",
        )
        form.addParam(
            "inputStructure",
            params.PointerParam,
            pointerClass="AtomStruct",
            important=True,
            label="Atomic structure",
            help="Atomic model built in or fitted to the consensus map (PDB or mmCIF). The first model of the file is "
            "used.",
        )
        form.addParam(
            "inputStates",
            params.PointerParam,
            pointerClass="SetOfVolumesFlex",
            allowsNull=True,
            condition=byStates,
            label="States of a protocol (optional)",
            help="Displace to the states of 'states and movies' of the same model. Choose states below if omitted.",
        )
        self._defineStatesParams(form, condition=f"{byStates} and not inputStates")
        self.addOption(form, "scale", condition=f"displaceBy == {BY_FIELDS}")
        self.addOption(form, "origin", without=("map",))
        self.addOption(form, "useUnsupportedMotion", condition=byStates)
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        atoms = self.inputStructure.get().getFileName(), self.getChoice("origin")
        if self._isByFields():
            fields = [field.getFileName() for field in self._getFields()]
            self._insertFunctionStep(self.deformStep, fields, *atoms, self.scale.get(), needsGPU=False)
            self._insertFunctionStep(self.createFieldOutputStep, fields, *atoms, self.scale.get(), needsGPU=False)
            return
        model, states = self._identifyModel(), self.inputStates.get()
        if states is None:
            chooseStates, chosen = self.chooseStatesStep, self._getStatesOptions()
        else:
            chooseStates = self.copyStatesStep
            chosen = [[f"state{n:02d}", state.getZFlex().tolist()] for n, state in enumerate(states.iterItems(), 1)]
        self._insertFunctionStep(chooseStates, model, chosen, needsGPU=False)
        for step in (self.displaceStep, self.createOutputStep):
            self._insertFunctionStep(step, model, chosen, *atoms, needsGPU=False)

    def chooseStatesStep(self, modelId, chosen):
        """Let the engine write the table of states."""
        words = ["--no-maps", *chosen, *self._getMotionOptions()]
        self.runEngine("states", [self._linkRun(), "--out", self._getExtraPath(), *words])

    def copyStatesStep(self, modelId, chosen):
        """Write the table of the states of another protocol."""
        self._linkRun()
        writeStates(self._getExtraPath("states.csv"), [name for name, _ in chosen], [values for _, values in chosen])

    def displaceStep(self, modelId, chosen, structure, origin):
        """Let the engine move the atoms."""
        cleanPath(self._getExtraPath("structures"))
        makePath(self._getExtraPath("structures"))
        words = ["--points", structure, "--origin", origin, "--out", self._getPositionsPaths()[0]]
        words += ["--states", self._getExtraPath("states.csv"), *self._getMotionOptions(), *self._getThreadOptions()]
        self.runEngine("displace", [self._getRunFolder(), *words])

    def createOutputStep(self, modelId, chosen, structure, origin):
        """Register the moved structures."""
        model = self.inputModel.get()
        structures = self._createSetOfAtomStructFlex(progName=FLEX_PROGRAM)
        setFlexInfo(structures, model)
        distances = self._getDistances()
        for row, distance in zip(readStates(self._getExtraPath("states.csv")), distances):
            moved = AtomStructFlex(progName=FLEX_PROGRAM)
            moved.setFileName(self._getExtraPath("structures", f"atoms_{row['state']}.cif"))
            moved.setZFlex(row["coordinates"])
            moved.setObjLabel(row["state"])
            moved._dynDisplacementRms = Float(distance)
            setFlexInfo(moved, model)
            structures.append(moved)
        sources = [self.inputModel, self.inputStructure, self.inputStates]
        self._registerOutputs(sources, outputStructures=structures)

    def deformStep(self, files, structure, origin, scale):
        """Let the engine move the atoms by each field."""
        cleanPath(self._getExtraPath("structures"))
        makePath(self._getExtraPath("structures"))
        for number, field in enumerate(self._getFields(), 1):
            words = ["--origin", origin, f"--scale={scale}", "--out", self._getStructurePath(number)]
            if os.path.exists(field.getReferenceMap() or ""):
                words += ["--map", field.getReferenceMap()]
            if os.path.exists(field.getRunFolder() or ""):
                words += ["--run", field.getRunFolder()]
            self.runEngine("deform", [field.getFileName(), structure, *words, *self._getThreadOptions()])

    def createFieldOutputStep(self, files, structure, origin, scale):
        """Register the structures moved by fields."""
        structures = self._createSetOfAtomStructFlex(progName=FLEX_PROGRAM)
        fields = self._getFields()
        setFlexInfoOfField(structures, fields[0])
        for number, (field, distance) in enumerate(zip(fields, self._getDistances()), 1):
            moved = AtomStructFlex(progName=FLEX_PROGRAM)
            moved.setFileName(self._getStructurePath(number))
            moved.setZFlex((scale * field.getZFlex()).tolist())
            moved.setObjLabel(field.getName())
            moved._dynDisplacementRms = Float(distance)
            setFlexInfoOfField(moved, field)
            structures.append(moved)
        self._registerOutputs([self.inputFields, self.inputStructure], outputStructures=structures)

    def _isByFields(self):
        return self.displaceBy.get() == BY_FIELDS

    def _getFields(self):
        return fieldsOf(self.inputFields.get())

    def _getStructurePath(self, number):
        return self._getExtraPath("structures", f"field{number:02d}.cif")

    def _getPositionsPaths(self):
        if not self._isByFields():
            return [self._getExtraPath("structures", "atoms.npz")]
        paths = [self._getStructurePath(number) for number in range(1, len(self._getFields()) + 1)]
        return [f"{os.path.splitext(path)[0]}.npz" for path in paths]

    def loadShifts(self):
        """Return the (n, m, 3) displacements (Å) of the atoms in each state or by each field."""
        shifts = []
        for path in self._getPositionsPaths():
            with np.load(path) as found:
                shifts.append(found["positions"] - found["points"])
        return np.concatenate(shifts)

    def getReferenceMap(self):
        """Return the path of the map in whose frame the structures are."""
        return self._getFields()[0].getReferenceMap() if self._isByFields() else self.inputModel.get().getConsensusMap()

    def _getDistances(self):
        """Return for each state how far its atoms lie from those of the input, Å rms, as floats."""
        return np.sqrt(np.square(self.loadShifts()).sum(-1).mean(-1)).tolist()

    # ------------------------------------------------------------------ what it says

    def _warnings(self):
        return [] if self._isByFields() else super()._warnings()

    def _validate(self):
        structure = self.inputStructure.get()
        errors = [] if structure is None else checkStructure(structure, "atomic structure")
        if self._isByFields():
            return errors + ([] if self.inputFields.get() is None else checkFields(self._getFields()))
        errors = self._validateModel() + errors
        states = self.inputStates.get()
        if errors or self.inputModel.get() is None:
            return errors
        errors = self._validateStates() if states is None else self._validateInputStates(states)
        return errors or self._validateMotion()

    def _validateInputStates(self, states):
        if states.isStreamOpen() or not len(states):
            return ["The set of states is empty or still open: wait until its protocol has finished."]
        info = states.getFlexInfo()
        if info.getProgName() != FLEX_PROGRAM:
            return [f"The states are from {info.getProgName()}: give states of this model."]
        if info.getAttr("modelPath") != self.inputModel.get().getRunFolder():
            return ["The states are from another model, with other motions: give states of this model."]
        return []

    def _summary(self):
        if self._isByFields():
            return self._summarise() if self.isFinished() else ["No results yet."]
        return super()._summary()

    def _summarise(self):
        distances = self._getDistances()
        where = (
            f"{len(distances)} states"
            if self._isByFields() or self.inputStates.get() is not None
            else (self._describeStates())
        )
        return [
            f"The structure was displaced to {where}.",
            f"Displacement of the atoms: {min(distances):.1f} to {max(distances):.1f} Å rms.",
        ]

    def _describeMethod(self):
        return "The atomic model was displaced by the deformation field to states of the molecule [Schwab2024]."
