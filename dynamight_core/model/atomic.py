"""Atomic models coarse-grained to Gaussians and the edges between them (paper, Methods).

The rules are the paper's; where it leaves a split open, that of docs/method.md. A group of atoms becomes one Gaussian
at its barycentre, every atom weighing its atomic number. Atoms in no group count to the nearest Gaussian
of their residue, so that the amplitudes add up to the atomic numbers of all atoms that were kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.structures import read_structure

Point = list[float]
# Label of a Gaussian, and indices of its atoms in their residue.
Group = tuple[str, list[int]]

# Side chains of these have their first Gaussian at the beta atom alone.
_AT_BETA = {"SER", "CYS", "SEC", "ALA", "GLY", "VAL", "THR"}
_RINGS = {
    "TYR": (("CD1", "CD2", "CE1", "CE2"), ("CZ", "OH")),
    "TRP": (("CD1", "NE1", "CD2", "CE2"), ("CE3", "CZ2", "CZ3", "CH2")),
}
_PHOSPHATE = {"P", "OP1", "OP2", "OP3", "O1P", "O2P", "O3P"}
_PURINE = (("N9", "C8", "N7", "C5", "C4"), ("N1", "C2", "N2", "N3", "C6", "N6", "O6"))
_PYRIMIDINE = (("N1", "C2", "O2", "C6"), ("N3", "C4", "N4", "O4", "C5", "C7", "C5M"))
# Atoms of a ligand in one Gaussian, at most.
_MAX_LIGAND_ATOMS = 6
# A bond along the chain is at most this long, A, where numbers go on and where they jump.
_BOND, _BOND_ACROSS_GAP = 3.0, 2.0
# Where atoms of the bond are missing, Gaussians of consecutive numbers are this near, A.
_NEXT_RESIDUE = 8.0
# Links of the file between atoms farther apart are of another copy, or mistakes, A.
_LINK = 3.0
# Ligands that no link joins to the rest are tied to it by up to this many edges, this long at most, A.
_MAX_TIES, _TIE = 3, 8.0


@dataclass(frozen=True)
class CoarseModel:
    """Gaussians of an atomic model.

    Parameters
    ----------
    positions
        (n, 3) float64 A, in the frame of the file.
    amplitudes
        (n,) summed atomic numbers of the atoms that count to each.
    edges
        (e, 2) indices, each pair once.
    chains, residues
        (n,) names, such as "H" and "LYS 52A".
    kinds
        (n,) "main", "side", "side2", "side3", "phosphate", "sugar", "base", "base2" or "ligand".
    atoms
        (n,) names of the atoms whose barycentre each is.
    atom_positions, atom_numbers, atom_groups
        (m, 3) A, (m,) atomic numbers and (m,) Gaussians of all atoms that were kept.
    notes
        sentences on what was omitted or changed.
    """

    positions: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    edges: NDArray[np.int64]
    chains: list[str]
    residues: list[str]
    kinds: list[str]
    atoms: list[tuple[str, ...]]
    atom_positions: NDArray[np.float64]
    atom_numbers: NDArray[np.float64]
    atom_groups: NDArray[np.int64]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def moved(self, rotation: NDArray[np.float64], shift: NDArray[np.float64]) -> "CoarseModel":
        """Return the model with its points x at R x + t, for a (3, 3) rotation R and a (3,) shift t in A."""
        return replace(
            self, positions=self.positions @ rotation.T + shift, atom_positions=self.atom_positions @ rotation.T + shift
        )


def coarse_grain(path: str | Path) -> CoarseModel:
    """Coarse-grain the first model of a PDB or mmCIF file.

    Hydrogens, waters, alternative locations beyond the first, and atoms of unknown element are omitted and counted in
    the notes; residues that are neither amino acids nor nucleotides are divided into pieces of at most six atoms.
    Chain breaks have no edge; disulphides and other links of the file have one.

    Raises
    ------
    InputError
        if the file cannot be read, or all of its atoms are omitted.
    """
    structure = read_structure(path)
    notes = reduce_structure(structure, path)
    ends = [end for link in structure.connections for end in (link.partner1, link.partner2)]
    builder = _Builder(linked={(end.chain_name, str(end.res_id.seqid)) for end in ends})
    for chain in structure[0]:
        before = None
        for residue in chain:
            before = builder.add(chain.name, residue, before)
    if not builder.positions:
        raise InputError(f"model {path} holds no atoms but hydrogens and water; give the model of the molecule")
    far = builder.link(structure)
    if far:
        notes.append(f"{far} links of {path} are between atoms missing or more than {_LINK:g} A apart: not used")
    tied = builder.tie_ligands()
    if tied:
        notes.append(f"{tied} ligands or glycans that no link joins to the rest are tied to the Gaussians around them")
    if builder.incomplete:
        notes.append(f"{builder.incomplete} residues have atoms missing: their Gaussians are those of what is there")
    if builder.unknown:
        notes.append(f"{builder.unknown} atoms of unknown element are omitted")
    return builder.finish(tuple(notes))


def reduce_structure(structure: gemmi.Structure, path: str | Path) -> list[str]:
    """Leave out further models, alternative locations, hydrogens and waters; return sentences on them."""
    notes = []
    if len(structure) > 1:
        notes.append(f"{path} holds {len(structure)} models: the first is used")
        del structure[1:]
    for what, remove in (
        ("alternative locations beyond the first", structure.remove_alternative_conformations),
        ("hydrogens", structure.remove_hydrogens),
        ("atoms of water", structure.remove_waters),
    ):
        before = structure[0].count_atom_sites()
        remove()
        gone = before - structure[0].count_atom_sites()
        if gone:
            notes.append(f"{gone} {what} are omitted")
    structure.remove_empty_chains()
    if not len(structure):
        raise InputError(f"model {path} holds no atoms but hydrogens and water; give the model of the molecule")
    # Chains in pieces (polymer, then ligands) become one chain, so that a name means one chain.
    structure.merge_chain_parts()
    return notes


@dataclass
class _Residue:
    """What joins the next residue of a chain to this one: Gaussian and atom at its end."""

    kind: str
    number: int
    joint: int | None
    end: Point | None


@dataclass
class _Builder:
    """Collects Gaussians residue by residue."""

    positions: list[Point] = field(default_factory=list)
    amplitudes: list[float] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    # Chain, residue, kind and names of the atoms of each.
    labels: list[tuple[str, str, str, tuple[str, ...]]] = field(default_factory=list)
    atom_positions: list[Point] = field(default_factory=list)
    atom_numbers: list[int] = field(default_factory=list)
    atom_groups: list[int] = field(default_factory=list)
    # Residues that links of the file name, by chain and number; Gaussian and position of their atoms, by name as well.
    linked: set[tuple[str, str]] = field(default_factory=set)
    link_ends: dict[tuple[str, str, str], tuple[int, Point]] = field(default_factory=dict)
    incomplete: int = 0
    unknown: int = 0

    def add(self, chain: str, residue: gemmi.Residue, before: "_Residue | None") -> "_Residue | None":
        """Add a residue, join it to the one before it in the chain, and return what the next one is joined to."""
        known = [atom for atom in residue if atom.element.atomic_number]
        self.unknown += len(residue) - len(known)
        if not known:
            return before
        names = [atom.name for atom in known]
        points = [atom.pos.tolist() for atom in known]
        numbers = [atom.element.atomic_number for atom in known]
        kind = _residue_kind(residue.name, names)
        # What little is there of a residue still counts.
        groups = list(_GROUPS[kind](residue.name, names, points)) or [
            ("main" if kind == "amino" else "sugar", list(range(len(names))))
        ]
        first = len(self.positions)
        owner = {i: first + index for index, (_, members) in enumerate(groups) for i in members}
        centres = [_barycentre([points[i] for i in members], [numbers[i] for i in members]) for _, members in groups]
        for i, point in enumerate(points):
            if i not in owner:
                owner[i] = first + min(range(len(centres)), key=lambda index: math.dist(centres[index], point))
        self.positions += centres
        self.amplitudes += [0.0] * len(groups)
        for i, number in enumerate(numbers):
            self.amplitudes[owner[i]] += number
        name = f"{residue.name} {residue.seqid}"
        self.labels += [(chain, name, label, tuple(names[i] for i in members)) for label, members in groups]
        self.atom_positions += points
        self.atom_numbers += numbers
        self.atom_groups += [owner[i] for i in range(len(names))]
        if (chain, str(residue.seqid)) in self.linked:
            for i, point in enumerate(points):
                self.link_ends[chain, str(residue.seqid), names[i]] = (owner[i], point)
        self._join_inside(kind, first, groups)
        if kind == "ligand":
            return before
        return self._join_chain(kind, residue, dict(zip(names, points, strict=True)), first, groups, before)

    def _join_inside(self, kind: str, first: int, groups: list[Group]) -> None:
        """Join the Gaussians of a residue: in sequence, or those of a ligand all with each other."""
        n = len(groups)
        if kind == "ligand":
            self.edges |= {(first + i, first + j) for j in range(n) for i in range(j)}
        else:
            self.edges |= {(first + i, first + i + 1) for i in range(n - 1)}

    def _join_chain(
        self,
        kind: str,
        residue: gemmi.Residue,
        atoms: dict[str, Point],
        first: int,
        groups: list[Group],
        before: "_Residue | None",
    ) -> "_Residue":
        start_atom, end_atom, start_kind, end_kind = _JOINTS[kind]
        labels = [label for label, _ in groups]
        joints = {label: first + index for index, label in enumerate(labels)}
        expected = _EXPECTED[kind]
        self.incomplete += not expected <= set(atoms)
        number = residue.seqid.num or 0
        start = atoms.get(start_atom)
        # A nucleotide at the start of a chain has no phosphate: its sugar is next.
        here = joints.get(start_kind, joints.get(end_kind))
        if before is not None and before.kind == kind and before.joint is not None and here is not None:
            goes_on = 0 <= number - before.number <= 1
            if start is None or before.end is None:
                distance = math.dist(self.positions[here], self.positions[before.joint])
                joined = goes_on and distance < _NEXT_RESIDUE
            else:
                limit = _BOND if goes_on else _BOND_ACROSS_GAP
                joined = math.dist(start, before.end) < limit
            if joined:
                self.edges.add((before.joint, here))
        return _Residue(kind, number, joints.get(end_kind), atoms.get(end_atom))

    def link(self, structure: gemmi.Structure) -> int:
        """Add edges for disulphides and other links of the file; return how many could not be used."""
        unused = 0
        for connection in structure.connections:
            if connection.type == gemmi.ConnectionType.Hydrog:
                continue
            first, second = (
                self.link_ends.get((end.chain_name, str(end.res_id.seqid), end.atom_name))
                for end in (connection.partner1, connection.partner2)
            )
            if first is None or second is None or math.dist(first[1], second[1]) > _LINK:
                unused += 1
            elif first[0] != second[0]:
                self.edges.add((min(first[0], second[0]), max(first[0], second[0])))
        return unused

    def tie_ligands(self) -> int:
        """Tie ligands that no link joins to the polymers to the Gaussians around them; return how many."""
        n = len(self.positions)
        edges = np.array(sorted(self.edges), int).reshape(-1, 2)
        graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (n, n))
        _, labels = connected_components(graph, directed=False)
        bound = set(labels[np.array([kind for _, _, kind, _ in self.labels]) != "ligand"].tolist())
        positions, tree = np.array(self.positions), cKDTree(np.array(self.positions))
        tied = 0
        for label in sorted(set(labels.tolist()) - bound):
            ligand = np.flatnonzero(labels == label)
            near = tree.query_ball_point(positions[ligand], _TIE)
            pairs = [
                (float(np.linalg.norm(positions[start] - positions[end])), int(start), int(end))
                for start, found in zip(ligand, near, strict=True)
                for end in found
                if labels[end] != label
            ]
            self.edges |= {(min(pair[1:]), max(pair[1:])) for pair in sorted(pairs)[:_MAX_TIES]}
            tied += bool(pairs)
        return tied

    def finish(self, notes: tuple[str, ...]) -> CoarseModel:
        """Return the model."""
        chains, residues, kinds, atoms = map(list, zip(*self.labels, strict=True))
        return CoarseModel(
            np.array(self.positions),
            np.array(self.amplitudes),
            np.array(sorted(self.edges), int).reshape(-1, 2),
            chains,
            residues,
            kinds,
            atoms,
            np.array(self.atom_positions),
            np.array(self.atom_numbers, float),
            np.array(self.atom_groups, int),
            notes,
        )


def _residue_kind(residue: str, names: list[str]) -> str:
    """Return "amino", "nucleotide" or "ligand": by name, and for unknown residues by their atoms."""
    info = gemmi.find_tabulated_residue(residue)
    if info.is_amino_acid() or {"N", "CA", "C"}.issubset(names):
        return "amino"
    if info.is_nucleic_acid() or {"P", "C1'", "C4'", "O3'"}.issubset(names):
        return "nucleotide"
    return "ligand"


def _barycentre(points: list[Point], numbers: list[int]) -> Point:
    """Return the mean of points weighted by atomic numbers."""
    total = sum(numbers)
    return [sum(n * c for n, c in zip(numbers, along, strict=True)) / total for along in zip(*points, strict=True)]


def _amino_groups(residue: str, names: list[str], points: list[Point]) -> Iterator[Group]:
    """Yield the groups of an amino acid's atoms, label and indices."""
    main = [i for i, name in enumerate(names) if name in ("N", "C", "O")]
    if main:
        yield "main", main
    # The letter behind the element says how far along the side chain an atom is: CB, CG1, OD2. Selenium has none.
    letters = {i: name[1:2] for i, name in enumerate(names) if name not in ("N", "C", "O", "OXT", "SE")}
    first = {"PRO": "ABGD"}.get(residue, "B" if residue in _AT_BETA else "ABG")
    side = [i for i, letter in letters.items() if letter in first]
    if any(letters[i] != "A" for i in side):
        yield "side", side
    elif not main:
        return
    if residue in _AT_BETA:
        return
    if residue in _RINGS:
        parts = [[i for i, name in enumerate(names) if name in ring] for ring in _RINGS[residue]]
    else:
        beyond = set(letters) | {i for i, name in enumerate(names) if name == "SE"}
        parts = [sorted(beyond - {i for i, letter in letters.items() if letter in "A" + first})]
    for label, part in zip(("side2", "side3"), parts, strict=False):
        if part:
            yield label, part


def _nucleotide_groups(residue: str, names: list[str], points: list[Point]) -> Iterator[Group]:
    """Yield the groups of a nucleotide's atoms, label and indices."""
    base = _PURINE if "N9" in names else _PYRIMIDINE
    groups = {
        "phosphate": [i for i, name in enumerate(names) if name in _PHOSPHATE],
        "sugar": [i for i, name in enumerate(names) if name[-1] in "'*"],
        "base": [i for i, name in enumerate(names) if name in base[0]],
        "base2": [i for i, name in enumerate(names) if name in base[1]],
    }
    yield from ((label, members) for label, members in groups.items() if members)


def _ligand_groups(residue: str, names: list[str], points: list[Point]) -> Iterator[Group]:
    """Yield pieces of at most six atoms, by halving along the longest axis."""
    positions = np.array(points)
    pieces = [np.arange(len(names))]
    while pieces:
        piece = pieces.pop()
        if len(piece) <= _MAX_LIGAND_ATOMS:
            yield "ligand", sorted(piece.tolist())
            continue
        centred = positions[piece] - positions[piece].mean(0)
        along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
        order = piece[np.argsort(along, kind="stable")]
        pieces += [order[len(order) // 2 :], order[: len(order) // 2]]


_GROUPS = {"amino": _amino_groups, "nucleotide": _nucleotide_groups, "ligand": _ligand_groups}
# Atoms of the bond along the chain, and Gaussians that it joins: start of a residue, end of the one before.
_JOINTS = {"amino": ("N", "C", "main", "main"), "nucleotide": ("P", "O3'", "phosphate", "sugar")}
# A residue without these has atoms missing.
_EXPECTED = {"amino": {"N", "CA", "C", "O"}, "nucleotide": {"C1'", "C4'", "O3'"}}


def write_moved(path: str | Path, rotation: NDArray[np.float64], shift: NDArray[np.float64], out: str | Path) -> None:
    """Write an atomic model as mmCIF with its atoms x at R x + t, for a (3, 3) rotation R and a (3,) shift t in A."""
    structure = read_structure(path)
    for model in structure:
        for chain in model:
            for residue in chain:
                for atom in residue:
                    atom.pos = gemmi.Position(*(rotation @ atom.pos.tolist() + shift))
    structure.setup_entities()
    with atomic_path(out) as temporary:
        structure.make_mmcif_document().write_file(str(temporary))
