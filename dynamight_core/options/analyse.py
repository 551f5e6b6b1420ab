"""Options of the stages that look at a finished run."""

from dataclasses import dataclass

from dynamight_core.options.common import (
    clusters,
    device,
    mixture,
    origin,
    seed,
    shrink,
    threads,
    use_unsupported_motion,
)
from dynamight_core.options.declare import Checked, basic, option

HALVES = {"both": "both", "1": "1", "2": "2"}
STATE_METHODS = {"model": "from the Gaussian models", "local": "from the particles near each state"}
EMBEDDINGS = {"auto": "UMAP", "pca": "first two motions", "umap": "UMAP, or fail"}
CONTROLS = {
    "shuffled-latents": "shuffled latents",
    "held-out": "held-out particles",
    "noise-particles": "noise particles",
    "wrong-model": "wrong model",
}


@dataclass
class AnalyseOptions(Checked):
    """What the report shows."""

    out: str | None = basic(None, "Path of the report. RUN/analysis/report.html if omitted.", metavar="FILE")
    embedding: str = basic(
        "auto",
        "Plot particles in a plane by umap, pca (the first two motions), or auto (umap for more than two motions).",
        more="The plot is for display only; its coordinates become the zRed of the particles in Scipion.",
        label="Plot particles by",
        choices=EMBEDDINGS,
    )
    domains: int | None = basic(None, "Number of rigid-body domains. Chosen automatically if omitted.", at_least=1)
    particle_errors: bool = option(
        False,
        "Also write the uncertainty of each particle's displacement in each domain: RUN/analysis/domains/errors.csv.",
    )
    threads: int | None = threads()


@dataclass
class StatesOptions(Checked):
    """Which states are written; by default along the first motion."""

    motion: int = basic(
        1,
        "Principal motion along which states are written, from 1, the largest.",
        label="Motion",
        group="Along a motion",
        at_least=1,
    )
    n_states: int = basic(
        10,
        "Number of states along a motion or path.",
        more="A movie looks smooth with 10 or more.",
        label="Number of states",
        at_least=1,
        was=("n",),
        group="Options",
    )
    percentiles: tuple[float, float] = option(
        (2.5, 97.5),
        "Percentiles of the particles' coordinates at the first and last state.",
        more="There are few particles beyond, and maps there rest on little data.",
        label="Percentiles of the particles",
        group="Along a motion",
        at_least=0,
        at_most=100,
        metavar="LOW HIGH",
    )
    deviations: float | None = option(
        None, "Use this many standard deviations to either side of the mean instead of percentiles.", above=0
    )
    between: tuple[int, int] | None = basic(
        None,
        "Write states between two particles, given by their rows in particles.star, from 1.",
        group="Along a path",
        metavar="ROW1 ROW2",
    )
    clusters: int | None = clusters()
    mixture: bool = mixture()
    tour: bool = option(
        False, "Write states along a path from each cluster centre to the nearest, instead of at the centres."
    )
    ridge: bool = option(
        False,
        "Write states along the ridge of the particle density, from low to high along motion 1.",
        group="Along a path",
    )
    through: list[str] = basic(
        [],
        "Point of a path: coordinates along motion 1, 2, ... (A rms), separated by commas; repeat for each point.",
        more="States are evenly spaced along the path.",
        metavar="COORDINATES",
    )
    at: list[str] = basic(
        [],
        "Coordinates of one state along motion 1, 2, ... (A rms), separated by commas; repeat for more states.",
        metavar="COORDINATES",
        group="Options",
    )
    latent: list[str] = option(
        [], "Latent of the decoder of --half, numbers separated by commas; repeat for more states.", metavar="NUMBERS"
    )
    method: str = option(
        "model",
        "Maps of states: model renders the Gaussian models, local reconstructs from the particles near each state.",
        more="local writes half-maps, FSC, mask and local resolution for each state; it takes seconds per state and "
        "1,000 particles.",
        label="Maps of states",
        level="basic",
        choices=STATE_METHODS,
    )
    half: str = option(
        "both",
        "Half-set of the Gaussian model: 1, 2, or both for the average.",
        more="Compare the two half-sets to see which features they agree on.",
        label="Half-set of the Gaussian model",
        choices=HALVES,
    )
    full: bool = option(
        False, "Deform the reconstructed map along the motion instead of rendering the Gaussian model.", group="Output"
    )
    maps: bool = option(True, "Write a map of each state; otherwise only the table of their coordinates.")
    movie: bool = basic(
        True,
        "Write a movie if the states follow a path.",
        more="The movie shows the surface of the molecule, coloured by displacement, forwards and backwards. It is "
        "written as GIF and MP4 beside the maps. It shows projections if dynamight-core[film] is not installed.",
        label="Write a movie?",
    )
    caption: bool = option(
        True, "Write the place on the path and the colour scale into the movie.", label="Caption in the movie?"
    )
    transparent: bool = option(
        False,
        "Make the background of the GIF transparent, and also write an animated PNG with a transparent background.",
        more="MP4 files have no transparency.",
        label="Transparent background?",
    )
    difference: bool = option(False, "Also write difference.mrc, the last map minus the first.")
    listen: bool = option(
        False,
        "Read states from standard input, for viewers.",
        more='Each line is JSON, {"at": [coordinates], "out": path of the map}. The answer is a line with the path, or '
        'with an "error".',
    )
    use_unsupported_motion: bool = use_unsupported_motion()
    seed: int = seed("Random seed for clustering.")
    threads: int | None = threads()


@dataclass
class DisplaceOptions(Checked):
    """Which deformations are applied to points."""

    origin: str = origin()
    particles: str | None = basic(
        None,
        "Rows of particles.star, from 1, separated by commas. All particles if omitted.",
        metavar="ROWS",
        group="Options",
    )
    state: str | None = basic(
        None,
        "Also write the atomic model at this state as mmCIF: coordinates (A rms) separated by commas.",
        metavar="COORDINATES",
    )
    models: bool = basic(False, "Also write the atomic model of each of the --particles as mmCIF.")
    states: str | None = basic(
        None,
        "Displace to the states of this table (states.csv of dynamight states) instead of to particles.",
        metavar="FILE",
    )
    use_unsupported_motion: bool = use_unsupported_motion()
    device: str = device("cpu")
    threads: int | None = threads()


@dataclass
class FieldsOptions(Checked):
    """Which deformation fields are written; the principal motions if none is named."""

    motions: int | None = basic(
        None,
        "Number of principal motions, each by one standard deviation. All if no other field is named, else none.",
        label="Principal motions",
        at_least=0,
    )
    at: list[str] = basic(
        [],
        "Coordinates of one state along motion 1, 2, ... (A rms), separated by commas; repeat for more states.",
        metavar="COORDINATES",
    )
    states: str | None = basic(None, "Table of states (states.csv of dynamight states).", metavar="FILE")
    particles: str | None = basic(
        None,
        "Rows of particles.star, from 1, separated by commas.",
        more="The uncertainty is the particle's own.",
        metavar="ROWS",
    )
    points: str | None = basic(
        None,
        "Write the fields on these points instead of a grid: .npy of shape (m, 3), .pdb or .cif.",
        more="Between points of a grid, the field is interpolated; on the atoms of a model it is exact.",
        metavar="FILE",
        group="Points",
    )
    spacing: float = basic(
        4.0,
        "Spacing of the grid.",
        more="Fields are smooth: at 4 A, interpolation errs by a few hundredths of an A.",
        label="Spacing of the grid",
        unit="A",
        at_least=0.5,
        at_most=50,
    )
    origin: str = origin()
    use_unsupported_motion: bool = use_unsupported_motion()
    threads: int | None = threads()


@dataclass
class DeformOptions(Checked):
    """How a deformation field is applied."""

    scale: float = basic(
        1.0,
        "Multiply all displacements by this factor.",
        more="A negative factor moves the other way along a motion.",
        label="Factor",
    )
    map: str | None = basic(
        None, "Reference map of the field, if it was moved or the field is of another program.", metavar="FILE"
    )
    run: str | None = basic(
        None,
        "Run that the field is from: evaluate it at the atoms themselves instead of on its grid.",
        metavar="FOLDER",
    )
    origin: str = origin()
    threads: int | None = threads()


@dataclass
class SelectOptions(Checked):
    """Which particles are kept; every condition that is given must hold."""

    motion: str | None = basic(
        None,
        "Range of the motion (dynMotionRms), rms over the molecule; either limit may be omitted.",
        more="Particles with large motion and large uncertainty are often bad particles.",
        label="Motion",
        unit="A",
        group="Conditions",
        metavar="LOW:HIGH",
    )
    error: str | None = basic(
        None,
        "Range of the uncertainty of the displacement (dynMotionError), rms over the molecule.",
        more="It includes the disagreement of the half-sets and the noise of the image.",
        label="Uncertainty",
        unit="A",
        metavar="LOW:HIGH",
    )
    disagreement: str | None = basic(
        None,
        "Range of the difference between the deformations by the two half-sets' decoders (dynMotionDisagreement).",
        more="The decoders were trained on different particles: small values mean agreement.",
        label="Disagreement of the half-sets",
        unit="A",
        metavar="LOW:HIGH",
    )
    along: list[str] = basic(
        [], "Range of the coordinate along motion K (A rms); repeat for more motions.", metavar="K:LOW:HIGH"
    )
    where: list[str] = option(
        [],
        "Range of any column of particles.star that holds numbers; repeat for more columns.",
        metavar="COLUMN:LOW:HIGH",
    )
    near: str | None = basic(
        None,
        "Within a distance (A rms) of a conformation, given by its coordinates separated by commas.",
        metavar="COORDINATES:DISTANCE",
    )
    polygon: str | None = option(
        None,
        "Inside a polygon in the plane of motions K and L, corners in A rms.",
        more="umap in place of K,L: in the UMAP that dynamight analyse has made.",
        metavar="K,L:X,Y:X,Y:X,Y",
    )
    clusters: int | None = clusters("Number of clusters")
    mixture: bool = mixture()
    cluster: list[int] = basic(
        [], "Keep this cluster, from 1; repeat for more. All clusters are kept if omitted.", at_least=1, metavar="N"
    )
    half: int | None = basic(
        None, "Keep particles of half-set 1 or 2 only.", label="Half-set", group="Conditions", at_least=1, at_most=2
    )
    complement: bool = basic(
        False,
        "Invert the selection.",
        label="Invert selection?",
        more="Keeps the particles that do not meet all conditions.",
    )
    use_unsupported_motion: bool = use_unsupported_motion()
    seed: int = seed("Random seed for clustering.")


@dataclass
class ControlOptions(Checked):
    """How a control experiment is made."""

    kind: str = basic(
        help="Control: shuffled-latents, held-out, noise-particles or wrong-model.",
        more="Shuffled-latents asks: would random deformations improve the map as much? Held-out asks: does "
        "deformation improve the map of particles that trained nothing? Noise-particles asks: does the model turn "
        "noise into a map? Wrong-model asks: does the map follow the data or the atomic model? It repeats training and "
        "reconstruction.",
        label="Control",
        choices=CONTROLS,
    )
    particles: int = basic(
        10000,
        "Maximum number of particles in each half-set, drawn at random.",
        more="Time grows in proportion; standard errors decrease with the square root.",
        label="Particles of each half-set",
        at_least=100,
    )
    permutations: int = basic(
        6,
        "Number of random permutations of the deformations among particles.",
        more="Each takes one reconstruction of both half-sets.",
        label="Permutations",
        at_least=2,
    )
    shrink: bool = shrink()
    selection: str | None = option(
        None,
        "Part of the atomic model to replace in wrong-model, such as 'H/1-213 L'. The most mobile domain if omitted.",
        label="Part to replace",
        group="Wrong model",
    )
    replacement: str | None = option(
        None,
        "Part of the atomic model, or a file of another protein, to insert in wrong-model. The same part, rotated, if "
        "omitted.",
        more="A part is like 'H/1-213 L'. A file may be followed by a part of it: 'other.pdb A/1-150'. Choose a part "
        "of similar size; it is laid on the axes of the part that it replaces.",
        label="Part to insert",
    )
    seed: int = seed()
    device: str = device()
    threads: int | None = threads()


@dataclass
class ExploreOptions(Checked):
    """How a run is shown in a browser or a window."""

    port: int = basic(8050, "Port of the page; 0 uses a free one.", at_least=0, at_most=65535)
    host: str = option(
        "127.0.0.1", "Address to listen at; any but the default gives other machines access.", metavar="ADDRESS"
    )
    browser: bool = basic(True, "Open the page in a browser if there is a screen.")
    model: str | None = basic(
        None, "Atomic model to show and displace (.pdb, .cif), in the consensus frame.", metavar="FILE"
    )
    origin: str = origin()
    table: list[str] = basic(
        [],
        "CSV of values to colour particles by; repeat for more tables.",
        more="Rows are matched by a column rlnImageName or particle (row of particles.star, from 1), else by order.",
        metavar="FILE",
        group="Options",
    )
    viewer: str = basic(
        "browser",
        "Viewer: browser, or napari (a window with volume, Gaussians, displacements and particles as layers).",
        choices=("browser", "napari"),
    )
    threads: int | None = threads()
