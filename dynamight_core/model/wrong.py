"""Atomic models that are wrong on purpose: another structure in the place of a domain (paper, Fig. 3)."""

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.model.atomic import reduce_structure
from dynamight_core.structures import ATOMIC, read_structure, selected_atoms

# An atom lies in the place of a domain within the first distance from its atoms, and clashes with the rest within the
# second, A.
_OVERLAP, _CLASH = 3.0, 2.0
# The four ways to lay right-handed principal axes on each other.
_WAYS = [np.diag(signs) for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))]


@dataclass(frozen=True)
class Placement:
    """How a replacement lies in the place of a domain.

    Parameters
    ----------
    atoms, replaced
        number of atoms of the replacement and of the domain.
    overlap
        fraction of its atoms within 3 A of the domain's.
    covered
        fraction of the domain's atoms within 3 A of its.
    clashes
        number of its atoms within 2 A of the rest.
    """

    atoms: int
    replaced: int
    overlap: float
    covered: float
    clashes: int

    @property
    def sentence(self) -> str:
        """The placement in words."""
        return (
            f"The replacement has {self.atoms} atoms in the place of {self.replaced}: {100 * self.overlap:.0f} % of "
            f"them lie within {_OVERLAP:g} A of the replaced part, of which they cover {100 * self.covered:.0f} %; "
            f"{self.clashes} are closer than {_CLASH:g} A to the rest of the model."
        )


def wrong_model(path: str | Path, selection: str, out: str | Path, replacement: str | None = None) -> Placement:
    """Write an atomic model in which a domain is replaced by another structure of similar size at its place.

    The replacement takes the domain's centre and its principal axes. Of the four ways to lay these on each other, part
    of the same file takes the one that is farthest from the domain; a foreign structure the one that overlaps most with
    the domain and least with the rest. It gets chains of its own and is not bonded to the rest.

    Parameters
    ----------
    path
        of the model.
    selection
        the domain's atoms, as `structures.selected_atoms` reads them, such as "H/1-213 L".
    out
        path of the new model, .cif or .pdb.
    replacement
        the atoms that take their place: a selection of the same file, or another PDB or mmCIF file, with a selection of
        its atoms after a space; the domain itself, rotated, if None.

    Raises
    ------
    InputError
        if a file cannot be read or written, or a selection names no atoms or all.
    """
    out = Path(out)
    structure = read_structure(path)
    reduce_structure(structure, path)
    chosen = selected_atoms(structure, selection, path)
    domain, rest = _divide(structure, chosen), _divide(structure, chosen, inside=False)
    if not rest[0].count_atom_sites():
        raise InputError(f"selection {selection!r} names all of {path}; name one domain")
    new, foreign = _replacement(structure, path, chosen, replacement)
    old, points, others = (_all_positions(part) for part in (domain, new, rest))
    centre, axes = _principal_axes(old)
    new_centre, new_axes = _principal_axes(points)
    laid = [(points - new_centre) @ new_axes @ way @ axes.T + centre for way in _WAYS]
    if foreign:
        found = [_placed(moved, old, others) for moved in laid]
        best = max(range(len(laid)), key=lambda k: found[k].overlap + found[k].covered - found[k].clashes / len(points))
    else:
        tree = cKDTree(old)
        best = max(range(len(laid)), key=lambda k: float(np.mean(tree.query(laid[k])[0])))
    _set_positions(new, laid[best])
    names = {chain.name for chain in rest[0]}
    free = (letter for letter in "XYZWVUTSRQPONMLKJIHGFEDCBA0123456789" if letter not in names)
    for chain in new[0]:
        chain.name = next(free)
        rest[0].add_chain(chain)
    rest.setup_entities()
    with atomic_path(out) as temporary:
        if out.suffix == ".pdb":
            rest.write_pdb(str(temporary))
        else:
            rest.make_mmcif_document().write_file(str(temporary))
    return _placed(laid[best], old, others)


def _replacement(
    structure: gemmi.Structure, path: str | Path, domain: set[tuple[str, str, str]], replacement: str | None
) -> tuple[gemmi.Structure, bool]:
    """Return the atoms that take the place of a domain, and whether they are of another file."""
    if replacement is None:
        return _divide(structure, domain), False
    first, _, rest = replacement.strip().partition(" ")
    if not first.lower().removesuffix(".gz").endswith(ATOMIC):
        return _divide(structure, selected_atoms(structure, replacement, path)), False
    other = read_structure(first)
    reduce_structure(other, first)
    return (_divide(other, selected_atoms(other, rest, first)) if rest.strip() else other), True


def _placed(points: NDArray[np.float64], old: NDArray[np.float64], rest: NDArray[np.float64]) -> Placement:
    """Return how (m, 3) points lie in the place of (n, 3) `old` ones beside a (k, 3) rest, A."""
    near = cKDTree(old).query(points)[0] < _OVERLAP
    covered = cKDTree(points).query(old)[0] < _OVERLAP
    clashes = int((cKDTree(rest).query(points)[0] < _CLASH).sum())
    return Placement(len(points), len(old), float(near.mean()), float(covered.mean()), clashes)


def _set_positions(structure: gemmi.Structure, positions: NDArray[np.float64]) -> None:
    """Move the atoms of a structure, in the order of `_all_positions`."""
    atoms = (atom for chain in structure[0] for residue in chain for atom in residue)
    for atom, position in zip(atoms, positions, strict=True):
        atom.pos = gemmi.Position(*position)


def _divide(structure: gemmi.Structure, names: set[tuple[str, str, str]], inside: bool = True) -> gemmi.Structure:
    """Return a copy with the named atoms only, or without them; links to atoms that are gone go as well."""
    part = structure.clone()
    for chain in part[0]:
        for residue in chain:
            for index in range(len(residue) - 1, -1, -1):
                if ((chain.name, str(residue.seqid), residue[index].name) in names) != inside:
                    del residue[index]
        for index in range(len(chain) - 1, -1, -1):
            if not len(chain[index]):
                del chain[index]
    part.remove_empty_chains()
    return part


def _all_positions(structure: gemmi.Structure) -> NDArray[np.float64]:
    return np.array([atom.pos.tolist() for chain in structure[0] for residue in chain for atom in residue])


def _principal_axes(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre and a right-handed (3, 3) matrix whose columns are the principal axes, longest first."""
    centre = points.mean(0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2].T
    return centre, axes * np.array([1, 1, np.linalg.det(axes)])
