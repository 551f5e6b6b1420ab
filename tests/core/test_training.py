"""Training: schedule, latent inference, resuming, reference updates, and what a run recovers."""

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
from dynamight_core.config import InputOptions, TrainOptions
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.judging.detection import unseen_motion
from dynamight_core.judging.errors import _pushed_through
from dynamight_core.judging.summary import summarise
from dynamight_core.judging.verdict import judge
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import fit_to_map
from dynamight_core.model.motions import motion_fields, principal_motions
from dynamight_core.parallel import StoppedError, side_by_side
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import infer_latents, random_pixels
from dynamight_core.training.linear import linear_motions, start_from
from dynamight_core.training.reference import update_references
from dynamight_core.training.schedule import schedule
from dynamight_core.training.stage import train

QUICK = {"n_gaussians": 300, "n_latents": 3, "epochs": 5, "warm_up_epochs": 1, "refits": 1}


def inputs(files):
    return InputOptions(star=str(files.particles), map=str(files.consensus))


class HeldImages:
    """Images in memory."""

    def __init__(self, images):
        self._images = images

    def images(self, rows):
        return self._images[rows]

    def close(self):
        pass


def known_motion(n=40, box=32, pixel_size=4.0, noise=0.05, field=None):
    """Return a model with a known decoder, its images of n particles, and their latents.

    With `field`, which takes (g, 3) positions and gives (2, g, 3) displacements per latent, that moves the particles.
    """
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    gaussians = GaussianModel(torch.randn(150, 3, generator=generator) * 15, 6.0, 1.0)
    model = HalfModel(gaussians, box, pixel_size, 2, "basis", 100.0)
    torch.nn.init.normal_(model.decoder.fields[-1].weight, std=0.5)
    latents = torch.randn(n, 2, generator=generator)
    matrices = rotation_matrices(random_rotations(n, generator))
    ctf = CtfParameters.create(torch.full((n,), 15000.0))
    data = TrainingImages(HeldImages(None), ctf, matrices, box, pixel_size)
    with torch.no_grad():
        shifts = model.displacements(latents)
        if field is not None:
            shifts = torch.einsum("bk,kgc->bgc", latents, field(gaussians.positions))
        positions = gaussians.positions + shifts
        image = fourier_to_image(model.project(matrices, data.transfer(torch.arange(n)), positions), box)
    sigma = noise * float(image.std())
    data._images = HeldImages(image + sigma * torch.randn(image.shape, generator=generator))
    model.noise_power.fill_(sigma**2 * box**2)
    return model, data, latents


def test_inference_finds_known_latents_within_its_own_error():
    model, data, latents = known_motion()
    rows = torch.arange(len(latents))
    posterior = infer_latents(model, data, rows, [torch.zeros_like(latents)], steps=12)
    offset = posterior.latents - latents
    squared = (offset[:, None] @ torch.linalg.inv(posterior.covariances) @ offset[..., None]).flatten()
    # chi squared of 2 degrees of freedom has mean 2, and its mean over 40 a standard error of 0.32
    assert squared.median() < 4
    assert offset.square().mean().sqrt() < 0.2
    assert posterior.covariances.diagonal(dim1=1, dim2=2).mean() < 0.1


def test_integrated_posterior_is_that_of_a_fine_grid():
    model, data, latents = known_motion(noise=1.0)
    rows = torch.arange(len(latents))
    posterior = infer_latents(model, data, rows, [latents], steps=8, integrate=True)
    # Likelihood times prior on a grid of both latents.
    axis = torch.linspace(-4, 4, 61)
    grid = torch.cartesian_prod(axis, axis)
    batch, weights = data.batch(rows), model.frequency_weights()
    energies = torch.empty(len(rows), len(grid))
    with torch.no_grad():
        for index, place in enumerate(grid):
            positions = model.gaussians.positions + model.displacements(place[None])
            image = model.project(batch.matrices, batch.transfer, positions.expand(len(rows), -1, -1))
            fit = ((image - batch.transforms).abs().square() * weights).sum((1, 2))
            energies[:, index] = 0.5 * fit + 0.5 * place.square().sum()
    share = torch.softmax(-energies, 1)
    mean = share @ grid
    variance = share @ grid.square() - mean.square()
    width = variance.sum(1).sqrt()
    assert ((posterior.latents - mean).norm(dim=1) / width).median() < 0.3
    trace = posterior.covariances.diagonal(dim1=1, dim2=2).sum(1)
    assert (trace / variance.sum(1)).median() == pytest.approx(1, abs=0.25)


def test_inference_takes_the_better_of_two_starts():
    model, data, latents = known_motion()
    rows = torch.arange(len(latents))
    far = torch.full_like(latents, 3.0)
    alone = infer_latents(model, data, rows, [latents], steps=0).energies
    both = infer_latents(model, data, rows, [far, latents], steps=0).energies
    assert torch.allclose(alone, both, rtol=1e-4)


@pytest.mark.parametrize("box", [16, 17])
def test_what_is_held_out_cannot_be_known_from_the_rest(box):
    """A real image of the chosen frequencies alone has nothing at the others, within Nyquist."""
    generator = torch.Generator().manual_seed(0)
    share = random_pixels(50, box, generator)
    image = fourier_to_image(image_to_fourier(torch.randn(50, box, box, generator=generator)) * share, box)
    within = torch.arange(box // 2 + 1) < box / 2
    assert (image_to_fourier(image).abs() * ~share * within).max() < 1e-4
    assert 0.45 < share.float().mean() < 0.55


def test_rows_of_one_image_count_once_in_the_verdict():
    model, data, latents = known_motion(40)
    model.latent_centres.copy_(latents[:8])
    halves, everyone = torch.arange(40) // 20 + 1, torch.ones(40, dtype=torch.bool)
    alone = judge((model, model), data, halves, everyone, torch.arange(40), 0)
    paired = judge((model, model), data, halves, everyone, torch.arange(40) // 2, 0)
    assert (alone.particles, paired.particles) == (40, 20)
    assert paired.gain == pytest.approx(alone.gain, rel=1e-4)


def test_inference_does_not_see_pixels_outside_its_share():
    model, data, latents = known_motion()
    rows = torch.arange(len(latents))
    nothing = torch.zeros(len(rows), 32, 17, dtype=torch.bool)
    posterior = infer_latents(model, data, rows, [latents], steps=6, pixel_share=nothing)
    assert torch.allclose(posterior.latents, model.latent_mean.expand_as(latents), atol=1e-2)
    assert torch.allclose(posterior.covariances[0], model.latent_covariance, atol=1e-4)


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


def test_without_latent_refinement_the_schedule_is_the_papers():
    kinds = {epoch.kind for epoch in schedule(TrainOptions(latent_refinement=False))}
    assert kinds == {"warm-up", "encoder", "reference"}


def untrained(model, data, rows):
    """Return a trainer of a model with the same Gaussians and noise that knows no motion."""
    fresh = HalfModel(copy.deepcopy(model.gaussians), model.box, model.pixel_size, 2, "basis", 100.0)
    fresh.noise_power.copy_(model.noise_power)
    return HalfTrainer(fresh, data, rows, TrainOptions(n_latents=2), half=1)


def two_parts_move(positions):
    """Return fields that move one side of the molecule along z, and another along x, by 4 A."""
    fields = torch.zeros(2, len(positions), 3)
    fields[0, :, 2] = 4.0 * (positions[:, 0] > 8)
    fields[1, :, 0] = 4.0 * (positions[:, 1] < -8)
    return fields


def test_linear_motions_are_where_the_particles_are_along_the_true_ones():
    model, data, latents = known_motion(n=300, noise=0.5, field=two_parts_move)
    trainer = untrained(model, data, torch.arange(300))
    motions = linear_motions(trainer, most=2)
    assert motions.fields.shape == (2, 150, 3)
    assert min(explained(motions, latents[:, k]) for k in (0, 1)) > 0.5
    start_from(trainer, motions)
    wanted = torch.einsum("bk,knc->bnc", motions.latents, motions.fields)
    with torch.no_grad():
        given = trainer.model.displacements(trainer.latents)
    assert (given - wanted).square().mean() < 0.2 * wanted.square().mean()


def one_part_swings(positions):
    """Return fields of which the first moves one side of the molecule by 20 A, more than the Gaussians' width."""
    fields = torch.zeros(2, len(positions), 3)
    fields[0, :, 2] = 20.0 * (positions[:, 0] > 8)
    return fields


def explained(motions, latents):
    """Return the share of the variance of (n,) latents that their best linear prediction from the motions' explains."""
    given = torch.cat([motions.latents, torch.ones(len(latents), 1)], 1)
    residual = latents - given @ torch.linalg.lstsq(given, latents[:, None]).solution[:, 0]
    return 1 - float(residual.var() / latents.var())


def test_motions_larger_than_the_details_are_seen_in_filtered_images():
    model, data, latents = known_motion(n=400, noise=1.0, field=one_part_swings)
    trainer = untrained(model, data, torch.arange(400))
    filtered = linear_motions(trainer, most=2)
    assert filtered.resolution > 0
    assert torch.isfinite(filtered.fields).all()
    start_from(trainer, filtered)
    assert float(trainer.model.resolution) == filtered.resolution
    trainer.options.motion_resolution = 0.0
    plain = linear_motions(trainer, most=2)
    assert plain.resolution == 0
    assert explained(filtered, latents[:, 0]) > explained(plain, latents[:, 0])


def test_the_filter_lets_details_count_less_and_is_kept_with_the_model(tmp_path):
    model, data, _ = known_motion()
    plain = model.frequency_weights()
    model.resolution.fill_(model.box * model.pixel_size / 4)
    ratio = model.frequency_weights() / plain
    assert float(ratio[0, 4]) == pytest.approx(np.exp(-1))
    assert float(ratio[3, 0]) == pytest.approx(np.exp(-((3 / 4) ** 4)))
    assert torch.equal(model.frequency_weights(0), plain)
    model.regularisation_share.fill_(0.3)
    model.save(tmp_path / "model.safetensors")
    kept = HalfModel.load(tmp_path / "model.safetensors")
    assert torch.allclose(kept.frequency_weights(), model.frequency_weights())
    goes_on = HalfTrainer(kept, data, torch.arange(4), TrainOptions(n_latents=2), half=1)
    assert goes_on.stiffness == pytest.approx(0.3 * TrainOptions().stiffness)
    assert goes_on.rigidity == pytest.approx(0.3 * TrainOptions().rigidity)


def test_regularisation_gives_way_where_images_tell_little_and_only_there():
    shares = {}
    for noise in (0.5, 4.0):
        model, data, _ = known_motion(n=1500, noise=noise, field=two_parts_move)
        trainer = untrained(model, data, torch.arange(1500))
        motions = linear_motions(trainer, most=2)
        assert len(motions.fields), "the motion is to be seen"
        start_from(trainer, motions)
        shares[noise] = float(trainer.model.regularisation_share)
        assert trainer.stiffness == pytest.approx(shares[noise] * trainer.options.stiffness)
    assert shares[0.5] == 1
    assert shares[4.0] < 0.5


def test_the_filter_becomes_finer_once_unless_it_is_given():
    def finer(options, continued=False):
        return [epoch.finer for epoch in schedule(options, continued)]

    assert sum(finer(TrainOptions())) == 1
    for options in (TrainOptions(motion_resolution=15.0), TrainOptions(encoder_epochs=4)):
        assert not any(finer(options))
    assert not any(finer(TrainOptions(), continued=True))


def test_noise_has_no_linear_motion():
    model, data, _ = known_motion(n=300, noise=0.5)
    images = data._images.images(torch.arange(300))
    sigma = float((model.noise_power[0] / model.box**2).sqrt())
    noise = sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    trainer = untrained(model, data, torch.arange(300))
    with torch.no_grad():
        clean = model.project(data._matrices, data.transfer(torch.arange(300)))
    data._images = HeldImages(fourier_to_image(clean, model.box) + noise)
    motions = linear_motions(trainer, most=2)
    assert len(motions.fields) == 0
    start_from(trainer, motions)
    assert not trainer.model.displacements(trainer.latents).any()


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
    # Refined poses are written beside those given, and held-out particles keep theirs.
    table = summarise(resumed, **quiet).table
    assert ((table["dynAngleChange"] > 0) == (table["dynValidation"] == 0)).all()
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
    # Rises of the warm-up do not count, nor do those of one half for the other, nor where the filter changes.
    losses = {1: [5, 6, 7, 4, 5, 4, 6, 3, 8, 9], 2: [9, 8, 7, 6, 7, 8, 9, 10, 9, 8]}
    filters = {1: [0.0] * 10, 2: [0.0, 0.0, 0.0, 14.0, 14.0, 14.0, 0.0, 10.0, 10.0, 10.0]}
    saved = []
    monkeypatch.setattr(
        run_module,
        "_run_epoch",
        lambda epoch, number, trainer: {
            "epoch": number,
            "data": losses[trainer.half][number - 1],
            "resolution": filters[trainer.half][number - 1],
        },
    )
    monkeypatch.setattr(run_module, "update_references", lambda trainers: None)
    monkeypatch.setattr(run_module, "save_checkpoint", lambda folder, trainer, number, state: saved.append(number))
    data = SimpleNamespace(device=torch.device("cpu"), stop=None)
    trainers = [SimpleNamespace(options=options, half=half, data=data, rows=range(100)) for half in (1, 2)]
    said = []
    run_module._train_epochs(trainers, tmp_path, schedule(options), Reporter(said.append))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["epoch"] for line in lines) == 9
    assert lines[-1]["stopped"]
    assert saved[-2:] == [9, 9]
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
    trainer.latents, trainer.covariances = latents, trainer.covariances * 1e-6
    for epoch in range(25):
        trainer.refinement_epoch(epoch, 0.0)
    refined = rotvec_to_rotmat(trainer.rotations.detach()) @ data._matrices

    def angle(matrices):
        trace = (matrices @ true.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum(1)
        return torch.arccos(((trace - 1) / 2).clamp(-1, 1)).mean()

    assert angle(refined) < 0.6 * angle(data._matrices)
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


def test_rigid_particles_are_not_called_moving(tmp_path):
    from dynamight_core.simulate.dataset import SimulateOptions, simulate

    rigid = SimulateOptions(particles=600, box=32, pixel_size=6.0, snr=0.5, seed=2, motion_range=0.0)
    files = simulate(rigid, tmp_path / "data")
    result = train(inputs(files), TrainOptions(n_gaussians=500, n_latents=3), tmp_path / "run", reporter=QUIET)
    run = summarise(result, reporter=QUIET)
    assert run.summary["verdict"]["verdict"] != "supported"


def test_principal_motions_rebuild_low_rank_displacements():
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(2, 30, 3, generator=generator)
    amounts = torch.randn(400, 2, generator=generator)
    points = torch.randn(30, 3, generator=generator)
    offset = torch.randn(30, 3, generator=generator)
    shifts = torch.tensordot(amounts, fields, dims=1) + offset
    motions = principal_motions(lambda rows: shifts[rows], 400, points, 3)
    assert torch.allclose(motions.displacement(motions.coordinates), shifts, atol=1e-3)
    assert torch.allclose(motions.components[:2].square().sum(-1).mean(1), torch.ones(2), atol=1e-4)
    assert motions.shares[:2].sum() == pytest.approx(1.0, abs=1e-4)
    # Coordinates are A rms over points.
    size = (shifts - motions.mean).square().sum(-1).mean(1).sqrt()
    assert torch.allclose(motions.coordinates.norm(dim=1), size, atol=1e-3)


def test_motion_fields_are_the_motions_at_other_points():
    model, _, latents = known_motion(400)
    small = latents * 0.01
    points = model.gaussians.positions.detach()
    with torch.no_grad():
        shifts = model.displacements(small, points)
    motions = principal_motions(lambda rows: shifts[rows], 400, points, 2)
    mean, fields = motion_fields(model, small, motions.coordinates, points)
    assert torch.allclose(mean, motions.mean, atol=1e-4)
    assert torch.allclose(fields, motions.components, atol=0.05)


def test_coordinates_that_hang_together_in_a_half_do_not_blow_up_its_fields():
    model, _, latents = known_motion(400)
    bent = latents.clone()
    bent[:, 1:] = 0
    points = model.gaussians.positions.detach()
    with torch.no_grad():
        shifts = model.displacements(bent, points)
    motions = principal_motions(lambda rows: shifts[rows], 400, points, 1)
    # The other half's motion differs by a tenth, so that this half's particles lie on a line across two coordinates,
    # but for a trace that follows the bend of their motion.
    first = motions.coordinates
    bend = first.square() - first.square().mean()
    second = 0.1 * first + 1e-3 * first.std() * bend / bend.std()
    _, fields = motion_fields(model, bent, torch.cat([first, second], 1), points)
    expected = motions.components[0]
    assert (fields[0] - expected).norm() < 0.1 * expected.norm()
    assert fields[1].norm() < 0.5 * expected.norm()


def test_posterior_width_is_pushed_through_a_linear_decoder_exactly():
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(3, 5 * 3, generator=generator)
    root = torch.randn(4, 3, 3, generator=generator)
    covariances = root @ root.transpose(1, 2) + torch.eye(3)
    latents = torch.randn(4, 3, generator=generator)

    def evaluate(z):
        return (z @ field).reshape(len(z), 5, 3)

    expected = torch.einsum("ip,bij,jp->bp", field, covariances, field).reshape(4, 5, 3).sum(-1)
    assert torch.allclose(_pushed_through(evaluate, latents, covariances, evaluate(latents)), expected, rtol=1e-3)


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
