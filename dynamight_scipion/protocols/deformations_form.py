"""The form of 'estimate deformations'."""

import pyworkflow.protocol.params as params
from pyworkflow.protocol.constants import LEVEL_ADVANCED

from .particles import MOTIONS
from .protocol_base import EngineProtocol, readOptions


class DeformationsForm(EngineProtocol):
    """Parameters of 'estimate deformations', in their sections."""

    _stages = ("input", "train", "analyse")
    _optionNames = {"nEpochs": "train/epochs", "fitStructure": "input/fit", "structureOrigin": "input/origin"}

    def _defineParams(self, form):
        self._defineGpuParams(form)
        self._defineInputParams(form)
        self._defineGaussianParams(form)
        self._defineMotionParams(form)
        self._defineTrainingParams(form)
        self._defineScheduleParams(form)
        self._defineThreadParams(form, processes=True)

    def _defineInputParams(self, form):
        form.addSection(label="Input")
        self.addOption(form, "preset", more="Parameters that keep their defaults follow the preset.")
        form.addParam(
            "inputParticles",
            params.PointerParam,
            pointerClass="SetOfParticles",
            pointerCondition="hasAlignmentProj",
            important=True,
            label="Particles",
            help="Particles of a 3D refinement, with CTFs and half-sets (rlnRandomSubset). They should be unmasked, "
            "not CTF-corrected, and of one composition. Without half-sets they are split at random, and resolutions "
            "are too optimistic.",
        )
        form.addParam(
            "inputVolume",
            params.PointerParam,
            pointerClass="Volume",
            important=True,
            label="Consensus map",
            help="Unsharpened map of the refinement of these particles. With half-maps, each half-set is initialised "
            "from its own; otherwise both are initialised from the map after a low-pass filter. A map with another "
            "box or sampling rate is resampled.",
        )
        form.addParam(
            "inputMask",
            params.PointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            label="Mask of the flexible region (optional)",
            help="Motion is allowed where the mask is 1, and not where it is 0; use a soft edge. Motion is allowed "
            "everywhere if omitted. Include the solvent around a moving part: this is not a mask of the molecule.",
        )
        self.addOptions(form, "particleDiameter", "invertContrast")
        form.addParam(
            "opticsStar",
            params.FileParam,
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Optics groups from (optional)",
            help="RELION STAR file that the particles were imported from. Scipion's import keeps only one optics group "
            "and drops rlnNormCorrection; both are read from this file, by image name.",
        )
        group = form.addGroup("Images", expertLevel=LEVEL_ADVANCED)
        self.addOptions(group, "premultiplied", "normalise", "relativeDistance", "workingBox", "fullBox", "storage")

    def _defineGaussianParams(self, form):
        form.addSection(label="Gaussian model")
        self.addOption(form, "nGaussians")
        form.addParam(
            "inputStructure",
            params.PointerParam,
            pointerClass="AtomStruct",
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Atomic model (optional)",
            help="Its atoms, coarse-grained, become the Gaussians of both half-sets, and its bonds the distance "
            "restraints. The number of Gaussians and the threshold are then ignored. Fit the model to the consensus "
            "map first.\n*Model bias: both half-sets share the model, so maps can show features of it that the images "
            "do not support. The FSC between half-maps cannot reveal them.* Run the control experiment 'wrong model' "
            "before you interpret the maps.",
        )
        self.addOption(form, "fitStructure")
        # The map's header has an origin of its own; the plugin rewrites the map.
        self.addOption(form, "structureOrigin", without=("map",))
        self.addOptions(form, "threshold", "thresholdResolution", "thresholdPercentile", "initialResolution")
        self.addOptions(form, "widthClasses", "gaussianAmplitudes", "refits")
        self.addOption(form, "refitResolution", condition="refits>0")

    def _defineMotionParams(self, form):
        form.addSection(label="Motion")
        self.addOptions(form, "nLatents", "nMotions", "motionResolution", "regularisation")
        self.addOption(form, "stiffness", condition="regularisation==0")
        self.addOption(form, "regularisationRatio", condition="regularisation==1")
        self.addOptions(form, "rigidity", "sparseMotion")
        form.addParam(
            "zFlexFrom",
            params.EnumParam,
            choices=["principal motions", "latents of half-set 1", "latents of half-set 2"],
            default=MOTIONS,
            expertLevel=LEVEL_ADVANCED,
            label="zFlex of the particles",
            help="Coordinates of the particles (zFlex), for protocols of other plugins. *Principal motions* are in "
            "Å rms and the same for both half-sets. *Latents* are numbers of the decoder of one half-set, under which "
            "all particles have one. Both kinds of latents are attributes of the particles in any case.",
        )
        if "label" in readOptions()["train"]["loss-weights"]:
            # Another package has added a term.
            self.addOption(form, "lossWeights")
        # Bodies are chosen by their masks.
        self.addOption(form, "decoder", without=("bodies",))
        group = form.addGroup("Networks", expertLevel=LEVEL_ADVANCED)
        self.addOptions(group, "decoderLayers", "decoderWidth", "encoderWidth", "encoderPooling", "boxUnits")
        form.addParam(
            "inputBodies",
            params.MultiPointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            expertLevel=LEVEL_ADVANCED,
            label="Masks of rigid bodies (optional)",
            help="Two or more masks that divide the molecule. Each part rotates and shifts as one, with soft joints, "
            "instead of a free deformation. Fewer parameters suit few or noisy particles, but *motion within a body "
            "cannot be seen*. The analysis of an earlier run proposes such masks (extra/run/analysis/domains).",
        )

    def _defineTrainingParams(self, form):
        form.addSection(label="Training")
        form.addParam(
            "doContinue",
            params.BooleanParam,
            default=False,
            label="Start from a previous model?",
            help="Initialise training with the models of a finished run of the same particles. To resume an "
            "interrupted run, continue its protocol instead.",
        )
        form.addParam(
            "previousModel",
            params.PointerParam,
            pointerClass="DynamightModel",
            condition="doContinue",
            allowsNull=True,
            label="Previous model",
            help="Model of the finished run: same particles, map, and numbers of Gaussians and latent dimensions.",
        )
        self.addOptions(form, "batchSize", "validationFraction", "refinePoses", "seed")
        self.addOption(form, "embedding", without=("umap",), expertLevel=LEVEL_ADVANCED)
        group = form.addGroup("Learning rates", expertLevel=LEVEL_ADVANCED)
        self.addOptions(
            group, "learningRate", "encoderLearningRate", "gaussianLearningRate", "widthLearningRate", "weightDecay"
        )

    def _defineScheduleParams(self, form):
        # A tab of its own: with those of training, advanced options are too many for the screen of a laptop.
        form.addSection(label="Schedule")
        self.addOptions(form, "nEpochs", "warmUpEpochs", "latentRefinement", "finalLatents")
        self.addOption(form, "encoderEpochs", condition="latentRefinement")
        self.addOption(form, "klWeight", condition="encoderEpochs>0 or not latentRefinement")
        self.addOption(form, "inferenceInterval", condition="latentRefinement")
        self.addOption(form, "largeMotions", condition="latentRefinement")
        self.addOption(form, "rigidParts", condition="latentRefinement")
        self.addOptions(form, "referenceInterval", "referenceEpochs", "referencePredictions")
        self.addOptions(form, "stopAfterRises", "validationTrainsEncoders")
