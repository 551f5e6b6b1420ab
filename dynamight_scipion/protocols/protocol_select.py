"""Classes and subsets of particles by their motion, for other protocols."""

import re

import pyworkflow.protocol.params as params
from pwem.objects import SetOfClassesFlex, SetOfParticles
from pwem.protocols import ProtAnalysis3D, ProtFlexBase
from pyworkflow import BETA
from pyworkflow.object import Pointer
from pyworkflow.protocol.constants import LEVEL_ADVANCED
from pyworkflow.utils import cleanPath, getListFromRangeString

from dynamight_scipion.convert import ConversionError, readColumns

from .protocol_base import readOptions
from .protocol_from_model import ModelProtocol, coordinatesOfParticle, explain, readStates, setFlexInfo, stateVolume

HALVES = ("both", "1", "2")
# Options of the engine that are ranges, and the parameters of their ends.
_RANGES = {
    "motion": ("minMotion", "maxMotion"),
    "error": ("minError", "maxError"),
    "disagreement": ("minDisagreement", "maxDisagreement"),
}


class DynamightProtSelect(ModelProtocol, ProtAnalysis3D, ProtFlexBase):
    """Select particles by cluster, conformation, motion, uncertainty, or agreement of the half-sets.

    Particles are clustered by k-means on their motion coordinates (classes). Particles that meet all conditions are
    kept, with their alignment, CTF, optics groups and half-sets, ready for a 3D refinement or classification. Each
    class is represented by the map of the Gaussian models at its centre.
    """

    _label = "select particles"
    _devStatus = BETA
    _possibleOutputs = {"outputParticles": SetOfParticles, "outputClasses": SetOfClassesFlex}
    _stages = ("select",)
    _optionNames = {"nClusters": "select/clusters"}

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineModelParam(form)
        form.addParam(
            "inputParticles",
            params.PointerParam,
            pointerClass="SetOfParticles",
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Select from other particles (same ids)",
            help="Take the selected particles from this set instead, by their ids. For example, the same particles "
            "at full size if the deformations were estimated on smaller images.",
        )
        group = form.addGroup("Clusters")
        self.addOption(group, "nClusters", default=4, allowsNull=False, more="0 makes no clusters.")
        group.addParam(
            "keepClusters",
            params.StringParam,
            default="",
            allowsNull=True,
            condition="nClusters > 0",
            label="Keep clusters",
            help="Numbers of the clusters to keep, such as 1,3-4. All clusters are kept if omitted.",
        )
        self.addOption(group, "seed", condition="nClusters > 0", more="Use the same seed where states are rendered.")
        group = form.addGroup("Conditions")
        for name, ends in _RANGES.items():
            option = readOptions()["select"][name]
            line = group.addLine(
                f"{option['label']} ({option['unit']})",
                help=" ".join(filter(None, (option["description"], option["more"]))),
            )
            for name, end in zip(ends, ("from", "to")):
                line.addParam(name, params.FloatParam, allowsNull=True, label=end)
        group.addParam(
            "region",
            params.TextParam,
            default="",
            allowsNull=True,
            width=60,
            height=2,
            label="Region",
            help="Ranges of coordinates along motions (Å rms), one on each line or separated by semicolons: the number "
            "of the motion, lower and upper limit. Either limit may be omitted.\nExample, motion 1 from -3 to 1.5 and "
            "motion 2 above 0:\n   1: -3 : 1.5\n   2: 0 :",
        )
        line = group.addLine(
            "Near a conformation",
            help="Particles within a distance (Å rms) of a conformation: the id of a particle, or coordinates along "
            "motion 1, 2, ... separated by commas.",
        )
        line.addParam("near", params.StringParam, default="", allowsNull=True, label="of")
        line.addParam("nearDistance", params.FloatParam, allowsNull=True, label="within (Å)")
        half = readOptions()["select"]["half"]
        group.addParam(
            "half",
            params.EnumParam,
            choices=list(HALVES),
            default=0,
            expertLevel=LEVEL_ADVANCED,
            label=half["label"],
            help=half["description"],
        )
        self.addOption(group, "complement", expertLevel=LEVEL_ADVANCED)
        self.addOption(form, "useUnsupportedMotion")
        self._defineThreadParams(form)

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        model, options = self._identifyModel(), self._getSelectOptions()
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        self._insertFunctionStep(self.selectStep, model, options, needsGPU=False)
        if self.nClusters.get():
            self._insertFunctionStep(self.renderStep, model, self.nClusters.get(), self.seed.get(), needsGPU=False)
        source = self._getSource().getUniqueId()
        self._insertFunctionStep(self.createOutputStep, model, options, source, needsGPU=False)

    def selectStep(self, modelId, options):
        """Let the engine select; it writes the rows that are kept."""
        cleanPath(self._getSelectionPath())
        self.runEngine(
            "select", [self._linkRun(), "--out", self._getSelectionPath(), *options, *self._getMotionOptions()]
        )

    def renderStep(self, modelId, nClusters, seed):
        """Let the engine render the centres of the clusters."""
        words = ["--clusters", nClusters, "--seed", seed, "--out", self._getExtraPath("clusters")]
        words += [*self._getMotionOptions(), *self._getThreadOptions()]
        self.runEngine("states", [self._getRunFolder(), *words])

    def createOutputStep(self, modelId, options, sourceId):
        """Take the selected particles from their set, by id."""
        source = self._getSource()
        particles = source.get()
        columns = readColumns(self._getSelectionPath(), lambda label: label == "dynCluster")
        clusters = columns.get("dynCluster", columns["rlnImageId"] * 0).astype(int)
        clusterOf = dict(zip(columns["rlnImageId"].tolist(), clusters.tolist()))

        output = particles.createCopy(self._getPath(), copyInfo=True)
        output.copyItems(
            particles,
            doClone=False,
            itemSelectedCallback=lambda particle: particle.isEnabled() and particle.getObjId() in clusterOf,
        )
        if not len(output):
            raise ConversionError("No selected particle is in the set to select from: give a set with the same ids.")
        if len(output) < len(clusterOf):
            self.warning(
                f"{len(clusterOf) - len(output)} of {len(clusterOf)} selected particles are disabled or not in the set "
                "to select from, and are omitted."
            )
        self._registerOutputs([self.inputModel], outputParticles=output)
        self._defineTransformRelation(source, output)
        if self.nClusters.get():
            self._createClasses(clusterOf)

    def _createClasses(self, clusterOf):
        """Register the selected particles by cluster, each with the map of its centre."""
        model = self.inputModel.get()
        images = Pointer(self, extended="outputParticles")
        centres = readStates(self._getExtraPath("clusters", "states.csv"))
        classes = self._createSetOfClassesFlex(images)

        def setClass(particle, _):
            particle.setClassId(clusterOf[particle.getObjId()])

        def setCentre(cluster):
            row = centres[cluster.getObjId() - 1]
            cluster.setRepresentative(stateVolume(model, row, self._getExtraPath("clusters")))
            setFlexInfo(cluster, model)

        classes.classifyItems(updateItemCallback=setClass, updateClassCallback=setCentre, doClone=False)
        self._registerOutputs([images, self.inputModel], outputClasses=classes)

    def _getSource(self):
        """Return the pointer to the particles that are selected from."""
        if self.inputParticles.get() is not None:
            return self.inputParticles
        return self.inputModel.get().getParticlesPointer()

    def _getSelectionPath(self):
        return self._getExtraPath("selection.star")

    def _getSelectOptions(self):
        """Return the engine's options for what is kept, a list of words.

        Raises
        ------
        ValueError
            if they are not valid; one sentence that says why.
        """
        model = self.inputModel.get()
        options = []
        if self.nClusters.get():
            options += ["--clusters", str(self.nClusters.get()), "--seed", str(self.seed.get())]
            for number in self._getKeptClusters():
                options += ["--cluster", str(number)]
        for option, names in _RANGES.items():
            low, high = (self.getAttributeValue(name) for name in names)
            if low is None and high is None:
                continue
            if None not in (low, high) and low > high:
                label = readOptions()["select"][option]["label"]
                raise ValueError(f"{label}: the lower limit is above the upper limit.")
            options.append(f"--{option}={'' if low is None else low}:{'' if high is None else high}")
        for number, low, high in parseRegion(self.region.get("") or "", model.getNumberOfMotions()):
            options += ["--along", f"{number}:{low}:{high}"]
        options += self._getNearOptions()
        if self.half.get():
            options += ["--half", HALVES[self.half.get()]]
        if not options:
            raise ValueError("There is nothing to select by: set a number of clusters, or a condition.")
        return options + (["--complement"] if self.complement else [])

    def _getKeptClusters(self):
        text = self.keepClusters.get("") or ""
        if not text.strip():
            return []
        try:
            numbers = sorted(set(getListFromRangeString(text)))
        except ValueError:
            raise ValueError(f"Clusters to keep are '{text}': give numbers such as 1,3-4.") from None
        if not set(numbers) <= set(range(1, self.nClusters.get() + 1)):
            raise ValueError(f"Clusters to keep are '{text}': there are 1 to {self.nClusters}.")
        return numbers

    def _getNearOptions(self):
        text, distance = (self.near.get("") or "").strip(), self.nearDistance.get()
        if not text and distance is None:
            return []
        if not text or distance is None or not distance > 0:
            raise ValueError("Near a conformation: set both the conformation and a distance above zero.")
        try:
            if text.isdigit():
                values = coordinatesOfParticle(self.inputModel.get(), int(text))
            else:
                values = [float(word) for word in text.split(",")]
        except ValueError as error:
            known = str(error) if text.isdigit() else f"'{text}' is neither a particle's id nor coordinates"
            raise ValueError(f"Near a conformation: {known}.".replace("..", ".")) from None
        if len(values) > self.inputModel.get().getNumberOfMotions():
            raise ValueError(
                f"Near a conformation: give at most {self.inputModel.get().getNumberOfMotions()} coordinates."
            )
        return [f"--near={','.join(f'{value:.6g}' for value in values)}:{distance}"]

    # ------------------------------------------------------------------ what it says

    def _validate(self):
        model = self.inputModel.get()
        if model is None:
            return []
        errors = self._validateModel()
        others = self.inputParticles.get()
        if others is not None and others.isStreamOpen():
            errors.append("The set to select from is still open: wait until its protocol has finished.")
        if others is None and model.getParticles() is None:
            errors.append(
                "The particles of the model were deleted: estimate the deformations again, or give the particles to "
                "select from."
            )
        if self.nClusters.get() > model.getNumberOfParticles():
            errors.append(f"The model has only {model.getNumberOfParticles()} particles: set fewer clusters.")
        return errors or explain(self._getSelectOptions) or self._validateMotion()

    def _summarise(self):
        total = self.inputModel.get().getNumberOfParticles()
        lines = [f"{len(self.outputParticles)} of {total} particles were selected."]
        if hasattr(self, "outputClasses"):
            lines += [f"   cluster {cluster.getObjId()}: {len(cluster)} particles" for cluster in self.outputClasses]
        return lines

    def _describeMethod(self):
        clusters = f", in {self.nClusters} clusters (k-means on motion coordinates)" if self.nClusters.get() else ""
        return f"{len(self.outputParticles)} particles were selected by their motion{clusters} [Schwab2024]."


def parseRegion(text, nMotions):
    """Return (motion, low, high) of every range in the form's text; ends that are omitted are empty texts.

    Raises
    ------
    ValueError
        if the text holds something else, or a motion that does not exist in the model.
    """
    ranges = []
    for part in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        try:
            number, low, high = (word.strip() for word in part.split(":"))
            limits = [float(word) for word in (low, high) if word]
            number = int(number)
        except ValueError:
            raise ValueError(
                f"Region: '{part}' is not a range: give the number of a motion and two limits, such as 1: -3 : 1.5."
            ) from None
        if not 1 <= number <= nMotions:
            raise ValueError(f"Region: motion {number} does not exist; the model has {nMotions} motions.")
        if not limits or limits != sorted(limits):
            raise ValueError(f"Region: '{part}' is empty: give a lower limit below the upper limit.")
        ranges.append((number, low, high))
    return ranges
