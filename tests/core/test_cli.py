"""The command line as a user meets it: from a STAR file to a subset, stops and resumes, refusals, help, docs."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import imageio_ffmpeg
import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from dynamight_core.analysis.movie import write_movie
from dynamight_core.analysis.states import states_through
from dynamight_core.cli.terminal import Terminal
from dynamight_core.config import RunConfig
from dynamight_core.devices import choose_device
from dynamight_core.errors import InputError
from dynamight_core.files import read_map, write_map
from dynamight_core.imaging.fourier import resample_image, resample_volume
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import SimulateOptions, simulate
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training import stage as training_run
from tests.support.command_line import dynamight

N, BOX, PIXEL = 220, 32, 6.0
SMALL = ["--n-gaussians", "200", "--epochs", "8", "--encoder-epochs", "4", "--reference-interval", "3"]
SMALL += ["--n-latents", "2", "--batch-size", "50", "--refits", "0", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return simulate(SimulateOptions(particles=N, box=BOX, pixel_size=PIXEL, snr=2.0), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run that training has finished; tests add to it but change nothing."""
    run = tmp_path_factory.mktemp("runs") / "run"
    code, text = dynamight(*train_words(data, run))
    assert code == 0, text
    assert "support" in text
    return run


def train_words(data, run, *more):
    return ["train", data.particles, run, "--map", data.consensus, "--half-maps", *data.half_maps, *SMALL, *more]


# ------------------------------------------------------------------------------------------------ a run's stages


def test_a_trained_run_has_results_for_every_particle_in_input_order(data, trained):
    given = starfile.read(data.particles)["particles"]
    found = starfile.read(trained / "particles.star")["particles"]
    assert list(found["rlnImageName"]) == list(given["rlnImageName"])
    assert set(given) <= set(found)
    assert (found["dynHalf"] == given["rlnRandomSubset"]).all()
    for column in ("dynValidation", "dynLatent1", "dynLatent2", "dynMotion1", "dynMotionRms", "dynMotionError"):
        assert np.isfinite(found[column]).all()
    assert {"config.yaml", "metrics.jsonl", "half1", "half2"} <= {path.name for path in trained.iterdir()}


def test_reconstruct_writes_maps_on_the_grid_of_the_consensus_and_says_the_resolution(trained):
    code, text = dynamight("reconstruct", trained, "--threads", "1", "--overwrite")
    assert code == 0, text
    claim = r"[\d.]+ A \([\d.]+ A\)"
    assert re.search(rf"Resolution at FSC 0\.143: {claim} with motion corrected, {claim} without", text)
    for name in ("half1_unfil", "half2_unfil", "map", "mask", "rigid/map"):
        volume, pixel_size = read_map(trained / "reconstruction" / f"{name}.mrc")
        assert volume.shape == (BOX,) * 3
        assert pixel_size == pytest.approx(PIXEL)
    blocks = starfile.read(trained / "reconstruction" / "fsc.star")
    curves, general = blocks["fsc"], blocks["general"]
    assert {"rlnFourierShellCorrelationCorrected", "dynModelConsensus", "dynModelMap"} <= set(curves)
    assert (curves["dynResidualMotionCoherence"] <= 1 + 1e-6).all()
    assert general["dynResolutionAtLeast"] >= general["rlnFinalResolution"] - 1e-6
    assert Run(trained).config.stages["reconstruct"]["method_used"] == "wbp"
    code, text = dynamight("reconstruct", trained)
    assert code == 2
    assert "--overwrite" in text


def test_reconstruct_by_least_squares_in_a_particles_frame_with_regions(trained, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    volume, pixel_size = read_map(data.consensus)
    part = np.zeros_like(volume)
    part[8:24, 8:24, 8:24] = 1
    write_map(tmp_path / "part.mrc", part, pixel_size)
    masks = tmp_path / "others"
    masks.mkdir()
    beside = np.zeros_like(part)
    beside[:4, :4, :4] = 1
    kinds = {"faint": 0.1 * part, "empty": 0 * part, "beside": beside, "part": part, "one half": part}
    for name, mask in kinds.items():
        write_map(masks / f"{name}.mrc", mask, pixel_size)
    write_map(masks / "fine.mrc", part, pixel_size / 2)
    arguments = ["reconstruct", run, "--overwrite", "--method", "cg", "--steps", "1", "--local-resolution"]
    regions = ["--regions", tmp_path / "part.mrc", "--regions", masks / "one half.mrc"]
    # So short a training finds nothing that images support.
    code, text = dynamight(*arguments, "--conformation", "particle:3", *regions)
    assert code == 2 and "motion is not supported" in text
    code, text = dynamight(*arguments, "--conformation", "particle:3", "--no-shrink", *regions)
    assert code == 0, text
    assert "In part: " in text and "least squares" in text
    curves = starfile.read(run / "reconstruction" / "fsc.star")["fsc"]
    regional = ("dynRegion", "dynRegionModel", "dynRegionAtLeast")
    assert {f"{kind}_{name}" for kind in regional for name in ("part", "one_half")} <= set(curves)
    assert (curves["dynRegionAtLeast_part"] <= curves["dynRegion_part"] + 1e-6).all()
    assert {"map_sharpened.mrc", "local_resolution.mrc"} <= {path.name for path in (run / "reconstruction").iterdir()}
    # A map in another frame has no rigid map to be compared with.
    assert not (run / "reconstruction" / "rigid").exists()
    for wrong, sentence in (
        (("--mask", masks / "faint.mrc"), "is empty"),
        (("--mask", masks / "empty.mrc"), "is empty"),
        (("--mask", masks / "beside.mrc"), "holds 0.0 % of the molecule's density"),
        (("--mask", masks / "fine.mrc"), "resample it"),
        (("--regions", masks / "beside.mrc"), "holds 0.0 % of the molecule's density"),
        (
            ("--regions", masks / "part.mrc", "--regions", tmp_path / "part.mrc"),
            "two files of --regions are called part",
        ),
        (("--conformation", "particle:0"), "--conformation is 'particle:0'"),
        (("--method", "sirt"), "choose one of auto, wbp, cg"),
    ):
        code, text = dynamight("reconstruct", run, "--overwrite", *wrong)
        assert code == 2 and sentence in text, text
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-rigid", "--mask", tmp_path / "part.mrc")
    found = re.search(r"cuts off (\d+) % of the molecule's density", text)
    assert code == 0 and found, text
    # The consensus itself, where it is above its noise, loses as much.
    density = np.where(volume > 0.2 * volume.max(), volume, 0)
    assert int(found[1]) == pytest.approx(100 * density[part == 0].sum() / density.sum(), abs=8)


def test_reconstruct_refuses_particles_of_another_size_than_the_deformations(trained, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    blocks = starfile.read(data.particles)
    blocks["optics"]["rlnImagePixelSize"] = 1.2 * PIXEL
    blocks["particles"]["rlnImageName"] = [
        name.replace("@", f"@{data.particles.parent}/") for name in blocks["particles"]["rlnImageName"]
    ]
    starfile.write(blocks, tmp_path / "other.star")
    config = RunConfig.read(run)
    config.inputs.star = str(tmp_path / "other.star")
    config.write(run)
    code, text = dynamight("reconstruct", run, "--overwrite")
    assert code == 2
    assert f"trained in a box of {BOX * PIXEL:.1f} A" in text and f"have a box of {1.2 * BOX * PIXEL:.1f} A" in text


def test_particles_binned_after_training_are_reconstructed_with_the_deformations_in_angstrom(trained, data, tmp_path):
    run, box = tmp_path / "run", 24
    shutil.copytree(trained, run)
    with mrcfile.open(data.stack) as stack:
        binned = resample_image(torch.from_numpy(stack.data.copy()), box)
    with mrcfile.new(tmp_path / "binned.mrcs") as stack:
        stack.set_data(binned.numpy())
        stack.set_image_stack()
    blocks = starfile.read(data.particles)
    blocks["optics"]["rlnImagePixelSize"], blocks["optics"]["rlnImageSize"] = BOX / box * PIXEL, box
    names = blocks["particles"]["rlnImageName"]
    blocks["particles"]["rlnImageName"] = [name.replace("particles.mrcs", "binned.mrcs") for name in names]
    starfile.write(blocks, tmp_path / "binned.star")
    config = RunConfig.read(run)
    config.inputs.star = str(tmp_path / "binned.star")
    config.write(run)
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-rigid")
    assert code == 0, text
    volume, pixel_size = read_map(run / "reconstruction" / "map.mrc")
    assert volume.shape == (box,) * 3 and pixel_size == pytest.approx(BOX / box * PIXEL)
    whole = resample_volume(torch.from_numpy(read_map(data.consensus)[0]), box).numpy()
    assert np.corrcoef(volume.ravel(), whole.ravel())[0, 1] > 0.7


def test_reconstruct_through_the_inverse_field_gives_nearly_the_same_map(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    code, text = dynamight("reconstruct", run, "--through-inverse", "--overwrite")
    assert code == 2
    assert "dynamight invert" in text
    assert dynamight("reconstruct", run, "--no-rigid", "--overwrite")[0] == 0
    exact, _ = read_map(run / "reconstruction" / "map.mrc")
    assert dynamight("invert", run, "--epochs", "10")[0] == 0
    assert dynamight("reconstruct", run, "--through-inverse", "--no-rigid", "--overwrite")[0] == 0
    approximate, _ = read_map(run / "reconstruction" / "map.mrc")
    assert np.corrcoef(exact.ravel(), approximate.ravel())[0, 1] > 0.95


def test_analyse_writes_one_report(trained):
    code, text = dynamight("analyse", trained, "--embedding", "pca")
    assert code == 0, text
    page = (trained / "analysis" / "report.html").read_text()
    assert "<html" in page


def test_analyse_writes_the_motion_as_a_map_and_as_atoms_where_the_header_places_the_map(data, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    placed = tmp_path / "placed.mrc"
    volume, pixel_size = read_map(data.consensus)
    write_map(placed, volume, pixel_size, (-96.0, 12.0, 0.0))
    config = RunConfig.read(run)
    config.inputs.map = str(placed)
    config.write(run)
    code, text = dynamight("analyse", run, "--embedding", "pca")
    assert code == 0, text
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-rigid")
    assert code == 0, text

    opened = Run(run)
    with mrcfile.open(run / "reconstruction" / "map.mrc", header_only=True) as mrc:
        assert [float(mrc.header.origin[axis]) for axis in "xyz"] == [-96.0, 12.0, 0.0]
    with mrcfile.open(run / "analysis" / "motion.mrc") as mrc:
        motion, origin = mrc.data.copy(), [float(mrc.header.origin[axis]) for axis in "xyz"]
    assert origin == [-96.0, 12.0, 0.0]
    assert motion.shape == (BOX,) * 3
    assert motion[0, 0, 0] == 0, "there is no molecule in the corner"
    for half in (1, 2):
        # Kept: its atoms do not outlive it.
        structure = gemmi.read_structure(str(run / "analysis" / f"gaussians_half{half}.cif"))
        atoms = [cra.atom for cra in structure[0].all()]
        found = np.array([atom.pos.tolist() for atom in atoms]) - origin
        expected = opened.models[half - 1].consensus_positions.numpy() + BOX // 2 * PIXEL
        np.testing.assert_allclose(found, expected, atol=2e-3)
        voxels = np.round(found / PIXEL).astype(int)
        inside = ((voxels >= 0) & (voxels < BOX)).all(1)
        at_atoms = motion[tuple(voxels[inside].T[::-1])]
        b_factors = np.array([atom.b_iso for atom in atoms])[inside]
        assert (at_atoms > 0).all()
        assert np.abs(at_atoms - b_factors).mean() < 0.2 * b_factors.mean()
    table = pd.read_csv(run / "analysis" / "embedding.csv")
    np.testing.assert_allclose(table.to_numpy(), opened.motions.coordinates[:, :2].numpy(), rtol=1e-4, atol=1e-6)


def test_states_along_a_motion_are_maps_a_table_and_a_movie(trained):
    code, text = dynamight("states", trained, "--n-states", "3")
    assert code == 0, text
    folder = trained / "analysis" / "states" / "motion1"
    table = pd.read_csv(folder / "states.csv")
    assert len(table) == 3
    assert (np.diff(table["motion1_A"]) > 0).all()
    volumes = [read_map(folder / name) for name in table["file"]]
    assert all(volume.shape == (BOX,) * 3 and size == pytest.approx(PIXEL) for volume, size in volumes)
    assert (folder / "movie.gif").read_bytes()[:3] == b"GIF"
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(folder / "movie.mp4"))
    assert (frames, seconds) == (3 * 4 + 1, pytest.approx(13 / 8, abs=0.2))
    # A second call replaces the first's files.
    assert dynamight("states", trained, "--n-states", "2", "--no-movie")[0] == 0
    assert len(list(folder.glob("*.mrc"))) == 2
    assert not list(folder.glob("movie.*"))


def test_without_the_package_for_mp4_the_movie_is_a_gif_and_a_word(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    said = []
    projections = np.random.default_rng(0).random((2, 3, 16, 16)).astype(np.float32)
    assert write_movie(tmp_path / "movie", projections, ["a", "b"], 3.0, Reporter(said.append)) == [
        tmp_path / "movie.gif"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["movie.gif"]
    assert "imageio-ffmpeg" in said[0]


def test_a_state_is_the_molecule_in_place_and_on_the_grey_scale_of_the_images(data, trained):
    assert dynamight("states", trained, "--at", "0")[0] == 0
    volume, _ = read_map(trained / "analysis" / "states" / "coordinates" / "state01.mrc")
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
def test_states_of_other_kinds(trained, words, name, files):
    code, text = dynamight("states", trained, *words)
    assert code == 0, text
    assert len(list((trained / "analysis" / "states" / name).glob("*.mrc"))) == files


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
def test_states_that_cannot_be_had_are_refused(trained, words, reason):
    code, text = dynamight("states", trained, *words)
    assert code == 2
    assert reason in text


def test_states_on_a_path_are_evenly_spaced_and_pass_its_points(trained):
    states = states_through(Run(trained), [[0, 0], [0, 0], [3, 0], [3, 1]], 5)
    np.testing.assert_allclose(states.coordinates[:, :2], [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]], atol=1e-6)


def test_states_are_served_as_they_are_asked_for(trained, tmp_path, monkeypatch):
    requests = [{"at": [0], "out": str(tmp_path / "a.mrc")}, {"at": [1] * 9, "out": "b.mrc"}, {"at": "x"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, requests))))
    code, text = dynamight("states", trained, "--listen")
    assert code == 0
    answers = [json.loads(line) for line in text.splitlines()]
    assert answers[0] == {"out": requests[0]["out"]}
    assert "9 coordinates" in answers[1]["error"]
    assert "is invalid" in answers[2]["error"]
    assert dynamight("states", trained, "--at", "0", "--out", tmp_path)[0] == 0
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrc")[0], read_map(tmp_path / "state01.mrc")[0])


def test_points_and_models_are_moved_to_the_states_of_a_table(trained, tmp_path):
    write_model(tmp_path / "model.pdb", offset=BOX // 2 * PIXEL)
    words = ["--through", "0,1", "--through", "1.5,0", "--n-states", "3"]
    assert dynamight("states", trained, *words, "--no-maps", "--out", tmp_path / "states")[0] == 0
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["states.csv"]
    words = ["displace", trained, "--points", tmp_path / "model.pdb", "--out", tmp_path / "f.npz"]
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


def test_displace_moves_points_by_each_particle_s_own_half(trained, tmp_path):
    points = np.random.default_rng(0).normal(0, 20, (7, 3))
    np.save(tmp_path / "points.npy", points)
    code, text = dynamight("displace", trained, "--points", tmp_path / "points.npy", "--out", tmp_path / "f.npz")
    assert code == 0, text
    with np.load(tmp_path / "f.npz") as found:
        assert found["positions"].shape == (N, 7, 3)
        assert found["positions"].dtype == np.float32
        np.testing.assert_allclose(found["points"], points, atol=1e-5)
        run = Run(trained)
        for row in (0, 1, 2, 3, N - 1):
            half = int(found["half"][row])
            assert half == int(run.halves[row])
            carried = run.consensus_to_reference(half, torch.tensor(points).float())
            shift = run.models[half - 1].displacements(run.latents[half - 1][row : row + 1], carried)[0]
            np.testing.assert_allclose(found["positions"][row], (carried + shift).detach().numpy(), atol=1e-4)


def test_displace_writes_the_same_whatever_the_chunks(trained, tmp_path, monkeypatch):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(0, 20, (7, 3)))
    words = ["displace", trained, "--points", tmp_path / "points.npy", "--out"]
    assert dynamight(*words, tmp_path / "a.npz")[0] == 0
    monkeypatch.setattr("dynamight_core.analysis.displace._PAIRS", 50)
    monkeypatch.setattr("dynamight_core.analysis.displace._POINTS", 3)
    assert dynamight(*words, tmp_path / "b.npz")[0] == 0
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    np.testing.assert_allclose(a["positions"], b["positions"], atol=1e-4)


def test_atomic_models_are_placed_by_the_density_and_written_moved(trained, tmp_path):
    structure = write_model(tmp_path / "model.pdb", offset=BOX // 2 * PIXEL)
    words = ["displace", trained, "--points", tmp_path / "model.pdb", "--out", tmp_path / "f.npz"]
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
    words = ["displace", trained, "--points", tmp_path / "centred.pdb", "--out", tmp_path / "g.npz"]
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
def test_points_that_cannot_be_used_are_refused(trained, tmp_path, name):
    (tmp_path / "points.txt").write_text("1 2 3\n")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "far.npy", np.full((5, 3), 1e4))
    code, text = dynamight("displace", trained, "--points", tmp_path / name, "--out", tmp_path / "f.npz")
    assert code == 2
    assert name in text
    assert not (tmp_path / "f.npz").exists()


def test_points_are_moved_on_the_device_asked_for(trained, tmp_path):
    np.save(tmp_path / "points.npy", np.zeros((1, 3)))
    words = ["displace", trained, "--points", tmp_path / "points.npy", "--out", tmp_path / "moved.npz", "--device"]
    assert dynamight(*words, "cpu")[0] == 0
    code, text = dynamight(*words, "77")
    assert code == 2
    assert "--device is '77'" in text


def test_a_selection_and_its_complement_hold_every_particle_once_with_its_optics(data, trained, tmp_path):
    words = ["select", trained, "--along", "1::0", "--half", "1"]
    code, text = dynamight(*words, "--name", "low")
    assert code == 0, text
    assert re.search(r"\d+ of 220 particles \(\d+ of half-set 1, 0 of half-set 2\)", text)
    low = starfile.read(trained / "analysis" / "selections" / "low.star")
    assert (low["particles"]["dynMotion1"] <= 0).all()
    assert (low["particles"]["dynHalf"] == 1).all()
    assert dynamight(*words, "--complement", "--out", tmp_path / "rest.star")[0] == 0
    rest = starfile.read(tmp_path / "rest.star")
    names = [*low["particles"]["rlnImageName"], *rest["particles"]["rlnImageName"]]
    assert sorted(names) == sorted(starfile.read(data.particles)["particles"]["rlnImageName"])
    assert rest["optics"].equals(low["optics"])


def test_particles_are_selected_by_conformation_and_by_what_the_halves_agree_on(trained, tmp_path):
    table = starfile.read(trained / "particles.star")["particles"]
    centre = table[["dynMotion1", "dynMotion2"]].to_numpy()[7]
    limit = table["dynMotionDisagreement"].median()
    words = [f"--near={centre[0]},{centre[1]}:2", "--disagreement", f":{limit}", "--out", tmp_path / "near.star"]
    assert dynamight("select", trained, *words)[0] == 0
    rows = table[(table["dynMotion1"] - centre[0]) ** 2 + (table["dynMotion2"] - centre[1]) ** 2 <= 4]
    rows = rows[rows["dynMotionDisagreement"] <= limit]
    assert 0 < len(rows) < N
    assert list(starfile.read(tmp_path / "near.star")["particles"]["rlnImageName"]) == list(rows["rlnImageName"])


def test_clusters_divide_the_particles(trained, tmp_path):
    assert dynamight("select", trained, "--clusters", "3", "--out", tmp_path / "all.star")[0] == 0
    labels = starfile.read(tmp_path / "all.star")["particles"]["dynCluster"]
    counts = []
    for cluster in (1, 2, 3):
        words = ["--clusters", "3", "--cluster", cluster, "--out", tmp_path / f"{cluster}.star"]
        assert dynamight("select", trained, *words)[0] == 0
        counts.append(len(starfile.read(tmp_path / f"{cluster}.star")["particles"]))
    assert sum(counts) == N
    assert counts == [(labels == cluster).sum() for cluster in (1, 2, 3)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "there is no condition"),
        (["--near", "1,2"], "COORDINATES:DISTANCE"),
        (["--motion", "5:1"], "LOW below HIGH"),
        (["--error", "high"], "LOW:HIGH"),
        (["--along", "x:0:1"], "K:LOW:HIGH"),
        (["--along", "9:0:1"], "motion 9 is not in this run"),
        (["--cluster", "1"], "--clusters"),
        (["--clusters", "2", "--cluster", "3"], "from 1 to 2"),
        (["--motion", "1000:"], "the selection is empty"),
    ],
)
def test_selections_that_cannot_be_made_are_refused(trained, words, reason):
    code, text = dynamight("select", trained, *words)
    assert code == 2
    assert reason in text


def test_the_demonstration_runs_every_stage_and_says_what_was_true(tmp_path):
    words = ["demo", tmp_path, "--particles", N, "--box", BOX, "--pixel-size", PIXEL, "--n-gaussians", 200]
    code, text = dynamight(*words, "--epochs", "4", "--threads", "1")
    assert code == 0, text
    for part in ("Hinge angle: correlation with", "Verdict: ", "Resolution (half-maps", "With the true map"):
        assert part in text
    for path in re.findall(rf"^  ({re.escape(str(tmp_path))}\S+)", text, re.MULTILINE):
        assert Path(path).exists()
    assert dynamight(*words)[0] == 2


# --------------------------------------------------------------------------------------------- stops and resumes


def metrics(run):
    """Return the metrics without what the machine's load decides."""
    timed = ("seconds", "particles_per_second", "peak_memory_gb")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def test_a_run_stopped_again_and_again_ends_like_one_that_was_not_stopped(data, trained, tmp_path, monkeypatch):
    run, last = tmp_path / "run", len(metrics(trained)) // 2
    stops = [("training", 2, 0.0), ("training", 6, 0.0), ("training", 9, 0.0)]
    # With checkpoints seconds apart some epochs are done again; when all are done, latents remain to be inferred.
    stops += [("training", 12, 1e9), ("training", last, 1e9), ("inferring latents, half 2", None, 1e9)]
    for stage, done, checkpoint_seconds in stops:
        monkeypatch.setattr(training_run, "_CHECKPOINT_SECONDS", checkpoint_seconds)
        with monkeypatch.context() as patched:
            patched.setattr(Terminal, "progress", interrupt_at(stage, done))
            code, text = dynamight(*train_words(data, run, "--resume"))
        assert code == 130
        assert "Stopped; resume with --resume." in text
        assert not (run / "latents.safetensors").exists()
    code, text = dynamight(*train_words(data, run, "--resume"))
    assert code == 0, text
    assert metrics(run) == metrics(trained)
    found, wanted = (starfile.read(folder / "particles.star")["particles"] for folder in (run, trained))
    assert found.equals(wanted)


def interrupt_at(wanted, number):
    """Return a progress that stops the program when `number` of a stage are done, or at once where that is None."""

    def progress(self, stage, done, total):
        if stage == wanted and number in (None, done):
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_process_exits_with_130_and_leaves_a_run(data, tmp_path):
    run = tmp_path / "run"
    words = [str(word) for word in train_words(data, run, "--epochs", "500")]
    # Two threads: both halves are at work when the signal comes.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    # A shell's background jobs ignore the signal, and hand that down to what they start.
    process = subprocess.Popen(
        [sys.executable, "-m", "dynamight_core", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert (run / "config.yaml").exists()


def test_a_run_that_has_not_finished_is_refused_by_later_stages(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Terminal, "progress", interrupt_at("training", 1))
    monkeypatch.chdir(data.particles.parent)
    words = ["train", data.particles.name, tmp_path / "run", "--map", data.consensus.name, *SMALL]
    assert dynamight(*words)[0] == 130
    # Later stages find the input from any folder.
    assert RunConfig.read(tmp_path / "run").inputs.star == str(data.particles)
    code, text = dynamight("reconstruct", tmp_path / "run")
    assert code == 2
    assert "has not finished" in text


def test_a_run_that_was_stopped_before_it_was_judged_is_refused_at_once(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "analysis" / "summary.json").unlink()
    code, text = dynamight("reconstruct", run, "--overwrite")
    assert code == 2
    assert "summary.json is missing; make it with dynamight train --resume" in text
    assert "Half 1" not in text


def test_an_existing_run_needs_resume_or_overwrite_and_resume_the_same_options(data, trained):
    code, text = dynamight(*train_words(data, trained))
    assert code == 2
    assert "--resume" in text
    assert "--overwrite" in text
    code, text = dynamight(*train_words(data, trained, "--resume", "--n-latents", "3"))
    assert code == 2
    assert "--n-latents" in text


def test_training_can_start_from_the_models_of_a_finished_run(data, trained, tmp_path):
    code, text = dynamight(*train_words(data, tmp_path / "more", "--start-from", trained, "--epochs", "2"))
    assert code == 0, text
    found = metrics(tmp_path / "more")
    assert {entry["kind"] for entry in found} == {"refinement", "reference"}, "nothing warms up again"
    last = [entry["data"] for entry in metrics(trained) if entry["kind"] == "refinement"][-2:]
    for before, after in zip(last, found[:2], strict=True):
        assert after["data"] < before + 0.02 * abs(before), "it goes on where the other ended"


def test_training_does_not_start_from_models_of_another_shape_or_other_particles(data, trained, tmp_path):
    words = train_words(data, tmp_path / "run", "--start-from", trained)
    code, text = dynamight(*words, "--n-latents", "3")
    assert code == 2
    assert "--n-latents" in text
    fewer = starfile.read(data.particles)
    fewer["particles"] = fewer["particles"].iloc[:-10]
    starfile.write(fewer, data.particles.with_name("fewer.star"))
    words[1] = data.particles.with_name("fewer.star")
    code, text = dynamight(*words)
    assert code == 2
    assert "other particles" in text
    code, text = dynamight(*train_words(data, trained, "--overwrite", "--start-from", trained))
    assert code == 2
    assert "the new run itself" in text


def test_a_run_that_was_moved_together_with_its_inputs_is_found_again(data, trained, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(data.particles.parent, project / "data")
    shutil.copytree(trained, project / "run")
    config = RunConfig.read(project / "run")
    config.provenance["run"] = str(project / "run")
    for name in ("star", "map"):
        setattr(config.inputs, name, str(project / "data" / Path(getattr(config.inputs, name)).name))
    config.write(project / "run")
    project.rename(tmp_path / "moved")
    moved = Run(tmp_path / "moved" / "run")
    assert moved.config.inputs.map == str(tmp_path / "moved" / "data" / "consensus.mrc")
    assert len(moved.particles) == N
    linked = tmp_path / "moved" / "elsewhere" / "linked"
    linked.mkdir(parents=True)
    shutil.copy(moved.path / "config.yaml", linked)
    (linked / "latents.safetensors").symlink_to(moved.path / "latents.safetensors")
    assert RunConfig.read(linked).inputs.map == moved.config.inputs.map


def test_a_failure_is_one_sentence_with_the_place_of_its_traceback(trained, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("dynamight_core.analysis.state_maps.write_states", fail)
    code, text = dynamight("states", trained)
    log = trained / "error.log"
    assert code == 1
    assert "the disk caught fire" in text
    assert str(log) in text
    assert "Traceback" not in text
    assert "Traceback" in log.read_text()
    log.unlink()


# ------------------------------------------------------------------------------------------------------ bad input


class BadInput:
    """A copy of the data set that a case spoils, and the words of a training on it."""

    def __init__(self, data, folder):
        self.folder, self.star = folder, folder / "particles.star"
        self.stack, self.map = folder / "particles.mrcs", folder / "map.mrc"
        self.run, self.more = folder / "run", []
        shutil.copy(data.particles, self.star)
        shutil.copy(data.stack, self.stack)
        shutil.copy(data.consensus, self.map)

    @property
    def words(self):
        return ["train", self.star, self.run, "--map", self.map, *SMALL, *self.more]

    def edit(self, change):
        """Rewrite the STAR file with the tables that `change(optics, particles)` returns."""
        blocks = starfile.read(self.star, always_dict=True)
        optics, rows = change(pd.DataFrame(blocks["optics"]), blocks["particles"])
        starfile.write({"optics": optics, "particles": rows}, self.star, overwrite=True, na_rep="nan")

    def without(self, column):
        self.edit(
            lambda optics, rows: (
                optics.drop(columns=column, errors="ignore"),
                rows.drop(columns=column, errors="ignore"),
            )
        )

    def rewrite_map(self, volume, pixel_size):
        write_map(self.map, volume, pixel_size)


def missing_stack(bad):
    bad.stack.unlink()


def truncated_stack(bad):
    bad.stack.write_bytes(bad.stack.read_bytes()[:-5000])


def unreadable_stack(bad):
    bad.stack.write_bytes(b"not an MRC file" * 200)


def index_beyond(bad):
    bad.edit(lambda optics, rows: (optics, rows.replace({"rlnImageName": {"000220": "000221"}}, regex=True)))


def nan_in_image(bad):
    with mrcfile.mmap(bad.stack, mode="r+") as stack:
        stack.data[17, 3, 4] = np.nan


def nan_in_column(bad):
    def change(optics, rows):
        rows.loc[4, "rlnAngleTilt"] = np.nan
        return optics, rows

    bad.edit(change)


def map_of_another_box(bad):
    volume, _ = read_map(bad.map)
    bad.rewrite_map(volume[2:-2, 2:-2, 2:-2], PIXEL)


def map_of_another_pixel_size(bad):
    bad.rewrite_map(read_map(bad.map)[0], PIXEL * 1.1)


def map_that_is_not_cubic(bad):
    bad.rewrite_map(read_map(bad.map)[0][:-4], PIXEL)


def map_that_is_missing(bad):
    bad.map.unlink()


def map_with_nan(bad):
    volume = read_map(bad.map)[0]
    volume[3, 3, 3] = np.nan
    bad.rewrite_map(volume, PIXEL)


def empty_star(bad):
    bad.edit(lambda optics, rows: (optics, rows.iloc[:0]))


def blank_star(bad):
    bad.star.write_text("")


def few_particles(bad):
    bad.edit(lambda optics, rows: (optics, rows.iloc[:199]))


def few_in_a_half(bad):
    def change(optics, rows):
        rows["rlnRandomSubset"] = [2] * 49 + [1] * (len(rows) - 49)
        return optics, rows

    bad.edit(change)


def output_under_a_file(bad):
    (bad.folder / "file").write_text("")
    bad.run = bad.folder / "file" / "run"


def output_is_a_file(bad):
    bad.run.write_text("")


def unknown_option_value(bad):
    bad.more = ["--decoder", "transformer"]


def unknown_device(bad):
    bad.more = ["--device", "77"]


def options(*words):
    def spoil(bad):
        bad.more = words

    return spoil


def half_maps_of_another_box(bad):
    volume, _ = read_map(bad.map)
    write_map(bad.folder / "half.mrc", volume[2:-2, 2:-2, 2:-2], PIXEL)
    bad.more = ["--half-maps", bad.map, bad.folder / "half.mrc"]


def one_half_map_twice(bad):
    bad.more = ["--half-maps", bad.map, bad.map]


def mask_of_another_box(bad):
    write_map(bad.folder / "mask.mrc", np.eye(28)[:, :, None] * np.ones(28), PIXEL)
    bad.more = ["--mask", bad.folder / "mask.mrc"]


def mask_beyond_one(bad):
    write_map(bad.folder / "mask.mrc", 3 * np.eye(BOX)[:, :, None] * np.ones(BOX), PIXEL)
    bad.more = ["--mask", bad.folder / "mask.mrc"]


def constant_mask(bad):
    write_map(bad.folder / "mask.mrc", np.ones((BOX, BOX, BOX)), PIXEL)
    bad.more = ["--mask", bad.folder / "mask.mrc"]


def without(column):
    return lambda bad: bad.without(column)


BAD = {
    "missing stack": (missing_stack, r"particles\.mrcs"),
    "truncated stack": (truncated_stack, r"particles\.mrcs is truncated"),
    "unreadable stack": (unreadable_stack, r"particles\.mrcs has MRC mode"),
    "index beyond the stack": (index_beyond, r"row 220 .*rlnImageName image 221"),
    "NaN in an image": (nan_in_image, r"image 18@.*NaN"),
    "NaN in a column": (nan_in_column, r"row 5 .*rlnAngleTilt|rlnAngleTilt.*row 5"),
    "no pose column": (without("rlnAngleRot"), r"rlnAngleRot"),
    "no CTF column": (without("rlnDefocusU"), r"rlnDefocusU"),
    "no optics column": (without("rlnVoltage"), r"rlnVoltage"),
    "no pixel size": (without("rlnImagePixelSize"), r"pixel size|rlnImagePixelSize"),
    "no image column": (without("rlnImageName"), r"rlnImageName"),
    "map of another box": (map_of_another_box, r"map\.mrc has a box of 28 voxels"),
    "map of another pixel size": (map_of_another_pixel_size, r"map\.mrc has a pixel size of 6\.6 A"),
    "map not cubic": (map_that_is_not_cubic, r"map\.mrc is 28 x 32 x 32, not a cube"),
    "no map": (map_that_is_missing, r"map\.mrc does not exist"),
    "NaN in the map": (map_with_nan, r"map\.mrc has NaN"),
    "empty STAR": (empty_star, r"particles\.star .*empty|no particles"),
    "blank STAR": (blank_star, r"particles\.star"),
    "fewer than 200 particles": (few_particles, r"holds 199 particles.*at least 200"),
    "few in a half-set": (few_in_a_half, r"has 49 images with rlnRandomSubset 2"),
    "few held out": (options("--validation-fraction", "0.02"), r"--validation-fraction 0.02 holds out \d images"),
    "unwritable output": (output_under_a_file, r"not a directory; choose"),
    "output is a file": (output_is_a_file, r"is a file"),
    "half-maps of another box": (half_maps_of_another_box, r"half-map .*half\.mrc has a box of 28 voxels"),
    "one half-map twice": (one_half_map_twice, r"--half-maps .* are the same map"),
    "mask of another box": (mask_of_another_box, r"mask .*mask\.mrc has a box of 28 voxels"),
    "mask beyond one": (mask_beyond_one, r"mask .*mask\.mrc has values from 0 to 3"),
    "constant mask": (constant_mask, r"mask .*mask\.mrc is constant"),
    "option value": (unknown_option_value, r"--decoder is 'transformer'"),
    "normalisation": (options("--normalise", "all"), r"--normalise is 'all'; choose one of image, set, none"),
    "storage": (options("--storage", "tape"), r"--storage is 'tape'; choose one of auto"),
    "working box": (options("--working-box", "31"), r"--working-box is 31; give an even number"),
    "particle diameter": (options("--particle-diameter", "250"), r"diameter of 250 A in a box of 192 A"),
    "initial resolution": (options("--initial-resolution", "100"), r"--initial-resolution is 100 A.*at most 48"),
    "not a number": (options("--stiffness", "nan"), r"--stiffness is nan"),
    "dark particles": (options("--invert-contrast"), r"negatively"),
    "project": (options("--project", "nowhere"), r"--project is .*nowhere, not a folder"),
    "device": (unknown_device, r"--device is '77'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_training_with_one_sentence(data, tmp_path, case):
    spoil, reason = BAD[case]
    bad = BadInput(data, tmp_path)
    spoil(bad)
    code, text = dynamight(*bad.words)
    assert code == 2, text
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, text
    assert re.search(reason, errors[0]), errors[0]
    assert not (bad.run / "config.yaml").is_file() if bad.run.is_dir() else True, "nothing is left to be in the way"
    # What needs the Gaussians is found when they have been fitted.
    if not case.startswith(("unwritable", "output", "dark")):
        assert dynamight("check", *bad.words[1:2], *bad.words[3:])[0] == 2


def test_check_says_what_was_understood(data):
    code, text = dynamight("check", data.particles, "--map", data.consensus, *SMALL)
    assert code == 0, text
    for part in (f"{N} particles", f"box {BOX} pixels of {PIXEL:g} A", "half-sets", "Memory: about", "Time: about"):
        assert part in text
    assert "The input is ready for training." in text
    assert dynamight("check", data.particles)[0] == 0


def test_train_without_a_map_is_refused(data, tmp_path):
    code, text = dynamight("train", data.particles, tmp_path / "run")
    assert code == 2
    assert "--map is missing" in text


def test_simulate_does_not_replace_a_data_set_unasked(tmp_path):
    words = ["simulate", tmp_path / "data", "--particles", "4", "--box", "32", "--pixel-size", "6"]
    assert dynamight(*words)[0] == 0
    assert dynamight(*words)[0] == 2
    assert dynamight(*words, "--overwrite")[0] == 0


# ------------------------------------------------------------------------------------------- how the program ends


def test_the_status_file_says_how_a_command_ended(trained, tmp_path):
    status = tmp_path / "status.json"
    assert dynamight("--status-file", status, "select", trained, "--half", 1, "--out", tmp_path / "half1.star")[0] == 0
    assert json.loads(status.read_text()) == {"exit_code": 0, "message": ""}
    code, text = dynamight("--status-file", status, "select", trained, "--half", 3)
    told = json.loads(status.read_text())
    assert told["exit_code"] == code == 2
    assert text.strip() == f"Error: {told['message']}"


def test_auto_with_a_number_is_that_gpu_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto:3") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="2 GPUs"):
        choose_device("auto:3")


def test_the_version_is_the_package_s():
    from dynamight_core import __version__

    assert dynamight("--version") == (0, f"dynamight {__version__}\n")


def test_a_seed_that_random_generators_do_not_take_is_bad_input(data, tmp_path):
    for words in (["simulate", tmp_path / "data"], train_words(data, tmp_path / "run")):
        for seed in (-1, 10**20):
            code, text = dynamight(*words, "--seed", seed)
            assert code == 2
            assert "--seed" in text


def test_an_unknown_command_or_option_is_bad_input():
    assert dynamight("explode")[0] == 2
    assert dynamight("train", "--frobnicate")[0] == 2
