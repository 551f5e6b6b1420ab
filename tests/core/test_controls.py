"""Controls: a motion that is there is found, one that is not is not, and noise stays noise."""

import json
import shutil
from types import SimpleNamespace

import gemmi
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from dynamight_core.analysis.controls.maps import ControlImages
from dynamight_core.analysis.controls.noise import NoiseImages, SignalBesideNoise
from dynamight_core.analysis.controls.shuffled import judge_shuffled, mean_over_draws
from dynamight_core.analysis.controls.wrong_model import Structures, moving_domain, wrong_fractions
from dynamight_core.belonging import forget_files
from dynamight_core.files import read_map
from dynamight_core.imaging.fourier import image_to_fourier, shell_means
from dynamight_core.judging.summary import summarise
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.options import ControlOptions, InputOptions, TrainOptions
from dynamight_core.reconstruction.fsc import soft_mask
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.molecules import hinge_molecule
from dynamight_core.structures import selected_atoms
from dynamight_core.training.stage import train
from tests.support.command_line import dynamight
from tools.structures import write_chains

SMALL = {"n_gaussians": 300, "n_latents": 2, "epochs": 6, "refits": 1, "warm_up_epochs": 2, "validation_fraction": 0.25}


@pytest.fixture(scope="module")
def hinge_run(hinge_set, tmp_path_factory):
    """A short training on the hinge; tests add controls to it but change nothing."""
    run = tmp_path_factory.mktemp("control") / "run"
    inputs = InputOptions(star=str(hinge_set.particles), map=str(hinge_set.consensus))
    summarise(train(inputs, TrainOptions(**SMALL, threads=1), run, reporter=QUIET), reporter=QUIET)
    return run


@pytest.fixture
def copied(hinge_run, tmp_path):
    """A copy of the run to change, without the records by which changed files are refused."""
    run = shutil.copytree(hinge_run, tmp_path / "run")
    forget_files(run)
    return run


def control(run, kind, *words):
    """Make a control; returns its JSON and what was printed."""
    code, text = dynamight("control", run, "--kind", kind, "--threads", "1", *words)
    assert code == 0, text
    return json.loads((run / "analysis" / "controls" / f"{kind}.json").read_text()), text


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("shuffled-latents", "from the motion"),
        ("held-out", "improves the map"),
        ("noise-particles", "a trace appears from noise"),
    ],
)
def test_a_motion_that_is_there_passes_every_control(hinge_run, kind, verdict):
    found, text = control(hinge_run, kind)
    assert found["verdict"] == verdict, found["sentence"]
    assert found["sentence"] in text
    assert found["options"]["kind"] == kind
    table = pd.read_csv(hinge_run / "analysis" / "controls" / f"{kind}.csv")
    assert np.isfinite(table.to_numpy()).all()
    assert f"control {kind}" in Run(hinge_run).config.stages


def test_noise_alone_lines_up_with_the_model_more_than_beside_a_signal_and_not_at_all_at_rest(hinge_run):
    figures = control(hinge_run, "noise-particles")[0]["figures"]
    beside, alone = figures["share_of_model"], figures["share_of_model_alone"]
    assert beside > 3 * figures["share_of_model_error"]
    assert alone > 1.3 * beside
    assert figures["shells_outside_rigid"] <= 1
    assert set(figures["curves"]) == {"beside", "alone", "rigid"}


@torch.no_grad()
def test_the_signal_beside_noise_is_what_each_particle_looks_like_to_its_model(hinge_run):
    run = Run(hinge_run)
    images = ControlImages(run, torch.arange(len(run.halves)), torch.device("cpu"))
    rows = torch.where(run.halves == 1)[0][:100]
    nothing = NoiseImages(torch.zeros(images.box // 2 + 1), len(images), images.box, seed=0)
    given = SignalBesideNoise(nothing, run.models[0], run.latents[0], images.training, images.matrices)
    shown, seen = given.images(rows), images.training.images(rows)
    # The model explains the signal: what is left beside it is noise alone.
    assert float((seen - shown).square().mean()) < float(seen.square().mean())
    assert float((shown * seen).sum() / shown.square().sum()) == pytest.approx(1, abs=0.1)
    # And it is that of the particle, not of another one.
    assert float((seen - shown).square().mean()) < float((seen - shown.roll(1, 0)).square().mean())


def test_maps_of_held_out_particles_are_on_the_grid_of_the_particles(hinge_set, hinge_run):
    control(hinge_run, "held-out", "--particles", "200")
    consensus, pixel_size = read_map(hinge_set.consensus)
    for name in ("deformed", "rigid"):
        volume, size = read_map(hinge_run / "analysis" / "controls" / "held-out" / f"{name}.mrc")
        assert size == pytest.approx(pixel_size)
        assert np.corrcoef(volume.ravel(), consensus.ravel())[0, 1] > 0.7


def test_a_map_of_other_particles_motion_is_not_improved_by_motion(copied):
    # As large as before, and judged by the same particles, whose own motion is still right.
    path = copied / "latents.safetensors"
    tensors = safetensors.torch.load_file(path)
    for half in (1, 2):
        mine = torch.where(tensors["halves"] == half)[0]
        order = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(half))]
        tensors["latents"][half - 1, mine] = tensors["latents"][half - 1, order]
    safetensors.torch.save_file(tensors, path)
    found, _ = control(copied, "shuffled-latents")
    assert found["verdict"] in ("not from the motion", "no difference", "harms the map", "undecided"), found["sentence"]
    lost = found["figures"]["gain"] - found["figures"]["permuted_map_gain"]
    assert abs(lost) < 3 * found["figures"]["permuted_map_gain_error"]


@pytest.mark.parametrize("kind", ["shuffled-latents", "held-out", "noise-particles"])
def test_where_nothing_moves_there_is_nothing_to_explain(copied, kind):
    for half in (1, 2):
        path = copied / f"half{half}" / "model.safetensors"
        with safetensors.safe_open(path, "pt") as file:
            metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        state["reference_shift"].zero_()
        state["motion_mask"] = torch.zeros(8, 8, 8)
        safetensors.torch.save_file(state, path, metadata)
    folder = copied / "analysis" / "controls"
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{kind}.csv"
    table.write_text("gain\n1.0\n")
    found, text = control(copied, kind)
    assert found["verdict"] == "no motion"
    assert "no improvement to explain" in found["sentence"]
    assert not table.exists(), "the table of an earlier control does not belong to this one"
    assert ".csv" not in text


def test_motions_that_images_do_not_support_move_nothing_in_a_reconstruction_unless_asked_to(copied):
    summary = copied / "analysis" / "summary.json"
    found = json.loads(summary.read_text())
    found["verdict"]["verdict"] = "not supported"
    summary.write_text(json.dumps(found))
    for word, still in (("--shrink", True), ("--no-shrink", False)):
        code, text = dynamight("reconstruct", copied, "--overwrite", word)
        assert code == 0, text
        assert ("Motion is not supported in this run" in text) == still
        moved, rigid = (read_map(copied / "reconstruction" / name)[0] for name in ("map.mrc", "rigid/map.mrc"))
        assert np.allclose(moved, rigid, atol=1e-4 * np.abs(rigid).max()) == still
    code, text = dynamight("reconstruct", copied, "--overwrite", "--conformation", "particle:5")
    assert code == 2
    assert "motion is not supported" in text
    assert "--no-shrink" in text
    found, text = control(copied, "noise-particles")
    assert found["verdict"] == "no motion", "what nothing moves makes no map of noise, and proves nothing"
    assert "The verdict on the run" in text


def test_noise_has_the_spectrum_of_the_model_and_no_two_images_are_alike():
    power = torch.linspace(3.0, 1.0, 17) * 32**2
    noise = NoiseImages(power, 400, 32, seed=1).images(torch.arange(400))
    measured = shell_means(image_to_fourier(noise).abs().square(), 32).mean(0)
    assert torch.allclose(measured[1:16], power[1:16], rtol=0.15)
    assert abs(float((noise[:200] * noise[200:]).mean())) < 3 * float(noise.square().mean()) / (200 * 32**2) ** 0.5


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--kind", "magic"], "choose one of shuffled-latents"),
        (["--kind", "shuffled-latents", "--permutations", "1"], "at least 2"),
        (["--kind", "held-out", "--particles", "10"], "at least 100"),
    ],
)
def test_controls_that_cannot_be_made_are_refused(hinge_run, words, reason):
    code, text = dynamight("control", hinge_run, *words)
    assert code == 2
    assert reason in text


def test_validation_particles_that_are_few_or_trained_something_are_refused(copied):
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("validation_trains_encoders: false", "validation_trains_encoders: true"))
    code, text = dynamight("control", copied, "--kind", "held-out")
    assert code == 2
    assert "without --validation-trains-encoders" in text
    tensors = safetensors.torch.load_file(copied / "latents.safetensors")
    tensors["validation"][torch.where(tensors["validation"])[0][30:]] = False
    safetensors.torch.save_file(tensors, copied / "latents.safetensors")
    code, text = dynamight("control", copied, "--kind", "held-out")
    assert code == 2
    assert "has 30 held-out particles" in text


def blob(seed, centre, box=32):
    """A lump of random Gaussians about a centre, voxels."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(60, 3, generator=generator) * 3 + torch.tensor(centre, dtype=torch.float32)
    return GaussianModel(places * 4.0, 5.0, 1.0).render(box, 4.0).detach()


def test_the_share_of_the_wrong_structure_is_that_which_was_put_in():
    right, wrong, rest = blob(1, (5, 0, 0)), blob(2, (5, 0, 0)), blob(3, (-6, 0, 0))
    mask = soft_mask(right + wrong, 4.0)
    structures = Structures(right, wrong, rest, mask)
    noise = 0.05 * right.std() * torch.randn(right.shape, generator=torch.Generator().manual_seed(4))
    volumes = [3 * (right + rest) + noise, 2 * (0.6 * right + 0.4 * wrong + rest) + noise, wrong + 0.5 * rest + noise]
    shares, without = wrong_fractions(volumes, structures)
    assert shares == pytest.approx([0.0, 0.4, 1.0], abs=0.03)
    assert without.shape[1] == 3
    assert without == pytest.approx(np.tile(shares, (len(without), 1)), abs=0.05)


def test_the_part_that_is_replaced_is_that_which_moves(drawn_run, tmp_path):
    run = Run(drawn_run)
    molecule = hinge_molecule(0)
    path = tmp_path / "atoms.cif"
    # Points of a domain in the order of a walk, as residues of a chain are.
    write_chains(path, *(molecule.positions[molecule.moving == label][::8] for label in (0, 1)))
    selection = moving_domain(run, path)
    chosen = {name for name, *_ in selected_atoms(gemmi.read_structure(str(path)), selection, path)}
    assert chosen == {"B"}


def test_a_wrong_model_control_needs_an_atomic_model(hinge_run):
    code, text = dynamight("control", hinge_run, "--kind", "wrong-model")
    assert code == 2
    assert "without an atomic model" in text


@pytest.mark.slow
def test_draws_of_both_halves_are_pooled_and_few_of_them_are_widened():
    generator = np.random.default_rng(0)
    halves = np.repeat([1.0, 2.0], 500)
    beyond = {4: 0, 8: 0}
    for draws in beyond:
        for _ in range(2000):
            # What differs between draws is alike in all particles of a half, and far above what differs between them.
            values = np.repeat(generator.normal(size=(draws, 2)), 500, axis=1) + 1e-3 * generator.normal(size=1000)
            mean, error = mean_over_draws(values, halves, 1 / draws)
            beyond[draws] += abs(mean) > 3 * error
    # Two sides of three standard deviations: 0.27 %.
    assert all(1 <= n <= 16 for n in beyond.values()), beyond


@pytest.mark.parametrize(
    ("own", "of_map", "of_all", "scatter", "verdict"),
    [
        (1.0, 0.4, -0.4, 0.02, "from the motion"),
        (1.0, 0.4, 0.3, 0.02, "partly from the motion"),
        (1.0, 0.98, -0.4, 0.02, "not from the motion"),
        # Draws that differ so much could hide a gain from motion.
        (1.0, 0.98, -0.4, 0.3, "undecided"),
        (1.0, 0.8, -0.4, 0.2, "undecided"),
        (-0.2, -0.2, -0.4, 0.02, "harms the map"),
        (0.01, 0.0, -0.4, 0.02, "no difference"),
        (0.03, 0.0, -0.4, 0.02, "undecided"),
    ],
)
def test_what_permuting_takes_decides_what_a_gain_comes_from(own, of_map, of_all, scatter, verdict):
    def centred(values):
        return values - values.mean()

    # 400 particles, whose mean has an error of 0.015, and six draws.
    generator = np.random.default_rng(1)
    halves = torch.tensor([1, 2]).repeat(200)
    images = ControlImages.__new__(ControlImages)
    images.rows, images.halves, images.box, images.pixel_size = torch.arange(400), halves, 16, 6.0
    images.particles = SimpleNamespace(copies=torch.arange(400))
    gains = {"own": own + 0.3 * centred(generator.normal(size=400))}
    for kind, mean in (("map", of_map), ("all", of_all)):
        draws = scatter * np.apply_along_axis(centred, 0, generator.normal(size=(6, 2)))
        for turn in range(6):
            noise = 0.3 * centred(generator.normal(size=400))
            gains[f"{kind} permuted {turn + 1}"] = mean + draws[turn][halves.numpy() - 1] + noise
    curves = {name: torch.linspace(1, 0, 9) for name in ("own", "rigid", "permuted 1")}
    found = judge_shuffled(gains, curves, torch.arange(400), images, ControlOptions("shuffled-latents"))
    assert found.verdict == verdict, found.sentence
