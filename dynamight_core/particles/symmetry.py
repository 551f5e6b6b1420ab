"""Symmetric molecules: each image shows every subunit once, so that it becomes a particle for each of them.

A molecule with the rotations g of a point group projects alike in the poses A and A g. The copies of an image differ in
which subunit lies where the first one does in the map; they stay in one half-set.
"""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from dynamight_core.errors import InputError
from dynamight_core.image_series import per_image
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.imaging.poses import euler_angles, rotation_matrices
from dynamight_core.particles import cryosparc
from dynamight_core.particles.metadata import Particles

_GOLDEN = (1 + 5**0.5) / 2
# Axes of rotation (x, y, z) and their orders that generate each group, as RELION places them; C and D have theirs on z.
_GENERATORS: dict[str, list[tuple[tuple[float, float, float], int]]] = {
    "T": [((0, 0, 1), 3), ((0, 2**0.5, 1), 2)],
    "O": [((1, 1, 1), 3), ((0, 0, 1), 4)],
    "I": [((0, 0, 1), 2), ((1, 0, _GOLDEN), 5), ((0, 1, _GOLDEN**2), 3)],
    "I1": [((1, 0, 0), 2), ((_GOLDEN, 0, -1), 5), ((_GOLDEN**2, 1, 0), 3)],
}
_GENERATORS["I2"] = _GENERATORS["I"]
# Box in which a map is compared with itself after a rotation, and the smallest correlation.
_BOX, _MIN_CORRELATION = 64, 0.7


def symmetry_operators(name: str) -> NDArray[np.float64]:
    """Return the (g, 3, 3) rotations of a point group, the identity first.

    Parameters
    ----------
    name
        C3, D2, T, O, I (I2 in RELION) or I1, with the axes where RELION has them.

    Raises
    ------
    InputError
        if there is no such group.
    """
    found = re.fullmatch(r"([CD])([1-9]\d?)", name.upper())
    if found:
        generators = [((0.0, 0.0, 1.0), int(found[2]))]
        if found[1] == "D":
            generators.append(((1.0, 0.0, 0.0), 2))
    elif name.upper() in _GENERATORS:
        generators = _GENERATORS[name.upper()]
    else:
        raise InputError(f"--symmetry is '{name}'; give C or D with a number, such as C3, or T, O, I or I1")
    rotations = []
    for axis, order in generators:
        unit = np.array(axis) / np.linalg.norm(axis)
        rotations.append(Rotation.from_rotvec(2 * np.pi / order * unit).as_matrix())
    group = [np.eye(3)]
    for element in group:  # grows while products are new
        for rotation in rotations:
            product = rotation @ element
            if all(np.abs(product - other).max() > 1e-6 for other in group):
                group.append(product)
    return np.array(group)


def expand(particles: Particles, name: str) -> Particles:
    """Return each of n particles in all g poses of a point group, the copies of a particle one after the other.

    Parameters
    ----------
    particles
        whose images are there once.
    name
        of the group, as in `symmetry_operators`.

    Raises
    ------
    InputError
        if particles are expanded already.
    """
    operators = symmetry_operators(name)
    if len(torch.unique(particles.copies)) < len(particles):
        raise InputError(
            f"{particles.star_path} has several rows of one image: its particles are symmetry-expanded already; omit "
            "--symmetry, or give the file before expansion"
        )
    n, g = len(particles), len(operators)
    if g == 1:
        return particles
    rows = np.repeat(np.arange(n), g)
    copies = np.tile(np.arange(g), n)
    expanded = particles.subset(rows)
    of_image = per_image(expanded.series, torch.from_numpy(copies))
    matrices = rotation_matrices(expanded.angles.double()) @ torch.from_numpy(operators)[of_image]
    angles = euler_angles(matrices)
    if expanded.series is not None:
        return _expanded_series(expanded, angles, copies, operators)
    table = expanded.table.copy()
    for column, label in zip(torch.rad2deg(angles).numpy().T, ("Rot", "Tilt", "Psi"), strict=True):
        table[f"rlnAngle{label}"] = np.round(column, 7).astype(str)
    table["dynCopy"] = (copies + 1).astype(str)
    records = expanded.records
    if records is not None:
        records = cryosparc.expanded_records(records, matrices.numpy(), copies)
    return replace(expanded, angles=angles.float(), table=table, records=records)


def _expanded_series(
    expanded: Particles, angles: torch.Tensor, copies: NDArray[np.int64], operators: NDArray[np.float64]
) -> Particles:
    """Return copies of particles of several images with the angles of each image, in their table as well."""
    assert expanded.series_rows is not None
    of_rows = expanded.series_rows.particles
    rows = torch.from_numpy(copies) if of_rows is None else torch.from_numpy(copies)[of_rows.owner]
    table = expanded.table.copy()
    labels = [f"rlnAngle{label}" for label in ("Rot", "Tilt", "Psi")]
    given = torch.from_numpy(np.deg2rad(table[labels].to_numpy(dtype=np.float64)))
    turned = euler_angles(rotation_matrices(given) @ torch.from_numpy(operators)[rows])
    for column, name in zip(torch.rad2deg(turned).numpy().T, labels, strict=True):
        table[name] = np.round(column, 7).astype(str)
    table["dynCopy"] = (rows.numpy() + 1).astype(str)
    return replace(expanded, angles=angles.float(), table=table)


def rotate_volume(volume: NDArray[Any], operator: NDArray[np.float64], order: int) -> NDArray[Any]:
    """Return a (box, box, box) volume [z, y, x] with the value at x that the given one has at g x, by splines.

    `operator` is the (3, 3) rotation g of points (x, y, z) about the voxel box // 2.
    """
    turn, centre = operator[::-1, ::-1], np.full(3, volume.shape[0] // 2)
    rotated: NDArray[Any] = affine_transform(volume, turn, centre - turn @ centre, order=order)
    return rotated


def check_symmetry(path: str, volume: torch.Tensor, name: str) -> None:
    """Refuse a (box, box, box) map that does not look the same after the rotations of a point group.

    Raises
    ------
    InputError
        if it does not, with how much it is alike.
    """
    small = resample_volume(volume, min(_BOX, volume.shape[0] - volume.shape[0] % 2)).numpy()
    centre = np.full(3, small.shape[0] // 2)
    radius = np.sqrt(((np.indices(small.shape) - centre[:, None, None, None]) ** 2).sum(0))
    inside, shell = radius < small.shape[0] / 2 - 1, np.rint(radius).astype(int)
    # Without their radial average, round maps do not look symmetric in every way.
    small = small - (np.bincount(shell.ravel(), small.ravel()) / np.bincount(shell.ravel()))[shell]
    for operator in symmetry_operators(name)[1:]:
        correlation = np.corrcoef(small[inside], rotate_volume(small, operator, 1)[inside])[0, 1]
        if correlation < _MIN_CORRELATION:
            raise InputError(
                f"map {path} does not have the symmetry {name} (its correlation with a rotated copy is "
                f"{correlation:.2f}); correct --symmetry, or place the axes as RELION does"
            )
