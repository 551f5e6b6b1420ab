"""Options of training: what a run works on, and how deformations are learned."""

import os
import re
from dataclasses import dataclass, replace

from dynamight_core.errors import InputError
from dynamight_core.options.common import batch_size, device, origin, seed, threads
from dynamight_core.options.declare import Checked, basic, option, paper
from dynamight_core.options.presets import LABELS
from dynamight_core.registry import DECODERS, LOSS_TERMS

HALVES = ("independent", "joint")
PARTICLES = "Particles with poses and CTFs: STAR file of RELION 3.0 to 5, Warp or M, or .cs file of cryoSPARC."
NORMALISATIONS = {"image": "each image", "set": "the whole set", "none": "none"}
FINAL_LATENTS = {"inferred": "inferred", "encoder": "mean of the encoder (paper)"}
STORAGES = {"auto": "auto", "memory": "memory", "device": "GPU", "file": "file"}


@dataclass
class InputOptions(Checked):
    """What a run works on, and how its images are prepared."""

    star: str = basic("", PARTICLES, group="Input")
    map: str = basic("", "Consensus map of the particles (.mrc), same box and pixel size.", metavar="FILE")
    half_maps: list[str] | None = basic(
        None,
        "Two half-maps of the consensus; each half-set is initialised from its own.",
        words=(2, 2),
        metavar="MAP1 MAP2",
    )
    mask: str | None = basic(
        None, "Soft mask of the flexible region, 0 to 1. Motion is allowed everywhere if omitted.", metavar="FILE"
    )
    bodies: list[str] | None = option(
        None,
        "Masks of two or more rigid bodies, which move instead of a free deformation.",
        words=(2, None),
        metavar="MASK...",
    )
    start_from: str | None = basic(
        None, "Finished run of the same particles; its models initialise this run instead of the map.", metavar="RUN"
    )
    atomic_model: str | None = option(
        None,
        "PDB or mmCIF file that defines the Gaussians and distance restraints. Biases the map.",
        group="Atomic model",
        metavar="FILE",
    )
    fit: bool = option(
        False,
        "Fit the atomic model to the map as a rigid body, close to its current position.",
        label="Fit the atomic model to the map?",
    )
    origin: str = origin()
    project: str | None = option(
        None,
        "Folder that image paths of the particles are relative to. Found automatically if omitted.",
        group="Input",
        metavar="FOLDER",
    )
    passthrough: list[str] = option(
        [],
        "Passthrough file of a .cs file; repeat for more. Found beside the .cs file if omitted.",
        more="It has the fields that cryoSPARC's job did not change, for the same particles.",
        metavar="FILE",
    )
    symmetry: str | None = option(
        None,
        "Point group of the consensus (C3, D2, T, O, I): each image is used in all equivalent poses.",
        more="The copies of an image stay in one half-set. Combine it with --mask on one subunit, whose motion is then "
        "found in every copy. Axes are where RELION has them.",
        metavar="GROUP",
    )
    tomograms: str | None = option(
        None,
        "Tomograms file (tomograms.star) of particles that are 2D stacks of tilt series. Found beside them if omitted.",
        more="An optimisation set of RELION, given in the place of the particles, names it too.",
        group="Tilt series",
        metavar="FILE",
    )
    max_tilts: int | None = option(
        None,
        "Use this number of images of each particle of a tilt series, those of least exposure. All if omitted.",
        at_least=1,
    )
    max_exposure: float | None = option(
        None,
        "Use images of tilt series up to this exposure before the image. All if omitted.",
        unit="e/A^2",
        at_least=0,
    )
    dose_weighting: bool = option(
        True,
        "Let the signal of tilt series fade with exposure (critical exposure of Grant and Grigorieff).",
        more="RELION and WarpTools multiply 2D stacks by the same weights.",
    )
    particle_diameter: float | None = basic(
        None,
        "Diameter of the particle. 90 % of the box if omitted.",
        more="Choose a circle that contains the particle in every conformation. The noise is measured outside it.",
        label="Particle diameter",
        unit="A",
        group="Images",
        above=0,
    )
    relative_distance: float | None = option(
        None,
        "Draw picks closer than this into one half-set together. 0.3 of the particle diameter if omitted; 0 is off.",
        more="The same holds for validation particles. Segments of one helical tube, and images made from one original "
        "image, always stay together.",
        label="Distance of relatives",
        unit="A",
        at_least=0,
    )
    working_box: int | None = option(
        None,
        "Fourier-crop images to this box for training. Follows from the Gaussian spacing if omitted.",
        more="The Gaussians cannot explain finer detail. Maps keep the full box.",
        label="Working box",
        unit="px",
        # Smaller images have no frequencies left that the encoder or a Gaussian could see.
        at_least=16,
        even=True,
    )
    full_box: bool = paper(
        False, "Train on images of the full box, as in the published program.", label="Train on images of the full box?"
    )
    invert_contrast: bool = basic(
        False,
        "Invert the contrast of the images (particles are dark).",
        more="Training expects white particles, and stops if the images correlate negatively with the map.",
        label="Invert contrast (particles are dark)?",
    )
    premultiplied: bool | None = option(
        None,
        "Images were premultiplied by the CTF. Read from the STAR file if omitted.",
        more="RELION records this in the optics table.",
        label="Were images premultiplied by the CTF?",
    )
    normalise: str = option(
        "image",
        "Normalise the noise of each image by itself, of the whole set by the same factors, or not at all.",
        more="The noise is measured outside the particle diameter.",
        label="Normalise the noise of",
        choices=NORMALISATIONS,
    )
    storage: str = option(
        "auto",
        "Where to keep prepared images: memory, device (the GPU), file (in the run), or auto (by their size).",
        label="Keep images in",
        choices=STORAGES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.full_box and self.working_box is not None:
            raise InputError("--full-box and --working-box contradict each other; omit one of them")
        if self.fit and self.atomic_model is None:
            raise InputError("--fit is for an atomic model; give --atomic-model as well")

    def absolute(self) -> "InputOptions":
        """Return the options with absolute paths: later stages read the files again, from whatever folder."""
        single = "star map mask project tomograms start_from atomic_model".split()
        paths = {name: value and os.path.abspath(value) for name in single for value in [getattr(self, name)]}
        for name in ("half_maps", "bodies", "passthrough"):
            paths[name] = getattr(self, name) and [os.path.abspath(value) for value in getattr(self, name)]
        return replace(self, **paths)


@dataclass
class TrainOptions(Checked):
    """How deformations are learned."""

    preset: str = basic(
        "default",
        "Named set of options: default, or paper (the published method). Options that you set override it.",
        more="Later stages follow the preset of the run. dynamight train --show-preset NAME prints its options.",
        label="Preset",
        choices=LABELS,
    )
    n_gaussians: int = basic(
        10000,
        "Number of Gaussians in each half-set's model; use 1 or 2 per residue.",
        more="Memory and time grow in proportion.",
        label="Number of Gaussians",
        group="Gaussian model",
        at_least=50,
    )
    width_classes: int = option(
        1, "Number of classes of Gaussians, each with its own width.", label="Number of width classes", at_least=1
    )
    threshold: float | None = basic(
        None,
        "Threshold of the low-pass filtered consensus map (map units). Chosen automatically if omitted.",
        more="Gaussians fill the map above this value. The automatic choice keeps weak, flexible density and excludes "
        "solvent.",
        label="Map threshold",
    )
    threshold_resolution: float = paper(
        15.0,
        "Low-pass filter of the map for the threshold; 0 thresholds the map as given (paper).",
        more="Weak, flexible density still exceeds the noise at 15 A.",
        label="Low-pass filter for the threshold",
        unit="A",
        at_least=0,
    )
    threshold_percentile: float | None = paper(
        None,
        "Set the automatic threshold to this percentile of the voxels (99 in the published program).",
        more="If omitted, it follows from the noise of the solvent and the strongest density.",
        label="Percentile for the threshold",
        unit="%",
        above=0,
        below=100,
    )
    initial_resolution: float = option(
        12.0,
        "Low-pass filter of the initial map; 0 is no filter.",
        more="It keeps the half-sets independent where both are initialised from the same map.",
        label="Initial low-pass filter",
        unit="A",
        at_least=0,
    )
    n_latents: int = basic(
        6,
        "Number of latent dimensions; at least the number of independent motions.",
        label="Latent dimensions",
        group="Motion",
        at_least=1,
    )
    decoder: str = option(
        "basis",
        "Deformation model: basis (learned deformation fields) or coordinate (the paper's coordinate network, slower)."
        + DECODERS.help,
        label="Decoder",
        choices=DECODERS,
    )
    decoder_layers: int | None = paper(
        None,
        "Layers of the decoder: 8 in the coordinate network, 3 for the deformation fields if omitted.",
        label="Layers of the decoder",
        group="Networks",
        at_least=2,
    )
    decoder_width: int | None = paper(
        None,
        "Neurons in a layer of the decoder: 32 in the coordinate network, 64 for the deformation fields if omitted.",
        label="Width of the decoder",
        at_least=1,
    )
    encoder_width: int = paper(
        256, "Neurons in the first layer of the encoder; the second has half.", label="Width of the encoder", at_least=2
    )
    encoder_pooling: int = paper(
        2,
        "Average the input of the encoder over N x N pixels; 1 is the full image (paper).",
        label="Pooling of the encoder's input",
        at_least=1,
        at_most=8,
    )
    box_units: bool = paper(
        False,
        "Let Gaussians, and the coordinate network, count in widths of the box, as in the published program.",
        more="Their learning rates are then in this unit.",
        label="Count in widths of the box?",
    )
    regularisation: str = option(
        "fixed",
        "Weight of the distance restraints: fixed (the stiffness), or dynamic (gradient ratio, as in the paper).",
        more="The restraints keep neighbouring Gaussians at their distance.",
        label="Regularisation",
        group="Restraints",
        choices={"fixed": "fixed weight", "dynamic": "gradient ratio (paper)"},
    )
    stiffness: float = basic(
        30.0,
        "Weight of distance and repulsion restraints if fixed; reduced for weak signal and for many particles.",
        more="The weight is relative to the log-likelihood of one particle. Increase it if motion looks torn, "
        "decrease it if motion looks too small.",
        label="Stiffness",
        unit="1/A^2",
        at_least=0,
    )
    regularisation_ratio: float = paper(
        0.9,
        "Gradient norm of the restraints relative to the data with dynamic regularisation.",
        label="Regularisation ratio",
        at_least=0,
    )
    rigidity: float = option(
        10.0,
        "Weight of restraints on distances up to 25 A within rigid-body domains. 0 is off.",
        more="It is reduced together with the stiffness for weak signal.",
        label="Rigidity",
        unit="1/A^2",
        at_least=0,
    )
    sparse_motion: float = option(
        0.0,
        "Weight of a penalty on the mean displacement, which favours molecules that are mostly at rest. 0 is off.",
        more="It increases to its full value in the second third of the epochs.",
        label="Sparse motion",
        unit="1/A",
        at_least=0,
    )
    loss_weights: str | None = option(
        None,
        "Weights of loss terms that other packages add: NAME=VALUE, separated by commas." + LOSS_TERMS.help,
        label="Weights of added loss terms" if LOSS_TERMS else "",
        metavar="TERMS",
    )
    epochs: int = basic(
        30,
        "Number of epochs after the warm-up.",
        more="Every epoch uses each particle once.",
        label="Epochs",
        group="Training",
        at_least=1,
    )
    warm_up_epochs: int = option(
        3,
        "Initial epochs that fit the Gaussians to the images without deformation.",
        label="Warm-up epochs",
        group="Schedule",
        at_least=0,
    )
    encoder_epochs: int = paper(
        0,
        "First epochs after the warm-up that train encoder and decoder together (paper). 0 initialises from a linear "
        "motion estimate.",
        more="In later epochs, latents are inferred.",
        label="Encoder epochs",
        at_least=0,
    )
    latent_refinement: bool = paper(
        True,
        "Infer each particle's latent with the decoder fixed; otherwise train the encoder in all epochs (paper).",
        label="Infer latents?",
    )
    final_latents: str = paper(
        "inferred",
        "Final latent of each particle: inferred with the decoder fixed, or the mean of the encoder (paper).",
        label="Final latents",
        choices=FINAL_LATENTS,
    )
    inference_interval: int = option(
        2, "Epochs between two rounds of latent inference.", label="Epochs between inferences", at_least=1
    )
    batch_size: int = batch_size(128, "Small sets use smaller batches, so that each epoch has at least 8.", "Training")
    learning_rate: float = option(
        5e-3, "Learning rate of the decoder (Adam).", label="Decoder", group="Learning rates", above=0
    )
    encoder_learning_rate: float = paper(1e-3, "Learning rate of the encoder (Adam).", label="Encoder", above=0)
    gaussian_learning_rate: float = option(
        0.1,
        "Learning rate of the Gaussian positions (Adam), A; widths of the box with --box-units.",
        label="Gaussian positions",
        above=0,
    )
    width_learning_rate: float = paper(
        5e-3,
        "Learning rate of widths and amplitudes (Adam), as a fraction of their value.",
        label="Widths and amplitudes",
        above=0,
    )
    weight_decay: float = paper(0.0, "Weight decay of the decoder (Adam).", label="Weight decay", at_least=0)
    kl_weight: float = paper(
        0.03,
        "Weight of the Kullback-Leibler term in encoder epochs; 1 is the full evidence lower bound.",
        label="KL weight",
        group="Schedule",
        at_least=0,
    )
    motion_resolution: float | None = option(
        None,
        "Low-pass filter of the images during training; 0 is no filter. Chosen automatically if omitted.",
        more="Fine detail carries no information on a motion until the motion is nearly known. The automatic filter "
        "is where the images show most motion, and weaker in the last third of the epochs. There is none with encoder "
        "epochs; a run initialised from another keeps its last filter.",
        label="Low-pass filter during training",
        unit="A",
        group="Motion",
        at_least=0,
    )
    gaussian_amplitudes: bool = option(
        True,
        "Give each Gaussian its own amplitude; the paper has one for all.",
        more="All particles share these amplitudes, so that motion cannot appear as vanishing density.",
        label="Individual amplitude for each Gaussian?",
        group="Gaussian model",
    )
    refits: int = option(
        3,
        "Number of Gaussian refits to the half-set's own motion-corrected map during training.",
        more="The initial map is blurred by the motion.",
        label="Number of Gaussian refits",
        at_least=0,
    )
    refit_resolution: float = option(
        9.0, "Low-pass filter of the map for Gaussian refits.", label="Low-pass filter for refits", unit="A", above=0
    )
    large_motions: bool = option(
        True,
        "Follow large motions from neighbour to neighbour in latent space, and initialise the deformations again.",
        more="Only where regions move far, and if held-out particles are better explained.",
        label="Follow large motions?",
        group="Schedule",
    )
    rigid_parts: bool = option(
        True,
        "Replace the deformation field by rigid bodies that training finds.",
        more="Only where parts of the molecule move as one, and if held-out particles are explained as well.",
        label="Look for rigid parts?",
        group="Schedule",
    )
    reference_interval: int = option(
        12,
        "Epochs between two updates of the reference conformation.",
        label="Epochs between reference updates",
        group="Schedule",
        at_least=1,
    )
    reference_epochs: int = option(
        2,
        "Epochs of a reference update, in which only the Gaussians move.",
        label="Epochs per reference update",
        at_least=0,
    )
    reference_predictions: int = paper(
        100,
        "Predictions with the smallest displacement whose mean is the new reference; 1 in the paper.",
        more="At most a tenth of the particles.",
        label="Predictions per reference update",
        at_least=1,
    )
    stop_after_rises: int = option(
        40,
        "Stop after this many epochs with a higher data loss than the epoch before.",
        more="The loss is of the same images in the same units in all epochs.",
        label="Stop after rises of the loss",
        at_least=1,
    )
    validation_fraction: float = option(
        0.1,
        "Fraction of each half-set held out from training the decoder, for validation.",
        more="These particles show whether the images support the motion.",
        label="Validation fraction",
        group="Training",
        above=0,
        below=0.5,
    )
    validation_trains_encoders: bool = paper(
        False,
        "Let validation particles of both half-sets train both encoders (paper).",
        more="They are then no longer independent of the encoders.",
        label="Train encoders on validation particles (paper)?",
        group="Schedule",
    )
    halves: str = paper(
        "independent",
        "Train one model on both half-sets (joint) as a control only: the resolution of its map is overestimated.",
        more="It measures by how much.",
        choices=HALVES,
    )
    refine_poses: bool = option(
        False,
        "Refine orientations and shifts against the model; the refined poses are written out.",
        more="Refined poses also follow errors of the model.",
        label="Refine poses?",
        group="Motion",
    )
    n_motions: int = option(
        6,
        "Number of principal motions to keep, largest first.",
        more="The half-sets share these motions. Coordinates along them become the zFlex of the particles in Scipion.",
        label="Principal motions",
        at_least=1,
    )
    seed: int = seed()
    device: str = device()
    threads: int | None = threads()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.added_losses()

    def added_losses(self) -> dict[str, float]:
        """Return the weights of added loss terms by name.

        Raises
        ------
        InputError
            if a word is not NAME=VALUE with a number of zero or more.
        """
        found = {}
        for word in filter(None, (self.loss_weights or "").split(",")):
            match = re.fullmatch(r"\s*(\w+)=(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*", word)
            if match is None:
                raise InputError(f"--loss-weights has '{word}'; give NAME=VALUE with a number of zero or more")
            found[match[1]] = float(match[2])
        return found
