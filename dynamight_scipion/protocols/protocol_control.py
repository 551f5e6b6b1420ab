"""Controls for model bias."""

import json
import os

from pwem.objects import FSC, SetOfFSCs
from pwem.protocols import ProtAnalysis3D
from pyworkflow.constants import BETA
from pyworkflow.protocol.constants import LEVEL_ADVANCED, LEVEL_NORMAL

from .protocol_base import readOptions
from .protocol_from_model import ModelProtocol

KINDS = tuple(readOptions()["control"]["kind"]["enum"])
SHUFFLED, HELD_OUT, NOISE, WRONG_MODEL = range(4)
# Labels of the engine's curves in the set of FSCs.
CURVES = {
    "shuffled-latents": {"own": "own deformations", "rigid": "without deformation"},
    "held-out": {
        "deformed": "with deformations",
        "rigid": "without deformation",
        "deformed_to_rigid": "with deformations, against a rigid map",
    },
    "noise-particles": {"beside": "noise beside a signal", "alone": "noise alone", "rigid": "noise, not deformed"},
    "wrong-model": {
        "deformed_right": "with the right structure",
        "deformed_wrong": "with the wrong structure",
        "rigid_right": "rigid map, with the right structure",
        "rigid_wrong": "rigid map, with the wrong structure",
    },
}


class DynamightProtControl(ModelProtocol, ProtAnalysis3D):
    """Run controls for model bias.

    A map can improve for reasons other than motion, and a flexible model can reproduce itself from noise. Each control
    asks one question; the summary has the answer in words and numbers:

    *shuffled latents*: would random deformations improve the map as much? Deformations are permuted among the
    particles.

    *held-out particles*: does deformation improve the map of particles that trained nothing? Their map is
    reconstructed with and without deformation.

    *noise particles*: does the model turn noise into a map? The images are noise with the poses and CTFs of the
    particles, alone and beside projections of the model.

    *wrong model*: does the map follow the data or the atomic model? One domain of the atomic model is replaced, then
    training and reconstruction are repeated. It needs a model that was estimated with an atomic model.

    Run the first two before you interpret a map with motion corrected.
    """

    _label = "control experiment"
    _devStatus = BETA
    _possibleOutputs = {"outputFSCs": SetOfFSCs}
    _stages = ("control",)
    _optionNames = {"nParticles": "control/particles", "nPermutations": "control/permutations"}

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label="Input")
        self._defineModelParam(form)
        self.addOption(form, "kind", default=SHUFFLED)
        self.addOption(form, "selection", condition=f"kind == {WRONG_MODEL}", expertLevel=LEVEL_NORMAL)
        self.addOption(form, "replacement", condition=f"kind == {WRONG_MODEL}")
        self.addOption(form, "nParticles", expertLevel=LEVEL_ADVANCED)
        self.addOption(form, "nPermutations", condition=f"kind < {NOISE}", expertLevel=LEVEL_ADVANCED)
        self.addOption(form, "shrink", expertLevel=LEVEL_ADVANCED)
        self.addOption(form, "seed")
        self._defineThreadParams(form, processes=True)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        arguments = self._identifyModel(), self._getOptions()
        self._insertFunctionStep(self.controlStep, *arguments)
        self._insertFunctionStep(self.createOutputStep, *arguments, needsGPU=False)

    def controlStep(self, modelId, options):
        """Let the engine run the control."""
        self.runEngine("control", [self._linkRun(), *options, *self._getComputeOptions(shared=True)])

    def createOutputStep(self, modelId, options):
        """Register the FSC curves."""
        figures = self.loadControl()["figures"]
        if "curves" not in figures:
            return
        curves = SetOfFSCs.create(self._getPath())
        for name, values in figures["curves"].items():
            curve = FSC(objLabel=CURVES[self.getChoice("kind")].get(name, name))
            # Shell 0 is the mean of the maps, of which no correlation is taken.
            curve.setData(figures["resolution"][1:], values[1:])
            curves.append(curve)
        self._registerOutputs([self.inputModel], outputFSCs=curves)

    def _getOptions(self):
        """Return the engine's options that change the result, as a list of words."""
        unused = () if self.kind.get() == WRONG_MODEL else ("selection", "replacement")
        return self._getOptionWords("control", without=unused)

    def _getControlPath(self, suffix):
        return os.path.join(self._getRunFolder(), "analysis", "controls", self.getChoice("kind") + suffix)

    def loadControl(self):
        """Return the result: verdict, sentence and figures (a dict, read from the engine's file)."""
        with open(self._getControlPath(".json")) as file:
            return json.load(file)

    # ------------------------------------------------------------------ what the user is told

    def _validate(self):
        errors = self._validateModel()
        model = self.inputModel.get()
        if model is not None and not errors and self.kind.get() == WRONG_MODEL and not model.getAtomicModel():
            errors.append("The model was estimated without an atomic model: choose another control.")
        return errors

    def _summarise(self):
        control, table = self.loadControl(), self._getControlPath(".csv")
        verdict = f"*{control['verdict'].capitalize()}.* {control['sentence']}"
        return [verdict, f"Values: {table}"] if os.path.exists(table) else [verdict]

    def _describeMethod(self):
        return f"Control experiment '{self.getChoice('kind')}': {self.loadControl()['sentence']}"
