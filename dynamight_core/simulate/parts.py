"""Parts of a molecule that move by themselves: how they are described, and motions drawn for each particle."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dynamight_core.errors import InputError

# Standard deviation about the places of a part with peaks, degrees, if `spread` is omitted.
SPREAD = 4.0


@dataclass(frozen=True)
class Part:
    """One part: its atoms, how it moves, and how often it is missing. Lengths in A, angles in degrees.

    Parameters
    ----------
    selection
        atoms, as in `atomic_molecule`.
    axis
        two atoms that the part rotates about, such as ("H/213/CA", "H/244/CA").
    range
        largest rotation about the axis to either side, uniform.
    peaks
        rotations about the axis instead, each as frequent as the others; empty for a uniform one.
    spread
        standard deviation of the rotation about each peak.
    pivot
        atom at which a linker holds the part, instead of an axis.
    cone
        largest angle between the linker's direction and its mean, which points from the pivot to the centre of the
        part; uniform over the sphere within.
    twist
        largest rotation about the linker's direction to either side, uniform.
    shift
        largest distance of the pivot from its place, uniform within a ball.
    missing
        fraction of the images without the part.
    """

    selection: str
    axis: tuple[str, str] | None = None
    range: float = 0.0
    peaks: tuple[float, ...] = ()
    spread: float = SPREAD
    pivot: str | None = None
    cone: float = 0.0
    twist: float = 0.0
    shift: float = 0.0
    missing: float = 0.0


# How often each word may stand in a part's description, how many values follow, and the largest.
_NUMBERS = {"range": 180.0, "spread": 180.0, "cone": 180.0, "twist": 180.0, "shift": 1000.0, "missing": 1.0}
_ON_AXIS, _ON_PIVOT = {"range", "peaks", "spread"}, {"cone", "twist", "shift"}


def parse_part(text: str) -> Part:
    """Return the part that ``--part`` describes: a selection, then words with their values, separated by semicolons.

    Raises
    ------
    InputError
        if a word is unknown, lacks values, or does not go with the others.
    """
    selection, *clauses = (clause.strip() for clause in text.split(";"))
    found: dict[str, list[str]] = {}
    for clause in filter(None, clauses):
        word, *values = clause.split()
        if word in found:
            raise InputError(f"--part '{text}' has {word} twice; give it once")
        found[word] = values
    unknown = found.keys() - _NUMBERS.keys() - {"axis", "pivot", "peaks"}
    if unknown:
        raise InputError(
            f"--part '{text}' has the unknown word {min(unknown)}; use axis, range, peaks, spread, pivot, cone, twist, "
            "shift or missing"
        )
    for words, needed in ((_ON_AXIS, "axis"), (_ON_PIVOT, "pivot")):
        if needed not in found and words & found.keys():
            raise InputError(f"--part '{text}' has {min(words & found.keys())} without {needed}; give its {needed} too")
    if {"axis", "pivot"} <= found.keys():
        raise InputError(f"--part '{text}' has an axis and a pivot; give one of them")
    if {"range", "peaks"} <= found.keys():
        raise InputError(f"--part '{text}' has a range and peaks; give one of them")
    part = replace(Part(selection), **{word: _value(text, word, values) for word, values in found.items()})
    if part.axis and not (part.range or part.peaks):
        raise InputError(f"--part '{text}' does not say how far it rotates about its axis; give range or peaks")
    return part


def _value(text: str, word: str, values: list[str]) -> Any:
    """Return what stands after one word of a part's description."""
    expected = {"axis": 2, "peaks": max(1, len(values))}.get(word, 1)
    if len(values) != expected:
        raise InputError(f"--part '{text}' has {len(values)} values for {word}; give {expected}")
    if word == "axis":
        return values[0], values[1]
    if word == "pivot":
        return values[0]
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        raise InputError(f"--part '{text}' has '{' '.join(values)}' for {word}; give numbers") from None
    lowest, highest = (-180.0, 180.0) if word == "peaks" else (0.0, _NUMBERS[word])
    if not all(lowest <= number <= highest for number in numbers):
        raise InputError(f"--part '{text}' has {word} {' '.join(values)}; give {lowest:g} to {highest:g}")
    return tuple(numbers) if word == "peaks" else numbers[0]


def draw_motions(part: Part, n: int, direction: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw n motions of a part.

    Parameters
    ----------
    part
        that moves.
    n
        number of particles.
    direction
        (3,) unit vector: of the axis, or of the linker's mean direction.
    generator
        of random numbers.

    Returns
    -------
    torch.Tensor
        (n, 6): rotation vectors in radians about the point on the axis or the pivot, and shifts of that point in A.
    """
    if part.pivot is None:
        return axis_motions(torch.deg2rad(_angles(part, n, generator)), direction)
    uniform, normal = torch.rand(n, 4, generator=generator), torch.randn(n, 3, generator=generator)
    # Uniform in the cosine of the tilt, any azimuth about the mean direction.
    tilt = torch.arccos(1 - uniform[:, 0] * (1 - np.cos(np.deg2rad(part.cone))))
    azimuth = 2 * torch.pi * uniform[:, 1]
    across = torch.linalg.cross(direction, torch.eye(3)[int(direction.abs().argmin())])
    across = across / across.norm()
    tilt_axis = across * azimuth.cos()[:, None] + torch.linalg.cross(direction, across) * azimuth.sin()[:, None]
    twist = (2 * uniform[:, 2] - 1) * np.deg2rad(part.twist)
    tilted = Rotation.from_rotvec((tilt_axis * tilt[:, None]).numpy())
    twisted = Rotation.from_rotvec((direction * twist[:, None]).numpy())
    shifts = part.shift * uniform[:, 3:] ** (1 / 3) * normal / normal.norm(dim=1, keepdim=True)
    return torch.cat([torch.from_numpy((tilted * twisted).as_rotvec()).float(), shifts], 1)


def _angles(part: Part, n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (n,) rotations about an axis, in degrees."""
    if not part.peaks:
        return (2 * torch.rand(n, generator=generator) - 1) * part.range
    chosen = torch.randint(len(part.peaks), (n,), generator=generator)
    return torch.tensor(part.peaks)[chosen] + part.spread * torch.randn(n, generator=generator)


def axis_motions(angles: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return (..., 6) motions for (...,) radians about axes with (..., 3) directions."""
    rotations = angles[..., None] * directions
    return torch.cat([rotations, torch.zeros_like(rotations)], -1)
