"""From particles and their consensus map to a deformation per particle."""

import json
import os

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import AtomStruct, SetOfParticlesFlex, Volume
from pwem.protocols import ProtAnalysis3D
from pyworkflow.constants import BETA
from pyworkflow.object import Pointer
from pyworkflow.protocol.constants import LEVEL_ADVANCED

from dynamight_scipion import convert
from dynamight_scipion.objects import FLEX_PROGRAM, RUN_FOLDER, DynamightModel

from .protocol_base import NOT_NEGATIVE, POSITIVE, POSITIVE_OR_EMPTY, Between, EngineProtocol, addOption
from .protocol_displace_model import ORIGINS
from .protocol_from_model import setFlexInfo

DECODERS = ("basis", "coordinate")
REGULARISATIONS = ("fixed", "dynamic")
NORMALISATIONS = ("image", "set", "none")
STORAGES = ("auto", "memory", "device", "file")
EMBEDDINGS = ("auto", "pca")
STRUCTURES = (".pdb", ".cif", ".mmcif", ".ent")
PREMULTIPLIED = ("as their metadata say", "yes", "no")

# Parameters and the engine's options that they stand for, by kind.
VALUES = {
    "particleDiameter": "particle-diameter",
    "workingBox": "working-box",
    "nGaussians": "n-gaussians",
    "widthClasses": "width-classes",
    "threshold": "threshold",
    "initialResolution": "initial-resolution",
    "nLatents": "n-latents",
    "nEpochs": "epochs",
    "warmUpEpochs": "warm-up-epochs",
    "encoderEpochs": "encoder-epochs",
    "inferenceInterval": "inference-interval",
    "batchSize": "batch-size",
    "learningRate": "learning-rate",
    "encoderLearningRate": "encoder-learning-rate",
    "gaussianLearningRate": "gaussian-learning-rate",
    "klWeight": "kl-weight",
    "motionResolution": "motion-resolution",
    "stiffness": "stiffness",
    "regularisationRatio": "regularisation-ratio",
    "rigidity": "rigidity",
    "sparseMotion": "sparse-motion",
    "refits": "refits",
    "refitResolution": "refit-resolution",
    "referenceInterval": "reference-interval",
    "referenceEpochs": "reference-epochs",
    "stopAfterRises": "stop-after-rises",
    "validationFraction": "validation-fraction",
    "nMotions": "n-motions",
    "seed": "seed",
}
CHOICES = {
    "decoder": ("decoder", DECODERS),
    "regularisation": ("regularisation", REGULARISATIONS),
    "normalise": ("normalise", NORMALISATIONS),
    "storage": ("storage", STORAGES),
    "structureOrigin": ("origin", ORIGINS),
}
# Options that have a --no- form, and flags that are given or left out.
SWITCHES = {"latentRefinement": "latent-refinement", "gaussianAmplitudes": "gaussian-amplitudes"}
FLAGS = {
    "invertContrast": "invert-contrast",
    "validationTrainsEncoders": "validation-trains-encoders",
    "refinePoses": "refine-poses",
    "fitStructure": "fit",
}


class DynamightProtDeformations(EngineProtocol, ProtAnalysis3D):
    """Estimate how the molecule is deformed in every particle image.

    A Gaussian model of the consensus map is deformed so that it explains each image (Schwab et al., Nature Methods
    2024). The two half-sets are trained independently. A part of the particles trains nothing: they tell whether the
    images support the motion at all, and the summary says what they say. Read it first.

    The particles come out with coordinates along the principal motions, which both halves share (zFlex, in A rms), and
    with an estimate of the error of their deformation. With the model, 'deformed reconstruction' corrects the map for
    the motion, 'states and movies' shows it, 'select particles' picks conformations and 'displace atomic model' moves
    an atomic model.

    Use particles of one composition: the model can only move density, so remove particles with missing or additional
    parts by classification before.
    """

    _label = "estimate deformations"
    _devStatus = BETA
    _possibleOutputs = {
        "outputParticles": SetOfParticlesFlex,
        "outputModel": DynamightModel,
        "outputMotion": Volume,
        "outputGaussians1": AtomStruct,
        "outputGaussians2": AtomStruct,
    }

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        self._defineGpuParams(form)
        self._defineInputParams(form)
        self._defineGaussianParams(form)
        self._defineMotionParams(form)
        self._defineTrainingParams(form)
        self._defineThreadParams(form)

    def _defineInputParams(self, form):
        form.addSection(label="Input")
        form.addParam(
            "inputParticles",
            params.PointerParam,
            pointerClass="SetOfParticles",
            pointerCondition="hasAlignmentProj",
            important=True,
            label="Particles",
            help="Particles of a 3D refinement, with CTFs and, if they are to be trusted, with half-sets "
            "(rlnRandomSubset). They should be unmasked, not CTF-corrected, and of one composition.",
        )
        form.addParam(
            "inputVolume",
            params.PointerParam,
            pointerClass="Volume",
            important=True,
            label="Consensus map",
            help="Map that these particles were refined to, unsharpened. If it has half-maps, each half of the "
            "particles starts from its own; else both start from the map after a low-pass filter. Another box or "
            "sampling rate than the particles' is resampled.",
        )
        form.addParam(
            "inputMask",
            params.PointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            label="Mask of allowed motion (optional)",
            help="Motion is allowed where the mask is 1 and forbidden where it is 0; give it a soft edge. Everywhere "
            "if left out. It is not a mask of the molecule: leave solvent around a moving part inside.",
        )
        form.addParam(
            "particleDiameter",
            params.FloatParam,
            allowsNull=True,
            validators=[POSITIVE_OR_EMPTY],
            label="Particle diameter (Å)",
            help="Diameter of a circle around the particle in all its conformations. What is outside serves to measure "
            "the noise. 0.9 of the box if left empty.",
        )
        form.addParam(
            "opticsStar",
            params.FileParam,
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Optics groups from (optional)",
            help="RELION STAR file that the particles were imported from. Scipion's import keeps only one optics group "
            "and drops rlnNormCorrection; here both are taken from the file, by image name.",
        )
        group = form.addGroup("Images", expertLevel=LEVEL_ADVANCED)
        group.addParam(
            "invertContrast",
            params.BooleanParam,
            default=False,
            label="Are the particles dark?",
            expertLevel=LEVEL_ADVANCED,
            help="Particles should be white on a darker ground. The run stops with a sentence if they correlate "
            "negatively with the map.",
        )
        group.addParam(
            "premultiplied",
            params.EnumParam,
            choices=list(PREMULTIPLIED),
            default=0,
            expertLevel=LEVEL_ADVANCED,
            display=params.EnumParam.DISPLAY_HLIST,
            label="Multiplied by their CTF?",
            help="Whether the images were multiplied by their CTF when they were extracted. Their metadata say so in "
            "the optics table, if they come from RELION.",
        )
        group.addParam(
            "normalise",
            params.EnumParam,
            choices=list(NORMALISATIONS),
            default=0,
            expertLevel=LEVEL_ADVANCED,
            display=params.EnumParam.DISPLAY_HLIST,
            label="Normalise the noise",
            help="*image*: each image by the noise outside its circle. *set*: all by the same factors. *none*: grey "
            "values are taken as they are.",
        )
        group.addParam(
            "workingBox",
            params.IntParam,
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            validators=[POSITIVE_OR_EMPTY],
            label="Working box (px)",
            help="Images are Fourier-cropped to this box for training; the maps keep the full box. If left empty it "
            "follows from the distance between the Gaussians, which cannot explain finer detail.",
        )
        group.addParam(
            "storage",
            params.EnumParam,
            choices=list(STORAGES),
            default=0,
            expertLevel=LEVEL_ADVANCED,
            display=params.EnumParam.DISPLAY_HLIST,
            label="Keep images in",
            help="Prepared images are kept in memory, on the GPU (device) or in a file in the run's folder; auto "
            "chooses by their size.",
        )

    def _defineGaussianParams(self, form):
        form.addSection(label="Gaussian model")
        form.addParam(
            "nGaussians",
            params.IntParam,
            default=10000,
            validators=[params.GE(50, "must be at least 50")],
            label="Number of Gaussians",
            help="Pseudo-atoms of each half's model: one or two per residue. Memory and time grow in proportion.",
        )
        form.addParam(
            "inputStructure",
            params.PointerParam,
            pointerClass="AtomStruct",
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Atomic model (optional)",
            help="Its atoms, coarse-grained, become the Gaussians of both halves, and its bonds the distances that are "
            "kept; the number of Gaussians and the threshold are then without effect. It must be fitted to the "
            "consensus map.\n*Both halves share it: the maps can show its features where the images do not, "
            "and the FSC between the halves does not tell.* Run the control experiment 'wrong model' on the result "
            "before you believe its maps.",
        )
        form.addParam(
            "fitStructure",
            params.BooleanParam,
            default=False,
            expertLevel=LEVEL_ADVANCED,
            label="Fit it to the map?",
            help="Fit the atomic model to the consensus map as a rigid body, near where it is.",
        )
        form.addParam(
            "structureOrigin",
            params.EnumParam,
            choices=list(ORIGINS),
            default=0,
            expertLevel=LEVEL_ADVANCED,
            display=params.EnumParam.DISPLAY_HLIST,
            label="Its coordinates count from",
            help="Where the atomic model's coordinates are zero: at the centre of the box, or at its first voxel "
            "(corner). *auto*: whichever puts the atoms into most density.",
        )
        form.addParam(
            "threshold",
            params.FloatParam,
            allowsNull=True,
            label="Map threshold",
            help="Gaussians fill the consensus map, low-passed at 15 Å, above this value. If left empty it is chosen "
            "such that weak, flexible density is kept and solvent is not.",
        )
        form.addParam(
            "initialResolution",
            params.FloatParam,
            default=12.0,
            validators=[POSITIVE],
            label="Initial resolution (Å)",
            help="Low-pass filter of the map that the Gaussians are fitted to at the start. It keeps the halves apart "
            "where both start from one map.",
        )
        form.addParam(
            "widthClasses",
            params.IntParam,
            default=1,
            validators=[POSITIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Classes of width",
            help="Number of classes of Gaussians, each with a width of its own.",
        )
        form.addParam(
            "gaussianAmplitudes",
            params.BooleanParam,
            default=True,
            expertLevel=LEVEL_ADVANCED,
            label="An amplitude for each Gaussian?",
            help="The amplitudes are shared by all particles, so that motion cannot hide as vanishing density. The "
            "paper has one amplitude for all Gaussians (No).",
        )
        form.addParam(
            "refits",
            params.IntParam,
            default=3,
            validators=[NOT_NEGATIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Times to fill anew",
            help="How often the Gaussians are filled into the half's own map with motion corrected, while training "
            "goes on. They start in a map that is blurred by the motion.",
        )
        form.addParam(
            "refitResolution",
            params.FloatParam,
            default=9.0,
            validators=[POSITIVE],
            condition="refits>0",
            expertLevel=LEVEL_ADVANCED,
            label="Resolution of that map (Å)",
            help="Low-pass filter of that map.",
        )

    def _defineMotionParams(self, form):
        form.addSection(label="Motion")
        form.addParam(
            "nLatents",
            params.IntParam,
            default=6,
            validators=[POSITIVE],
            label="Latent dimensions",
            help="Dimensions of the space in which each image has a place: at least as many as there are independent "
            "motions.",
        )
        form.addParam(
            "nMotions",
            params.IntParam,
            default=6,
            validators=[POSITIVE],
            label="Principal motions",
            help="Motions kept that both halves have in common, the largest first. They become the particles' zFlex.",
        )
        form.addParam(
            "motionResolution",
            params.FloatParam,
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Filter of the images (Å)",
            help="Details much smaller than the motion tell nothing about it until it is nearly known: images are "
            "low-passed while motion is learned. If left empty it is done where the images show most, and less so "
            "towards the end. 0 is no filter.",
        )
        form.addParam(
            "regularisation",
            params.EnumParam,
            choices=list(REGULARISATIONS),
            default=0,
            display=params.EnumParam.DISPLAY_HLIST,
            label="Regularisation",
            help="Neighbouring Gaussians shall keep their distance. *fixed*: with a given weight. *dynamic*: the "
            "paper's way, a share of the gradient that changes as training goes.",
        )
        form.addParam(
            "stiffness",
            params.FloatParam,
            default=30.0,
            validators=[NOT_NEGATIVE],
            condition="regularisation==0",
            label="Stiffness (1/Å²)",
            help="Weight of the kept distances against the likelihood of one particle; less where images tell so "
            "little that it would freeze the motion. Raise it where motion looks torn, lower it where it looks too "
            "small.",
        )
        form.addParam(
            "regularisationRatio",
            params.FloatParam,
            default=0.9,
            validators=[NOT_NEGATIVE],
            condition="regularisation==1",
            label="Regularisation ratio",
            help="Share of the norm of the gradient that regularisation gets.",
        )
        form.addParam(
            "rigidity",
            params.FloatParam,
            default=10.0,
            validators=[NOT_NEGATIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Rigidity (1/Å²)",
            help="Weight of keeping distances up to 25 Å in parts that move as one, against the likelihood of one "
            "particle. 0 is off.",
        )
        form.addParam(
            "sparseMotion",
            params.FloatParam,
            default=0.0,
            validators=[NOT_NEGATIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Weight of sparse motion (1/Å)",
            help="Weight of the mean displacement, ramped in over the second third of the epochs: a molecule of which "
            "most parts rest. 0 is off.",
        )
        form.addParam(
            "decoder",
            params.EnumParam,
            choices=list(DECODERS),
            default=0,
            expertLevel=LEVEL_ADVANCED,
            display=params.EnumParam.DISPLAY_HLIST,
            label="Decoder",
            help="*basis*: learned fields, combined by each particle's latent. *coordinate*: the paper's coordinate "
            "network, slower.",
        )
        form.addParam(
            "refinePoses",
            params.BooleanParam,
            default=False,
            expertLevel=LEVEL_ADVANCED,
            label="Refine poses?",
            help="Let orientations and shifts follow the images. Poses that do so also follow the model's errors. The "
            "refined poses become the alignment of the particles that come out.",
        )

        form.addParam(
            "inputBodies",
            params.MultiPointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Masks of rigid bodies (optional)",
            help="Two or more masks that share the molecule between them. Each part then turns and shifts as one, with "
            "soft joints between them, in the place of a free deformation: fewer things to learn from few or noisy "
            "particles, and *nothing can be seen that these bodies cannot do*. The analysis of an earlier run proposes "
            "such masks (extra/run/analysis/domains).",
        )

    def _defineTrainingParams(self, form):
        form.addSection(label="Training")
        form.addParam(
            "doContinue",
            params.BooleanParam,
            default=False,
            label="Continue a previous run?",
            help="Start from the models of a run on the same particles that is done, with more or other training. (A "
            "run that was stopped goes on by itself when you continue the protocol.)",
        )
        form.addParam(
            "previousModel",
            params.PointerParam,
            pointerClass="DynamightModel",
            condition="doContinue",
            allowsNull=True,
            label="Previous model",
            help="Model of the run to start from: same particles, map and numbers of Gaussians and latents.",
        )
        form.addParam(
            "nEpochs",
            params.IntParam,
            default=18,
            validators=[POSITIVE],
            label="Epochs",
            help="Rounds through all particles, after the warm-up.",
        )
        form.addParam(
            "batchSize",
            params.IntParam,
            default=128,
            validators=[POSITIVE],
            label="Batch size",
            help="Particles in a step. Lower it if memory does not suffice.",
        )
        form.addParam(
            "validationFraction",
            params.FloatParam,
            default=0.1,
            validators=[Between(0, 0.5)],
            label="Share of held-out particles",
            help="Share of each half that trains nothing and tells whether the images support the motion.",
        )
        form.addParam(
            "seed",
            params.IntParam,
            default=0,
            label="Random seed",
            expertLevel=LEVEL_ADVANCED,
            help="The same seed on the same machine gives the same numbers.",
        )
        form.addParam(
            "embedding",
            params.EnumParam,
            choices=["UMAP", "first two motions"],
            default=0,
            display=params.EnumParam.DISPLAY_HLIST,
            expertLevel=LEVEL_ADVANCED,
            label="Draw particles by",
            help="How the particles' coordinates become places in a plane (zRed), for drawing only.",
        )
        self._defineScheduleParams(form.addGroup("Schedule", expertLevel=LEVEL_ADVANCED))
        self._defineStepParams(form.addGroup("Steps", expertLevel=LEVEL_ADVANCED))

    @staticmethod
    def _defineScheduleParams(group):
        group.addParam(
            "warmUpEpochs",
            params.IntParam,
            default=3,
            validators=[NOT_NEGATIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Warm-up epochs",
            help="Epochs at the start in which the Gaussians are fitted without deformation.",
        )
        group.addParam(
            "latentRefinement",
            params.BooleanParam,
            default=True,
            expertLevel=LEVEL_ADVANCED,
            label="Infer latents?",
            help="After the epochs that train an encoder, find each particle's latent with the decoder as it is. With "
            "No, the encoder is trained to the end, as in the paper.",
        )
        group.addParam(
            "encoderEpochs",
            params.IntParam,
            default=0,
            validators=[NOT_NEGATIVE],
            condition="latentRefinement",
            expertLevel=LEVEL_ADVANCED,
            label="Encoder epochs",
            help="Of the epochs, so many train encoder and decoder together (the paper's way); in those after, latents "
            "are inferred. 0 starts instead from the motions that the images show to first order.",
        )
        group.addParam(
            "inferenceInterval",
            params.IntParam,
            default=2,
            validators=[POSITIVE],
            condition="latentRefinement",
            expertLevel=LEVEL_ADVANCED,
            label="Epochs between inferences",
            help="Epochs between two rounds of latent inference.",
        )
        group.addParam(
            "referenceInterval",
            params.IntParam,
            default=12,
            validators=[POSITIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Epochs between reference updates",
            help="After so many epochs the reference conformation is updated.",
        )
        group.addParam(
            "referenceEpochs",
            params.IntParam,
            default=2,
            validators=[NOT_NEGATIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Epochs of a reference update",
            help="Epochs of an update, in which only the Gaussians move.",
        )
        group.addParam(
            "stopAfterRises",
            params.IntParam,
            default=40,
            validators=[POSITIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Stop after rises",
            help="Stop when the loss of an epoch has risen over that before so many times in all.",
        )
        group.addParam(
            "validationTrainsEncoders",
            params.BooleanParam,
            default=False,
            expertLevel=LEVEL_ADVANCED,
            label="Held-out particles train encoders?",
            help="The paper's way. Particles that have trained the encoder are not independent any more.",
        )

    @staticmethod
    def _defineStepParams(group):
        group.addParam(
            "learningRate",
            params.FloatParam,
            default=0.005,
            validators=[POSITIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Decoder",
            help="Step of the decoder (Adam's learning rate).",
        )
        group.addParam(
            "encoderLearningRate",
            params.FloatParam,
            default=0.001,
            validators=[POSITIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Encoder",
            help="Step of the encoder (Adam's learning rate).",
        )
        group.addParam(
            "gaussianLearningRate",
            params.FloatParam,
            default=0.1,
            validators=[POSITIVE],
            expertLevel=LEVEL_ADVANCED,
            label="Gaussians (Å)",
            help="Step of the Gaussians' positions.",
        )
        group.addParam(
            "klWeight",
            params.FloatParam,
            default=0.03,
            validators=[NOT_NEGATIVE],
            expertLevel=LEVEL_ADVANCED,
            label="KL weight",
            help="Weight of the Kullback-Leibler term while the encoder is trained; 1 is the full evidence bound.",
        )

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Continuing a protocol compares the arguments of each step by itself: each gets all that its result hangs on.
        inputs = self._describeInputs()
        options = json.dumps(self._getTrainOptions())
        embedding = EMBEDDINGS[self.embedding.get()]
        self._insertFunctionStep(self.convertInputStep, inputs, needsGPU=False)
        self._insertFunctionStep(self.trainStep, inputs, options)
        self._insertFunctionStep(self.analyseStep, inputs, options, embedding, needsGPU=False)
        self._insertFunctionStep(self.createOutputStep, inputs, options, embedding, needsGPU=False)

    def convertInputStep(self, inputs):
        """Write particles, maps and mask as the engine reads them."""
        particles, volume = self.inputParticles.get(), self.inputVolume.get()
        box, samplingRate = particles.getXDim(), particles.getSamplingRate()
        notes = convert.writeParticles(
            particles, self._getStarFile(), self._getExtraPath("stacks"), self.opticsStar.get() or None
        )
        notes += convert.writeVolume(volume, box, samplingRate, self._getMapFile(), "consensus map")
        for number, path in enumerate(self._getHalfMaps(), 1):
            name = f"half-map {number}"
            notes += convert.writeVolume(volume, box, samplingRate, self._getHalfMapFile(number), name, path=path)
        if self.inputMask.get() is not None:
            notes += convert.writeVolume(
                self.inputMask.get(), box, samplingRate, self._getMaskFile(), "mask of allowed motion", isMask=True
            )
        for body, path, name in self._getBodies():
            notes += convert.writeVolume(body, box, samplingRate, path, name, isMask=True)
        for note in notes:
            self.info(note)
        with open(self._getExtraPath("conversion.txt"), "w") as file:
            file.write("\n".join(notes))

    def trainStep(self, inputs, options):
        """Train both halves; go on from the last checkpoint if the same was begun before."""
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
        self.runEngine("train", arguments + json.loads(options) + self._getComputeOptions())

    def analyseStep(self, inputs, options, embedding):
        """Write the report, the motion per voxel, the Gaussians and the particles' places in a plane."""
        threads = str(max(1, self.getBinThreads()))
        self.runEngine("analyse", [self._getRunFolder(), "--embedding", embedding, "--threads", threads])

    def createOutputStep(self, inputs, options, embedding):
        """Register what was found."""
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
            "outputParticles": self._createParticles(particles, model),
            "outputModel": model,
            "outputMotion": motion,
        }
        for half in (1, 2):
            path = self._getRunPath("analysis", f"gaussians_half{half}.cif")
            results[f"outputGaussians{half}"] = AtomStruct(path, pseudoatoms=True)
        self._defineOutputs(**results)
        for result in results.values():
            for source in (self.inputParticles, *self._getOtherInputs()):
                if source.get() is not None:
                    self._defineSourceRelation(source, result)

    def _createParticles(self, particles, model):
        """Return the input particles with their motions."""
        output = SetOfParticlesFlex.create(self._getPath(), progName=FLEX_PROGRAM)
        output.copyInfo(particles)
        output.setHasCTF(particles.hasCTF())
        output.setAlignmentProj()
        if particles.hasCoordinates():
            output.setCoordinates(particles._coordsPointer)
        setFlexInfo(output, model)
        columns = convert.readMotions(model.getParticlesStar())
        embedding = np.loadtxt(model.getRunPath("analysis", "embedding.csv"), delimiter=",", skiprows=1, ndmin=2)
        convert.fillParticles(output, particles, columns, embedding)
        return output

    # ------------------------------------------------------------------ files

    def _getRunFolder(self):
        return self._getExtraPath(RUN_FOLDER)

    def _getRunPath(self, *names):
        return os.path.join(self._getRunFolder(), *names)

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

    def _getBodies(self):
        """Return of each body's mask the VolumeMask, the path on the particles' grid, and what it is called."""
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
        described = []
        for pointer in (self.inputParticles, *self._getOtherInputs(), self.previousModel):
            obj = pointer.get()
            if obj is None or (pointer is self.previousModel and not self.doContinue):
                described.append(None)
                continue
            described.append([pointer.getUniqueId(), obj.getObjId(), getattr(obj, "getSize", lambda: None)()])
        return json.dumps([*described, self.opticsStar.get() or None])

    def _getTrainOptions(self):
        """Return the engine's options of training that change its result, as a list of words."""
        arguments = []
        for name, option in VALUES.items():
            addOption(arguments, option, getattr(self, name).get())
        for name, (option, choices) in CHOICES.items():
            addOption(arguments, option, choices[getattr(self, name).get()])
        for name, option in SWITCHES.items():
            addOption(arguments, option, getattr(self, name).get())
        arguments += [f"--{option}" for name, option in FLAGS.items() if getattr(self, name)]
        addOption(arguments, "premultiplied", (None, True, False)[self.premultiplied.get()])
        return arguments

    # ------------------------------------------------------------------ what the user is told

    def _validate(self):
        particles, volume, mask = (p.get() for p in (self.inputParticles, self.inputVolume, self.inputMask))
        errors = []
        if particles is not None:
            errors += convert.checkParticles(particles, self.opticsStar.get())[0]
        if particles is not None and not errors:
            grid = particles.getXDim(), particles.getSamplingRate()
            named = self._namedVolumes(volume, mask) + [(body, name) for body, _, name in self._getBodies()]
            errors += [convert.describeVolume(v, *grid, name)[0] for v, name in named]
            errors += self._checkHalfMaps(volume)
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
        particles, volume, mask = (p.get() for p in (self.inputParticles, self.inputVolume, self.inputMask))
        if particles is None:
            return []
        warnings = list(convert.checkParticles(particles, self.opticsStar.get())[1])
        grid = particles.getXDim(), particles.getSamplingRate()
        warnings += [convert.describeVolume(v, *grid, name)[1] for v, name in self._namedVolumes(volume, mask)]
        if volume is not None and not self._getHalfMaps():
            warnings.append(
                "The consensus map has no half-maps: both halves start from one map, which holds the data of both. It "
                f"is low-passed at {self.initialResolution.get():g} Å for that; give a map with half-maps if you can."
            )
        if self.inputStructure.get() is not None:
            warnings.append(
                "With an atomic model both halves share its features: the maps can show them where the images do not, "
                "and the FSC between halves does not tell. Run the control experiment 'wrong model' on the result."
            )
        if self.usesGpu() and len(self.getGpuList()) > 1:
            warnings.append(f"One GPU is used: number {self.getGpuList()[0]}, the first of the list.")
        return [warning for warning in warnings if warning]

    @staticmethod
    def _namedVolumes(volume, mask):
        named = [(volume, "consensus map"), (mask, "mask of allowed motion")]
        return [(item, name) for item, name in named if item is not None]

    def _checkHalfMaps(self, volume):
        if volume is None:
            return []
        missing = [path for path in self._getHalfMaps() if not os.path.exists(convert.plainPath(path))]
        return [f"The half-map {path} of the consensus map is not there: bring it back." for path in missing]

    def _checkPriors(self):
        """Return why atomic model or bodies cannot be used, as a list of sentences."""
        errors, structure, bodies = [], self.inputStructure.get(), self._getBodies()
        if structure is not None:
            path = structure.getFileName() or ""
            if not os.path.exists(path):
                errors.append(f"The file of the atomic model is not there ({path}): import it again.")
            elif not path.lower().endswith(STRUCTURES):
                errors.append(f"The atomic model is in {path}: give one in PDB or mmCIF format.")
            if self.widthClasses.get() > 1:
                errors.append("The Gaussians of an atomic model have one width: leave the *classes of width* at 1.")
        elif self.fitStructure:
            errors.append("There is no atomic model to fit: give one, or do not fit.")
        if len(bodies) == 1:
            errors.append("One rigid body cannot move against others: give masks of two or more, or of none.")
        if bodies and self.inputMask.get() is not None:
            errors.append("The masks of bodies say already what may move: leave the *mask of allowed motion* out.")
        if bodies and DECODERS[self.decoder.get()] != "basis":
            errors.append("Rigid bodies are a decoder of their own: leave the *decoder* at basis.")
        if bodies and REGULARISATIONS[self.regularisation.get()] == "dynamic":
            errors.append("Rigid bodies keep all distances: leave the *regularisation* at fixed.")
        return errors

    def _checkPrevious(self):
        model = self.previousModel.get()
        if model is None:
            return ["Give the *previous model* to continue from, or do not continue a previous run."]
        missing = model.getMissingFiles()
        if missing:
            return [f"{len(missing)} files of the previous model are not there, e.g. {missing[0]}: bring them back."]
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
            return ["Nothing has been estimated yet."] + self._readNotes()
        model = self.outputModel
        summary = model.loadSummary()
        lines = [
            f"*{model.getVerdictSentence()}*",
            f"Motion: {model.getMotionRms():.2f} Å rms, with an estimated error of {model.getMotionError():.2f} Å.",
            f"Share of the motion in each principal motion: {describeShares(summary['motion_shares'])}.",
            f"{model.getNumberOfParticles(1)} and {model.getNumberOfParticles(2)} particles in the half-sets"
            + (", which were drawn at random." if model.areHalfSetsRandom() else "."),
        ]
        lines += [f"Note: {warning}." for warning in summary["warnings"]]
        return lines + self._readNotes()

    def _readNotes(self):
        """Return what was changed when the input was converted."""
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

    def _citations(self):
        return ["Schwab2024"]


def describeShares(shares):
    """Return the shares (of 1) of the principal motions in words, small ones together."""
    large = [f"{100 * share:.0f} %" for share in shares if share >= 0.01]
    small = len(shares) - len(large)
    return ", ".join(large + [f"less than 1 % in each of {small} more"] * bool(small))


def _readText(path):
    with open(path) as file:
        return file.read()
