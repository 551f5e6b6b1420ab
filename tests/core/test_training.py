"""Training: schedule, resuming, reference updates, and what a run recovers."""

import copy
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import starfile
import torch
from roma import rotvec_to_rotmat

import dynamight_core.training.stage as run_module
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.judging.detection import unseen_motion
from dynamight_core.judging.summary import summarise
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.initialise import fit_to_map
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.parallel import StoppedError, side_by_side
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.epochs import EpochMeans
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.poses import refine_poses
from dynamight_core.training.reference import update_references
from dynamight_core.training.schedule import schedule
from dynamight_core.training.stage import train
from tests.support.known_motion import known_motion

QUICK = {"n_gaussians": 300, "n_latents": 3, "epochs": 5, "warm_up_epochs": 1, "refits": 1}


def inputs(files):
    return InputOptions(star=str(files.particles), map=str(files.consensus))


def test_schedule_counts_every_kind_of_epoch():
    options = TrainOptions(epochs=40, encoder_epochs=20, refits=3, reference_interval=12, sparse_motion=2.0)
    epochs = schedule(options)
    kinds = [epoch.kind for epoch in epochs]
    assert kinds.count("warm-up") == 3
    assert kinds.count("encoder") == 20
    assert kinds.count("refinement") == 20
    assert kinds.count("reference") == 3 * options.reference_epochs
    assert sum(epoch.refit for epoch in epochs) == 3
    assert next(epoch.infer for epoch in epochs if epoch.infer != "no") == "encoder"
    assert next(epoch.infer for epoch in schedule(TrainOptions()) if epoch.infer != "no") == "linear"
    weights = [epoch.sparse for epoch in epochs]
    assert weights[3] == 0 and max(weights) == 2.0 and weights[-1] == 2.0


def test_large_motions_are_followed_as_early_in_a_long_training_as_in_a_short_one():
    def at(epochs, kind):
        return [number for number, epoch in enumerate(schedule(TrainOptions(epochs=epochs))) if getattr(epoch, kind)]

    # Epoch 0 is the first of three of the warm-up, and a reference update has two.
    for kind in ("follow", "refit", "parts"):
        assert at(18, kind) == at(30, kind) == at(100, kind)
    # Rigid parts are tried before and after large motions are followed.
    assert at(30, "parts") == [3 + 4, 3 + 11]
    assert at(9, "follow") == [3 + 3, 3 + 4] and at(30, "follow") == [3 + 6, 3 + 9]


def test_without_latent_refinement_the_schedule_is_the_papers():
    kinds = {epoch.kind for epoch in schedule(TrainOptions(latent_refinement=False))}
    assert kinds == {"warm-up", "encoder", "reference"}


def test_the_filter_becomes_finer_once_unless_it_is_given():
    def finer(options, continued=False):
        return [epoch.finer for epoch in schedule(options, continued)]

    assert sum(finer(TrainOptions())) == 1
    for options in (TrainOptions(motion_resolution=15.0), TrainOptions(encoder_epochs=4)):
        assert not any(finer(options))
    assert not any(finer(TrainOptions(), continued=True))


@torch.no_grad()
def predicted(trainer):
    return trainer.model.gaussians.positions + trainer.model.displacements(trainer.latents)


def test_reference_update_moves_the_reference_to_what_particles_have():
    trainers = []
    for half in (1, 2):
        model, data, latents = known_motion()
        trainer = HalfTrainer(model, data, torch.arange(len(latents)), TrainOptions(n_latents=2), half)
        trainer.latents = latents + 1.0
        trainers.append(trainer)
    before = [predicted(trainer) for trainer in trainers]
    sizes = [trainer.model.displacements(trainer.latents).square().mean().item() for trainer in trainers]
    moved = update_references(tuple(trainers))
    assert min(moved) > 0.1
    for trainer, positions, size in zip(trainers, before, sizes, strict=True):
        # Predicted conformations stay, up to the change of the field over the shift, and lie closer to the reference.
        after = predicted(trainer)
        assert (after - positions).square().mean() < 0.3 * size
        assert trainer.model.displacements(trainer.latents).square().mean() < size


@pytest.mark.slow
def test_a_run_stopped_at_any_epoch_resumes_to_the_same_numbers(hinge_set, tmp_path, monkeypatch):
    """With all that a checkpoint has to hold, the halves side by side."""
    options = TrainOptions(
        **QUICK,
        threads=2,
        encoder_epochs=2,
        width_classes=2,
        regularisation="dynamic",
        refine_poses=True,
        validation_trains_encoders=True,
    )
    few = starfile.read(hinge_set.particles)
    few["particles"] = few["particles"].iloc[:200]
    starfile.write(few, tmp_path / "few.star")
    folder = str(hinge_set.particles.parent)
    source = InputOptions(star=str(tmp_path / "few.star"), project=folder, map=str(hinge_set.consensus))
    quiet = {"reporter": QUIET}
    train(source, options, tmp_path / "whole", **quiet)
    # A checkpoint after every epoch, and a stop in the middle of one.
    monkeypatch.setattr(run_module, "_CHECKPOINT_SECONDS", 0.0)
    original = run_module._run_epoch

    def stop_at(number):
        def epoch(kind, current, trainer):
            assert torch.get_num_threads() == 1 and threading.current_thread() is not threading.main_thread()
            if current == number and trainer.half == 2:
                raise KeyboardInterrupt
            return original(kind, current, trainer)

        return epoch

    for number in (3, 5):
        monkeypatch.setattr(run_module, "_run_epoch", stop_at(number))
        with pytest.raises(KeyboardInterrupt):
            train(source, options, tmp_path / "stopped", resume=True, **quiet)
    monkeypatch.setattr(run_module, "_run_epoch", original)
    resumed = train(source, options, tmp_path / "stopped", resume=True, **quiet)

    def metrics(name):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        untimed = {"seconds", "particles_per_second", "peak_memory_gb"}
        return [{key: value for key, value in line.items() if key not in untimed} for line in lines]

    assert metrics("stopped") == metrics("whole")
    # Refined poses are written beside those given, those of held-out particles too.
    table = summarise(resumed, **quiet).table
    assert (table["dynAngleChange"] > 0).all()
    assert np.allclose(table["rlnAngleRot"], few["particles"]["rlnAngleRot"])
    assert not np.allclose(table["dynAngleRot"], table["rlnAngleRot"])


def test_halves_side_by_side_share_the_threads_and_fail_as_one_after_the_other(monkeypatch):
    device, together, ends = torch.device("cpu"), threading.Barrier(2, timeout=60), []
    empty = SimpleNamespace(images=lambda rows: torch.zeros(len(rows), 8, 8))
    points = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 4.0], [-4.0, 0.0, 4.0]])
    volume = GaussianModel(points, 4.0, 1.0).render(16, 4.0).detach()
    ctf = CtfParameters.create(torch.full((2,), 15000.0))
    images = TrainingImages(empty, ctf, torch.eye(3).expand(2, 3, 3), 8, 4.0).batch

    def work(item):
        together.wait()  # goes on only where both run at once
        return item, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    def fit(rows):
        fit_to_map(points, volume, 4.0)

    def goes_on_or_fails(item):
        together.wait()
        if not item:
            return 1 / item
        try:
            while True:
                item(torch.arange(2))
        except StoppedError:
            ends.append(item)
            raise

    torch.set_num_threads(4)
    assert side_by_side(work, ("a", "b"), device) == [("a", 2, False), ("b", 2, False)]
    # Whoever reads images or fits Gaussians comes upon it that another has failed; elsewhere nothing was stopped.
    for loop in (images, fit):
        with pytest.raises(ZeroDivisionError):
            side_by_side(goes_on_or_fails, (loop, 0), device)
        assert ends.pop() is loop
        loop(torch.arange(2))
    assert torch.get_num_threads() == 4
    torch.set_num_threads(1)
    monkeypatch.setattr(together, "wait", lambda: None)
    assert side_by_side(work, ("a", "b"), device) == [("a", 1, True), ("b", 1, True)]


def test_training_stops_when_the_loss_has_risen_often_enough(tmp_path, monkeypatch):
    options = TrainOptions(epochs=20, encoder_epochs=20, warm_up_epochs=3, stop_after_rises=3)
    # Rises of the warm-up do not count, nor do those of one half for the other, nor those in other units.
    none = [None] * 3
    losses = {1: [*none, 4, 5, 4, 6, 3, 8, 9], 2: [*none, 9, 8, 7, 6, 5, 6, 7]}
    other_units = [5, 6, 7, 1, 2, 3, 4, 5, 6, 7]
    saved, numbers = [], []
    monkeypatch.setattr(
        run_module,
        "_run_epoch",
        lambda epoch, number, trainer: {
            "epoch": number,
            "half": trainer.half,
            "kind": epoch.kind,
            **EpochMeans({"data": other_units[number - 1]}).line(),
            "fixed_loss": losses[trainer.half][number - 1],
        },
    )
    monkeypatch.setattr(run_module, "update_references", lambda trainers: None)
    monkeypatch.setattr(run_module, "check_converging", lambda *_: None)
    kept = SimpleNamespace(save=lambda folder: saved.append(folder))
    monkeypatch.setattr(run_module, "checkpoint_of", lambda trainer, number, state: numbers.append(number) or kept)
    data = SimpleNamespace(device=torch.device("cpu"), stop=None)
    trainers = [SimpleNamespace(options=options, half=half, data=data, rows=range(100)) for half in (1, 2)]
    said = []
    run_module._train_epochs(trainers, tmp_path, schedule(options), Reporter(said.append))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["epoch"] for line in lines) == 9
    assert lines[-1]["stopped"]
    assert numbers[-2:] == [9, 9]
    assert saved[-2:] == [tmp_path / f"half{half}" / "checkpoints" for half in (1, 2)]
    assert "risen 3 times" in said[-1]


def test_refined_poses_come_nearer_to_the_truth():
    """Perturbed poses of a training without motion must improve, and only where asked for."""
    model, data, latents = known_motion(120)
    rows = torch.arange(len(latents))
    generator = torch.Generator().manual_seed(1)
    true = data._matrices.clone()
    wrong = rotvec_to_rotmat(torch.randn(len(rows), 3, generator=generator) * 0.03)
    data._matrices = wrong @ true
    trainer = HalfTrainer(model, data, rows, TrainOptions(n_latents=2, refine_poses=True), 1)
    trainer.latents = latents
    refine_poses(trainer)
    refined = rotvec_to_rotmat(trainer.rotations) @ data._matrices

    def angle(matrices):
        trace = (matrices @ true.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum(1)
        return torch.arccos(((trace - 1) / 2).clamp(-1, 1)).mean()

    assert angle(refined) < 0.3 * angle(data._matrices)
    assert not HalfTrainer(model, data, rows, TrainOptions(n_latents=2), 1).pose_changes.any()


def test_training_recovers_the_hinge(hinge_set, trained):
    result, run = trained
    truth = load_truth(hinge_set.truth)
    for half, model in enumerate(result.models):
        for validation in (False, True):
            rows = torch.where((run.halves == half + 1) & (run.validation == validation))[0]
            points = model.gaussians.positions.detach()
            moving = truth.domains(points) == 1
            with torch.no_grad():
                shift = model.displacements(result.latents[half][rows])
            true = truth.displacements(points, rows)
            motion = true[:, moving].square().sum(-1).mean().sqrt()
            assert (shift - true)[:, moving].square().sum(-1).mean().sqrt() < 0.75 * motion
            assert shift[:, ~moving].square().sum(-1).mean().sqrt() < 0.3 * motion
            angles = truth.angles[rows, 0]
            along = (shift * true)[:, moving].sum((1, 2)) / true[:, moving].square().sum((1, 2)).sqrt()
            assert torch.corrcoef(torch.stack([along * angles.sign(), angles]))[0, 1] > 0.75


def test_verdict_supports_a_real_hinge_and_errors_are_of_the_right_size(hinge_set, trained):
    _, run = trained
    assert run.summary["verdict"]["verdict"] == "supported"
    assert run.summary["verdict"]["gain"] > run.summary["verdict"]["null"]
    truth = load_truth(hinge_set.truth)
    rows = torch.arange(len(run.halves))
    shift = run.motions.displacement(run.motions.coordinates)
    error = (shift - truth.displacements(run.motions.points, rows)).square().sum(-1).mean().sqrt()
    assert 0.5 < run.summary["error_rms"] / float(error) < 2


def test_motion_that_would_not_show_shrinks_with_less_noise_and_more_particles(trained):
    result, _ = trained
    rows = [trainer.rows for trainer in result.trainers]
    limit = unseen_motion(result.models, result.data, rows, 0)
    few = unseen_motion(result.models, result.data, [half[: len(half) // 4] for half in rows], 0)
    assert 1.2 < few / limit < 1.8
    quiet = [copy.deepcopy(model) for model in result.models]
    for model in quiet:
        model.noise_power.div_(4)
    assert 0.35 < unseen_motion(quiet, result.data, rows, 0) / limit < 0.65
    for model in quiet:
        model.noise_power.mul_(1e12)
    radius = max(float(model.consensus_positions.norm(dim=1).max()) for model in quiet)
    assert limit < unseen_motion(quiet, result.data, rows, 0) < 1.5 * radius


def test_particles_star_has_every_row_in_input_order(hinge_set, trained):
    _, run = trained
    before = starfile.read(hinge_set.particles, always_dict=True)["particles"]
    for column in before:
        assert (run.table[column].astype(str) == before[column].astype(str)).all(), column
    own = torch.from_numpy(run.table[["dynMotion1", "dynMotion2"]].to_numpy(dtype="float32", copy=True))
    assert torch.allclose(own, run.motions.coordinates[:, :2], atol=1e-4)
    assert (run.table["dynHalf"] == before["rlnRandomSubset"]).all()
    assert 50 <= run.table["dynValidation"].sum() <= 70


@pytest.mark.slow
def test_rigid_particles_are_not_called_moving(tmp_path):
    from dynamight_core.simulate.dataset import SimulateOptions, simulate

    rigid = SimulateOptions(particles=600, box=32, pixel_size=6.0, snr=0.5, seed=2, motion_range=0.0)
    files = simulate(rigid, tmp_path / "data")
    result = train(inputs(files), TrainOptions(n_gaussians=500, n_latents=3), tmp_path / "run", reporter=QUIET)
    run = summarise(result, reporter=QUIET)
    assert run.summary["verdict"]["verdict"] != "supported"


def test_a_run_filters_while_motion_is_learned_and_shows_the_gaussians_all_at_the_end(trained):
    lines = [json.loads(line) for line in (trained[0].run / "metrics.jsonl").read_text().splitlines()]
    for half, model in enumerate(trained[0].models, 1):
        mine = [line for line in lines if line["half"] == half]
        assert all(line["resolution"] == 0 for line in mine if line["kind"] != "refinement")
        learned = [line["resolution"] for line in mine if line["kind"] == "refinement"]
        assert learned[0] > 0
        assert sorted(set(learned)) == pytest.approx([0.7 * learned[0], learned[0]])
        assert float(model.resolution) == pytest.approx(learned[-1])
        assert mine[-1]["kind"] == "reference"
