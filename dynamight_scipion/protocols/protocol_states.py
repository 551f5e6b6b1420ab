"""States of the molecule, as maps: along a motion, between particles, through a path or at clusters."""

import os

from pwem.objects import SetOfVolumesFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import String
from pyworkflow.utils import cleanPath

from dynamight_scipion.objects import FLEX_PROGRAM

from .protocol_from_model import AT_CLUSTERS, MODEL, StatesProtocol, readStates, setFlexInfo, stateVolume


class DynamightProtStates(StatesProtocol, ProtAnalysis3D, ProtFlexBase):
    """States of a flexible molecule as maps, and a movie of its motion.

    By default, the Gaussian models of both half-sets are deformed to the chosen states and rendered as maps in the box
    and sampling rate of the particles. They show no more than the model has learned.

    Alternatively, each state is reconstructed from the particles near it, moved to the state where that helps. These
    maps have half-maps, an FSC, a mask and a local resolution.

    Every map keeps its coordinates along the principal motions (zFlex).
    """

    _label = "states and movies"
    _devStatus = BETA
    _possibleOutputs = {"outputStates": SetOfVolumesFlex}

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineModelParam(form)
        self._defineStatesParams(form)
        self.addOption(form, "method")
        self.addOption(form, "half", condition=f"method == {MODEL}")
        self.addOption(form, "doMovie", condition=f"statesAt != {AT_CLUSTERS}", more="There is no movie of clusters.")
        self.addOption(form, "useUnsupportedMotion")
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        words = [*self._getStatesOptions(), "--method", self.getChoice("method")]
        words += [] if self._isLocal() else ["--half", self.getChoice("half")]
        words += [] if self.doMovie else ["--no-movie"]
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        for step in (self.renderStep, self.createOutputStep):
            self._insertFunctionStep(step, self._identifyModel(), words, needsGPU=False)

    def renderStep(self, modelId, words):
        """Let the engine write maps, table and movie."""
        cleanPath(self._getStatesPath())
        words = [*words, *self._getMotionOptions(), *self._getThreadOptions()]
        self.runEngine("states", [self._linkRun(), "--out", self._getStatesPath(), *words])

    def createOutputStep(self, modelId, words):
        """Register the maps."""
        states = self._createSetOfVolumesFlex(progName=FLEX_PROGRAM)
        states.setSamplingRate(self.inputModel.get().getSamplingRate())
        setFlexInfo(states, self.inputModel.get())
        for row in readStates(self._getStatesPath("states.csv")):
            states.append(stateVolume(self.inputModel.get(), row, self._getStatesPath()))
        if self.getMovies():
            states._dynMovie = String(self.getMovies()[0])
        self._registerOutputs([self.inputModel], outputStates=states)

    def _isLocal(self):
        return self.getChoice("method") == "local"

    def _getStatesPath(self, *names):
        return self._getExtraPath("states", *names)

    def getMovies(self):
        """Return the paths of the movie in the formats that there are, the best first; empty without a movie."""
        paths = [self._getStatesPath(f"movie.{suffix}") for suffix in ("mp4", "gif")]
        return [path for path in paths if os.path.exists(path)]

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        return self._validateModel() or self._validateStates() or self._validateLocal() or self._validateMotion()

    def _validateLocal(self):
        """Return why states cannot be reconstructed from particles, as a list of sentences."""
        model = self.inputModel.get()
        if model is None or not self._isLocal() or model.getVerdict() != "not supported":
            return []
        return ["Held-out particles do not support the motion of this model: render the Gaussian models instead."]

    def _summarise(self):
        lines = [f"{self._describeStates()}."]
        for row in readStates(self._getStatesPath("states.csv")):
            if row["particles"] is not None:
                lines.append(f"   {row['state'].split('_')[0]}: {row['particles']} particles")
            if row["local"]:
                lines.append(f"   {row['state']}: {_describeLocal(row['local'])}")
        if self.getMovies():
            lines.append(f"Movie: {', '.join(self.getMovies())}")
        return lines

    def _describeMethod(self):
        if self._isLocal():
            return (
                f"Half-maps were reconstructed at {self._describeStates()}, from the particles near each state in "
                "coordinates along the principal motions [Schwab2024]."
            )
        return (
            f"The Gaussian models were rendered as maps at {self._describeStates()}, in coordinates along the "
            "principal motions [Schwab2024]."
        )


def _describeLocal(local):
    """Return in words how a state was reconstructed from particles, and its resolution."""
    return (
        f"{local['resolution_A']:.1f} Å, moving part {local['moving_resolution_A']:.1f} Å from "
        f"{local['effective_particles']:.0f} particles (trust in the field {local['trust']:.1f})"
    )
