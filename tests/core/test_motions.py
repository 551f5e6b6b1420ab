"""Motions to first order, from which training starts, and principal motions, by which a run is described."""

import pytest
import torch

from dynamight_core.imaging.fourier import crop_fourier, fourier_to_image, shells
from dynamight_core.imaging.projector import Projector
from dynamight_core.model.half import HalfModel
from dynamight_core.model.motions import motion_fields, principal_motions
from dynamight_core.options import TrainOptions
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.linear import initialise, linear_motions
from tests.support.known_motion import HeldImages, known_motion, untrained


def two_parts_move(positions):
    """Return fields that move one side of the molecule along z, and another along x, by 4 A."""
    fields = torch.zeros(2, len(positions), 3)
    fields[0, :, 2] = 4.0 * (positions[:, 0] > 8)
    fields[1, :, 0] = 4.0 * (positions[:, 1] < -8)
    return fields


@pytest.mark.slow
def test_linear_motions_are_where_the_particles_are_along_the_true_ones():
    model, data, latents = known_motion(n=300, noise=0.5, field=two_parts_move)
    trainer = untrained(model, data, torch.arange(300))
    motions = linear_motions(trainer, max_motions=2)
    assert motions.fields.shape == (2, 150, 3)
    assert min(explained(motions, latents[:, k]) for k in (0, 1)) > 0.5
    initialise(trainer, motions)
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


@pytest.mark.slow
def test_motions_larger_than_the_details_are_seen_in_filtered_images():
    model, data, latents = known_motion(n=400, noise=1.0, field=one_part_swings)
    trainer = untrained(model, data, torch.arange(400))
    filtered = linear_motions(trainer, max_motions=2)
    assert filtered.resolution > 0
    assert torch.isfinite(filtered.fields).all()
    initialise(trainer, filtered)
    assert float(trainer.model.resolution) == filtered.resolution
    trainer.options.motion_resolution = 28.0
    filtered = linear_motions(trainer, max_motions=2)
    trainer.options.motion_resolution = 0.0
    plain = linear_motions(trainer, max_motions=2)
    assert plain.resolution == 0
    assert explained(filtered, latents[:, 0]) > explained(plain, latents[:, 0])


def test_the_filter_omits_details_and_is_kept_with_the_model(tmp_path):
    model, data, _ = known_motion()
    plain = model.frequency_weights()
    model.resolution.fill_(model.box * model.pixel_size / 4)
    filtered = model.frequency_weights()
    # Without a soft edge: weights between 0 and 1 would expect more noise than the images have.
    assert torch.equal(filtered[0, :5], plain[0, :5])
    assert not filtered[0, 5:].any()
    assert torch.equal(model.frequency_weights(0), plain)
    model.regularisation_share.fill_(0.3)
    model.save(tmp_path / "model.safetensors")
    kept = HalfModel.load(tmp_path / "model.safetensors")
    assert torch.allclose(kept.frequency_weights(), model.frequency_weights())
    goes_on = HalfTrainer(kept, data, torch.arange(4), TrainOptions(n_latents=2), half=1)
    assert goes_on.stiffness == pytest.approx(0.9 * TrainOptions().stiffness)
    assert goes_on.rigidity == pytest.approx(0.9 * TrainOptions().rigidity)


@pytest.mark.slow
def test_regularisation_gives_way_where_images_tell_little_and_only_there():
    shares = {}
    for noise in (0.5, 4.0):
        model, data, _ = known_motion(n=1500, noise=noise, field=two_parts_move)
        trainer = untrained(model, data, torch.arange(1500))
        motions = linear_motions(trainer, max_motions=2)
        assert len(motions.fields), "the motion is to be seen"
        initialise(trainer, motions)
        shares[noise] = float(trainer.model.regularisation_share)
        # Of a prior that all particles share, which 1,500 particles pay as 900 do.
        weight = min(1, 3 * shares[noise]) * 900 / 1500
        assert trainer.stiffness == pytest.approx(weight * trainer.options.stiffness)
    assert shares[0.5] == 1
    assert shares[4.0] < 0.8


def test_noise_has_no_linear_motion():
    model, data, _ = known_motion(n=300, noise=0.5)
    images = data._images.images(torch.arange(300))
    sigma = float((model.noise_power[0] / model.box**2).sqrt())
    noise = sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    trainer = untrained(model, data, torch.arange(300))
    with torch.no_grad():
        clean = model.project(data._matrices, data.transfer(torch.arange(300)))
    data._images = HeldImages(fourier_to_image(clean, model.box) + noise)
    motions = linear_motions(trainer, max_motions=2)
    assert len(motions.fields) == 0
    initialise(trainer, motions)
    assert not trainer.model.displacements(trainer.latents).any()


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


@pytest.mark.parametrize("refined", [False, True])
def test_images_within_the_filter_have_the_likelihood_of_whole_images(refined):
    model, data, latents = known_motion(noise=0.5)
    model.resolution.fill_(model.box * model.pixel_size / 6.5)
    if refined:
        data = data.posed(0.05 * torch.ones(len(data), 5))
    batch, weights, whole = data.batch(torch.arange(40)), model.seen_weights(), model.frequency_weights()
    assert weights.shape == (14, 8)
    assert weights.sum() == whole.sum()
    with torch.no_grad():
        positions = model.gaussians.positions + model.displacements(latents)
        seen = batch.within(weights)
        small = model.project(seen.matrices, seen.transfer, positions) - seen.transforms
        large = model.project(batch.matrices, batch.transfer, positions) - batch.transforms
    few = (small.abs().square() * weights).sum((1, 2))
    torch.testing.assert_close(few, (large.abs().square() * whole).sum((1, 2)), rtol=1e-4, atol=0)


def test_a_coarser_grid_changes_low_frequencies_little():
    model, data, _ = known_motion()
    model.projector = Projector(model.box, model.pixel_size, 4)
    batch = data.batch(torch.arange(40)).within(torch.zeros(10, 6))
    assert model._projector(10).grid_size == 50
    with torch.no_grad():
        few = model.project(batch.matrices, batch.transfer)
        model.projector = Projector(model.box, model.pixel_size, 16)
        fine = crop_fourier(model.project(batch.matrices, data.batch(torch.arange(40)).transfer), 10)
    inside = shells(10) < 5
    assert ((few - fine) * inside).norm() < 0.01 * (fine * inside).norm()
