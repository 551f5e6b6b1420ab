"""Molecules with rigid domains that move in known ways."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from dynamight_core.errors import InputError
from dynamight_core.imaging.poses import rotvec_to_rotmat
from dynamight_core.simulate.parts import Part, axis_motions
from dynamight_core.structures import read_structure, selected_atoms

DATA = Path(__file__).parent / "data"
# N, CA, C, CB and centre of the side chain: radius (A), angle from CA (degrees), rise from CA (A).
HELIX_RESIDUE = [(1.6, -28.0, -0.9), (2.3, 0.0, 0.0), (1.7, 26.0, 1.1), (3.3, -20.0, -0.2), (4.8, -25.0, -0.4)]
# Of the antibody 1HZH: chain H to residue 213 and chain L, about the axis from CA of H213 to CA of H244.
FAB = Part("H/1-213 L", axis=("H/213/CA", "H/244/CA"))


@dataclass
class Molecule:
    """Atoms in rigid domains; domain 0 is at rest, domain d >= 1 moves about axis or pivot d - 1.

    Parameters
    ----------
    positions
        (n, 3) A at angle 0; the origin is the centre of the box.
    weights
        (n,) scattering weight of each atom.
    moving
        (n,) domain of each atom.
    axis_points
        (domains, 3) A, a point on each axis, or the pivot.
    axis_directions
        (domains, 3) unit vectors of the axes, or mean directions of linkers; rotations are right-handed.
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

    def positions_at(self, motions: torch.Tensor) -> torch.Tensor:
        """Return the (b, n, 3) positions (A) of the atoms at motions as in `move`."""
        return self.move(self.positions, self.moving, motions)

    def move(self, points: torch.Tensor, labels: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
        """Return points moved with their domains.

        Parameters
        ----------
        points
            (m, 3) A.
        labels
            (m,) domain of each point.
        motions
            (b, domains, 6) rotation vectors (radians) about the point on each axis, and shifts of it (A); or rotations
            about the axes in radians, (b, domains), or (b,) for one moving domain.

        Returns
        -------
        torch.Tensor
            (b, m, 3) A.
        """
        motions = self.motions(motions)
        moved = points.expand(len(motions), -1, -1).clone()
        for domain, centre in enumerate(self.axis_points):
            chosen = labels == domain + 1
            rotation, shift = rotvec_to_rotmat(motions[:, domain, :3]), motions[:, domain, 3:]
            arm = points[chosen] - centre
            moved[:, chosen] = centre + shift[:, None] + torch.matmul(arm, rotation.transpose(1, 2))
        return moved

    def move_back(self, points: torch.Tensor, labels: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Return where (m, 3) points with (m,) labels that have moved by a (domains, 6) motion come from, (m, 3) A."""
        rest = points.clone()
        for domain, centre in enumerate(self.axis_points):
            chosen = labels == domain + 1
            rotation, shift = rotvec_to_rotmat(motion[domain, :3]), motion[domain, 3:]
            rest[chosen] = centre + (points[chosen] - centre - shift) @ rotation
        return rest

    def motions(self, motions: torch.Tensor) -> torch.Tensor:
        """Return (b, domains, 6) motions for any of the forms that `move` takes."""
        motions = torch.as_tensor(motions, dtype=torch.float32)
        if motions.ndim == 3:
            return motions
        return axis_motions(motions[:, None] if motions.ndim == 1 else motions, self.axis_directions)

    def radius(self, motions: torch.Tensor) -> float:
        """Return the largest distance (A) of an atom from the origin at motions as in `move`."""
        return float(self.positions_at(motions).norm(dim=-1).max())


def rigid_molecule(positions: torch.Tensor, weights: torch.Tensor, atom_sigma: float) -> Molecule:
    """Return a molecule of (n, 3) atoms (A) with (n,) weights that does not move."""
    nothing, none = torch.zeros(len(positions), dtype=torch.long), torch.zeros(0, 3)
    return Molecule(positions, weights, nothing, none, none, atom_sigma)


def other_molecule(molecule: Molecule, seed: int) -> Molecule:
    """Return another molecule of the same weight, which fits into the sphere of the first."""
    other = hinge_molecule(seed, n_atoms=2000, atom_sigma=molecule.atom_sigma)
    smaller = min(1.0, float(molecule.positions.norm(dim=1).max() / other.positions.norm(dim=1).max()))
    weights = other.weights * (molecule.weights.sum() / other.weights.sum())
    return rigid_molecule(other.positions * smaller, weights, molecule.atom_sigma)


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


def atomic_molecule(path: str | Path, parts: Sequence[Part], atom_sigma: float = 2.0) -> Molecule:
    """Return an atomic structure with parts that move.

    It is the first model of the file without hydrogens, waters, and alternative locations after the first. Weights are
    atomic numbers. Residue numbers are those of the file (auth_seq_id and insertion codes).

    Parameters
    ----------
    path
        of a PDB or mmCIF file, gzipped or not.
    parts
        that move. A selection has terms separated by spaces, each a chain ("L"), a range of its residues ("H/1-213",
        including insertion codes), or a selection in gemmi's syntax ("/1/A/10-80", "//B//CA[C]:*"), which begins with a
        slash. An atom of an axis or pivot is "chain/residue/atom" such as "H/213/CA"; an insertion code follows the
        number ("H/52A/CA"). Rotations are right-handed about the direction from the first to the second atom.
    atom_sigma
        A.

    Raises
    ------
    InputError
        if the file cannot be read, or if selections or atoms do not match it.
    """
    structure = _read_molecule(path)
    atoms = list(structure[0].all())
    names = [(found.chain.name, str(found.residue.seqid), found.atom.name) for found in atoms]
    positions = np.array([found.atom.pos.tolist() for found in atoms])
    labels = np.zeros(len(atoms), dtype=np.int64)
    points, directions = [], []
    for number, part in enumerate(parts, 1):
        chosen = selected_atoms(structure, part.selection, path)
        mine = np.array([name in chosen for name in names])
        if (labels[mine] > 0).any():
            raise InputError(f"selection {part.selection!r} shares atoms with another part; give each atom to one part")
        labels[mine] = number
        point, direction = _axis(structure[0], part, positions[mine].mean(0), path)
        points.append(point)
        directions.append(direction)
    if labels.all():
        selections = ", ".join(repr(part.selection) for part in parts)
        raise InputError(f"selection {selections} moves all of {path}; select parts that move relative to the rest")
    centre = (positions.min(0) + positions.max(0)) / 2
    return Molecule(
        positions=torch.tensor(positions - centre, dtype=torch.float32),
        weights=torch.tensor([float(found.atom.element.atomic_number) for found in atoms]),
        moving=torch.from_numpy(labels),
        axis_points=torch.tensor(np.array(points) - centre, dtype=torch.float32),
        axis_directions=torch.tensor(np.array(directions), dtype=torch.float32),
        atom_sigma=atom_sigma,
    )


def _axis(model: gemmi.Model, part: Part, middle: np.ndarray, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the point and the direction that a part with its centre of mass at `middle` moves about."""
    if part.axis is not None:
        first, second = (_axis_atom(model, spec, path) for spec in part.axis)
        if np.allclose(first, second):
            raise InputError(
                f"axis {', '.join(part.axis)}: both atoms have the same position; choose two atoms of {path}"
            )
        return first, (second - first) / np.linalg.norm(second - first)
    if part.pivot is None:
        return middle, np.array([0.0, 0.0, 1.0])
    pivot = _axis_atom(model, part.pivot, path)
    return pivot, (middle - pivot) / np.linalg.norm(middle - pivot)


def igg_molecule(parts: Sequence[Part] = (FAB,), atom_sigma: float = 3.0) -> Molecule:
    """Return the intact antibody 1HZH, by default with one Fab that rotates as in CryoBench's IgG-1D.

    Residues are numbered as in the file, with its gaps and insertion codes (H52A, H82A ...).
    """
    return atomic_molecule(DATA / "1hzh.pdb.gz", parts, atom_sigma)


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
