"""Deformation fields as files: what they hold, what they do to maps and models, and what is refused."""

import json

import gemmi
import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.analysis.displace import Displacer
from dynamight_core.analysis.field_files import DeformationField, Reference, read_field
from dynamight_core.analysis.molecule import all_gaussians
from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.analysis.states import state_coordinates
from dynamight_core.files import read_map, write_map
from dynamight_core.judging.errors import displacement_errors
from dynamight_core.run import Run
from tests.support.command_line import BOX, PIXEL, dynamight

STATE = "12,-3"


@pytest.fixture(scope="module")
def atoms(moving, tmp_path_factory):
    """A model of 40 atoms near the Gaussians of the run, its coordinates counted from the first voxel."""
    gaussians = all_gaussians(Run(moving))
    random = np.random.default_rng(2)
    places = gaussians[random.choice(len(gaussians), 40)] + random.normal(0, 1.0, (40, 3))
    chain = gemmi.Chain("A")
    for number, place in enumerate(places + BOX // 2 * PIXEL, 1):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*place)
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    path = tmp_path_factory.mktemp("atoms") / "atoms.cif"
    structure.make_mmcif_document().write_file(str(path))
    return path


@pytest.fixture(scope="module")
def fields(moving, tmp_path_factory):
    """Return the folder of fields on a grid: both motions, a state and a particle."""
    out = tmp_path_factory.mktemp("fields")
    words = ["--motions", "2", f"--at={STATE}", "--particles", "7", "--out", out]
    code, text = dynamight("fields", moving, *words)
    assert code == 0, text
    return out


def places_of(path):
    return np.array([found.atom.pos.tolist() for found in gemmi.read_structure(str(path))[0].all()])


def displaced(moving, atoms, tmp_path):
    """Return the atoms at the state, by `dynamight displace`."""
    words = ["--points", atoms, "--origin", "corner", "--out", tmp_path / "d.npz", f"--state={STATE}"]
    assert dynamight("displace", moving, *words)[0] == 0
    return places_of(tmp_path / "d_state.cif")


def deformed(field, atoms, out, *more):
    code, text = dynamight("deform", field, atoms, "--out", out, "--origin", "corner", *more)
    assert code == 0, text
    return places_of(out)


def test_a_field_on_atoms_moves_them_as_displace_does(moving, atoms, tmp_path):
    expected = displaced(moving, atoms, tmp_path)
    words = ["--points", atoms, "--origin", "corner", f"--at={STATE}", "--out", tmp_path]
    assert dynamight("fields", moving, *words)[0] == 0
    assert not list(tmp_path.glob("*.mrc"))
    found = deformed(tmp_path / "state01.npz", atoms, tmp_path / "moved.cif")
    assert np.abs(found - places_of(atoms)).max() > 1.0
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_field_on_a_grid_moves_atoms_as_displace_does(moving, atoms, fields, tmp_path):
    expected, field = displaced(moving, atoms, tmp_path), fields / "state01.npz"
    np.testing.assert_allclose(deformed(field, atoms, tmp_path / "a.cif"), expected, atol=0.05)
    np.testing.assert_allclose(deformed(field, atoms, tmp_path / "b.cif", "--run", moving), expected, atol=1e-3)
    back = deformed(field, atoms, tmp_path / "c.cif", "--scale=-0.5")
    np.testing.assert_allclose(back - places_of(atoms), (places_of(atoms) - expected) / 2, atol=0.05)


def test_the_other_file_of_a_field_holds_the_same(fields):
    for name in ("motion1", "state01", "particle7"):
        first, second = (read_field(fields / f"{name}{suffix}") for suffix in (".npz", ".mrc"))
        np.testing.assert_array_equal(first.displacement, second.displacement)
        np.testing.assert_allclose(first.corner, second.corner, atol=1e-3)
        assert first.spacing == pytest.approx(second.spacing)
        assert second.reference.box == BOX and second.reference.pixel_size == pytest.approx(PIXEL)
        # Without our program: NumPy alone, and any program that reads MRC.
        with np.load(fields / f"{name}.npz") as archive:
            assert json.loads(str(archive["about"]))["name"] == name
            assert archive["displacement"].shape == (*archive["error"].shape, 3) == (*archive["difference"].shape, 3)
        with mrcfile.open(fields / f"{name}.mrc") as mrc:
            assert mrc.is_volume_stack() and len(mrc.data) == 3
            np.testing.assert_array_equal(mrc.data[0], first.displacement[..., 0])
        assert mrcfile.validate(fields / f"{name}.mrc")


def test_fields_are_those_of_the_run_at_its_own_points(moving, fields):
    run = Run(moving)
    points = run.motions.points[::5]
    displacer = Displacer(run, points)
    table = pd.read_csv(fields / "fields.csv").set_index("field")
    assert list(table["kind"]) == ["motion", "motion", "state", "particle"]
    shift = (displacer.of_particles(np.array([6]))[0] - points).numpy()
    particle = read_field(fields / "particle7.npz")
    np.testing.assert_allclose(particle.at(points.numpy()), shift, atol=0.05)
    assert particle.particle == 7 and table.loc["particle7", "particle"] == 7
    amount = float(run.motions.coordinates[:, 1].std())
    states = [displacer.at_state([0.0, value]).numpy() for value in (amount, 0.0)]
    np.testing.assert_allclose(read_field(fields / "motion2.npz").at(points.numpy()), states[0] - states[1], atol=0.05)
    assert table.loc["motion2", "motion2_A"] == pytest.approx(amount, abs=1e-3)
    # The uncertainty is the particle's own.
    error = displacement_errors(run, run.motions.points, torch.tensor([6])).square().mean().sqrt()
    assert table.loc["particle7", "error_rms_A"] == pytest.approx(float(error), rel=1e-2)
    arrows = pd.read_csv(fields / "particle7_arrows.csv")
    bild = (fields / "particle7_arrows.bild").read_text()
    assert bild.count(".arrow") == bild.count(".sphere") > 0
    assert arrows["error_A"].between(0.5 * float(error), 2 * float(error)).mean() > 0.5


def test_a_map_is_deformed_as_by_the_states_of_the_run(moving, data, fields, tmp_path):
    code, text = dynamight("deform", fields / "state01.mrc", data.consensus, "--out", tmp_path / "moved.mrc")
    assert code == 0, text
    moved, pixel_size = read_map(tmp_path / "moved.mrc")
    assert pixel_size == pytest.approx(PIXEL)
    expected = PushedMap(Run(moving), path=data.consensus).volume(state_coordinates(Run(moving), [12, -3]))
    before, _ = read_map(data.consensus)
    change = np.linalg.norm(expected - before)
    assert np.linalg.norm(moved - expected) < 0.02 * change
    # Where a map lies is in its header.
    write_map(tmp_path / "cut.mrc", before[4:28, 4:28, 4:28], PIXEL, (4 * PIXEL,) * 3)
    assert dynamight("deform", fields / "state01.npz", tmp_path / "cut.mrc", "--out", tmp_path / "c.mrc")[0] == 0
    inside = (slice(6, -6),) * 3
    np.testing.assert_allclose(read_map(tmp_path / "c.mrc")[0][inside], moved[4:28, 4:28, 4:28][inside], atol=0.05)


def test_a_field_of_another_program_is_taken_to_be_on_the_voxels_of_its_map(data, tmp_path):
    reference = Reference.of_map(data.consensus)
    wanted = np.random.default_rng(0).normal(size=(BOX, BOX, BOX, 3)).astype(np.float32)
    with mrcfile.new(tmp_path / "foreign.mrc") as mrc:
        mrc.set_data(np.concatenate(np.moveaxis(wanted, -1, 0)))
        mrc.set_volume()
        mrc.voxel_size = PIXEL
    found = read_field(tmp_path / "foreign.mrc", data.consensus)
    assert found.kind == "imported" and found.reference == reference
    np.testing.assert_array_equal(found.displacement, wanted)
    here = np.array([[3 * PIXEL, -2 * PIXEL, 0.0]])
    np.testing.assert_allclose(found.at(here)[0], wanted[16, 14, 19], atol=1e-5)


def test_a_field_that_cannot_be_used_is_refused(moving, data, atoms, fields, tmp_path):
    field = DeformationField(np.zeros((4, 3), np.float32), Reference(BOX, PIXEL, (0, 0, 0)), points=np.zeros((4, 3)))
    (points,) = field.write(tmp_path / "points")
    write_map(tmp_path / "one.mrc", np.random.default_rng(0).random((8, 8, 8)), PIXEL)
    for words, reason in [
        ((points, atoms, "--out", tmp_path / "x.cif"), "set --map, or --origin"),
        ((points, atoms, "--out", tmp_path / "x.cif", "--origin", "corner"), "are not among them"),
        ((points, data.consensus, "--out", tmp_path / "x.mrc"), "write it on a grid"),
        ((fields / "state01.npz", atoms, "--out", tmp_path / "x.mrc"), "ends in .cif"),
        ((fields / "state01.npz", atoms, "--out", atoms), "which is an input"),
        ((fields / "fields.csv", atoms, "--out", tmp_path / "x.cif"), "unknown file type"),
        ((tmp_path / "one.mrc", atoms, "--out", tmp_path / "x.cif"), "has not three components"),
        (
            (fields / "state01.mrc", atoms, "--map", data.consensus, "--out", tmp_path / "x.cif", "--run", moving),
            "omit --run",
        ),
        ((fields / "state01.npz", data.consensus, "--out", tmp_path / "x.mrc", "--run", moving), "omit it for a map"),
    ]:
        code, text = dynamight("deform", *words)
        assert (code, reason in text) == (2, True), text
    for words, reason in [
        (["--motions", "0"], "no field is named"),
        (["--particles", "7,7"], "two fields are called particle7"),
        (["--particles", "0"], "particle 0 is not in this run"),
        (["--at", "1,2,3,4,5,6,7,8,9"], "a state has 9 coordinates"),
    ]:
        code, text = dynamight("fields", moving, *words)
        assert (code, reason in text) == (2, True), text
