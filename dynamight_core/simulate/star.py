"""The STAR file of a simulated data set."""

from pathlib import Path

import pandas as pd
import torch

from dynamight_core.particles.star import write_timeless
from dynamight_core.simulate.truth import Truth


def group_numbers(groups: torch.Tensor) -> torch.Tensor:
    """Return the (n,) numbers of optics groups from 1, without gaps: groups without particles are omitted."""
    return torch.unique(groups, return_inverse=True)[1] + 1


def optics_table(truth: Truth, groups: torch.Tensor) -> pd.DataFrame:
    """Return RELION's optics table of (n,) optics groups of images."""
    ctf = truth.ctf
    first = [int((groups == group).nonzero()[0]) for group in groups.unique()]
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
    return optics


def write_star(
    path: Path, truth: Truth, groups: torch.Tensor, stack: str, more: dict[str, object] | None = None
) -> None:
    """Write RELION's particles.star with an optics table; images are `index@stack`, relative to the STAR file.

    `more` are further columns by label.
    """
    ctf, numbers = truth.ctf, group_numbers(groups)
    angles = torch.rad2deg(truth.star_euler)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{number:06d}@{stack}" for number in range(1, len(truth) + 1)],
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": truth.star_origins[:, 0],
            "rlnOriginYAngst": truth.star_origins[:, 1],
            "rlnDefocusU": ctf.defocus_u,
            "rlnDefocusV": ctf.defocus_v,
            "rlnDefocusAngle": torch.rad2deg(ctf.defocus_angle),
            "rlnPhaseShift": torch.rad2deg(ctf.phase_shift),
            "rlnOpticsGroup": numbers,
            "rlnRandomSubset": truth.half,
        }
    )
    particles = particles.assign(**(more or {}))
    write_timeless(path, {"optics": optics_table(truth, groups), "particles": particles}, "%.6f")
