"""The options of every stage: one dataclass a stage, the same words on the command line and in Scipion.

They are saved with each run in ``config.yaml`` and read back from there.
"""

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import yaml

from dynamight_core.errors import InputError, option_name

DECODERS = ("basis", "coordinate", "bodies")
REGULARISATIONS = ("fixed", "dynamic")
NORMALISATIONS = ("image", "set", "none")
STORAGES = ("auto", "device", "memory", "file")
# Smaller images have no frequencies left that the encoder or a Gaussian could see.
_LEAST_BOX = 16


@dataclass
class InputOptions:
    """What a run works on, and how its images are prepared.

    Parameters
    ----------
    star
        particles.
    map
        consensus map.
    half_maps
        two half-maps of the consensus, or none.
    mask
        where motion is allowed; everywhere if None.
    bodies
        masks of the rigid bodies that the molecule consists of, two or more; a free deformation if None.
    start_from
        finished run of the same particles whose models training starts from; from the map if None.
    atomic_model
        PDB or mmCIF file of the molecule, coarse-grained to the Gaussians of both halves; from the map if None.
    fit
        whether the atomic model is fitted to the map as a rigid body, near where it is.
    origin
        where the atomic model's coordinates are zero: see structures.zero_of_coordinates.
    project
        folder that image paths in the STAR are relative to, if not the STAR's own or one of its parents.
    particle_diameter
        A; 0.9 of the box if None.
    working_box
        pixels that images are Fourier-cropped to for training; chosen by the Gaussians' width if None.
    invert_contrast
        whether particles are dark.
    premultiplied
        whether images were multiplied by the CTF; as the STAR says if None.
    normalise
        "image", "set" or "none": see particles.preprocess.
    storage
        of prepared images: "auto", "memory", "device" or "file".
    """

    star: str = ""
    map: str = ""
    half_maps: list[str] | None = None
    mask: str | None = None
    bodies: list[str] | None = None
    start_from: str | None = None
    atomic_model: str | None = None
    fit: bool = False
    origin: str = "auto"
    project: str | None = None
    particle_diameter: float | None = None
    working_box: int | None = None
    invert_contrast: bool = False
    premultiplied: bool | None = None
    normalise: str = "image"
    storage: str = "auto"

    def __post_init__(self):
        _choice("normalise", self.normalise, NORMALISATIONS)
        _choice("storage", self.storage, STORAGES)
        if self.particle_diameter is not None and not self.particle_diameter > 0:
            raise InputError(f"--particle-diameter is {self.particle_diameter}; give a positive number of A")
        if self.working_box is not None and (self.working_box < _LEAST_BOX or self.working_box % 2):
            raise InputError(f"--working-box is {self.working_box}; give an even number from {_LEAST_BOX} up")
        if self.fit and self.atomic_model is None:
            raise InputError("--fit is for an atomic model; give --atomic-model as well")

    def absolute(self) -> "InputOptions":
        """Return the options with absolute paths: later stages read the files again, from whatever folder."""

        def path(value: str | None) -> str | None:
            return value and os.path.abspath(value)

        return replace(
            self,
            star=path(self.star),
            map=path(self.map),
            mask=path(self.mask),
            project=path(self.project),
            start_from=path(self.start_from),
            atomic_model=path(self.atomic_model),
            half_maps=self.half_maps and [path(value) for value in self.half_maps],
            bodies=self.bodies and [path(value) for value in self.bodies],
        )


@dataclass
class TrainOptions:
    """How deformations are learned.

    Parameters
    ----------
    n_gaussians, width_classes
        of the pseudo-atom model of each half.
    threshold
        of the consensus map, low-passed at 15 A, map units; automatic if None.
    initial_resolution
        A; low-pass filter of the start maps, and so what both halves share where they start from one.
    n_latents
        dimensions of the latent space.
    decoder
        "basis" or "coordinate"; "bodies" where there are `InputOptions.bodies`.
    epochs
        in all, after the warm-up.
    warm_up_epochs
        in which the Gaussians are fitted to the images without deformation.
    encoder_epochs
        of the epochs that train encoder and decoder together (the paper's way); in those after, each particle's
        latent is inferred with the decoder as it is and refined as it changes. Without any, decoder and latents start
        from the motions that the images show to first order.
    latent_refinement
        False makes all epochs encoder epochs.
    inference_interval
        epochs between two rounds of latent inference.
    batch_size, learning_rate, encoder_learning_rate, gaussian_learning_rate
        of Adam; the last in A a step. Batches are smaller where an epoch would have fewer than 8.
    kl_weight
        of the Kullback-Leibler term in encoder epochs, 1 being the full evidence bound.
    motion_resolution
        A; filter of the images while motion is learned and latents are inferred, their weight there 1/e; 0 is none. If
        None, the one at which the images show most motion to first order, and 0.7 of it in the last third of the
        epochs; with encoder epochs none. A run that starts from another's models keeps their last one.
    regularisation
        "fixed": the weight of R_d + R_r is `stiffness` (1/A^2, against the log-likelihood of one particle), or less
        where images tell so little that it would freeze the motions that they show;
        "dynamic": the paper's lambda, `regularisation_ratio` times the ratio of gradient norms.
    rigidity
        weight (1/A^2, per particle) of keeping distances up to 25 A in parts that move as one; less where that of
        `stiffness` is.
    sparse_motion
        weight (1/A) of the mean displacement magnitude, ramped in over the second third of the epochs.
    gaussian_amplitudes
        whether each Gaussian has an amplitude of its own, shared by all particles.
    refits, refit_resolution
        how often in the refinement epochs the Gaussians are filled anew into the half's own deformed map, and the
        filter of that map, A.
    reference_interval, reference_epochs
        every so many epochs, so many in which only the Gaussians move and the reference is updated; and as many at the
        end.
    stop_after_rises
        stop when an epoch's data loss has risen over the one before so many times in all.
    validation_fraction
        of the particles of each half that train no decoder.
    validation_trains_encoders
        the paper's way; by default they train nothing.
    refine_poses
        whether orientations and shifts follow the images; the change is written out.
    n_motions
        principal motions kept.
    seed, device, threads
        of the run.
    """

    n_gaussians: int = 10000
    width_classes: int = 1
    threshold: float | None = None
    initial_resolution: float = 12.0
    n_latents: int = 6
    decoder: str = "basis"
    epochs: int = 18
    warm_up_epochs: int = 3
    encoder_epochs: int = 0
    latent_refinement: bool = True
    inference_interval: int = 2
    batch_size: int = 128
    learning_rate: float = 5e-3
    encoder_learning_rate: float = 1e-3
    gaussian_learning_rate: float = 0.1
    kl_weight: float = 0.03
    motion_resolution: float | None = None
    regularisation: str = "fixed"
    stiffness: float = 30.0
    regularisation_ratio: float = 0.9
    rigidity: float = 10.0
    sparse_motion: float = 0.0
    gaussian_amplitudes: bool = True
    refits: int = 3
    refit_resolution: float = 9.0
    reference_interval: int = 12
    reference_epochs: int = 2
    stop_after_rises: int = 40
    validation_fraction: float = 0.1
    validation_trains_encoders: bool = False
    refine_poses: bool = False
    n_motions: int = 6
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self):
        positive = (
            "n_gaussians width_classes n_latents batch_size epochs inference_interval reference_interval "
            "stop_after_rises n_motions initial_resolution learning_rate encoder_learning_rate "
            "gaussian_learning_rate refit_resolution"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise InputError(f"{option_name(name)} is {getattr(self, name)}; give a positive number")
        not_negative = (
            "warm_up_epochs encoder_epochs refits reference_epochs kl_weight stiffness rigidity sparse_motion "
            "regularisation_ratio"
        )
        for name in not_negative.split():
            if not getattr(self, name) >= 0:
                raise InputError(f"{option_name(name)} is {getattr(self, name)}; give zero or a positive number")
        if self.motion_resolution is not None and not self.motion_resolution >= 0:
            raise InputError(
                f"--motion-resolution is {self.motion_resolution}; give a positive number of A, or 0 for no filter"
            )
        _choice("decoder", self.decoder, DECODERS)
        _choice("regularisation", self.regularisation, REGULARISATIONS)
        if not 0 < self.validation_fraction < 0.5:
            raise InputError(f"--validation-fraction is {self.validation_fraction}; give a fraction between 0 and 0.5")
        if self.n_gaussians < 50:
            raise InputError(f"--n-gaussians is {self.n_gaussians}; give at least 50, 1 or 2 per residue")


@dataclass
class RunConfig:
    """Everything that config.yaml holds: the options of each stage, and where they came from.

    Parameters
    ----------
    inputs, train
        options as used.
    provenance
        versions, command lines by stage, checksum of the input STAR.
    stages
        options of later stages by name, as used.
    """

    inputs: InputOptions = field(default_factory=InputOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    provenance: dict = field(default_factory=dict)
    stages: dict = field(default_factory=dict)

    def write(self, run: Path) -> None:
        """Write ``run/config.yaml``."""
        # Here, since it brings NumPy: the options alone are what help needs.
        from dynamight_core.files import atomic_path

        with atomic_path(Path(run) / "config.yaml") as path:
            path.write_text(yaml.safe_dump(asdict(self), sort_keys=False))

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        """Read ``run/config.yaml``.

        Raises
        ------
        InputError
            if the folder holds no run, or a file of other options.
        """
        path = Path(run) / "config.yaml"
        if not path.exists():
            raise InputError(f"{run} holds no run (no config.yaml); give the folder that dynamight train wrote")
        try:
            values = yaml.safe_load(path.read_text())
            _relocate(values["inputs"], values["provenance"].get("run"), Path(run))
            return cls(
                InputOptions(**values["inputs"]),
                TrainOptions(**values["train"]),
                values["provenance"],
                values["stages"],
            )
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise InputError(f"{path} cannot be understood ({error}); train again into a new folder") from error


def _relocate(inputs: dict, before: str | None, run: Path) -> None:
    """Follow a run that was moved together with its inputs: replace paths that are gone by those beside it.

    Parameters
    ----------
    inputs
        values of `InputOptions`, changed in place.
    before
        folder of the run when it was trained.
    run
        where it is now, or a folder of links to its files.
    """
    if before is None:
        return
    folders = [run.absolute(), Path(os.path.realpath(run / "latents.safetensors")).parent]

    def found(path: str | None) -> str | None:
        if path is None or os.path.exists(path):
            return path
        moved = [os.path.normpath(folder / os.path.relpath(path, before)) for folder in folders]
        return next(filter(os.path.exists, moved), path)

    # Runs that were trained before there was an option do without it.
    for name in inputs.keys() & {"star", "map", "mask", "atomic_model", "project"}:
        inputs[name] = found(inputs[name])
    for name in ("half_maps", "bodies"):
        inputs[name] = inputs.get(name) and [found(path) for path in inputs[name]]


def changed_options(old, new) -> list[str]:
    """Return the names of the fields in which two option dataclasses differ."""
    return [f.name for f in fields(old) if getattr(old, f.name) != getattr(new, f.name)]


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{option_name(name)} is '{value}'; choose one of {', '.join(choices)}")
