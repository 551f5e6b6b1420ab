"""Random numbers of a simulated data set: the motions, poses and optics of every particle."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import expand_shells, shell_sums
from dynamight_core.imaging.poses import euler_angles, random_rotations, rotation_matrices
from dynamight_core.options import SimulateOptions
from dynamight_core.simulate.molecules import (
    DATA,
    FAB,
    Molecule,
    atomic_molecule,
    hinge_molecule,
    igg_molecule,
    other_molecule,
    rigid_molecule,
    two_hinge_molecule,
)
from dynamight_core.simulate.parts import Part, axis_motions, draw_motions, parse_part
from dynamight_core.simulate.truth import NOISE, OTHER, Truth

MEASURED = DATA / "empiar10180.npz"
# Images with odd contents and errors are drawn by a generator of their own, whose seed is that of the data set and
# this: the other particles stay what they are.
ODD_SEED = 10**9
# Motions from which the size of a molecule with parts is measured.
SIZED = 200
# Voltage (kV), Cs (mm), amplitude contrast, beam tilt (mrad); the differences matter at 6 A.
OPTICS = [
    (300.0, 2.7, 0.10, (0.0, 0.0)),
    (200.0, 2.7, 0.07, (2.0, -1.0)),
    (300.0, 0.01, 0.10, (-1.5, 1.5)),
    (120.0, 2.0, 0.15, (0.5, 1.0)),
]
# Trefoil, tetrafoil, magnification anisotropy, as in RELION's optics table.
ODD_ZERNIKE = (0.0, 0.0, 40.0, 0.0, 0.0, -30.0)
EVEN_ZERNIKE = (0.0, 0.0, 0.0, 0.0, 300.0, 0.0, 0.0, 0.0, -200.0)
MAGNIFICATION = ((1.015, 0.005), (0.005, 0.99))


def make_molecule(options: SimulateOptions) -> Molecule:
    """Return the molecule of the options; hinges are packed at random with their seed."""
    # With 0.75 pixels, a smooth density that still has signal at Nyquist.
    sigma = 0.75 * options.pixel_size if options.atom_sigma is None else options.atom_sigma
    if options.molecule in ("hinge", "two-hinges"):
        if options.part:
            raise InputError(f"--molecule {options.molecule} has its own parts; omit --part, or use igg or a file")
        return (hinge_molecule if options.molecule == "hinge" else two_hinge_molecule)(options.seed, atom_sigma=sigma)
    parts = moving_parts(options)
    if options.molecule == "igg":
        return igg_molecule(parts or (FAB,), atom_sigma=sigma)
    if not parts:
        raise InputError(
            f"--molecule is {options.molecule}; set --part (what moves, and how), or --selection (the atoms that move) "
            "and --axis (two atoms), or choose hinge, two-hinges or igg"
        )
    return atomic_molecule(options.molecule, parts, atom_sigma=sigma)


def moving_parts(options: SimulateOptions) -> list[Part]:
    """Return the parts of a file that the options describe."""
    if options.part:
        return [parse_part(text) for text in options.part]
    if options.selection is None or options.axis is None:
        return []
    return [Part(options.selection, axis=(options.axis[0], options.axis[1]))]


def draw_truth(options: SimulateOptions, generator: torch.Generator) -> tuple[Truth, torch.Tensor]:
    """Draw the truth of every particle (with scale 1) and its (p,) optics group, from 0."""
    n = options.particles
    odd = torch.Generator().manual_seed(options.seed + ODD_SEED)
    molecule = make_molecule(options)
    motions, sizing = _draw_motions(options, molecule, generator)
    diameter = options.particle_diameter or 2 * (molecule.radius(sizing) + molecule.atom_sigma)
    if diameter > options.box * options.pixel_size:
        raise InputError(
            f"the molecule needs a box of {diameter:.0f} A, but --box {options.box} at --pixel-size "
            f"{options.pixel_size:g} is {options.box * options.pixel_size:.0f} A; increase one of them"
        )
    with np.load(MEASURED) as data:
        measured = {name: torch.from_numpy(data[name]) for name in data.files}
    rows = torch.randint(len(measured["rot"]), (n,), generator=generator)
    euler = _draw_views(options, generator, odd)
    if options.views == "measured":
        euler = torch.deg2rad(torch.stack([measured[name][rows] for name in ("rot", "tilt", "psi")], -1))
    origins = (2 * torch.rand(n, 2, generator=generator) - 1) * options.shifts
    ctf, groups = _draw_optics(options, measured, rows, generator)
    half = torch.arange(n)[torch.randperm(n, generator=generator)] % 2 + 1
    power = measured["noise_power_empiar10076"] if options.noise == "coloured" else torch.ones(2)
    content = (OTHER if options.junk_content == "other" else NOISE) * (torch.rand(n, generator=odd) < options.junk)
    missing = torch.tensor([parse_part(text).missing for text in options.part or ()] or [0.0] * molecule.n_domains)
    other = rigid_molecule(torch.zeros(0, 3), torch.zeros(0), molecule.atom_sigma)
    star_euler, star_origins = _with_errors(euler, origins, options, odd)
    truth = Truth(
        molecule=molecule,
        motions=motions,
        present=(torch.rand(n, len(missing), generator=odd) >= missing).long(),
        content=content,
        euler=euler,
        origins=origins,
        star_euler=star_euler,
        star_origins=star_origins,
        ctf=ctf,
        half=half,
        box=options.box,
        pixel_size=options.pixel_size,
        particle_diameter=diameter,
        noise_power=unit_noise_power(power, options.box),
        snr=options.snr,
        other=other_molecule(molecule, options.seed) if (content == OTHER).any() else other,
    )
    return truth, groups


def _draw_motions(
    options: SimulateOptions, molecule: Molecule, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (p, domains, 6) motions; return them with motions from which the size of the molecule is measured."""
    n = options.particles
    if options.part:
        drawn = [
            draw_motions(parse_part(text), n, direction, generator)
            for text, direction in zip(options.part, molecule.axis_directions, strict=True)
        ]
        motions = torch.stack(drawn, 1)
        return motions, motions[:SIZED]
    default = 40.0 if options.molecule == "igg" else 20.0
    motion_range = np.deg2rad(default if options.motion_range is None else options.motion_range)
    angles = draw_angles(n, molecule.n_domains, motion_range, options.angle_distribution, generator)
    sizing = torch.linspace(-motion_range, motion_range, 25)[:, None].expand(-1, molecule.n_domains)
    return axis_motions(angles, molecule.axis_directions), sizing


def draw_angles(
    n: int, n_domains: int, motion_range: float, distribution: str, generator: torch.Generator
) -> torch.Tensor:
    """Return (n, domains) angles within +-`motion_range`, both in radians."""
    uniform = 2 * torch.rand(n, n_domains, generator=generator) - 1
    if distribution == "uniform":
        return uniform * motion_range
    spread = 0.12 * torch.randn(n, n_domains, generator=generator)
    return (uniform.sign() * 0.6 + spread).clamp(-1, 1) * motion_range


def _draw_views(options: SimulateOptions, generator: torch.Generator, odd: torch.Generator) -> torch.Tensor:
    """Draw (p, 3) rot, tilt, psi in radians: uniform, or a fraction of them in a cone."""
    euler = random_rotations(options.particles, generator)
    if options.cone < 90:
        # Uniform in the cosine, from the nearer pole.
        cosine = euler[:, 1].cos()
        depth = (1 - cosine.abs()) * (1 - np.cos(np.deg2rad(options.cone)))
        within = torch.rand(options.particles, generator=odd) < options.cone_fraction
        euler[:, 1] = torch.where(within, torch.arccos(cosine.sign() * (1 - depth)), euler[:, 1])
    return euler


def _with_errors(
    euler: torch.Tensor, origins: torch.Tensor, options: SimulateOptions, odd: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (p, 3) angles in radians and (p, 2) origins in A with the errors of the options."""
    turns = torch.randn(len(euler), 3, generator=odd) * np.deg2rad(options.pose_error) / 3**0.5
    steps = torch.randn(len(euler), 2, generator=odd) * options.shift_error / 2**0.5
    if options.pose_error:
        wrong = torch.from_numpy(Rotation.from_rotvec(turns.numpy()).as_matrix()).float()
        euler = euler_angles(wrong @ rotation_matrices(euler))
    return euler, origins + steps


def _draw_optics(
    options: SimulateOptions, measured: dict[str, torch.Tensor], rows: torch.Tensor, generator: torch.Generator
) -> tuple[CtfParameters, torch.Tensor]:
    """Draw the CTF and the optics group of every particle; `rows` are those of `measured` defoci."""
    n = options.particles
    defocus = torch.rand(n, generator=generator) * (options.defocus_max - options.defocus_min) + options.defocus_min
    astigmatism = torch.rand(n, generator=generator) * 200
    defocus_u, defocus_v = defocus + astigmatism / 2, defocus - astigmatism / 2
    defocus_angle = torch.rand(n, generator=generator) * torch.pi
    if options.defoci == "measured":
        defocus_u, defocus_v = measured["defocus_u"][rows], measured["defocus_v"][rows]
        defocus_angle = torch.deg2rad(measured["defocus_angle"][rows])
    groups = torch.randint(options.optics_groups, (n,), generator=generator)
    voltage, spherical, contrast = (torch.tensor([g[i] for g in OPTICS])[groups] for i in range(3))
    aberrations = {}
    if options.aberrations:
        aberrations = {
            "odd_zernike": torch.tensor(ODD_ZERNIKE).expand(n, -1),
            "even_zernike": torch.tensor(EVEN_ZERNIKE).expand(n, -1),
            "magnification": torch.tensor(MAGNIFICATION),
        }
    ctf = CtfParameters.create(
        defocus_u,
        defocus_v,
        defocus_angle=defocus_angle,
        phase_shift=torch.rand(n, generator=generator) * np.deg2rad(options.phase_shift),
        voltage=voltage,
        spherical_aberration=spherical,
        amplitude_contrast=contrast,
        beam_tilt=torch.tensor([g[3] for g in OPTICS])[groups],
        **aberrations,
    )
    return ctf, groups


def unit_noise_power(power: torch.Tensor, box: int) -> torch.Tensor:
    """Resample a power spectrum (DC to Nyquist, any number of shells) to (box//2+1,) shells and unit variance."""
    shells = np.linspace(0, 1, box // 2 + 1)
    curve = torch.tensor(np.interp(shells, np.linspace(0, 1, len(power)), power.numpy()), dtype=torch.float32)
    plane = expand_shells(curve, box)
    everywhere = torch.ones(box, box // 2 + 1)
    # The mean includes the corners beyond Nyquist, which have noise too.
    counts = shell_sums(everywhere, box)
    corners = box**2 - counts.sum()
    mean = (shell_sums(plane, box).sum() + corners * curve[-1]) / box**2
    return curve / mean
