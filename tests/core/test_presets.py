"""Presets are named sets of options; the paper's trains, inverts and reconstructs as the paper does."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mrcfile
import pytest
import torch

from dynamight_core.cli import app
from dynamight_core.cli.app import describe_value
from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.imaging.modes import Modes
from dynamight_core.imaging.voxels import CoarseField, Voxels, bordered, moving_voxels
from dynamight_core.judging.summary import summarise
from dynamight_core.model.encoder import Encoder
from dynamight_core.options import STAGES, InputOptions, InvertOptions, ReconstructOptions, TrainOptions
from dynamight_core.options.completed import completed
from dynamight_core.options.declare import declared
from dynamight_core.options.presets import PRESETS, SOURCES, preset_values
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run
from dynamight_core.training.convergence import Rises, fixed_loss
from dynamight_core.training.reference import update_references
from dynamight_core.training.stage import train
from tests.support.command_line import dynamight

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_options_that_exist_and_values_that_they_allow(preset):
    for stage, settings in PRESETS[preset].items():
        names = {field.name for field, _ in declared(STAGES[stage])}
        assert set(settings) <= names - {"preset"}
        assert {setting.source for setting in settings.values()} <= set(SOURCES)
        options = completed(STAGES[stage], {}, preset)
        assert {name: getattr(options, name) for name in settings} == preset_values(preset, stage)


def test_what_is_set_overrides_the_preset_even_by_the_default():
    options = completed(TrainOptions, {"preset": "paper", "epochs": TrainOptions.epochs, "decoder": "basis"}, None)
    assert (options.preset, options.epochs, options.decoder) == ("paper", TrainOptions.epochs, "basis")
    assert options.n_latents == 10
    with pytest.raises(InputError, match=r"--preset is 'papers'; choose one of default, paper"):
        completed(TrainOptions, {"preset": "papers"})


@pytest.mark.parametrize(
    ("kind", "given", "left"),
    [
        (InputOptions, {"working_box": 64}, {"full_box": False}),
        (TrainOptions, {"threshold": 0.02}, {"threshold_percentile": None, "threshold_resolution": 0.0}),
        (TrainOptions, {"decoder": "basis"}, {"decoder_layers": None, "decoder_width": None, "n_latents": 10}),
        (TrainOptions, {"bodies": ["a.mrc", "b.mrc"]}, {"decoder": "basis", "decoder_layers": None}),
        (ReconstructOptions, {"conformation": "particle:3"}, {"modes": True, "shrink": False}),
        (ReconstructOptions, {"conformation": "reference"}, {"modes": False}),
        (ReconstructOptions, {"method": "cg"}, {"modes": True, "through_inverse": True}),
    ],
)
def test_what_is_set_takes_along_what_would_contradict_it(kind, given, left):
    options = completed(kind, ({"star": "a", "map": "b"} if kind is InputOptions else {}) | given, "paper")
    assert {name: getattr(options, name) for name in left} == left


def test_other_decoders_train_under_the_preset(hinge_set, tmp_path):
    given = {"star": str(hinge_set.particles), "map": str(hinge_set.consensus), "working_box": 16, "decoder": "basis"}
    given |= {"n_gaussians": 60, "epochs": 1, "warm_up_epochs": 1}
    inputs, options = (completed(kind, given, "paper") for kind in (InputOptions, TrainOptions))
    said = []
    trained = train(inputs, options, tmp_path / "run", reporter=Reporter(said.append))
    assert said[0].startswith("Preset: paper (Schwab et al. 2024)")
    assert (trained.models[0].box, trained.models[0].decoder_name) == (16, "basis")
    (positions, *_) = trained.trainers[0].gaussian_optimizer().param_groups
    assert positions["lr"] == pytest.approx(1e-4 * 32 * 6.0), "in widths of the box"


def test_the_command_line_and_later_stages_follow_the_preset_of_the_run(paper, monkeypatch):
    taken = []
    for command, name in (("train", "options"), ("invert", "options"), ("reconstruct", "options")):
        function = app._COMMANDS[command]

        def record(name=name, **values):
            taken.append(values[name])

        record.__signature__, record.__annotations__ = app.inspect.signature(function), function.__annotations__
        record.__name__, record.__doc__ = function.__name__, function.__doc__
        monkeypatch.setitem(app._COMMANDS, command, record)
    run = paper[1].path
    for words in (
        ["train", "a.star", "RUN", "--preset", "paper", "--epochs", "18"],
        ["invert", run],
        ["invert", run, "--preset", "default"],
        ["reconstruct", run],
        ["reconstruct", run, "--choose-density"],
        ["reconstruct", run, "--preset", "default"],
    ):
        assert dynamight(*words) == (0, "")
    assert (taken[0].epochs, taken[0].decoder, taken[0].preset) == (18, "coordinate", "paper")
    assert [options.width for options in taken[1:3]] == [96, 32]
    assert [options.through_inverse for options in taken[3:]] == [True, True, False]
    assert [options.choose_density for options in taken[3:]] == [False, True, True]
    assert [options.preset for options in taken[1:]] == ["paper", "default", "paper", "paper", "default"]


def test_a_preset_is_printed_and_written_with_the_run(paper):
    code, text = dynamight("train", "--show-preset", "paper")
    assert code == 0
    for name, setting in PRESETS["paper"]["train"].items():
        lines = [line for line in text.splitlines() if line.startswith(f"  --{name.replace('_', '-')} ")]
        assert SOURCES[setting.source] in lines[0]
    assert dynamight("train", "--show-preset", "nature")[0] == 2
    config = RunConfig.read(paper[1].path)
    assert config.train.preset == "paper"
    assert config.inputs.full_box
    assert config.train.learning_rate == 1e-4
    assert paper[1].summary["model"]["preset"] == "paper"


def test_latents_are_those_of_the_encoder_alone(paper):
    trained, run = paper
    rows = torch.arange(len(run.halves))
    for half, trainer in enumerate(trained.trainers):
        torch.testing.assert_close(run.latents[half], trainer.encode(rows))
    variances = run.covariances[0].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(run.covariances[0], torch.diag_embed(variances))


def test_validation_particles_of_both_half_sets_train_both_encoders(paper):
    trained, run = paper
    held_out = torch.where(run.validation)[0]
    for trainer in trained.trainers:
        assert torch.equal(trainer.encoded, held_out)
        assert not set(trainer.rows.tolist()) & set(held_out.tolist())


def test_the_model_has_the_paper_s_sizes_and_keeps_them_on_disk(paper):
    model = Run(paper[1].path).models[0]
    box = model.box
    assert box == 32, "images keep their box"
    assert model.encoder.layers[0].weight.shape == (256, box**2)
    assert [tuple(layer.weight.shape) for layer in model.decoder.layers if hasattr(layer, "weight")] == [
        (32, 60 + 10),
        *[(32, 32)] * 6,
        (3, 32),
    ]
    assert model.decoder.unit == pytest.approx(box * model.pixel_size)
    assert bool((model.gaussians.relative_amplitudes == 1).all())


def test_without_pooling_the_encoder_sees_every_pixel():
    images = torch.randn(2, 32, 32)
    changed = images.clone()
    # A checkerboard averages to nothing over 2 x 2 pixels.
    changed[:, 10:20, 10:20] += torch.tensor([1.0, -1.0]).repeat(5) * torch.tensor([1.0, -1.0]).repeat(5)[:, None]
    seen = []
    for pooling in (1, 2):
        torch.manual_seed(0)
        encoder = Encoder(32, 3, 20.0, pooling=pooling)
        with torch.no_grad():
            seen.append(float((encoder(images)[0] - encoder(changed)[0]).abs().max()))
    assert seen[0] > 1e-3
    assert seen[1] < 1e-5


def test_the_new_reference_is_the_single_prediction_of_smallest_displacement(paper):
    first, second = paper[0].trainers
    model = first.model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value.clone() for name, value in second.model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        shifts = model.displacements(first.encode(first.rows))
        smallest = shifts[shifts.square().sum((1, 2)).argmin()]
        wanted = model.gaussians.positions + smallest
    update_references((first, second))
    torch.testing.assert_close(model.gaussians.positions, wanted)
    model.load_state_dict(state)
    second.model.load_state_dict(other)


def test_the_loss_that_stops_training_does_not_know_the_current_noise_spectrum(paper):
    trainer = paper[0].trainers[0]
    before = fixed_loss(trainer)
    power = trainer.model.noise_power.clone()
    trainer.model.noise_power.mul_(3.0)
    trainer.model.resolution.fill_(40.0)
    assert fixed_loss(trainer) == before
    trainer.model.noise_power.copy_(power)
    trainer.model.resolution.zero_()
    text = (Path(paper[1].path) / "metrics.jsonl").read_text()
    lines = [line["fixed_loss"] for line in map(json.loads, text.splitlines()) if line["half"] == 1]
    assert lines[0] is None, "no motion in the warm-up"
    assert lines[-1] == pytest.approx(before, rel=1e-5)


def test_rises_are_counted_from_epoch_to_epoch():
    rises = Rises()
    for loss in (None, 5.0, 4.0, 4.5, 4.6, 3.0, 3.0, 3.1):
        rises.add(loss)
    assert rises.number == 3


class Wave:
    """A field that no lattice of few nodes has, with one latent."""

    def evaluator(self, points):
        moved = torch.stack([torch.sin(points[:, 1] / 20), points[:, 0] / 50, torch.cos(points[:, 2] / 30)], 1)
        return lambda latents: latents[:, :1, None] * moved


def test_a_field_evaluated_for_each_particle_moves_voxels_as_at_every_voxel():
    mask = torch.zeros(32, 32, 32, dtype=torch.bool)
    mask[8:24, 8:24, 8:24] = True
    latents, poses = torch.tensor([[1.0], [-2.0], [3.0]]), torch.eye(2, 4)[None].repeat(3, 1, 1) / 4.0
    poses[:, :, 3] = 16.0
    images = bordered(torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(1).cumsum(2))
    read = []
    for field in (Wave(), CoarseField(Wave(), 2)):
        (voxels,) = moving_voxels(Voxels(mask, (16,) * 3, 4.0, field), latents, 3)
        assert voxels.spacing == getattr(field, "spacing", 1)
        out = torch.zeros(32, 32, 32)
        voxels.read(images, voxels.place(poses, latents), out)
        read.append(out)
    assert float((read[0] - read[1]).norm() / read[0].norm()) < 1e-2


def test_modes_can_stand_for_a_field_that_is_evaluated_for_each_particle():
    modes = Modes(field="modal", coordinates=torch.zeros(3, 1), remainder=0.0)
    assert modes.moved_by[0] == "modal"
    latents = torch.ones(3, 2)
    assert replace(modes, exact=("network", latents)).moved_by == ("network", latents)
    with pytest.raises(InputError, match=r"--no-modes .* --no-shrink"):
        ReconstructOptions(modes=False)


def test_invert_and_reconstruct_as_the_paper_does(paper):
    run = str(paper[1].path)
    assert dynamight("invert", run, "--epochs", "2", "--threads", "1")[0] == 0
    code, text = dynamight("reconstruct", run, "--no-rigid", "--threads", "1", "--overwrite")
    assert code == 0, text
    assert "Resolution at FSC 0.143" in text
    stages = RunConfig.read(paper[1].path).stages
    assert stages["invert"]["width"] == preset_values("paper", "invert")["width"]
    assert stages["invert"]["epochs"] == 2
    assert not stages["reconstruct"]["modes"]
    assert stages["reconstruct"]["through_inverse"]
    assert InvertOptions().width == 32


def relion_rows():
    """Return the rows of the table for users of RELION's job: option, value in the preset, and default, as text."""
    text = (ROOT / "docs" / "paper.md").read_text().partition("## Coming from RELION's DynaMight job")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["field in RELION", "its default", "option", "preset `paper`", "our default", "what to expect"]
    return [(row[2].strip("`"), row[3], row[4]) for row in rows[2:]]


def test_the_table_for_users_of_relion_has_the_numbers_of_the_preset():
    checked = 0
    for words, preset, default in relion_rows():
        if "--" not in words:
            continue
        command, _, option = words.rpartition("--")
        stages = {"invert": ["invert"], "reconstruct": ["reconstruct"]}.get(command.strip(), ["train", "input"])
        name = option.strip().replace("-", "_")
        (stage,) = [stage for stage in stages if name in {field.name for field, _ in declared(STAGES[stage])}]
        values = preset_values("paper", stage)
        assert preset == (describe_value(values[name], "") if name in values else ""), words
        if default:
            assert default == describe_value(getattr(STAGES[stage](), name), ""), words
            checked += 1
    assert checked >= 6


def test_documents_tell_every_option_of_the_preset():
    text = (ROOT / "docs" / "paper.md").read_text()
    for settings in PRESETS["paper"].values():
        for name, setting in settings.items():
            shown = rf"\| `--{name.replace('_', '-')}` \| {describe_value(setting.value, '')}"
            assert re.search(shown, text), name


@pytest.fixture(scope="module")
def joint(hinge_set, tmp_path_factory):
    """A short training of one model on both half-sets, with its run."""
    inputs = InputOptions(star=str(hinge_set.particles), map=str(hinge_set.consensus))
    options = TrainOptions(n_gaussians=60, n_latents=2, epochs=2, warm_up_epochs=1, refits=0, halves="joint")
    trained = train(inputs, options, tmp_path_factory.mktemp("joint") / "run", reporter=QUIET)
    return trained, summarise(trained, reporter=QUIET)


def test_a_joint_model_is_trained_once_on_both_half_sets(joint):
    trained, run = joint
    (trainer,) = trained.trainers
    assert torch.equal(trainer.rows, torch.where(~run.validation)[0])
    assert torch.equal(run.latents[0], run.latents[1])
    first, second = (model.state_dict() for model in Run(run.path).models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert {line["half"] for line in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())} == {1}


def test_a_joint_model_says_everywhere_that_it_is_a_control_only(joint):
    run = str(joint[1].path)
    summary = joint[1].summary
    assert "control only" in summary["warnings"][0]
    assert summary["conclusion"]["title"] == "A control only: one model was trained on both half-sets"
    assert set(summary["motion_correlations"]) == {None}, "one model cannot agree with itself"
    code, text = dynamight("reconstruct", run, "--no-rigid", "--threads", "1", "--overwrite", "--no-shrink")
    assert code == 0, text
    assert "resolution is overestimated" in " ".join(text.split())
    code, text = dynamight("control", run, "--kind", "shuffled-latents")
    assert code == 2 and "--halves independent" in text
    for name in ("map", "map_sharpened", "half1_unfil", "half2_unfil", "mask"):
        with mrcfile.open(Path(run) / "reconstruction" / f"{name}.mrc") as mrc:
            assert b"JOINT MODEL, CONTROL ONLY" in mrc.header.label[1]
    with mrcfile.open(Path(run) / "reconstruction" / "map.mrc") as mrc:
        assert b"half-maps" in mrc.header.label[1]
