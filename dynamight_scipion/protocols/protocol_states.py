"""States of the molecule, as maps: along a motion, between particles, through a path or at clusters."""

import os

from pwem.objects import SetOfVolumesFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import String
from pyworkflow.utils import cleanPath

from dynamight_scipion.objects import FLEX_PROGRAM

from .protocol_from_model import AT_CLUSTERS, StatesProtocol, readStates, setFlexInfo, stateVolume


class DynamightProtStates(StatesProtocol, ProtAnalysis3D, ProtFlexBase):
    """States of a flexible molecule as maps, and a movie of its motion.

    The Gaussian models of both half-sets are deformed to the chosen states and rendered as maps in the box and sampling
    rate of the particles. Every map keeps its coordinates along the principal motions (zFlex).

    The maps show the model, not a reconstruction from the particles near each state. For a reconstruction, select
    these particles and refine them.
    """

    _label = "states and movies"
    _devStatus = BETA
    _possibleOutputs = {"outputStates": SetOfVolumesFlex}

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineModelParam(form)
        self._defineStatesParams(form)
        self.addOption(form, "half")
        self.addOption(form, "doMovie", condition=f"statesAt != {AT_CLUSTERS}", more="There is no movie of clusters.")
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        words = [*self._getStatesOptions(), "--half", self.getChoice("half"), *([] if self.doMovie else ["--no-movie"])]
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        for step in (self.renderStep, self.createOutputStep):
            self._insertFunctionStep(step, self._identifyModel(), words, needsGPU=False)

    def renderStep(self, modelId, words):
        """Let the engine write maps, table and movie."""
        cleanPath(self._getStatesPath())
        self.runEngine("states", [self._linkRun(), "--out", self._getStatesPath(), *words, *self._getThreadOptions()])

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

    def _getStatesPath(self, *names):
        return self._getExtraPath("states", *names)

    def getMovies(self):
        """Return the paths of the movie in the formats that there are, the best first; empty without a movie."""
        paths = [self._getStatesPath(f"movie.{suffix}") for suffix in ("mp4", "gif")]
        return [path for path in paths if os.path.exists(path)]

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        return self._validateModel() or self._validateStates()

    def _summarise(self):
        lines = [f"{self._describeStates()}."]
        for row in readStates(self._getStatesPath("states.csv")):
            if row["particles"] is not None:
                lines.append(f"   {row['state'].split('_')[0]}: {row['particles']} particles")
        if self.getMovies():
            lines.append(f"Movie: {', '.join(self.getMovies())}")
        return lines

    def _describeMethod(self):
        return (
            f"The Gaussian models were rendered as maps at {self._describeStates()}, in coordinates along the "
            "principal motions [Schwab2024]."
        )
