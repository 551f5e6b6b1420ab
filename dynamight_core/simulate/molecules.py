"""Molecules with rigid domains that rotate about known axes."""

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from dynamight_core.errors import InputError
from dynamight_core.imaging.poses import axis_rotations
from dynamight_core.structures import read_structure, selected_atoms

DATA = Path(__file__).parent / "data"
# N, CA, C, CB and centre of the side chain: radius (A), angle from CA (degrees), rise from CA (A).
HELIX_RESIDUE = [(1.6, -28.0, -0.9), (2.3, 0.0, 0.0), (1.7, 26.0, 1.1), (3.3, -20.0, -0.2), (4.8, -25.0, -0.4)]


@dataclass
class Molecule:
    """Atoms in rigid domains; domain 0 is at rest, domain d >= 1 rotates about axis d - 1.

    Parameters
    ----------
    positions
        (n, 3) A at angle 0; the origin is the centre of the box.
    weights
        (n,) scattering weight of each atom.
    moving
        (n,) domain of each atom.
    axis_points
        (domains, 3) A, a point on each axis.
    axis_directions
        (domains, 3) unit vectors; rotations are right-handed.
    atom_sigma
        A, width of the Gaussian that blurs every atom.
    """

    positions: torch.Tensor
    weights: torch.Tensor
    moving: torch.Tensor
    axis_points: torch.Tensor
    axis_directions: torch.Tensor
    atom_sigma: float

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_domains(self) -> int:
        """Number of moving domains."""
        return len(self.axis_points)

    def domain(self, label: int) -> "Molecule":
        """Return the atoms of one domain."""
        chosen = self.moving == label
        return replace(self, positions=self.positions[chosen], weights=self.weights[chosen], moving=self.moving[chosen])

    def positions_at(self, angles: torch.Tensor) -> torch.Tensor:
        """Return the atoms at given angles.

        Parameters
        ----------
        angles
            (b,) radians for one moving domain, or (b, domains).

        Returns
        -------
        torch.Tensor
            (b, n, 3) A.
        """
        return self.move(self.positions, self.moving, angles)

    def move(self, points: torch.Tensor, labels: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Return the (b, m, 3) rotated points of the domains in (m,) labels; `angles` as in `positions_at`."""
        angles = torch.as_tensor(angles, dtype=torch.float32)
        angles = angles[:, None] if angles.ndim == 1 else angles
        moved = points.expand(len(angles), -1, -1).clone()
        for domain in range(self.n_domains):
            chosen = labels == domain + 1
            rotation = axis_rotations(self.axis_directions[domain], angles[:, domain])
            arm = points[chosen] - self.axis_points[domain]
            moved[:, chosen] = self.axis_points[domain] + torch.matmul(arm, rotation.transpose(1, 2))
        return moved

    def radius(self, motion_range: float) -> float:
        """Return the largest distance (A) of an atom from the origin, with angles within +-`motion_range` radians."""
        grid = torch.linspace(-motion_range, motion_range, 25)[:, None].expand(-1, self.n_domains)
        return float(self.positions_at(grid).norm(dim=-1).max())


def hinge_molecule(seed: int, n_atoms: int = 3000, atom_sigma: float = 2.0) -> Molecule:
    """Return a molecule of two ellipsoidal domains, the small one (20 % of the atoms) on a hinge.

    The molecule is about 125 A long. The domains lie along x, and the hinge is along y through their junction. Both are
    packed with rods like alpha helices (five pseudo-atoms per residue), and the other pseudo-atoms fill the gaps at
    random, so that the density has the contrast of a protein to about 5 A.

    Parameters
    ----------
    seed
        of the packing.
    n_atoms
        of the molecule; ellipsoids keep the density of 3,000 atoms.
    atom_sigma
        A.
    """
    axes = [[34.0, 26.0, 25.0], [29.5, 13.8, 13.8]]
    return _hinged(seed, n_atoms, atom_sigma, axes, 0.2, [[0.0, 1.0, 0.0]])


def two_hinge_molecule(seed: int, n_atoms: int = 3000, atom_sigma: float = 2.0) -> Molecule:
    """Return a molecule of a large domain and two small ones (6 % of the atoms each) on hinges.

    The small ones are at both ends of the long axis, x, and rotate about y and z through their junctions: motions that
    are hard to detect with few particles. Packing and parameters are those of `hinge_molecule`.
    """
    axes = [[35.0, 27.0, 26.0], [19.7, 9.2, 9.2]]
    return _hinged(seed, n_atoms, atom_sigma, axes, 0.06, [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def _hinged(
    seed: int,
    n_atoms: int,
    atom_sigma: float,
    semi_axes: list[list[float]],
    fraction: float,
    directions: list[list[float]],
) -> Molecule:
    """Return a centred molecule of a large domain and small ones on hinges at the ends of its long axis.

    Semi-axes are those of the large and the small domains for 3,000 atoms, A; each small domain has this fraction of
    the atoms and a hinge along one of the (domains, 3) directions.
    """
    rng = np.random.default_rng(seed)
    scale, n_small = (n_atoms / 3000) ** (1 / 3), round(fraction * n_atoms)
    large, small = np.array(semi_axes) * scale
    junction = large[0] - scale
    sides = np.array([[1, 0, 0], [-1, 0, 0]][: len(directions)])
    parts = [_packed_ellipsoid(large, n_atoms - len(sides) * n_small, rng)]
    parts += [_packed_ellipsoid(small, n_small, rng) + side * (junction - scale + small[0]) for side in sides]
    positions = np.concatenate(parts)
    centre = (positions.min(0) + positions.max(0)) / 2
    return Molecule(
        positions=torch.tensor(positions - centre, dtype=torch.float32),
        weights=torch.ones(len(positions)),
        moving=torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)]),
        axis_points=torch.tensor(sides * junction - centre, dtype=torch.float32),
        axis_directions=torch.tensor(directions),
        atom_sigma=atom_sigma,
    )


def _packed_ellipsoid(semi_axes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n points in an ellipsoid: helix-like rods 10 A apart, and single points in the gaps, (n, 3) A."""
    helices: list[np.ndarray] = []
    occupied = np.empty((0, 3))
    for _ in range(4000):
        residues = rng.integers(8, 22)
        direction = _random_directions(1, rng)[0]
        along = (np.arange(residues) - (residues - 1) / 2) * 1.5
        axis = rng.uniform(-1, 1, 3) * semi_axes + along[:, None] * direction
        if (((axis / (semi_axes - 5)) ** 2).sum(1) > 1).any():
            continue
        if cdist(occupied, axis).min(initial=np.inf) < 9.5:
            continue
        occupied = np.concatenate([occupied, axis])
        helices.append(_helix(axis, direction, rng))
    points = np.concatenate(helices)[:n]
    spacing = 3.5
    while len(points) < n:
        candidates = rng.uniform(-1, 1, (4 * n, 3)) * semi_axes
        candidates = candidates[((candidates / semi_axes) ** 2).sum(1) < 1]
        candidates = candidates[cKDTree(points).query(candidates)[0] > spacing]
        # Keep each candidate unless an earlier one is nearer than the spacing.
        later = {j for i, j in cKDTree(candidates).query_pairs(spacing)}
        kept = np.delete(candidates, sorted(later), 0)[: n - len(points)]
        points = np.concatenate([points, kept])
        spacing *= 0.99
    return points


def _helix(axis: np.ndarray, direction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return five points per residue, backbone and side chain, around (residues, 3) points of a helix axis."""
    u = np.cross(direction, _random_directions(1, rng)[0])
    u /= np.linalg.norm(u)
    v = np.cross(direction, u)
    phase = np.deg2rad(100) * np.arange(len(axis)) + rng.uniform(0, 2 * np.pi)
    points = []
    for radius, lead, rise in HELIX_RESIDUE:
        angle = phase + np.deg2rad(lead)
        radial = np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v
        points.append(axis + rise * direction + radius * radial)
    return np.concatenate(points)


def _random_directions(n: int, rng: np.random.Generator) -> np.ndarray:
    vectors = rng.normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def atomic_molecule(path: str | Path, selection: str, axis: tuple[str, str], atom_sigma: float = 2.0) -> Molecule:
    """Return an atomic structure, one part of which rotates about the line through two of its atoms.

    It is the first model of the file without hydrogens, waters, and alternative locations after the first. Weights are
    atomic numbers. Residue numbers are those of the file (auth_seq_id and insertion codes).

    Parameters
    ----------
    path
        of a PDB or mmCIF file, gzipped or not.
    selection
        the atoms that rotate: parts separated by spaces, each a chain ("L"), a range of its residues ("H/1-213",
        including insertion codes), or a selection in gemmi's syntax ("/1/A/10-80", "//B//CA[C]:*"), which begins with a
        slash.
    axis
        two atoms, each "chain/residue/atom" such as "H/213/CA"; an insertion code follows the number ("H/52A/CA").
        Rotations are right-handed about the direction from the first to the second.
    atom_sigma
        A.

    Raises
    ------
    InputError
        if the file cannot be read, or if selection or axis do not match it.
    """
    structure = _read_molecule(path)
    model = structure[0]
    first, second = (_axis_atom(model, spec, path) for spec in axis)
    if np.allclose(first, second):
        raise InputError(f"axis {axis[0]}, {axis[1]}: both atoms have the same position; choose two atoms of {path}")
    moving = selected_atoms(structure, selection, path)
    atoms = list(model.all())
    names = [(found.chain.name, str(found.residue.seqid), found.atom.name) for found in atoms]
    positions = np.array([found.atom.pos.tolist() for found in atoms])
    labels = torch.tensor([int(name in moving) for name in names])
    if labels.all():
        raise InputError(
            f"selection {selection!r} moves all of {path}; select the part that rotates relative to the rest"
        )
    centre = (positions.min(0) + positions.max(0)) / 2
    direction = (second - first) / np.linalg.norm(second - first)
    return Molecule(
        positions=torch.tensor(positions - centre, dtype=torch.float32),
        weights=torch.tensor([float(found.atom.element.atomic_number) for found in atoms]),
        moving=labels,
        axis_points=torch.tensor((first - centre)[None], dtype=torch.float32),
        axis_directions=torch.tensor(direction[None], dtype=torch.float32),
        atom_sigma=atom_sigma,
    )


def igg_molecule(atom_sigma: float = 3.0) -> Molecule:
    """Return the intact antibody 1HZH, one Fab of which rotates as in CryoBench's IgG-1D.

    The Fab is chain H from residue 1 to 213 and chain L; the axis runs from CA of H213 to CA of H244. Residues are
    numbered as in the file, with its gaps and insertion codes (H52A, H82A ...).
    """
    return atomic_molecule(DATA / "1hzh.pdb.gz", "H/1-213 L", ("H/213/CA", "H/244/CA"), atom_sigma)


def _read_molecule(path: str | Path) -> gemmi.Structure:
    """Read the first model of a structure without hydrogens, waters and alternative locations."""
    if not Path(path).exists():
        raise InputError(f"molecule {path} does not exist; choose hinge, two-hinges, igg or a PDB or mmCIF file")
    structure = read_structure(path)
    del structure[1:]
    structure.remove_alternative_conformations()
    structure.remove_hydrogens()
    structure.remove_waters()
    structure.remove_empty_chains()
    # Parts of a chain (polymer, ligands) become one chain, so that names are unique.
    structure.merge_chain_parts()
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError(f"molecule {path} contains no atoms except water; use another PDB or mmCIF file")
    return structure


def _axis_atom(model: gemmi.Model, spec: str, path: str | Path) -> np.ndarray:
    """Return the (3,) position of the atom "chain/residue/atom"."""
    parts = spec.split("/")
    if len(parts) != 3 or not all(parts):
        raise InputError(f"axis atom {spec!r} is not valid; use chain/residue/atom, such as H/213/CA")
    names = ((found.chain.name, str(found.residue.seqid), found.atom.name, found.atom) for found in model.all())
    matches = [atom for *name, atom in names if name == parts]
    if not matches:
        raise InputError(f"axis atom {spec!r} is not in {path}; use chain/residue/atom with the numbers of the file")
    return np.array(matches[0].pos.tolist())
