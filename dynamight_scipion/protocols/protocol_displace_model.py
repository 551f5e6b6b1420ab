"""An atomic model at states of the molecule."""

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import AtomStructFlex, SetOfAtomStructFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import Float
from pyworkflow.utils import cleanPath, makePath

from dynamight_scipion.objects import FLEX_PROGRAM

from .protocol_base import checkStructure
from .protocol_from_model import StatesProtocol, readStates, setFlexInfo, writeStates


class DynamightProtDisplaceModel(StatesProtocol, ProtAnalysis3D, ProtFlexBase):
    """Displace an atomic model of the consensus map to states of the molecule.

    Every atom follows the deformation field, averaged over the half-sets, to states along a motion, at clusters,
    between particles, through a path, or of another protocol. Nearby atoms move together, but bond lengths and angles
    are not restrained: refine a displaced model before you interpret it in detail.
    """

    _label = "displace atomic model"
    _devStatus = BETA
    _possibleOutputs = {"outputStructures": SetOfAtomStructFlex}
    _stages = ("displace", "states")

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineModelParam(form)
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
            label="States of a protocol (optional)",
            help="Displace to the states of 'states and movies' of the same model. Choose states below if omitted.",
        )
        self._defineStatesParams(form, condition="not inputStates")
        self.addOption(form, "origin", without=("map",))
        self.addOption(form, "useUnsupportedMotion")
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        model, states = self._identifyModel(), self.inputStates.get()
        if states is None:
            chooseStates, chosen = self.chooseStatesStep, self._getStatesOptions()
        else:
            chooseStates = self.copyStatesStep
            chosen = [[f"state{n:02d}", state.getZFlex().tolist()] for n, state in enumerate(states.iterItems(), 1)]
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        atoms = self.inputStructure.get().getFileName(), self.getChoice("origin")
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
        words = ["--points", structure, "--origin", origin, "--out", self._getPositionsPath()]
        words += ["--states", self._getExtraPath("states.csv"), *self._getMotionOptions(), *self._getThreadOptions()]
        self.runEngine("displace", [self._getRunFolder(), *words])

    def createOutputStep(self, modelId, chosen, structure, origin):
        """Register the moved structures."""
        model = self.inputModel.get()
        structures = self._createSetOfAtomStructFlex(progName=FLEX_PROGRAM)
        setFlexInfo(structures, model)
        distances = self._getDistances()
        for row, distance in zip(readStates(self._getExtraPath("states.csv")), distances, strict=True):
            moved = AtomStructFlex(progName=FLEX_PROGRAM)
            moved.setFileName(self._getExtraPath("structures", f"atoms_{row['state']}.cif"))
            moved.setZFlex(row["coordinates"])
            moved.setObjLabel(row["state"])
            moved._dynDisplacementRms = Float(distance)
            setFlexInfo(moved, model)
            structures.append(moved)
        sources = [self.inputModel, self.inputStructure, self.inputStates]
        self._registerOutputs(sources, outputStructures=structures)

    def _getPositionsPath(self):
        return self._getExtraPath("structures", "atoms.npz")

    def _getDistances(self):
        """Return for each state how far its atoms lie from those of the input, Å rms, as floats."""
        with np.load(self._getPositionsPath()) as found:
            shift = found["positions"] - found["points"]
        return np.sqrt(np.square(shift).sum(-1).mean(-1)).tolist()

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        errors = self._validateModel()
        structure = self.inputStructure.get()
        if structure is not None:
            errors += checkStructure(structure, "atomic structure")
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

    def _summarise(self):
        distances = self._getDistances()
        where = self._describeStates() if self.inputStates.get() is None else f"{len(distances)} states"
        return [
            f"The structure was displaced to {where}.",
            f"Displacement of the atoms: {min(distances):.1f} to {max(distances):.1f} Å rms.",
        ]

    def _describeMethod(self):
        return "The atomic model was displaced by the deformation field to states of the molecule [Schwab2024]."
