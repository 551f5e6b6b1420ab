"""Atomic models of simulated molecules."""

from pathlib import Path

import gemmi
import numpy as np

from dynamight_core.simulate.molecules import DATA
from dynamight_core.structures import selected_atoms


def write_antibody(part: str, path: Path) -> Path:
    """Write a part of the antibody 1HZH, such as "H/1-213 L", its extent centred at the origin as in simulations."""
    structure = gemmi.read_structure(str(DATA / "1hzh.pdb.gz"))
    structure.remove_waters()
    names = selected_atoms(structure, part, path)
    for chain in structure[0]:
        for index in range(len(chain) - 1, -1, -1):
            if not any((chain.name, str(chain[index].seqid), atom.name) in names for atom in chain[index]):
                del chain[index]
    structure.remove_empty_chains()
    atoms = [atom for chain in structure[0] for residue in chain for atom in residue]
    positions = np.array([atom.pos.tolist() for atom in atoms])
    for atom in atoms:
        atom.pos -= gemmi.Position(*(positions.min(0) + positions.max(0)) / 2)
    structure.make_mmcif_document().write_file(str(path))
    return path


def write_chains(path: Path, *chains) -> Path:
    """Write (m, 3) points (A) as the alpha carbons of chains A, B, ..."""
    structure, model = gemmi.Structure(), gemmi.Model(1)
    for name, points in zip("ABC", chains, strict=False):
        chain = gemmi.Chain(name)
        for number, position in enumerate(points.tolist(), 1):
            residue, atom = gemmi.Residue(), gemmi.Atom()
            residue.name, residue.seqid = "ALA", gemmi.SeqId(number, " ")
            atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*position)
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(path))
    return path
