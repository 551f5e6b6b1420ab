"""Maps are compared with atomic models by FSC, in the mask and in each region."""

import shutil

import gemmi
import numpy as np
import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map, write_map
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.atomic_models import model_densities
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run


def write_atoms(path, positions, offset=0.0):
    """Write (n, 3) carbon atoms, A from the centre of the box plus an offset."""
    structure, model, chain = gemmi.Structure(), gemmi.Model("1"), gemmi.Chain("A")
    for number, position in enumerate(positions, 1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number, " ")
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*(position + offset).tolist())
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.make_mmcif_document().write_file(str(path))
    return str(path)


@pytest.fixture(scope="module")
def compared(paper, tmp_path_factory):
    """A reconstruction compared with a right and a wrong model, in a region; its run, its files and what was said."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(paper[1].path, folder / "run")
    run = Run(folder / "run")
    atoms = run.models[0].consensus_positions
    models = [write_atoms(folder / "right.cif", atoms), write_atoms(folder / "wrong-way.cif", atoms.flip(1))]
    box, pixel_size = run.particles.box, run.particles.pixel_size
    mask = np.zeros((box,) * 3, np.float32)
    mask[4:-4, 4:-4, box // 2 :] = 1
    write_map(folder / "upper.mrc", mask, pixel_size)
    said = []
    options = ReconstructOptions(
        models=models, origin="centre", regions=[str(folder / "upper.mrc")], method="wbp", device="cpu", shrink=False
    )
    reconstruct_run(run, options, Reporter(said.append))
    return run, folder, said


def test_each_model_has_a_curve_in_the_mask_and_in_each_region(compared):
    run, folder, said = compared
    table = starfile.read(run.path / "reconstruction" / "fsc.star")["fsc"]
    names = {f"dynAtomic_{model}{region}" for model in ("right", "wrong_way") for region in ("", "_upper")}
    assert names <= set(table)
    assert names <= set(starfile.read(run.path / "reconstruction" / "rigid" / "fsc.star")["fsc"])
    assert table["dynAtomic_right"][1:8].mean() > table["dynAtomic_wrong_way"][1:8].mean() + 0.2
    halves = [torch.from_numpy(read_map(run.path / "reconstruction" / f"half{h}_unfil.mrc")[0]) for h in (1, 2)]
    (density,) = model_densities([str(folder / "right.cif")], "centre", run).values()
    region = torch.from_numpy(read_map(folder / "upper.mrc")[0])
    expected = fourier_shell_correlation(density, (halves[0] + halves[1]) / 2, region)
    np.testing.assert_allclose(table["dynAtomic_right_upper"][1:], expected[1:], atol=1e-3)
    (line,) = [line for line in said if "atomic model right" in line]
    assert "in upper" in line
    assert "without deformation" in line


def test_all_origins_give_the_same_density(compared):
    run, folder, _ = compared
    atoms = run.models[0].consensus_positions
    corner = run.particles.box // 2 * run.particles.pixel_size
    path = write_atoms(folder / "corner.cif", atoms, corner)
    (centre,) = model_densities([str(folder / "right.cif")], "centre", run).values()
    (moved,) = model_densities([path], "corner", run).values()
    torch.testing.assert_close(moved, centre, atol=1e-2 * float(centre.max()), rtol=0)


def test_a_model_that_does_not_belong_to_the_map_is_refused(compared):
    run, folder, _ = compared
    path = write_atoms(folder / "far.cif", run.models[0].consensus_positions, 1000.0)
    with pytest.raises(InputError, match=r"--models .*far.cif lies mostly outside the map; set --origin"):
        model_densities([path], "centre", run)
    with pytest.raises(InputError, match="two files of --models are called right"):
        model_densities([str(folder / "right.cif")] * 2, "centre", run)
