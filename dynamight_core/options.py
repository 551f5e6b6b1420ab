"""The options of every stage but training, one dataclass a stage; their docstrings are the command line's help."""

from dataclasses import dataclass, field

HALVES = ("1", "2", "both")
METHODS = ("auto", "wbp", "cg")
CONTROLS = ("shuffled-latents", "noise-particles", "held-out", "wrong-model")


@dataclass
class SimulateOptions:
    """Options of `simulate`; lengths in A, angles in degrees.

    Parameters
    ----------
    molecule
        "hinge", "two-hinges", "igg", or the path of a PDB or mmCIF file.
    particles
        number of images.
    box, pixel_size
        of the images, pixels and A; 4 A suits igg.
    snr
        variance of the projections before the CTF, inside the particle disc, over the noise variance.
    motion_range
        the domain turns by at most this to either side; 0 is rigid, 180 a full turn. Left out: 40 for igg, else 20.
    angle_distribution
        "uniform", or "two-peaks" at +-0.6 of the range.
    defocus_min, defocus_max
        A, underfocus, for uniform defoci.
    shifts
        A, largest origin offset in x and y.
    noise
        "white", or "coloured" as measured in ice (EMPIAR-10076).
    views
        "uniform" over the sphere, or "measured" (EMPIAR-10180).
    cone
        uniform views lie within this angle of one axis, or against it; 90 is the whole sphere.
    defoci
        "uniform" in the range with little astigmatism, or "measured" (EMPIAR-10180).
    optics_groups
        1 to 4 groups that differ in voltage, Cs and beam tilt.
    phase_shift
        each particle's phase shift is uniform between 0 and this.
    aberrations
        adds trefoil, tetrafoil and an anisotropic magnification.
    float16
        stores the images in half precision.
    particle_diameter
        of the disc of `snr`; left out: what holds the molecule in every conformation.
    selection, axis
        for a file: the atoms that move, and the two atoms of the axis (see `atomic_molecule`).
    seed
        the same seed gives the same files.
    threads
        CPU threads. All that the process may use if left out.
    """

    molecule: str = "hinge"
    particles: int = 2000
    box: int = 64
    pixel_size: float = 3.0
    snr: float = 0.5
    motion_range: float | None = None
    angle_distribution: str = "uniform"
    defocus_min: float = 5000.0
    defocus_max: float = 20000.0
    shifts: float = 6.0
    noise: str = "white"
    views: str = "uniform"
    cone: float = 90.0
    defoci: str = "uniform"
    optics_groups: int = 1
    phase_shift: float = 0.0
    aberrations: bool = False
    float16: bool = False
    particle_diameter: float | None = None
    selection: str | None = None
    axis: tuple[str, str] | None = None
    seed: int = 0
    threads: int | None = None


@dataclass
class InvertOptions:
    """How the inverse field is learned.

    Parameters
    ----------
    epochs
        Epochs of Adam.
    particles_per_epoch
        Random particles in each epoch.
    points_per_batch
        Random Gaussians in each step.
    batch_size
        Particles per step.
    learning_rate
        Adam's step at the start; it falls to a tenth along a half cosine.
    smoothness
        Weight of the smoothness term off the samples.
    seed
        Same seed, same machine, same numbers.
    device
        auto (a GPU if there is one), cpu, cuda, or the number of a GPU.
    threads
        CPU threads. All that the process may use if left out.
    """

    epochs: int = 200
    particles_per_epoch: int = 256
    points_per_batch: int = 256
    batch_size: int = 32
    learning_rate: float = 1e-2
    smoothness: float = 0.1
    seed: int = 0
    device: str = "auto"
    threads: int | None = None


@dataclass
class ReconstructOptions:
    """How maps are reconstructed.

    Parameters
    ----------
    method
        wbp (deformed weighted backprojection), cg (least squares by conjugate gradients), or auto: cg where directions
        of view are missing.
    through_inverse
        Deform through the inverse network, as the paper does; needs dynamight invert before.
    shrink
        Shrink each mode of motion to what held-out particles support of it, and use none if the verdict is that images
        do not support the motions; without, use them as they were learned.
    error_weights
        Weight particles by the error of their deformation (dynMotionError).
    conformation
        Frame of the map: reference (the consensus), particle:ROW (of particles.star, from 1), or latent:NUMBERS of
        half 1's decoder, separated by commas. The reference alone where no motion is used, see shrink.
    mask
        Mask of the FSC (.mrc, 0 to 1, soft edge). Made from the map if left out.
    regions
        Mask of a part of the molecule whose FSC is also taken; may be given several times.
    region_radius
        Voxels within this distance of the Gaussians deform (A); a soft edge as wide follows.
    regularisation
        Floor of the denominator, as a share of its mean in the shell. By the half-maps' signal-to-noise if left out.
    steps
        Steps of cg at most; it stops where held-out images are explained no better.
    b_factor
        B-factor of the sharpened map (A^2, negative sharpens). Estimated from the map if left out.
    local_resolution
        Also write a map of the local resolution.
    rigid
        Also reconstruct without deformation, by the same operator, into RUN/reconstruction/rigid.
    batch_size
        Particles at a time.
    seed
        Of the random phases in the FSC and of the choice of Fourier pixels held out.
    device
        auto (a GPU if there is one), cpu, cuda, or the number of a GPU.
    threads
        CPU threads. All that the process may use if left out.
    """

    method: str = "auto"
    through_inverse: bool = False
    shrink: bool = True
    error_weights: bool = False
    conformation: str = "reference"
    mask: str | None = None
    regions: list[str] = field(default_factory=list)
    region_radius: float = 10.0
    regularisation: float | None = None
    steps: int = 8
    b_factor: float | None = None
    local_resolution: bool = False
    rigid: bool = True
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"
    threads: int | None = None


@dataclass
class StatesOptions:
    """Which states are written; by default along the first motion.

    Parameters
    ----------
    motion
        Along this principal motion, from 1.
    n
        Number of states along a motion or between particles.
    percentiles
        Percentiles of the particles' coordinates at the first and last state.
    deviations
        Instead of percentiles: standard deviations to either side of the mean.
    between
        Two rows of particles.star, from 1: states from one particle to the other.
    clusters
        Number of clusters of the coordinates: a state at the centre of each. With --mixture 0 takes as many as the
        Bayesian information criterion wants.
    mixture
        Clusters are a mixture of normal distributions, not k-means.
    tour
        With --clusters: a path through their centres, each the nearest to the one before, in place of the centres.
    ridge
        States along the ridge of the particles' density, from low to high along the first motion.
    through
        A point of a path, coordinates separated by commas (A rms along motion 1, 2, ...); given two times or more, the
        states follow the path through these points, evenly spaced.
    at
        Coordinates of one state, separated by commas (A rms along motion 1, 2, ...); may be given several times.
    latent
        A latent of the decoder of --half, numbers separated by commas; may be given several times.
    half
        Whose Gaussian model: 1, 2, or both for the average.
    full
        At full resolution: the reconstructed map, pushed along the field, in place of the Gaussian model.
    maps
        Write a map of every state; without, the table of their coordinates alone.
    movie
        Write a movie where the states follow a path.
    difference
        Also write difference.mrc, the last map minus the first.
    listen
        Take states from standard input instead, for programs that show them: lines of JSON {"at": [coordinates], "out":
        path of the map}, each answered by a line with the path, or with an "error".
    seed
        Of the clusters.
    threads
        CPU threads. All that the process may use if left out.
    """

    motion: int = 1
    n: int = 10
    percentiles: tuple[float, float] = (2.5, 97.5)
    deviations: float | None = None
    between: tuple[int, int] | None = None
    clusters: int | None = None
    mixture: bool = False
    tour: bool = False
    ridge: bool = False
    through: list[str] = field(default_factory=list)
    at: list[str] = field(default_factory=list)
    latent: list[str] = field(default_factory=list)
    half: str = "both"
    full: bool = False
    maps: bool = True
    movie: bool = True
    difference: bool = False
    listen: bool = False
    seed: int = 0
    threads: int | None = None


@dataclass
class DisplaceOptions:
    """Which deformations are applied to points.

    Parameters
    ----------
    origin
        Where the points' coordinates are zero: centre (of the box), corner (its first voxel), map (where the consensus
        map's header has it), or auto: centre for .npy; for atomic models, which of these puts the atoms into most
        density.
    particles
        Rows of particles.star, from 1, separated by commas; all if left out.
    state
        Also write the atomic model at this state as mmCIF: coordinates separated by commas (A rms).
    models
        Also write the atomic model in each of the --particles as mmCIF.
    states
        Table of states (states.csv of dynamight states): write points and atomic model at these instead of in
        particles.
    device
        What computes: cpu, cuda, auto (a GPU if there is one), or the number of a GPU.
    threads
        CPU threads. All that the process may use if left out.
    """

    origin: str = "auto"
    particles: str | None = None
    state: str | None = None
    models: bool = False
    states: str | None = None
    device: str = "cpu"
    threads: int | None = None


@dataclass
class SelectOptions:
    """Which particles are kept; every condition that is given must hold.

    Parameters
    ----------
    motion
        LOW:HIGH of dynMotionRms (A); either may be left out.
    error
        LOW:HIGH of dynMotionError (A).
    disagreement
        LOW:HIGH of dynMotionDisagreement (A), how far the decoders of the two halves differ.
    along
        K:LOW:HIGH of the coordinate along motion K (A rms); may be given several times.
    near
        COORDINATES:DISTANCE: within a distance (A rms) of a conformation, its coordinates separated by commas.
    polygon
        K,L:X,Y:X,Y:X,Y: inside a polygon in the plane of motions K and L, its corners in A rms.
    clusters
        Number of clusters of the coordinates, numbered by their centre on the first motion; written to dynCluster. With
        --mixture 0 takes as many as the Bayesian information criterion wants.
    mixture
        Clusters are a mixture of normal distributions, not k-means.
    cluster
        Keep this cluster, from 1; may be given several times. All are kept if left out.
    half
        Keep half 1 or 2.
    complement
        Keep all others instead.
    seed
        Of the clusters.
    """

    motion: str | None = None
    error: str | None = None
    disagreement: str | None = None
    along: list[str] = field(default_factory=list)
    near: str | None = None
    polygon: str | None = None
    clusters: int | None = None
    mixture: bool = False
    cluster: list[int] = field(default_factory=list)
    half: int | None = None
    complement: bool = False
    seed: int = 0


@dataclass
class ControlOptions:
    """How a control experiment is made.

    Parameters
    ----------
    kind
        shuffled-latents, noise-particles, held-out or wrong-model.
    particles
        At most so many particles of each half, drawn at random.
    permutations
        How often the deformations are permuted among particles.
    shrink
        Shrink each mode of motion to what held-out particles support of it, and use none if the verdict is that images
        do not support the motions, as a reconstruction does; without, judge them as they were learned.
    selection
        Of wrong-model: the part of the atomic model that is replaced, such as "H/1-213 L". What moves most against the
        largest rigid domain if left out.
    replacement
        Of wrong-model: the part of the atomic model that is put in its place. The same part, turned, if left out.
    seed
        Of everything drawn at random.
    device
        auto (a GPU if there is one), cpu, cuda, or the number of a GPU.
    threads
        CPU threads. All that the process may use if left out.
    """

    kind: str
    particles: int = 10000
    permutations: int = 6
    shrink: bool = True
    selection: str | None = None
    replacement: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None


@dataclass
class DemoOptions:
    """How large the demonstration is.

    Parameters
    ----------
    particles
        Number of simulated images.
    box
        Pixels.
    pixel_size
        A.
    n_gaussians
        Gaussians of each half's model.
    epochs
        Epochs after the warm-up. As dynamight train if left out.
    seed
        Same seed, same machine, same numbers.
    device
        auto (a GPU if there is one), cpu, cuda, or the number of a GPU.
    threads
        CPU threads. All that the process may use if left out.
    """

    particles: int = 1200
    box: int = 64
    pixel_size: float = 3.0
    n_gaussians: int = 2000
    epochs: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None


@dataclass
class AnalyseOptions:
    """How a run is analysed.

    Parameters
    ----------
    out
        Path of the report. RUN/analysis/report.html if left out.
    embedding
        Particles in a plane: umap, pca (the first two motions), or auto: umap if installed.
    domains
        Rigid domains that the motion is divided into. As many as are worth it if left out.
    threads
        CPU threads. All that the process may use if left out.
    """

    out: str | None = None
    embedding: str = "auto"
    domains: int | None = None
    threads: int | None = None
