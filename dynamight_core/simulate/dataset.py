"""Simulated data sets: particle images with known motion, consensus maps, and the truth."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, write_map
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import expand_shells, fourier_to_image, image_to_fourier, shell_sums
from dynamight_core.imaging.geometry import pixel_axis
from dynamight_core.imaging.poses import random_rotations
from dynamight_core.options import SimulateOptions
from dynamight_core.particles.star import write_timeless
from dynamight_core.simulate.fourier_reconstruction import FourierReconstruction
from dynamight_core.simulate.molecules import (
    DATA,
    Molecule,
    atomic_molecule,
    hinge_molecule,
    igg_molecule,
    two_hinge_molecule,
)
from dynamight_core.simulate.truth import Truth

BATCH = 100
MEASURED = DATA / "empiar10180.npz"
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


@dataclass(frozen=True)
class SimulatedFiles:
    """Paths of a simulated data set."""

    particles: Path
    stack: Path
    consensus: Path
    half_maps: tuple[Path, Path]
    truth: Path


def simulate(
    options: SimulateOptions, out: str | Path, progress: Callable[[int, int], None] | None = None
) -> SimulatedFiles:
    """Simulate particle images and write them with their metadata, consensus maps and truth.

    Particles are white; noise has a mean of 0 and a variance of 1.

    Parameters
    ----------
    options
        of the simulation.
    out
        folder of particles.star, particles.mrcs, consensus.mrc, consensus_half1.mrc, consensus_half2.mrc and truth.npz;
        created if missing.
    progress
        called with the number of particles done and of all particles.

    Raises
    ------
    InputError
        if an option cannot be used or the folder cannot be written.
    """
    out = Path(out)
    files = SimulatedFiles(
        particles=out / "particles.star",
        stack=out / "particles.mrcs",
        consensus=out / "consensus.mrc",
        half_maps=(out / "consensus_half1.mrc", out / "consensus_half2.mrc"),
        truth=out / "truth.npz",
    )
    generator = torch.Generator().manual_seed(options.seed)
    truth, groups = draw_truth(options, generator)
    truth.scale = signal_scale(truth)
    halves = [FourierReconstruction(options.box, options.pixel_size) for _ in range(2)]
    with atomic_path(files.stack) as temporary, _new_stack(temporary, options) as stack:
        for start in range(0, len(truth), BATCH):
            part = slice(start, min(start + BATCH, len(truth)))
            images = noisy_images(truth, part, generator)
            stack.data[part] = images.numpy()
            for number, half in enumerate(halves, 1):
                chosen = truth.half[part] == number
                half.insert(
                    images[chosen], truth.ctf[part][chosen], truth.euler[part][chosen], truth.origins[part][chosen]
                )
            if progress:
                progress(part.stop, len(truth))
        stack.update_header_stats()
    for half, path in zip([*halves, halves[0] + halves[1]], [*files.half_maps, files.consensus], strict=True):
        write_map(path, half.volume().numpy(), options.pixel_size)
    write_star(files.particles, truth, groups, files.stack.name)
    truth.save(files.truth)
    return files


def make_molecule(options: SimulateOptions) -> Molecule:
    """Return the molecule of the options; hinges are packed at random with their seed."""
    # As sharp as the sampling allows: signal up to Nyquist.
    sigma = 0.75 * options.pixel_size
    if options.molecule == "hinge":
        return hinge_molecule(options.seed, atom_sigma=sigma)
    if options.molecule == "two-hinges":
        return two_hinge_molecule(options.seed, atom_sigma=sigma)
    if options.molecule == "igg":
        return igg_molecule(atom_sigma=sigma)
    if options.selection is None or options.axis is None:
        raise InputError(
            f"--molecule is {options.molecule}; set --selection (the atoms that move) and --axis (two atoms), or "
            "choose hinge, two-hinges or igg"
        )
    return atomic_molecule(options.molecule, options.selection, options.axis, atom_sigma=sigma)


def draw_truth(options: SimulateOptions, generator: torch.Generator) -> tuple[Truth, torch.Tensor]:
    """Draw the truth of every particle (with scale 1) and its (p,) optics group, from 0."""
    n = options.particles
    molecule = make_molecule(options)
    default = 40.0 if options.molecule == "igg" else 20.0
    motion_range = np.deg2rad(default if options.motion_range is None else options.motion_range)
    angles = draw_angles(n, molecule.n_domains, motion_range, options.angle_distribution, generator)
    diameter = options.particle_diameter or 2 * (molecule.radius(motion_range) + molecule.atom_sigma)
    if diameter > options.box * options.pixel_size:
        raise InputError(
            f"the molecule needs a box of {diameter:.0f} A, but --box {options.box} at --pixel-size "
            f"{options.pixel_size:g} is {options.box * options.pixel_size:.0f} A; increase one of them"
        )

    with np.load(MEASURED) as data:
        measured = {name: torch.from_numpy(data[name]) for name in data.files}
    rows = torch.randint(len(measured["rot"]), (n,), generator=generator)
    euler = random_rotations(n, generator)
    if options.cone < 90:
        # Uniform in the cosine, from the nearer pole.
        cosine = euler[:, 1].cos()
        depth = (1 - cosine.abs()) * (1 - np.cos(np.deg2rad(options.cone)))
        euler[:, 1] = torch.arccos(cosine.sign() * (1 - depth))
    if options.views == "measured":
        euler = torch.deg2rad(torch.stack([measured[name][rows] for name in ("rot", "tilt", "psi")], -1))
    origins = (2 * torch.rand(n, 2, generator=generator) - 1) * options.shifts

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
    half = torch.arange(n)[torch.randperm(n, generator=generator)] % 2 + 1
    power = measured["noise_power_empiar10076"] if options.noise == "coloured" else torch.ones(2)
    truth = Truth(
        molecule=molecule,
        angles=angles,
        euler=euler,
        origins=origins,
        ctf=ctf,
        half=half,
        box=options.box,
        pixel_size=options.pixel_size,
        particle_diameter=diameter,
        noise_power=unit_noise_power(power, options.box),
        snr=options.snr,
    )
    return truth, groups


def draw_angles(
    n: int, n_domains: int, motion_range: float, distribution: str, generator: torch.Generator
) -> torch.Tensor:
    """Return (n, domains) angles within +-`motion_range`, both in radians."""
    uniform = 2 * torch.rand(n, n_domains, generator=generator) - 1
    if distribution == "uniform":
        return uniform * motion_range
    spread = 0.12 * torch.randn(n, n_domains, generator=generator)
    return (uniform.sign() * 0.6 + spread).clamp(-1, 1) * motion_range


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


def signal_scale(truth: Truth) -> float:
    """Return the grey value per unit weight for the SNR of the data set at a noise variance of 1."""
    coordinates = pixel_axis(truth.box) * truth.pixel_size
    disc = torch.hypot(coordinates[:, None], coordinates[None]) <= truth.particle_diameter / 2
    variances = []
    for start in range(0, len(truth), BATCH):
        images = fourier_to_image(truth.project(slice(start, start + BATCH)), truth.box)
        variances.append(images[:, disc].var(1))
    return float((truth.snr / torch.cat(variances).mean()).sqrt()) * truth.scale


def noisy_images(truth: Truth, indices: slice, generator: torch.Generator) -> torch.Tensor:
    """Return (b, box, box) images: clean images plus noise with the spectrum of the truth."""
    clean = truth.clean_transforms(indices)
    noise = image_to_fourier(torch.randn(len(clean), truth.box, truth.box, generator=generator))
    noise = noise * expand_shells(truth.noise_power, truth.box).sqrt()
    return fourier_to_image(clean + noise, truth.box)


def _new_stack(path: Path, options: SimulateOptions) -> mrcfile.mrcmemmap.MrcMemmap:
    """Open a new memory-mapped image stack."""
    shape = (options.particles, options.box, options.box)
    stack = mrcfile.new_mmap(path, shape=shape, mrc_mode=12 if options.float16 else 2)
    stack.set_image_stack()
    stack.voxel_size = options.pixel_size
    # Without mrcfile's label, which has the time, the same seed gives the same bytes.
    stack.header.label[0] = "simulated particle images"
    return stack


def write_star(path: Path, truth: Truth, groups: torch.Tensor, stack: str) -> None:
    """Write RELION's particles.star with an optics table; images are `index@stack`, relative to the STAR file."""
    ctf = truth.ctf
    first = [int((groups == group).nonzero()[0]) for group in groups.unique()]
    # Groups without particles are omitted, and numbers have no gaps.
    numbers = torch.unique(groups, return_inverse=True)[1] + 1
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": range(1, len(first) + 1),
            "rlnOpticsGroupName": [f"opticsGroup{number}" for number in range(1, len(first) + 1)],
            "rlnVoltage": ctf.voltage[first],
            "rlnSphericalAberration": ctf.spherical_aberration[first],
            "rlnAmplitudeContrast": ctf.amplitude_contrast[first],
            "rlnImagePixelSize": truth.pixel_size,
            "rlnImageSize": truth.box,
            "rlnImageDimensionality": 2,
        }
    )
    if ctf.beam_tilt.any():
        optics["rlnBeamTiltX"], optics["rlnBeamTiltY"] = ctf.beam_tilt[first].T
    for name, values in {"rlnOddZernike": ctf.odd_zernike, "rlnEvenZernike": ctf.even_zernike}.items():
        if values.any():
            optics[name] = ["[" + ",".join(f"{v:g}" for v in values[row].tolist()) + "]" for row in first]
    if (ctf.magnification != torch.eye(2)).any():
        for i in range(2):
            for j in range(2):
                optics[f"rlnMagMat{i}{j}"] = ctf.magnification[first, i, j]
    angles = torch.rad2deg(truth.euler)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{number:06d}@{stack}" for number in range(1, len(truth) + 1)],
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": truth.origins[:, 0],
            "rlnOriginYAngst": truth.origins[:, 1],
            "rlnDefocusU": ctf.defocus_u,
            "rlnDefocusV": ctf.defocus_v,
            "rlnDefocusAngle": torch.rad2deg(ctf.defocus_angle),
            "rlnPhaseShift": torch.rad2deg(ctf.phase_shift),
            "rlnOpticsGroup": numbers,
            "rlnRandomSubset": truth.half,
        }
    )
    write_timeless(path, {"optics": optics, "particles": particles}, "%.6f")
