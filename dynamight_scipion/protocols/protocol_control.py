"""Control experiments on a model: does what it shows come from the images."""

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
# What the engine's curves are called in the set of FSCs.
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
    """Control experiments that tell bias from truth.

    A map can look better for reasons that have nothing to do with motion, and a flexible model can find itself in
    noise. Each control asks one question of a model and answers it in the summary, in words and numbers:

    *shuffled latents*: deformations are permuted among the particles. A map that is as good then was not improved by
    the motion of the particles.

    *held-out particles*: a map of the particles that trained nothing, with and without their deformations. No pixel of
    that map had a say in how it was moved.

    *noise particles*: noise with the particles' poses and CTFs, beside the model's own projections and alone. What
    appears of the noise is the model's own.

    *wrong model*: for models that were estimated with an atomic model. A domain of it is replaced by another structure,
    and training and reconstruction are made anew: the map follows the data or the model.

    Run the first two before you trust a map with motion corrected.
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
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        arguments = self._identifyModel(), self._getOptions()
        self._insertFunctionStep(self.controlStep, *arguments)
        self._insertFunctionStep(self.createOutputStep, *arguments, needsGPU=False)

    def controlStep(self, modelId, options):
        """Let the engine make the experiment."""
        self.runEngine("control", [self._linkRun(), *options, *self._getComputeOptions()])

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
        self._defineOutputs(outputFSCs=curves)
        self._defineSourceRelation(self.inputModel, curves)

    def _getOptions(self):
        """Return the engine's options that change the result, as a list of words."""
        unused = () if self.kind.get() == WRONG_MODEL else ("selection", "replacement")
        return self._getOptionWords("control", without=unused)

    def _getControlPath(self, suffix):
        return os.path.join(self._getRunFolder(), "analysis", "controls", self.getChoice("kind") + suffix)

    def loadControl(self):
        """Return what the control found: verdict, sentence and figures (a dict, read from the engine's file)."""
        with open(self._getControlPath(".json")) as file:
            return json.load(file)

    # ------------------------------------------------------------------ what the user is told

    def _validate(self):
        errors = self._validateModel()
        model = self.inputModel.get()
        if model is not None and not errors and self.kind.get() == WRONG_MODEL and not model.getAtomicModel():
            errors.append("The model was estimated without an atomic model: choose another control.")
        return errors

    def _summary(self):
        if not self.isFinished():
            return ["The control has not been made yet."]
        control = self.loadControl()
        lines = [f"*{control['verdict'].capitalize()}.* {control['sentence']}"]
        table = self._getControlPath(".csv")
        if os.path.exists(table):
            lines.append(f"The numbers behind it: {table}")
        return lines + self._warnUnsupported()

    def _methods(self):
        if not self.isFinished():
            return []
        return [f"Control experiment '{self.getChoice('kind')}': {self.loadControl()['sentence']}"]
