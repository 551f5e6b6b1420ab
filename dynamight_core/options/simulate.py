"""Options of the stages that make data: simulate and demo."""

from dataclasses import dataclass

from dynamight_core.errors import InputError
from dynamight_core.options.common import device, seed, threads
from dynamight_core.options.declare import Checked, basic, option


@dataclass
class SimulateOptions(Checked):
    """Options of `simulate`; lengths in A, angles in degrees."""

    molecule: str = basic("hinge", "Molecule: hinge, two-hinges, igg, or a PDB or mmCIF file.", group="Molecule")
    particles: int = basic(2000, "Number of particles.", group="Images", at_least=2, at_most=10**7)
    box: int = basic(64, "Box of the images.", unit="px", at_least=16, at_most=1024, even=True)
    pixel_size: float = basic(3.0, "Pixel size of the images; 4 A suits igg.", unit="A", at_least=0.1, at_most=100)
    snr: float = basic(
        0.5,
        "Signal-to-noise ratio: variance of projections before the CTF, inside the particle disc, over noise variance.",
        at_least=1e-6,
        at_most=1e6,
    )
    motion_range: float | None = basic(
        None,
        "Largest rotation of the domain to either side; 0 is rigid. 40 for igg and 20 for others if omitted.",
        unit="degrees",
        group="Molecule",
        at_least=0,
        at_most=180,
    )
    angle_distribution: str = option(
        "uniform",
        "Distribution of the rotation: uniform, or two-peaks at +-0.6 of the range.",
        choices=("uniform", "two-peaks"),
    )
    defocus_min: float = option(5000.0, "Smallest underfocus with uniform defoci.", unit="A", group="Microscope")
    defocus_max: float = option(20000.0, "Largest underfocus with uniform defoci.", unit="A")
    shifts: float = option(
        6.0, "Largest origin offset in x and y; at most a quarter of the box.", unit="A", group="Images", at_least=0
    )
    noise: str = option(
        "white", "Noise: white, or coloured as measured in ice (EMPIAR-10076).", choices=("white", "coloured")
    )
    views: str = option(
        "uniform",
        "Viewing directions: uniform over the sphere, or measured (EMPIAR-10180).",
        choices=("uniform", "measured"),
    )
    cone: float = option(
        90.0,
        "Restrict uniform views to this angle from one axis, in both directions; 90 is the whole sphere.",
        unit="degrees",
        at_least=1,
        at_most=90,
    )
    defoci: str = option(
        "uniform",
        "Defoci: uniform in the range with little astigmatism, or measured (EMPIAR-10180).",
        group="Microscope",
        choices=("uniform", "measured"),
    )
    optics_groups: int = option(
        1,
        "Number of optics groups, which differ in voltage, spherical aberration and beam tilt.",
        at_least=1,
        at_most=4,
    )
    phase_shift: float = option(
        0.0,
        "Largest phase shift; each particle's is uniform between 0 and this.",
        unit="degrees",
        at_least=0,
        at_most=180,
    )
    aberrations: bool = option(False, "Add trefoil, tetrafoil and anisotropic magnification.")
    float16: bool = option(False, "Store the images in half precision.", group="Images")
    particle_diameter: float | None = option(
        None,
        "Diameter of the disc that --snr refers to. Contains the molecule in every conformation if omitted.",
        unit="A",
        above=0,
    )
    selection: str | None = option(
        None, "Atoms of the file that move, such as 'H/1-213 L': chains, and ranges of residues.", group="Molecule"
    )
    axis: tuple[str, str] | None = option(
        None,
        "Two atoms of the file that define the axis of rotation, such as H/213/CA L/107/CA.",
        metavar="ATOM1 ATOM2",
    )
    part: list[str] | None = option(
        None,
        "A part of igg or of the file and its motion: 'L; axis H/213/CA H/244/CA; range 20'. Repeat for further parts.",
        group="Molecule",
        metavar="'SELECTION; MOTION'",
    )
    atom_sigma: float | None = option(
        None,
        "Standard deviation of the Gaussian that blurs each atom; 0.68 as in CryoBench. 0.75 pixels if omitted.",
        unit="A",
        group="Molecule",
        at_least=0,
        at_most=100,
    )
    snr_definition: str = option(
        "disc",
        "What --snr refers to: disc, as described there, or cryobench, the variance over all pixels after the CTF.",
        group="Images",
        choices=("disc", "cryobench"),
    )
    cone_fraction: float = option(
        1.0,
        "Fraction of the views inside --cone; the others are uniform. Less than 1 simulates preferred views.",
        group="Images",
        at_least=0,
        at_most=1,
    )
    pose_error: float = option(
        0.0,
        "Error of the angles in particles.star, rms of the rotation.",
        unit="degrees",
        group="Faults",
        at_least=0,
        at_most=180,
    )
    shift_error: float = option(
        0.0, "Error of the origins in particles.star, rms of the distance.", unit="A", group="Faults", at_least=0
    )
    junk: float = option(
        0.0, "Fraction of the images that do not show the molecule.", group="Faults", at_least=0, at_most=0.9
    )
    junk_content: str = option(
        "noise",
        "What --junk images show: noise alone, or other, which is another molecule of the same weight.",
        group="Faults",
        choices=("noise", "other"),
    )
    tilts: int | None = option(
        None,
        "Simulate tilt series with this number of images of each particle. One image each if omitted.",
        group="Tilt series",
        at_least=2,
        at_most=200,
    )
    tilt_range: float = option(60.0, "Largest tilt to either side.", unit="degrees", at_least=0, at_most=80)
    tilt_dose: float = option(3.0, "Exposure of each tilt, from 0 degrees outwards.", unit="e/A^2", at_least=0)
    tilt_stacks: bool = option(
        False, "Write a stack for each particle, and tomograms, as RELION 5 does. Rows of images otherwise."
    )
    seed: int = seed("Random seed; the same seed gives the same files.")
    threads: int | None = threads()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cone < 90 and self.views != "uniform":
            raise InputError("--cone narrows uniform views; omit it, or use --views uniform")
        if self.cone_fraction < 1 and self.cone == 90:
            raise InputError("--cone-fraction needs a cone; give --cone too")
        if self.part:
            given = {"--selection": self.selection, "--axis": self.axis, "--motion-range": self.motion_range}
            other = [name for name, value in given.items() if value is not None]
            if other or self.angle_distribution != "uniform":
                name = other[0] if other else "--angle-distribution"
                raise InputError(f"--part says itself what moves and how far; omit {name}")
        if self.tilt_stacks and self.tilts is None:
            raise InputError("--tilt-stacks is for tilt series; set --tilts, or omit it")
        if self.defocus_min > self.defocus_max:
            raise InputError("--defocus-min is above --defocus-max; exchange them")
        if self.shifts > self.box * self.pixel_size / 4:
            raise InputError(
                f"--shifts is {self.shifts:g}; give at most a quarter of the box, {self.box * self.pixel_size / 4:g} A"
            )


@dataclass
class DemoOptions(Checked):
    """How large the demonstration is."""

    particles: int = basic(1200, "Number of simulated images.", at_least=2)
    box: int = basic(64, "Box of the images.", unit="px", at_least=16, even=True)
    pixel_size: float = basic(3.0, "Pixel size of the images.", unit="A", above=0)
    n_gaussians: int = basic(2000, "Number of Gaussians in each half-set's model.", at_least=50)
    epochs: int | None = basic(
        None, "Epochs after the warm-up. Same default as dynamight train if omitted.", at_least=1
    )
    seed: int = seed()
    device: str = device()
    threads: int | None = threads()
