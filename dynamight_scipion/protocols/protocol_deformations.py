"""From particles and their consensus map to a deformation per particle."""

import json
import os

from pwem.objects import AtomStruct, SetOfParticles, SetOfParticlesFlex, Volume
from pwem.protocols import ProtAnalysis3D
from pyworkflow.constants import BETA
from pyworkflow.object import Pointer
from pyworkflow.utils import cleanPath

from dynamight_scipion import convert
from dynamight_scipion.objects import (
    SUMMARY_FILE,
    DynamightModel,
    SetOfDeformationFields,
    readConclusion,
)

from .deformations_form import DeformationsForm
from .fields import createFields, readFields
from .particles import createParticles
from .protocol_base import checkStructure
from .protocol_from_model import tellConclusion

# Outputs, if the particles are of two compositions.
GROUPS = ("outputMoreMass", "outputLessMass")


class DynamightProtDeformations(DeformationsForm, ProtAnalysis3D):
    """Estimate how the molecule is deformed in every particle image.

    A Gaussian model of the consensus map is deformed so that it explains each image (Schwab et al., Nature Methods
    2024). The two half-sets are trained independently. Some particles are held out of training, for validation: they
    show whether the images support the motion. Read this verdict, in the summary, first.

    Each particle gets coordinates along the principal motions, which the half-sets share (zFlex, in A rms), and an
    uncertainty (standard error) of its deformation. With the model, 'deformed reconstruction' corrects the map for
    the motion, 'states and movies' shows the motion, 'select particles' selects conformations, and 'displace atomic
    model' moves an atomic model.

    Use particles of one composition. The model can only move density: first remove particles with missing or
    additional parts by classification. If the particles are found to be of two compositions, the summary says so, and
    both groups become outputs: estimate the deformations of each by itself.
    """

    _label = "estimate deformations"
    _devStatus = BETA
    _possibleOutputs = {
        "outputParticles": SetOfParticlesFlex,
        "outputModel": DynamightModel,
        "outputMotion": Volume,
        "outputGaussians1": AtomStruct,
        "outputGaussians2": AtomStruct,
        "outputFields": SetOfDeformationFields,
        **dict.fromkeys(GROUPS, SetOfParticles),
    }
    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        inputs = self._describeInputs()
        options = json.dumps(self._getTrainOptions())
        embedding = self.getChoice("embedding")
        self._insertFunctionStep(self.convertInputStep, inputs, needsGPU=False)
        self._insertFunctionStep(self.trainStep, inputs, options)
        self._insertFunctionStep(self.analyseStep, inputs, options, embedding, needsGPU=False)
        self._insertFunctionStep(self.fieldsStep, inputs, options, needsGPU=False)
        places = embedding, self.zFlexFrom.get()
        self._insertFunctionStep(self.createOutputStep, inputs, options, *places, needsGPU=False)

    def convertInputStep(self, inputs):
        """Write particles, maps and mask as the engine reads them."""
        particles, consensus = self.inputParticles.get(), self.inputVolume.get()
        grid = particles.getXDim(), particles.getSamplingRate()
        stacks = self._getExtraPath("stacks")
        notes = convert.writeParticles(particles, self._getStarFile(), stacks, self.opticsStar.get() or None)
        for volume, path, name in self._getVolumes():
            notes += convert.writeVolume(volume, *grid, path, name, isMask=volume is not consensus)
        for half, path in enumerate(self._getHalfMaps(), 1):
            notes += convert.writeVolume(consensus, *grid, self._getHalfMapFile(half), f"half-map {half}", path=path)
        for note in notes:
            self.info(note)
        with open(self._getExtraPath("conversion.txt"), "w") as file:
            file.write("\n".join(notes))

    def trainStep(self, inputs, options):
        """Train both half-sets; resume from the last checkpoint if input and options are the same."""
        arguments = [self._getStarFile(), self._getRunFolder(), "--project", "."]
        arguments += ["--map", self._getMapFile()]
        if self._getHalfMaps():
            arguments += ["--half-maps", self._getHalfMapFile(1), self._getHalfMapFile(2)]
        if self.inputMask.get() is not None:
            arguments += ["--mask", self._getMaskFile()]
        if self._getBodies():
            arguments += ["--bodies", *(path for _, path, _ in self._getBodies())]
        if self.inputStructure.get() is not None:
            arguments += ["--atomic-model", self.inputStructure.get().getFileName()]
        if self.doContinue:
            arguments += ["--start-from", self.previousModel.get().getRunFolder()]
        begun = self._getExtraPath("training.json")
        same = os.path.exists(begun) and _readText(begun) == json.dumps([inputs, options])
        arguments.append("--resume" if same else "--overwrite")
        with open(begun, "w") as file:
            json.dump([inputs, options], file)
        self.runEngine("train", arguments + json.loads(options) + self._getComputeOptions(shared=True))

    def analyseStep(self, inputs, options, embedding):
        """Write the report, the map of the motion, the Gaussians and the embedding of the particles."""
        self.runEngine("analyse", [self._getRunFolder(), "--embedding", embedding, *self._getThreadOptions()])

    def fieldsStep(self, inputs, options):
        """Let the engine write the deformation fields of the principal motions, if they are supported."""
        cleanPath(self._getFieldsPath())
        with open(self._getRunPath(SUMMARY_FILE)) as file:
            if readConclusion(json.load(file))["motion"] == "supported":
                words = ["--out", self._getFieldsPath(), *self._getThreadOptions()]
                self.runEngine("fields", [self._getRunFolder(), *words])

    def createOutputStep(self, inputs, options, embedding, zFlexFrom):
        """Register the results."""
        particles, volume = self.inputParticles.get(), self.inputVolume.get()
        model = DynamightModel(self._getRunFolder())
        model.readRun()
        model.setConsensusMap(self._getMapFile())
        model.setMask(self._getMaskFile() if self.inputMask.get() is not None else None)
        structure = self.inputStructure.get()
        model.setAtomicModel(None if structure is None else structure.getFileName())
        model.setParticles(Pointer(self, extended="outputParticles"))

        model.setOriginInCorner(convert.hasOriginInCorner(volume))
        motion = Volume(self._getRunPath("analysis", "motion.mrc"))
        model.placeVolume(motion)
        results = {
            "outputParticles": createParticles(self._getPath(), particles, model, self.zFlexFrom.get()),
            "outputModel": model,
            "outputMotion": motion,
        }
        for half in (1, 2):
            path = self._getRunPath("analysis", f"gaussians_half{half}.cif")
            results[f"outputGaussians{half}"] = AtomStruct(path, pseudoatoms=True)
        results.update(self._createGroups(particles))
        if os.path.exists(self._getFieldsPath()):
            results["outputFields"] = createFields(self._getPath(), readFields(self._getFieldsPath(), model))
        self._registerOutputs([self.inputParticles, *self._getOtherInputs()], **results)

    def _createGroups(self, particles):
        """Return the particles with more and with less mass by the names of outputs, if their compositions differ."""
        groups = {}
        for group, name in enumerate(GROUPS, 1):
            path = self._getRunPath("analysis", "composition", f"group{group}.star")
            if os.path.exists(path):
                chosen = set(convert.readColumns(path, lambda label: False)["rlnImageId"].tolist())
                groups[name] = particles.createCopy(self._getPath(), prefix=name, copyInfo=True)
                groups[name].copyItems(
                    particles, doClone=False, itemSelectedCallback=lambda item, ids=chosen: item.getObjId() in ids
                )
        return groups

    # ------------------------------------------------------------------ files

    def _getRunPath(self, *names):
        return os.path.join(self._getRunFolder(), *names)

    def _getFieldsPath(self):
        return self._getExtraPath("fields")

    def _getStarFile(self):
        return self._getExtraPath("particles.star")

    def _getMapFile(self):
        return self._getExtraPath("consensus.mrc")

    def _getHalfMapFile(self, half):
        return self._getExtraPath(f"consensus_half{half}.mrc")

    def _getMaskFile(self):
        return self._getExtraPath("mask.mrc")

    # ------------------------------------------------------------------ what goes to the engine

    def _getHalfMaps(self):
        """Return the paths of the consensus map's half-maps, an empty list if it has none."""
        halves = list(self.inputVolume.get().getHalfMaps(asList=True))
        return halves if len(halves) == 2 else []

    def _getVolumes(self):
        """Return of map and masks that are set: the object, the path on the particles' grid, and its name."""
        consensus = self.inputVolume.get(), self._getMapFile(), "consensus map"
        mask = self.inputMask.get(), self._getMaskFile(), "mask of the flexible region"
        return [given for given in (consensus, mask) if given[0] is not None] + self._getBodies()

    def _getBodies(self):
        """Return of each body's mask the VolumeMask, the path on the particles' grid, and its name."""
        masks = [pointer.get() for pointer in self.inputBodies]
        return [
            (mask, self._getExtraPath(f"body{number}.mrc"), f"mask of body {number}")
            for number, mask in enumerate(masks, 1)
            if mask is not None
        ]

    def _getOtherInputs(self):
        """Return the pointers to all inputs but the particles and the previous model."""
        return [self.inputVolume, self.inputMask, self.inputStructure, *self.inputBodies]

    def _describeInputs(self):
        """Return what the inputs are, as text that differs where another input is given."""
        described: list = []
        for pointer in (self.inputParticles, *self._getOtherInputs(), self.previousModel):
            obj = pointer.get()
            if obj is None or (pointer is self.previousModel and not self.doContinue):
                described.append(None)
                continue
            described.append([pointer.getUniqueId(), obj.getObjId(), getattr(obj, "getSize", lambda: None)()])
        return json.dumps([*described, self.opticsStar.get() or None])

    def _getTrainOptions(self):
        """Return the engine's options of training that change its result, as a list of words."""
        return self._getOptionWords("input") + self._getOptionWords("train")

    # ------------------------------------------------------------------ what the user is told

    def _validate(self):
        particles, errors = self.inputParticles.get(), []
        if particles is not None:
            errors += convert.checkParticles(particles, self.opticsStar.get())[0]
        if particles is not None and not errors:
            grid = particles.getXDim(), particles.getSamplingRate()
            errors += [convert.describeVolume(volume, *grid, name)[0] for volume, _, name in self._getVolumes()]
            errors += self._checkHalfMaps()
            diameter = self.particleDiameter.get()
            if diameter is not None and diameter > grid[0] * grid[1]:
                errors.append(
                    f"The particle diameter ({diameter:g} Å) is larger than the box ({grid[0] * grid[1]:.4g} Å)."
                )
        errors += self._checkPriors()
        if self.doContinue:
            errors += self._checkPrevious()
        return [error for error in errors if error]

    def _warnings(self):
        particles = self.inputParticles.get()
        if particles is None:
            return []
        warnings = list(convert.checkParticles(particles, self.opticsStar.get())[1])
        grid = particles.getXDim(), particles.getSamplingRate()
        warnings += [convert.describeVolume(volume, *grid, name)[1] for volume, _, name in self._getVolumes()]
        if self.inputVolume.get() is not None and not self._getHalfMaps():
            warnings.append(
                "The consensus map has no half-maps, so both half-sets are initialised from one map, low-pass filtered "
                f"at {self.initialResolution.get():g} Å. Give a map with half-maps if you can."
            )
        if self.inputStructure.get() is not None:
            warnings.append(
                "Both half-sets share the atomic model: maps can show features of it that the images do not support, "
                "and the FSC cannot reveal them. Run the control experiment 'wrong model' on the result."
            )
        return [warning for warning in warnings if warning]

    def _checkHalfMaps(self):
        if self.inputVolume.get() is None:
            return []
        missing = [path for path in self._getHalfMaps() if not os.path.exists(convert.plainPath(path))]
        return [f"The half-map {path} of the consensus map is missing: restore the file." for path in missing]

    def _checkPriors(self):
        """Return why atomic model or bodies cannot be used, as a list of sentences."""
        errors, structure, bodies = [], self.inputStructure.get(), self._getBodies()
        if structure is not None:
            errors += checkStructure(structure, "atomic model")
            if self.widthClasses.get() > 1:
                errors.append(
                    "The Gaussians of an atomic model have one width: set the *number of width classes* to 1."
                )
        elif self.fitStructure:
            errors.append("There is no atomic model to fit: give one, or set *fit the atomic model* to No.")
        if len(bodies) == 1:
            errors.append("One rigid body has nothing to move against: give masks of two or more bodies, or none.")
        if bodies and self.inputMask.get() is not None:
            errors.append("The masks of bodies already define what moves: omit the *mask of the flexible region*.")
        if bodies and self.getChoice("decoder") != "basis":
            errors.append("Rigid bodies have their own decoder: set *decoder* to its default.")
        if bodies and self.getChoice("regularisation") == "dynamic":
            errors.append("Rigid bodies keep all distances: set *regularisation* to fixed weight.")
        return errors

    def _checkPrevious(self):
        model = self.previousModel.get()
        if model is None:
            return ["Give the *previous model*, or set *start from a previous model* to No."]
        missing = model.getMissingFiles()
        if missing:
            return [f"{len(missing)} files of the previous model are missing, e.g. {missing[0]}: restore them."]
        errors = []
        for name, now, before in (
            ("Gaussians", self.nGaussians.get(), model.getNumberOfGaussians()),
            ("latent dimensions", self.nLatents.get(), model.getNumberOfLatents()),
        ):
            if now != before:
                errors.append(f"The previous model has {before} {name}, this run {now}: give the same number.")
        return errors

    def _summary(self):
        if not hasattr(self, "outputModel"):
            return ["No results yet."] + self._readNotes()
        model = self.outputModel
        summary = model.loadSummary()
        lines = [
            *tellConclusion(summary),
            f"Motion: {model.getMotionRms():.2f} Å rms, uncertainty {model.getMotionError():.2f} Å.",
            f"Variance explained by each principal motion: {describeShares(summary['motion_shares'])}.",
            f"{model.getNumberOfParticles(1)} and {model.getNumberOfParticles(2)} particles in the half-sets"
            + (", split at random." if model.areHalfSetsRandom() else "."),
        ]
        lines += self._describeDevice(summary["model"].get("device"))
        lines += [f"Note: {warning}." for warning in summary["warnings"]]
        return lines + self._readNotes()

    def _describeDevice(self, device):
        """Return what trained the model, as a list of sentences; empty for models of earlier versions."""
        if device is None:
            return []
        if device != "cpu":
            return [f"Trained on the GPU ({device})."]
        expected = ", although a GPU was chosen: the log says why" if self.usesGpu() else ""
        return [f"Trained on the CPU{expected}."]

    def _readNotes(self):
        """Return the changes made when the input was converted."""
        path = self._getExtraPath("conversion.txt")
        return _readText(path).splitlines() if os.path.exists(path) else []

    def _methods(self):
        if not hasattr(self, "outputModel"):
            return []
        model = self.outputModel
        return [
            f"Deformations of {model.getNumberOfParticles()} particles were estimated with dynamight-core "
            f"{model.getEngineVersion()}, an independent implementation of DynaMight [Schwab2024], with "
            f"{model.getNumberOfGaussians()} Gaussians and {model.getNumberOfLatents()} latent dimensions for each "
            f"half-set. {100 * self.validationFraction.get():g} % of the particles were held out. "
            f"{model.getVerdictSentence()}"
        ]


def describeShares(shares):
    """Return the explained variances (of 1) of the principal motions in words, small ones together."""
    large = [f"{100 * share:.0f} %" for share in shares if share >= 0.01]
    small = len(shares) - len(large)
    return ", ".join(large + [f"less than 1 % in each of {small} more"] * bool(small))


def _readText(path):
    with open(path) as file:
        return file.read()
