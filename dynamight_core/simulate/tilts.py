"""Tilt series of simulated particles: poses, exposures and defoci of their images, and RELION 5's files of them."""

from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import torch

from dynamight_core.imaging.poses import euler_angles, rotation_matrices
from dynamight_core.options import SimulateOptions
from dynamight_core.particles.star import write_timeless
from dynamight_core.simulate.truth import Truth

# Particles of a tomogram, and half of its width and thickness, A.
_PER_TOMOGRAM, _HALF_WIDTH, _HALF_DEPTH = 50, 1500.0, 300.0
# Rotation of the tilt axis in the images, degrees, and the sign of the defocus along the beam (rlnTomoHand).
_Z_ROTATION, _HAND = 85.0, -1.0
# Standard deviation of a tilt's defocus about that of its tomogram, A.
_DEFOCUS_SPREAD = 300.0

# What `write_stacks` writes beside particles.star: folders and files.
SERIES_FILES = ("stacks", "tilt_series", "tomograms.star", "optimisation_set.star")


@dataclass(frozen=True)
class TiltScheme:
    """The geometry of tilt series of P particles in T tomograms, with m tilts each.

    Parameters
    ----------
    angles, exposures
        (m,) degrees, and e/A^2 before each tilt.
    rotations
        (m, 3, 3) from a tomogram to each tilt.
    defocus_u, defocus_v, defocus_angle
        (T, m) A and radians, at the centre of the tomograms.
    tomogram
        (P,) tomogram of each particle, from 0.
    places
        (P, 3) from the centre of the tomogram, A.
    euler, offsets
        (P, 3) rot, tilt and psi (radians), and rlnOriginX/Y/ZAngst (A), in the tomogram, as in the STAR file.
    """

    angles: torch.Tensor
    exposures: torch.Tensor
    rotations: torch.Tensor
    defocus_u: torch.Tensor
    defocus_v: torch.Tensor
    defocus_angle: torch.Tensor
    tomogram: torch.Tensor
    places: torch.Tensor
    euler: torch.Tensor
    offsets: torch.Tensor


def tilted(
    truth: Truth, groups: torch.Tensor, options: SimulateOptions, generator: torch.Generator
) -> tuple[Truth, torch.Tensor, TiltScheme]:
    """Return the truth of the tilt series of P particles, image by image, their optics groups, and the geometry.

    Tilts are acquired from 0 outwards, to either side in turn. Each fades with the exposure before it, and with the
    thickness of the ice along the beam, by the cosine of its angle.
    """
    n, m = len(truth), options.tilts or 1
    angles = torch.linspace(-options.tilt_range, options.tilt_range, m)
    exposures = torch.empty(m)
    exposures[(angles.abs() + 1e-3 * (angles < 0)).argsort()] = torch.arange(m) * options.tilt_dose
    rotations = _tilt_rotations(angles)
    tomogram = torch.arange(n) // _PER_TOMOGRAM
    number = int(tomogram.max()) + 1
    size = torch.tensor([_HALF_WIDTH, _HALF_WIDTH, _HALF_DEPTH])
    places = (2 * torch.rand(n, 3, generator=generator) - 1) * size
    offsets = (2 * torch.rand(n, 3, generator=generator) - 1) * options.shifts
    errors = torch.randn(n, 3, generator=generator) * options.shift_error / 2**0.5
    # A tomogram has the defocus of its first particle.
    first = torch.arange(number) * _PER_TOMOGRAM
    spread = torch.randn(number, m, generator=generator) * _DEFOCUS_SPREAD
    defocus_u, defocus_v = (each[first][:, None] + spread for each in (truth.ctf.defocus_u, truth.ctf.defocus_v))
    defocus_angle = truth.ctf.defocus_angle[first][:, None].expand(-1, m)
    star_offsets = offsets + errors
    scheme = TiltScheme(
        *(angles, exposures, rotations, defocus_u, defocus_v, defocus_angle),
        *(tomogram, places, truth.star_euler, star_offsets),
    )
    depth = _HAND * torch.einsum("mj,pj->pm", rotations[:, 2], places - star_offsets)
    rows = torch.arange(n).repeat_interleave(m)
    ctf = replace(
        truth.ctf[rows],
        defocus_u=(defocus_u[tomogram] + depth).flatten(),
        defocus_v=(defocus_v[tomogram] + depth).flatten(),
        defocus_angle=defocus_angle[tomogram].flatten(),
        scale=torch.cos(torch.deg2rad(angles)).repeat(n),
        exposure=exposures.repeat(n),
    )
    images = replace(
        truth,
        motions=truth.motions[rows],
        present=truth.present[rows],
        content=truth.content[rows],
        half=truth.half[rows],
        euler=_turned(rotations, truth.euler),
        star_euler=_turned(rotations, truth.star_euler),
        origins=_projected(rotations, offsets),
        star_origins=_projected(rotations, star_offsets),
        ctf=ctf,
        particle=rows,
    )
    return images, groups[rows], scheme


def _tilt_rotations(angles: torch.Tensor) -> torch.Tensor:
    """Return the (m, 3, 3) rotations by (m,) degrees about y, and then of the tilt axis in the image."""
    tilt, turn = torch.deg2rad(angles), torch.deg2rad(torch.tensor(_Z_ROTATION))
    # RELION's angles rotate the axes, not the specimen.
    about_y = rotation_matrices(torch.stack([torch.zeros_like(tilt), -tilt, torch.zeros_like(tilt)], -1))
    return rotation_matrices(torch.stack([torch.zeros(()), torch.zeros(()), -turn])) @ about_y


def _turned(rotations: torch.Tensor, euler: torch.Tensor) -> torch.Tensor:
    """Return the (P m, 3) Euler angles of (P, 3) particles in (m, 3, 3) tilts."""
    return euler_angles((rotations.double() @ rotation_matrices(euler.double())[:, None]).flatten(0, 1)).float()


def _projected(rotations: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return the (P m, 2) offsets in the images of (m, 3, 3) tilts, of (P, 3) offsets in the tomogram."""
    return torch.einsum("mij,pj->pmi", rotations[:, :2], offsets).flatten(0, 1)


def series_columns(truth: Truth, scheme: TiltScheme) -> dict[str, object]:
    """Return the columns of rows of images that tell their particle, tilt and exposure."""
    assert truth.particle is not None
    return {
        "rlnTomoName": [_tomogram_name(int(scheme.tomogram[row])) for row in truth.particle],
        "rlnTomoParticleName": [_particle_name(scheme, int(row)) for row in truth.particle],
        "rlnMicrographPreExposure": truth.ctf.exposure,
        "rlnCtfScalefactor": truth.ctf.scale,
    }


def _tomogram_name(number: int) -> str:
    return f"TS_{number + 1:03d}"


def _particle_name(scheme: TiltScheme, row: int) -> str:
    tomogram = int(scheme.tomogram[row])
    return f"{_tomogram_name(tomogram)}/{row - tomogram * _PER_TOMOGRAM + 1}"


def write_stacks(folder: Path, truth: Truth, scheme: TiltScheme, optics: pd.DataFrame, groups: torch.Tensor) -> None:
    """Replace a folder's stack of all images by RELION 5's files: a stack for each particle, and the tomograms.

    Parameters
    ----------
    folder
        with particles.mrcs; receives particles.star, tomograms.star, optimisation_set.star and the folders stacks and
        tilt_series.
    truth, scheme
        of the particles.
    optics
        the optics table.
    groups
        (n,) optics group of each image, from 1.
    """
    m, names = len(scheme.angles), [_particle_name(scheme, row) for row in range(len(scheme.places))]
    whole = folder / "particles.mrcs"
    with mrcfile.mmap(whole, mode="r", permissive=True) as images:
        for row, name in enumerate(names):
            path = folder / "stacks" / f"{name}_stack2d.mrcs"
            path.parent.mkdir(parents=True, exist_ok=True)
            with mrcfile.new(path, np.asarray(images.data[row * m : (row + 1) * m]), overwrite=True) as stack:
                stack.set_image_stack()
                stack.voxel_size = truth.pixel_size
                stack.header.label[0] = "simulated particle images"
    whole.unlink()
    angles = torch.rad2deg(scheme.euler)
    particles = {
        "rlnTomoName": [_tomogram_name(int(number)) for number in scheme.tomogram],
        "rlnTomoParticleName": names,
        "rlnImageName": [f"stacks/{name}_stack2d.mrcs" for name in names],
        "rlnTomoVisibleFrames": [f"[{','.join(['1'] * m)}]"] * len(names),
        "rlnOpticsGroup": groups[::m],
        "rlnRandomSubset": truth.half[::m],
    }
    for number, axis in enumerate("XYZ"):
        particles[f"rlnCenteredCoordinate{axis}Angst"] = scheme.places[:, number]
        particles[f"rlnOrigin{axis}Angst"] = scheme.offsets[:, number]
    for number, angle in enumerate(("Rot", "Tilt", "Psi")):
        particles[f"rlnAngle{angle}"] = angles[:, number]
    general = pd.DataFrame({"rlnTomoSubTomosAre2DStacks": [1]})
    optics = optics.assign(rlnTomoTiltSeriesPixelSize=truth.pixel_size, rlnCtfDataAreCtfPremultiplied=0)
    tables = {"general": general, "optics": optics, "particles": pd.DataFrame(particles)}
    write_timeless(folder / "particles.star", tables, "%.6f")
    _write_tomograms(folder, truth, scheme)
    named = {"rlnTomoParticlesFile": ["particles.star"], "rlnTomoTomogramsFile": ["tomograms.star"]}
    write_timeless(folder / "optimisation_set.star", {"": pd.DataFrame(named)}, "%.6f")


def _write_tomograms(folder: Path, truth: Truth, scheme: TiltScheme) -> None:
    """Write tomograms.star, and the STAR file of each tilt series."""
    names = [_tomogram_name(number) for number in range(len(scheme.defocus_u))]
    (folder / "tilt_series").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        tilts = {
            "rlnTomoNominalStageTiltAngle": scheme.angles,
            "rlnMicrographPreExposure": scheme.exposures,
            "rlnTomoXTilt": torch.zeros(len(scheme.angles)),
            "rlnTomoYTilt": scheme.angles,
            "rlnTomoZRot": torch.full((len(scheme.angles),), _Z_ROTATION),
            "rlnTomoXShiftAngst": torch.zeros(len(scheme.angles)),
            "rlnTomoYShiftAngst": torch.zeros(len(scheme.angles)),
            "rlnDefocusU": scheme.defocus_u[number],
            "rlnDefocusV": scheme.defocus_v[number],
            "rlnDefocusAngle": torch.rad2deg(scheme.defocus_angle[number]),
            "rlnCtfScalefactor": torch.cos(torch.deg2rad(scheme.angles)),
        }
        write_timeless(folder / "tilt_series" / f"{name}.star", {name: pd.DataFrame(tilts)}, "%.6f")
    size = {
        f"rlnTomoSize{axis}": [int(2 * half / truth.pixel_size)] * len(names)
        for axis, half in zip("XYZ", (_HALF_WIDTH, _HALF_WIDTH, _HALF_DEPTH), strict=True)
    }
    together = {
        "rlnTomoName": names,
        "rlnTomoTiltSeriesStarFile": [f"tilt_series/{name}.star" for name in names],
        "rlnTomoHand": [_HAND] * len(names),
        "rlnTomoTiltSeriesPixelSize": [truth.pixel_size] * len(names),
        **size,
    }
    write_timeless(folder / "tomograms.star", {"global": pd.DataFrame(together)}, "%.6f")
