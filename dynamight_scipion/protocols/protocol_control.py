"""Control experiments on a model: does what it shows come from the images."""

import json
import os

import pyworkflow.protocol.params as params
from pwem.objects import FSC, SetOfFSCs
from pwem.protocols import ProtAnalysis3D
from pyworkflow.constants import BETA
from pyworkflow.protocol.constants import LEVEL_ADVANCED

from .protocol_base import NOT_NEGATIVE, addOption
from .protocol_from_model import ModelProtocol

# The engine's words
KINDS = ("shuffled-latents", "held-out", "noise-particles", "wrong-model")
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

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label="Input")
        self._defineModelParam(form)
        form.addParam(
            "kind",
            params.EnumParam,
            default=SHUFFLED,
            label="Control",
            choices=["shuffled latents", "held-out particles", "noise particles", "wrong model"],
            help="*shuffled latents*: is the map improved by the motion of the particles, or as well by that of "
            "others?\n*held-out particles*: does deformation improve the map of particles that trained nothing?\n"
            "*noise particles*: what does the model make of noise?\n*wrong model*: where the atomic model is wrong, "
            "does the map follow it? Takes as long as the estimation did.",
        )
        form.addParam(
            "selection",
            params.StringParam,
            default="",
            condition=f"kind == {WRONG_MODEL}",
            label="Part that is replaced",
            help="Chains and ranges of residues of the atomic model, such as H/1-213 L. What moves most against the "
            "largest rigid domain if left empty.",
        )
        form.addParam(
            "replacement",
            params.StringParam,
            default="",
            condition=f"kind == {WRONG_MODEL}",
            expertLevel=LEVEL_ADVANCED,
            label="Part that is put there",
            help="Another part of the atomic model, of similar size. The same part, turned, if left empty.",
        )
        form.addParam(
            "nParticles",
            params.IntParam,
            default=10000,
            expertLevel=LEVEL_ADVANCED,
            label="Particles of each half",
            validators=[params.GE(100, "must be at least 100")],
            help="At most so many are used, drawn at random. Time grows in proportion, and the errors of what is "
            "measured fall with the root.",
        )
        form.addParam(
            "nPermutations",
            params.IntParam,
            default=6,
            expertLevel=LEVEL_ADVANCED,
            label="Permutations",
            condition=f"kind < {NOISE}",
            validators=[params.GE(2, "must be at least 2")],
            help="How often the deformations are permuted among the particles. Each takes one reconstruction of both "
            "halves.",
        )
        form.addParam(
            "shrink",
            params.BooleanParam,
            default=True,
            expertLevel=LEVEL_ADVANCED,
            label="Shrink motion to what is supported?",
            help="As a reconstruction does: each mode of motion counts as far as held-out particles support it, and "
            "none if the verdict on the model is that images do not support its motions. Without, the motion is judged "
            "as it was learned.",
        )
        form.addParam(
            "seed",
            params.IntParam,
            default=0,
            expertLevel=LEVEL_ADVANCED,
            label="Random seed",
            validators=[NOT_NEGATIVE],
            help="Of everything that is drawn at random.",
        )
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
            curve = FSC(objLabel=CURVES[KINDS[self.kind.get()]].get(name, name))
            # Shell 0 is the mean of the maps, of which no correlation is taken.
            curve.setData(figures["resolution"][1:], values[1:])
            curves.append(curve)
        self._defineOutputs(outputFSCs=curves)
        self._defineSourceRelation(self.inputModel, curves)

    def _getOptions(self):
        """Return the engine's options that change the result, as a list of words."""
        arguments = ["--kind", KINDS[self.kind.get()]]
        values = {
            "particles": self.nParticles,
            "permutations": self.nPermutations,
            "shrink": self.shrink,
            "seed": self.seed,
        }
        if self.kind.get() == WRONG_MODEL:
            values |= {"selection": self.selection, "replacement": self.replacement}
        for name, value in values.items():
            addOption(arguments, name, value.get())
        return arguments

    def _getControlPath(self, suffix):
        return os.path.join(self._getRunFolder(), "analysis", "controls", KINDS[self.kind.get()] + suffix)

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
        return [f"Control experiment '{KINDS[self.kind.get()]}': {self.loadControl()['sentence']}"]
