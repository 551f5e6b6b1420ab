"""A finished model applied to particles that did not train it."""

import os

import pyworkflow.protocol.params as params
from pwem.objects import SetOfParticlesFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import Pointer

from dynamight_scipion import convert
from dynamight_scipion.objects import DynamightModel

from .particles import createParticles
from .protocol_from_model import ModelProtocol


class DynamightProtInfer(ModelProtocol, ProtAnalysis3D, ProtFlexBase):
    """Apply a model to new particles: infer their motions and uncertainties, without training.

    The new particles need the poses and CTFs of a refinement in the same frame, such as a later session of the same
    specimen refined against the same map. Their motion coordinates are those of the model, so that both sets can be
    compared. Training particles among them keep their half-sets.

    The output is a model of these particles: every other protocol takes it, for example 'deformed reconstruction' and
    'select particles'. To merge both sets, give them together.
    """

    _label = "apply to new particles"
    _devStatus = BETA
    _possibleOutputs = {"outputParticles": SetOfParticlesFlex, "outputModel": DynamightModel}
    _stages = ("infer",)

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label="Input")
        self._defineModelParam(form)
        form.addParam(
            "inputParticles",
            params.PointerParam,
            pointerClass="SetOfParticles",
            pointerCondition="hasAlignmentProj",
            important=True,
            label="New particles",
            help="Particles with 3D alignment and CTFs, with the pixel size and box of the model's particles, aligned "
            "in the frame of its consensus map.",
        )
        self._defineThreadParams(form, processes=True)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        particles = self.inputParticles.get()
        given = f"{self.inputParticles.getUniqueId()} {particles.getObjId()} {particles.getSize()}"
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        for step in (self.convertInputStep, self.inferStep, self.createOutputStep):
            self._insertFunctionStep(step, self._identifyModel(), given, needsGPU=step == self.inferStep)

    def convertInputStep(self, modelId, given):
        """Write the particles as the engine reads them."""
        notes = convert.writeParticles(
            self.inputParticles.get(), self._getStarFile(), self._getExtraPath("stacks"), None
        )
        for note in notes:
            self.info(note)

    def inferStep(self, modelId, given):
        """Let the engine infer the motions, and write their report and tables."""
        words = [self.inputModel.get().getRunFolder(), self._getStarFile(), self._getRunFolder()]
        self.runEngine("infer", [*words, "--project", ".", "--overwrite", *self._getComputeOptions(shared=True)])
        self.runEngine("analyse", [self._getRunFolder(), "--embedding", "pca", *self._getThreadOptions()])

    def createOutputStep(self, modelId, given):
        """Register particles and model."""
        trained = self.inputModel.get()
        model = DynamightModel(self._getRunFolder())
        model.readRun()
        model.setConsensusMap(trained.getConsensusMap())
        model.setMask(trained.getMask())
        model.setAtomicModel(trained.getAtomicModel())
        model.setOriginInCorner(trained.isOriginInCorner())
        model.setParticles(Pointer(self, extended="outputParticles"))
        particles = createParticles(self._getPath(), self.inputParticles.get(), model)
        self._registerOutputs([self.inputModel, self.inputParticles], outputParticles=particles, outputModel=model)

    def _getStarFile(self):
        return self._getExtraPath("particles.star")

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        errors, particles, model = self._validateModel(), self.inputParticles.get(), self.inputModel.get()
        if particles is None or model is None:
            return errors
        errors += convert.checkParticles(particles, fewest=1)[0]
        grid = particles.getXDim(), particles.getSamplingRate()
        if grid[0] != model.getBoxSize() or abs(grid[1] / model.getSamplingRate() - 1) > 0.005:
            errors.append(
                f"The new particles have {grid[0]} pixels of {grid[1]:.4g} Å, the model's {model.getBoxSize()} of "
                f"{model.getSamplingRate():.4g} Å: give particles of the same box and sampling rate."
            )
        return errors

    def _warnings(self):
        particles = self.inputParticles.get()
        warnings = [] if particles is None else list(convert.checkParticles(particles, fewest=1)[1])
        return [*super()._warnings(), *(warning for warning in warnings if warning)]

    def _summarise(self):
        model = self.outputModel
        return [
            f"Motions of {model.getNumberOfParticles()} particles were inferred: {model.getMotionRms():.2f} Å rms, "
            f"uncertainty {model.getMotionError():.2f} Å.",
            f"Report: {os.path.join(self._getRunFolder(), 'analysis', 'report.html')}",
        ]

    def _describeMethod(self):
        return "Motions of particles that trained no model were inferred with a trained model [Schwab2024]."
