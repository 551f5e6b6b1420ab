"""States of the molecule, as maps: along a motion, between particles, through a path or at clusters."""

import os

import pyworkflow.protocol.params as params
from pwem.objects import SetOfVolumesFlex
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import String
from pyworkflow.protocol.constants import LEVEL_ADVANCED
from pyworkflow.utils import cleanPath

from dynamight_scipion.objects import FLEX_PROGRAM, SetOfDeformationFields

from .fields import createFields, readFields, rowsOfParticles
from .protocol_from_model import AT_CLUSTERS, MODEL, StatesProtocol, explain, readStates, setFlexInfo, stateVolume


class DynamightProtStates(StatesProtocol, ProtAnalysis3D, ProtFlexBase):
    """States of a flexible molecule as maps, and a movie of its motion.

    By default, the Gaussian models of both half-sets are deformed to the chosen states and rendered as maps in the box
    and sampling rate of the particles. They show no more than the model has learned.

    Alternatively, each state is reconstructed from the particles near it, moved to the state where that helps. These
    maps have half-maps, an FSC, a mask and a local resolution.

    Every map keeps its coordinates along the principal motions (zFlex). Deformation fields lead from the consensus map
    to each state, and to particles that you choose; other protocols apply them to maps and atomic models.
    """

    _label = "states and movies"
    _devStatus = BETA
    _possibleOutputs = {"outputStates": SetOfVolumesFlex, "outputFields": SetOfDeformationFields}
    _stages = ("states", "fields")

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineModelParam(form)
        self._defineStatesParams(form)
        self.addOption(form, "method")
        self.addOption(form, "half", condition=f"method == {MODEL}")
        self.addOption(form, "doMovie", condition=f"statesAt != {AT_CLUSTERS}", more="There is no movie of clusters.")
        for name in ("caption", "transparent"):
            self.addOption(form, name, condition=f"doMovie and statesAt != {AT_CLUSTERS}")
        self._defineFieldParams(form)
        self.addOption(form, "useUnsupportedMotion")
        self._defineThreadParams(form)

    def _defineFieldParams(self, form):
        form.addParam(
            "doFields",
            params.BooleanParam,
            default=True,
            label="Write deformation fields?",
            help="Write how far each point of the consensus map is displaced in each state, as vectors with "
            "uncertainties. They can be applied to maps and atomic models, seen as arrows, and read by other programs.",
        )
        form.addParam(
            "fieldParticles",
            params.StringParam,
            default="",
            condition="doFields",
            label="Also fields of particles",
            help="Ids of particles, separated by commas: the column 'id' in the table of the particles (Analyze "
            "Results of 'estimate deformations'). The uncertainty of such a field is the particle's own.",
        )
        self.addOption(form, "spacing", condition="doFields", expertLevel=LEVEL_ADVANCED)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        words = [*self._getStatesOptions(), "--method", self.getChoice("method")]
        words += [] if self._isLocal() else ["--half", self.getChoice("half")]
        words += self._getMovieOptions()
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        fields = [str(self.spacing.get()), *map(str, self._getFieldRows())] if self.doFields else []
        self._insertFunctionStep(self.renderStep, self._identifyModel(), words, needsGPU=False)
        if fields:
            self._insertFunctionStep(self.fieldsStep, self._identifyModel(), words, fields, needsGPU=False)
        self._insertFunctionStep(self.createOutputStep, self._identifyModel(), words, fields, needsGPU=False)

    def renderStep(self, modelId, words):
        """Let the engine write maps, table and movie."""
        cleanPath(self._getStatesPath())
        words = [*words, *self._getMotionOptions(), *self._getThreadOptions()]
        self.runEngine("states", [self._linkRun(), "--out", self._getStatesPath(), *words])

    def fieldsStep(self, modelId, words, fields):
        """Let the engine write the deformation fields of the states, and of particles."""
        cleanPath(self._getFieldsPath())
        spacing, *rows = fields
        words = ["--states", self._getStatesPath("states.csv"), "--spacing", spacing]
        words += ["--particles", ",".join(rows)] if rows else []
        words += [*self._getMotionOptions(), *self._getThreadOptions()]
        self.runEngine("fields", [self._getRunFolder(), "--out", self._getFieldsPath(), *words])

    def createOutputStep(self, modelId, words, fields):
        """Register maps and fields."""
        states = self._createSetOfVolumesFlex(progName=FLEX_PROGRAM)
        states.setSamplingRate(self.inputModel.get().getSamplingRate())
        setFlexInfo(states, self.inputModel.get())
        for row in readStates(self._getStatesPath("states.csv")):
            states.append(stateVolume(self.inputModel.get(), row, self._getStatesPath()))
        if self.getMovies():
            states._dynMovie = String(self.getMovies()[0])
        outputs = {"outputStates": states}
        if fields:
            idOfRow = dict(zip(self._getFieldRows(), self._getFieldIds()))
            found = readFields(self._getFieldsPath(), self.inputModel.get(), idOfRow)
            outputs["outputFields"] = createFields(self._getPath(), found)
        self._registerOutputs([self.inputModel], **outputs)

    def _getFieldIds(self):
        """Return the ids of the particles whose fields are wanted, each once.

        Raises
        ------
        ValueError
            if they are not numbers.
        """
        words = self.fieldParticles.get("").replace(",", " ").split()
        try:
            return list(dict.fromkeys(map(int, words)))
        except ValueError:
            raise ValueError(
                f"'{self.fieldParticles}' are not ids of particles: give numbers, separated by commas."
            ) from None

    def _getFieldRows(self):
        """Return the rows of these particles in the engine's table, from 1."""
        ids = self._getFieldIds()
        return rowsOfParticles(self.inputModel.get(), ids) if ids else []

    def _getFieldsPath(self):
        return self._getExtraPath("fields")

    def _getMovieOptions(self):
        """Return the engine's options for the movie, as a list of words."""
        if not self.doMovie:
            return ["--no-movie"]
        return [*([] if self.caption else ["--no-caption"]), *(["--transparent"] if self.transparent else [])]

    def _isLocal(self):
        return self.getChoice("method") == "local"

    def _getStatesPath(self, *names):
        return self._getExtraPath("states", *names)

    def getMovies(self):
        """Return the paths of the movie in the formats that there are, the best first; empty without a movie."""
        paths = [self._getStatesPath(f"movie.{suffix}") for suffix in ("mp4", "gif", "png")]
        return [path for path in paths if os.path.exists(path)]

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        errors = self._validateModel() or self._validateStates() or self._validateLocal() or self._validateMotion()
        return errors or self._validateFields()

    def _validateFields(self):
        """Return why fields cannot be written, as a list of sentences."""
        return explain(self._getFieldRows) if self.doFields and self.inputModel.get() is not None else []

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
