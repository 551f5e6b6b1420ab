"""States and displaced models from the command line."""

import io
import json
import sys

import gemmi
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.analysis.states import states_through
from dynamight_core.files import read_map
from dynamight_core.run import Run
from dynamight_core.simulate.truth import load_truth
from tests.support.command_line import BOX, PIXEL, N, dynamight


def maps_of(folder):
    """Return the maps of states in a folder, without the displacement that colours them."""
    return [path for path in folder.glob("*.mrc") if path.name != "displacement.mrc"]


def test_states_along_a_motion_are_maps_a_table_and_a_movie(moving):
    code, text = dynamight("states", moving, "--n-states", "3")
    assert code == 0, text
    folder = moving / "analysis" / "states" / "motion1"
    table = pd.read_csv(folder / "states.csv")
    assert len(table) == 3
    assert (np.diff(table["motion1_A"]) > 0).all()
    volumes = [read_map(folder / name) for name in table["file"]]
    assert all(volume.shape == (BOX,) * 3 and size == pytest.approx(PIXEL) for volume, size in volumes)
    assert (folder / "movie.gif").read_bytes()[:3] == b"GIF"
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(folder / "movie.mp4"))
    # Three states and three frames between each two, there and back three times, six in a second
    assert (frames, seconds) == (3 * 16 + 1, pytest.approx(49 / 6, abs=0.2))
    # A second call replaces the first's files.
    assert dynamight("states", moving, "--n-states", "2", "--no-movie")[0] == 0
    assert len(maps_of(folder)) == 2
    assert not list(folder.glob("movie.*"))


def test_a_state_is_the_molecule_in_place_and_on_the_grey_scale_of_the_images(data, moving):
    assert dynamight("states", moving, "--at", "0")[0] == 0
    volume, _ = read_map(moving / "analysis" / "states" / "coordinates" / "state01.mrc")
    true = load_truth(data.truth).true_map(0.0).numpy()
    assert np.corrcoef(volume.ravel(), true.ravel())[0, 1] > 0.8
    assert 0.7 < (volume * true).sum() / (true**2).sum() < 1.4


@pytest.mark.parametrize(
    ("words", "name", "files"),
    [
        (["--clusters", "3"], "clusters3", 3),
        (["--between", "1", "7", "--n-states", "2"], "particles1to7", 2),
        (["--through", "0,1", "--through=-2,1", "--n-states", "2"], "path", 2),
        (["--latent", "0.1,-0.2", "--half", "2"], "latents_half2", 1),
    ],
)
def test_states_of_other_kinds(moving, words, name, files):
    code, text = dynamight("states", moving, *words)
    assert code == 0, text
    assert len(maps_of(moving / "analysis" / "states" / name)) == files


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--motion", "9"], "motion 9 is not in this run"),
        (["--between", "0", "5"], "particle 0 is not in this run"),
        (["--latent", "1,2,3", "--half", "1"], "--latent has 3 numbers"),
        (["--latent", "1,2"], "set --half"),
        (["--at", "a,b"], "numbers separated by commas"),
        (["--clusters", "2", "--at", "1"], "cannot be combined"),
        (["--percentiles", "90", "10"], "two increasing numbers"),
        (["--through", "1"], "at least 2 points of a path"),
        (["--between", "3", "3"], "are the same"),
    ],
)
def test_states_that_cannot_be_had_are_refused(moving, words, reason):
    code, text = dynamight("states", moving, *words)
    assert code == 2
    assert reason in text


def test_states_on_a_path_are_evenly_spaced_and_pass_its_points(moving):
    states = states_through(Run(moving), [[0, 0], [0, 0], [3, 0], [3, 1]], 5)
    np.testing.assert_allclose(states.coordinates[:, :2], [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]], atol=1e-6)


def test_states_are_served_as_they_are_asked_for(moving, tmp_path, monkeypatch):
    requests = [{"at": [0], "out": str(tmp_path / "a.mrc")}, {"at": [1] * 9, "out": "b.mrc"}, {"at": "x"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, requests))))
    code, text = dynamight("states", moving, "--listen")
    assert code == 0
    answers = [json.loads(line) for line in text.splitlines()]
    assert answers[0] == {"out": requests[0]["out"]}
    assert "9 coordinates" in answers[1]["error"]
    assert "is invalid" in answers[2]["error"]
    assert dynamight("states", moving, "--at", "0", "--out", tmp_path)[0] == 0
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrc")[0], read_map(tmp_path / "state01.mrc")[0])


def test_points_and_models_are_moved_to_the_states_of_a_table(moving, tmp_path):
    write_model(tmp_path / "model.pdb", offset=BOX // 2 * PIXEL)
    words = ["--through", "0,1", "--through", "1.5,0", "--n-states", "3"]
    assert dynamight("states", moving, *words, "--no-maps", "--out", tmp_path / "states")[0] == 0
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["states.csv"]
    words = ["displace", moving, "--points", tmp_path / "model.pdb", "--out", tmp_path / "f.npz"]
    assert dynamight(*words, "--states", tmp_path / "states" / "states.csv")[0] == 0
    found = np.load(tmp_path / "f.npz")
    np.testing.assert_allclose(found["coordinates"][[0, 2], :2], [[0, 1], [1.5, 0]])
    # One state alone is the last of them.
    assert dynamight(*words[:-1], tmp_path / "g.npz", "--particles", "1", "--state", "1.5")[0] == 0
    last, alone = (tmp_path / name for name in ("f_path_state03.cif", "g_state.cif"))
    assert gemmi.read_structure(str(last)).make_pdb_string() == gemmi.read_structure(str(alone)).make_pdb_string()
    (tmp_path / "bad.csv").write_text("half,latent1\n1,0.5\n")
    code, text = dynamight(*words, "--states", tmp_path / "bad.csv")
    assert code == 2
    assert "bad.csv have no coordinates" in text


def test_displace_moves_points_by_each_particle_s_own_half(moving, tmp_path):
    points = np.random.default_rng(0).normal(0, 20, (7, 3))
    np.save(tmp_path / "points.npy", points)
    code, text = dynamight("displace", moving, "--points", tmp_path / "points.npy", "--out", tmp_path / "f.npz")
    assert code == 0, text
    with np.load(tmp_path / "f.npz") as found:
        assert found["positions"].shape == (N, 7, 3)
        assert found["positions"].dtype == np.float32
        np.testing.assert_allclose(found["points"], points, atol=1e-5)
        run = Run(moving)
        for row in (0, 1, 2, 3, N - 1):
            half = int(found["half"][row])
            assert half == int(run.halves[row])
            carried = run.consensus_to_reference(half, torch.tensor(points).float())
            shift = run.models[half - 1].displacements(run.latents[half - 1][row : row + 1], carried)[0]
            np.testing.assert_allclose(found["positions"][row], (carried + shift).detach().numpy(), atol=1e-4)


def test_displace_writes_the_same_whatever_the_chunks(moving, tmp_path, monkeypatch):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(0, 20, (7, 3)))
    words = ["displace", moving, "--points", tmp_path / "points.npy", "--out"]
    assert dynamight(*words, tmp_path / "a.npz")[0] == 0
    monkeypatch.setattr("dynamight_core.analysis.displace._PAIRS", 50)
    monkeypatch.setattr("dynamight_core.analysis.displace._POINTS", 3)
    assert dynamight(*words, tmp_path / "b.npz")[0] == 0
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    np.testing.assert_allclose(a["positions"], b["positions"], atol=1e-4)


def test_atomic_models_are_placed_by_the_density_and_written_moved(moving, tmp_path):
    structure = write_model(tmp_path / "model.pdb", offset=BOX // 2 * PIXEL)
    words = ["displace", moving, "--points", tmp_path / "model.pdb", "--out", tmp_path / "f.npz"]
    code, text = dynamight(*words, "--particles", "2,5", "--models", "--state", "1.5")
    assert code == 0, text
    found = np.load(tmp_path / "f.npz")
    assert list(found["rows"]) == [1, 4]
    moved = gemmi.read_structure(str(tmp_path / "f_particle5.cif"))
    positions = [atom.pos.tolist() for chain in moved[0] for residue in chain for atom in residue]
    np.testing.assert_allclose(positions, found["positions"][1], atol=2e-3)
    assert moved[0].count_atom_sites() == structure[0].count_atom_sites()
    assert (tmp_path / "f_state.cif").exists()
    # The same atoms given about the centre of the box move the same way; where they count from shows in the density.
    assert "first voxel (--origin)" in text
    write_model(tmp_path / "centred.pdb", offset=0.0)
    words = ["displace", moving, "--points", tmp_path / "centred.pdb", "--out", tmp_path / "g.npz"]
    code, text = dynamight(*words, "--particles", "2,5")
    assert code == 0
    assert "centre of the box (--origin)" in text
    np.testing.assert_allclose(
        np.load(tmp_path / "g.npz")["positions"] + BOX // 2 * PIXEL, found["positions"], atol=2e-3
    )


def write_model(path, offset):
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    chain = gemmi.Chain("A")
    for number, place in enumerate(np.random.default_rng(1).normal(0, 20, (4, 3)).round(3), 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*(place + offset))
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure[0].add_chain(chain)
    structure.write_pdb(str(path))
    return structure


@pytest.mark.parametrize("name", ["points.txt", "missing.npy", "flat.npy", "far.npy"])
def test_points_that_cannot_be_used_are_refused(moving, tmp_path, name):
    (tmp_path / "points.txt").write_text("1 2 3\n")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "far.npy", np.full((5, 3), 1e4))
    code, text = dynamight("displace", moving, "--points", tmp_path / name, "--out", tmp_path / "f.npz")
    assert code == 2
    assert name in text
    assert not (tmp_path / "f.npz").exists()


def test_points_are_moved_on_the_device_asked_for(moving, tmp_path):
    np.save(tmp_path / "points.npy", np.zeros((1, 3)))
    words = ["displace", moving, "--points", tmp_path / "points.npy", "--out", tmp_path / "moved.npz", "--device"]
    assert dynamight(*words, "cpu")[0] == 0
    code, text = dynamight(*words, "77")
    assert code == 2
    assert "--device is '77'" in text
