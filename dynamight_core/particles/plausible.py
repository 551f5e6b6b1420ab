"""Whether values are possible in a microscope: units that were mistaken, poses that are none."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dynamight_core.errors import InputError
from dynamight_core.particles.metadata import Particles


@dataclass(frozen=True)
class Limits:
    """What values of a column are possible.

    Parameters
    ----------
    low, high
        in `unit`, inclusive.
    unit
        of the column.
    likely
        what is probably wrong with values beyond them.
    """

    low: float
    high: float
    unit: str
    likely: str


# By column of the STAR file. Cs is small with a corrector; defocus near zero is possible, but not everywhere.
LIMITS = {
    "rlnVoltage": Limits(40, 1500, "kV", "is it in volts?"),
    "rlnSphericalAberration": Limits(-0.1, 20, "mm", "is it in Å or µm?"),
    "rlnAmplitudeContrast": Limits(0, 1, "a fraction", "is it in per cent?"),
    "rlnDefocusU": Limits(-2e4, 3e5, "Å", "is it in nm, or in Å times 10?"),
    "rlnDefocusV": Limits(-2e4, 3e5, "Å", "is it in nm, or in Å times 10?"),
    "rlnPhaseShift": Limits(-360, 360, "degrees", "is it in other units?"),
    "pixel size": Limits(0.1, 30, "Å", "is it in nm, or that of the detector?"),
}
# Defocus of all particles below this (Å) is in micrometres.
_MIN_DEFOCUS = 50.0
# Angles (radians) that no program writes: ten turns.
_MAX_ANGLE = 63.0
# Rms distance of directions of view from their mean, below which particles have no orientations.
_MIN_SPREAD = 0.01


def check_plausible(particles: Particles) -> None:
    """Refuse particles whose CTF, pixel size or poses are not possible.

    Raises
    ------
    InputError
        with all that is wrong: counts, and the first example of each.
    """
    found = [*_beyond_limits(particles), *_impossible_poses(particles)]
    if found:
        raise InputError(f"{particles.star_path} has {', and '.join(found)}; correct it")


def _beyond_limits(particles: Particles) -> Iterator[str]:
    ctf = particles.ctf
    degrees = torch.rad2deg(ctf.phase_shift)
    columns = {
        "rlnVoltage": ctf.voltage,
        "rlnSphericalAberration": ctf.spherical_aberration,
        "rlnAmplitudeContrast": ctf.amplitude_contrast,
        "rlnDefocusU": ctf.defocus_u,
        "rlnDefocusV": ctf.defocus_v,
        "rlnPhaseShift": degrees,
        "pixel size": torch.tensor([particles.pixel_size]),
    }
    for name, values in columns.items():
        limits = LIMITS[name]
        bad = (values < limits.low) | (values > limits.high)
        if bad.any():
            row = int(bad.int().argmax())
            where = f" in {int(bad.sum())} rows, first in row {row + 1}" if len(values) > 1 else ""
            yield (
                f"{name} {float(values[row]):.6g}{where}, where {limits.low:g} to {limits.high:g} ({limits.unit}) is "
                f"possible ({limits.likely})"
            )
    largest = float(torch.stack([ctf.defocus_u, ctf.defocus_v]).abs().max())
    if 0 < largest < _MIN_DEFOCUS:
        yield f"a defocus of at most {largest:.3g} Å in all rows (is it in µm?)"


def _impossible_poses(particles: Particles) -> Iterator[str]:
    extent = particles.box * particles.pixel_size
    distance = particles.shifts.norm(dim=1)
    bad = ~(distance <= extent / 2)
    if bad.any():
        row = int(bad.int().argmax())
        yield (
            f"an origin of {float(distance[row]):.4g} Å in {int(bad.sum())} rows, first in row {row + 1}, outside "
            f"the box of {extent:.4g} Å (is it in other units?)"
        )
    turns = particles.angles.abs().amax(1) > _MAX_ANGLE
    if turns.any():
        yield (
            f"angles of more than ten turns in {int(turns.sum())} rows, first in row {int(turns.int().argmax()) + 1} "
            "(are they in degrees?)"
        )
    directions = particles.matrices[:, 2]
    spread = float((directions - directions.mean(0)).square().sum(1).mean().sqrt())
    if spread < _MIN_SPREAD:
        yield "the same rlnAngleRot and rlnAngleTilt in all rows (are these particles of a 2D classification?)"
