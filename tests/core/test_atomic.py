"""Atomic models: the rules of coarse-graining, what is left out of a file, and wrong models on purpose."""

from collections import Counter
from itertools import pairwise

import gemmi
import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.model.atomic import coarse_grain
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.graph import NeighbourGraph
from dynamight_core.model.wrong import wrong_model
from dynamight_core.simulate.molecules import DATA

IGG = DATA / "1hzh.pdb.gz"
# Gaussians of a complete residue beside the main chain's, by the rules.
SIDE_CHAIN = {"GLY": 0} | dict.fromkeys("SER CYS ALA VAL THR PRO".split(), 1)
SIDE_CHAIN |= dict.fromkeys("ARG ASN ASP GLN GLU HIS ILE LEU LYS MET PHE".split(), 2) | {"TYR": 3, "TRP": 3}


@pytest.fixture(scope="module")
def igg():
    """The antibody 1HZH, coarse-grained."""
    return coarse_grain(IGG)


@pytest.fixture(scope="module")
def igg_residues():
    """Its residues without water, read by another way: (chain, residue) pairs."""
    structure = gemmi.read_pdb(str(IGG))
    return [(chain, r) for chain in structure[0] for r in chain if r.name != "HOH"]


def atom_line(serial, name, residue, chain, number, position, element, record="ATOM", altloc=" ", insertion=" "):
    x, y, z = position
    padded = f" {name:<3s}" if len(element) == 1 else f"{name:<4s}"
    return (
        f"{record:<6s}{serial:5d} {padded}{altloc}{residue:>3s} {chain}{number:4d}{insertion}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {element:>2s}"
    )


def alanine(chain, number, start, insertion=" "):
    """Return the lines of an alanine along x whose N is at `start`; the next one's N is 3.8 A on."""
    places = [("N", 0, 0), ("CA", 1.4, 0.5), ("C", 2.5, -0.3), ("O", 2.5, -1.5), ("CB", 1.4, 2.0)]
    return [
        atom_line(1, name, "ALA", chain, number, (start + x, y, 0.0), name[0], insertion=insertion)
        for name, x, y in places
    ]


def write_pdb(folder, lines, name="model.pdb"):
    path = folder / name
    path.write_text("\n".join([*lines, "END"]) + "\n")
    return path


def test_every_residue_has_the_gaussians_of_its_kind(igg, igg_residues):
    """Counts by residue type against the rules, and what is barycentre of what."""
    residues = Counter(r.name for _, r in igg_residues if r.name in SIDE_CHAIN)
    found = Counter((name.split()[0], kind) for name, kind in zip(igg.residues, igg.kinds, strict=True))
    for name, number in residues.items():
        labels = ["main", "side", "side2", "side3"][: 1 + SIDE_CHAIN[name]]
        assert {kind: n for (residue, kind), n in found.items() if residue == name} == dict.fromkeys(labels, number)
    assert sum(residues.values()) == found_main(igg)
    groups = {
        (name.split()[0], kind): atoms for name, kind, atoms in zip(igg.residues, igg.kinds, igg.atoms, strict=True)
    }
    assert set(groups["LEU", "side"]) == {"CA", "CB", "CG"} and set(groups["LEU", "side2"]) == {"CD1", "CD2"}
    assert set(groups["PRO", "side"]) == {"CA", "CB", "CG", "CD"} and set(groups["VAL", "side"]) == {"CB"}
    assert set(groups["ILE", "side"]) == {"CA", "CB", "CG1", "CG2"} and set(groups["ILE", "side2"]) == {"CD1"}
    assert set(groups["TYR", "side2"]) | set(groups["TYR", "side3"]) == {"CD1", "CD2", "CE1", "CE2", "CZ", "OH"}
    assert set(groups["ARG", "side2"]) == {"CD", "NE", "CZ", "NH1", "NH2"}


def found_main(model):
    return sum(kind == "main" for kind in model.kinds)


def test_no_atom_is_lost(igg, igg_residues):
    """The total amplitude is the summed atomic number of all atoms but hydrogen and water."""
    total = sum(atom.element.atomic_number for _, r in igg_residues for atom in r if not atom.is_hydrogen())
    assert igg.amplitudes.sum() == total == igg.atom_numbers.sum()
    # The alpha atom of an alanine counts to one of its Gaussians: 6 + 7 + 8 + 6 + 6.
    alanine_total = Counter()
    for name, amplitude in zip(zip(igg.chains, igg.residues, strict=True), igg.amplitudes, strict=True):
        alanine_total[name] += amplitude
    assert {value for name, value in alanine_total.items() if name[1].startswith("ALA")} == {33.0}


def test_its_map_at_8_A_is_that_of_the_atoms(igg):
    """Correlation inside the molecule's mask, all atoms blurred to 8 A against Gaussians of a width of their own."""
    centre = igg.atom_positions.mean(0)
    box, pixel_size, width = 72, 2.5, 0.225 * 8
    atoms = GaussianModel(torch.tensor(igg.atom_positions - centre), width, 1.0)
    coarse = GaussianModel(torch.tensor(igg.positions - centre), width + 0.3, 1.0)
    with torch.no_grad():
        atoms.relative_amplitudes.copy_(torch.tensor(igg.atom_numbers))
        coarse.relative_amplitudes.copy_(torch.tensor(igg.amplitudes))
        maps = [model.render(box, pixel_size) for model in (atoms, coarse)]
    inside = maps[0] > 0.05 * maps[0].max()
    assert np.corrcoef(maps[0][inside], maps[1][inside])[0, 1] > 0.96


def test_edges_follow_the_bonds(igg, igg_residues):
    """No edge in a chain is longer than 8 A; consecutive residues are joined exactly where C and N are bonded."""
    lengths = np.linalg.norm(igg.positions[igg.edges[:, 0]] - igg.positions[igg.edges[:, 1]], axis=1)
    assert lengths.max() < 8.0
    edges = {tuple(edge) for edge in igg.edges.tolist()}
    main = {
        (chain, name): index
        for index, (chain, name, kind) in enumerate(zip(igg.chains, igg.residues, igg.kinds, strict=True))
        if kind == "main"
    }
    amino = [(c.name, r) for c, r in igg_residues if r.name in SIDE_CHAIN]
    bonded = broken = 0
    for (chain, before), (other, after) in pairwise(amino):
        if chain != other:
            continue
        close = before["C"][0].pos.dist(after["N"][0].pos) < 2.0
        pair = tuple(main[chain, f"{r.name} {r.seqid}"] for r in (before, after))
        assert (pair in edges) == close
        bonded, broken = bonded + close, broken + (not close)
    assert bonded > 1300 and broken > 0


def test_disulphides_of_the_file_are_edges(igg):
    """Each SSBOND joins the side chains of its cysteines."""
    joined = {
        frozenset((igg.chains[i], igg.residues[i]) for i in edge)
        for edge in igg.edges.tolist()
        if all(igg.kinds[i] == "side" for i in edge)
    }
    assert frozenset({("L", "CYS 23"), ("L", "CYS 88")}) in joined
    assert len(joined) >= 15


def test_chain_breaks_have_no_edge(tmp_path):
    """By distance, and where numbers jump by a shorter one; a jump of numbers alone is no break."""
    lines = alanine("A", 1, 0.0) + alanine("A", 2, 3.8) + alanine("A", 3, 12.0) + alanine("A", 10, 15.8)
    model = coarse_grain(write_pdb(tmp_path, lines))
    main = [i for i, kind in enumerate(model.kinds) if kind == "main"]
    edges = {tuple(edge) for edge in model.edges.tolist()}
    assert [(a, b) in edges for a, b in pairwise(main)] == [True, False, True]
    stretched = alanine("A", 1, 0.0) + alanine("A", 2, 5.0) + alanine("A", 9, 10.0)
    model = coarse_grain(write_pdb(tmp_path, stretched))
    main = [i for i, kind in enumerate(model.kinds) if kind == "main"]
    edges = {tuple(edge) for edge in model.edges.tolist()}
    assert [(a, b) in edges for a, b in pairwise(main)] == [True, False]
    # Without the atoms of the bond, numbers and the distance of the Gaussians decide.
    alphas = [
        atom_line(1, "CA", "ALA", "A", number, (x, 0, 0), "C") for number, x in ((1, 0), (2, 3.8), (4, 7.6), (5, 20))
    ]
    model = coarse_grain(write_pdb(tmp_path, alphas))
    assert len(model) == 4 and model.edges.tolist() == [[0, 1]]
    assert any("atoms missing" in note for note in model.notes)


def test_what_is_no_part_of_the_model_is_left_out_and_said(tmp_path):
    """Hydrogens, waters, alternative locations, further models, and atoms of unknown element."""
    body = alanine("A", 1, 0.0)
    body += [
        atom_line(9, "H", "ALA", "A", 1, (0, -1, 0), "H"),
        atom_line(9, "CB", "ALA", "A", 1, (1.4, 2.0, 1.0), "C", altloc="B"),
        atom_line(9, "O", "HOH", "A", 90, (5, 5, 5), "O", record="HETATM"),
        atom_line(9, "X1", "UNX", "A", 91, (7, 7, 7), "X", record="HETATM"),
    ]
    body[4] = body[4][:16] + "A" + body[4][17:]
    lines = ["MODEL        1", *body, "ENDMDL", "MODEL        2", *alanine("A", 1, 50.0), "ENDMDL"]
    model = coarse_grain(write_pdb(tmp_path, lines))
    assert model.kinds == ["main", "side"] and model.amplitudes.sum() == 33
    assert np.allclose(model.positions[1], [1.4, 2.0, 0.0])
    said = " ".join(model.notes)
    for words in ("2 models", "1 hydrogens", "1 atoms of water", "1 alternative locations", "1 atoms of unknown"):
        assert words in said


def test_ligands_ions_and_unknown_residues_count(tmp_path):
    """A ligand becomes pieces of at most six atoms, an ion one Gaussian; both are tied to what is around them."""
    generator = np.random.default_rng(0)
    lines = alanine("A", 1, 0.0)
    lines += [line.replace("ALA", "XYZ") for line in alanine("A", 2, 3.8)]
    carbons = 6 + np.arange(14)[:, None] * [1.3, 0.0, 0.0] * 0.5 + generator.normal(0, 0.1, (14, 3))
    lines += [atom_line(i, f"C{i}", "LIG", "A", 50, place, "C", record="HETATM") for i, place in enumerate(carbons, 1)]
    lines.append(atom_line(1, "ZN", "ZN", "A", 60, (1.0, -4.0, 0.0), "ZN", record="HETATM"))
    model = coarse_grain(write_pdb(tmp_path, lines))
    # An unknown residue with N, CA and C is an amino acid, and its beta atom's group a side chain.
    assert model.kinds[:4] == ["main", "side", "main", "side"] and set(model.kinds[4:]) == {"ligand"}
    assert all(len(atoms) <= 6 for atoms in model.atoms)
    assert model.amplitudes.sum() == 66 + 14 * 6 + 30
    edges = {tuple(edge) for edge in model.edges.tolist()}
    pieces, ion = range(4, len(model) - 1), len(model) - 1
    assert {(i, j) for j in pieces for i in range(4, j)} <= edges
    assert any((i, j) in edges for i in range(4) for j in pieces) and any((i, ion) in edges for i in range(4))
    assert any("no link joins" in note for note in model.notes)


def test_nucleotides(tmp_path):
    """Phosphate, sugar and two for the base; the backbone joins sugar and next phosphate."""
    lines = []
    atoms = "P OP1 OP2 O5' C5' C4' O4' C3' O3' C2' O2' C1' N9 C8 N7 C5 C6 N6 N1 C2 N3 C4".split()
    for number in (1, 2):
        for i, name in enumerate(atoms):
            start = 6.0 * (number - 1)
            place = {"P": (start, 0, 0), "O3'": (start + 4.4, 0, 0)}.get(name, (start + 2, 0.4 * i, 1.0))
            lines.append(atom_line(i, name, "A", "R", number, place, name[0]))
    model = coarse_grain(write_pdb(tmp_path, lines))
    assert model.kinds == ["phosphate", "sugar", "base", "base2"] * 2
    assert [set(edge) for edge in model.edges.tolist()] == [{0, 1}, {1, 2}, {1, 4}, {2, 3}, {4, 5}, {5, 6}, {6, 7}]
    assert model.amplitudes.sum() == 2 * (15 + 6 * 8 + 10 * 6 + 5 * 7)


def test_files_without_a_molecule_are_refused(tmp_path):
    """Missing, empty, and water alone."""
    with pytest.raises(InputError, match="does not exist"):
        coarse_grain(tmp_path / "none.pdb")
    water = [atom_line(1, "O", "HOH", "A", 1, (0, 0, 0), "O", record="HETATM")]
    with pytest.raises(InputError, match="hydrogens and water"):
        coarse_grain(write_pdb(tmp_path, water))
    with pytest.raises(InputError, match="contains no atoms"):
        coarse_grain(write_pdb(tmp_path, []))


def test_a_wrong_model_has_another_structure_in_the_same_place(igg, tmp_path):
    """The rest stays atom for atom; the replacement lies where the domain was, but not on it."""
    fab = np.array(
        [
            chain == "L" or (chain == "H" and int(name.split()[1].rstrip("ABCDEFGHIJ")) < 214)
            for chain, name in zip(igg.chains, igg.residues, strict=True)
        ]
    )
    for replacement in (None, "H/244-478 K/244-478"):
        wrong_model(IGG, "H/1-213 L", tmp_path / "wrong.cif", replacement)
        model = coarse_grain(tmp_path / "wrong.cif")
        new = np.array([chain not in "HKLMAB" for chain in model.chains])
        assert np.allclose(model.positions[~new], igg.positions[~fab], atol=2e-3)
        assert 0.8 < new.sum() / fab.sum() < 1.2
        assert np.linalg.norm(model.positions[new].mean(0) - igg.positions[fab].mean(0)) < 2.0
        own = np.linalg.norm(model.positions[new][:, None] - igg.positions[fab], axis=-1).min(1)
        assert 1.0 < own.mean() < 6.0
    with pytest.raises(InputError, match="names all"):
        wrong_model(IGG, "H K L M A B", tmp_path / "all.cif")


def test_a_foreign_protein_can_take_the_place_of_a_domain(igg, tmp_path):
    """Fitted by its axes where it overlaps most, and what overlaps and clashes is said."""
    spike = "benchmarks/data/6vxx.pdb.gz"
    placement = wrong_model(IGG, "H/1-213 L", tmp_path / "wrong.cif", f"{spike} A/27-303")
    structure = gemmi.read_structure(str(tmp_path / "wrong.cif"))
    (new,) = [chain for chain in structure[0] if chain.name not in "HKLMAB"]
    atoms = np.array([atom.pos.tolist() for residue in new for atom in residue])
    assert placement.atoms == len(atoms)
    assert 0.5 < len(atoms) / placement.replaced < 1.0
    right = gemmi.read_structure(str(IGG))
    fab = [residue for residue in right[0]["L"]] + [r for r in right[0]["H"] if r.seqid.num < 214]
    domain = np.array([atom.pos.tolist() for residue in fab for atom in residue if residue.name != "HOH"])
    assert np.linalg.norm(atoms.mean(0) - domain.mean(0)) < 2.0
    near = np.linalg.norm(atoms[:, None] - domain, axis=-1).min(1) < 3.0
    assert placement.overlap == pytest.approx(near.mean(), abs=0.02)
    assert placement.overlap > 0.3
    assert f"{100 * placement.overlap:.0f} % of them" in placement.sentence
    assert "closer than 2 A to the rest" in placement.sentence
    with pytest.raises(InputError, match=r"missing.pdb does not exist"):
        wrong_model(IGG, "H/1-213 L", tmp_path / "wrong.cif", "missing.pdb")


def test_gaussians_of_an_atomic_model_keep_its_edges(igg):
    """The neighbour graph of a fixed model is its own; places and relative amplitudes take no gradient."""
    positions = torch.tensor(igg.positions - igg.positions.mean(0))
    model = GaussianModel(positions, 3.0, 1.0, edges=torch.tensor(igg.edges))
    graph = NeighbourGraph.of(model)
    assert torch.equal(graph.edges, model.edges)
    start, end = model.positions[graph.edges].unbind(1)
    assert torch.allclose(graph.distances, (start - end).norm(dim=1))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "log_widths",
        "log_amplitudes",
        "composition",
    ]
    assert not GaussianModel(positions, 3.0, 1.0).fixed
