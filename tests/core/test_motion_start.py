"""What training starts from and is steered by: moving parts, prior of the latents, size of the motion."""

from dataclasses import replace

import pytest
import torch

from dynamight_core.options import TrainOptions
from dynamight_core.training.amplitude import Amplitude, adjust_regularisation, motion_amplitude
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import LatentPosterior, infer_latents
from dynamight_core.training.linear import _smooth_basis, _strongest, also_at, linear_motions
from dynamight_core.training.losses import TERMS, DeformedBatch
from dynamight_core.training.parts import Parts, moving_parts
from dynamight_core.training.schedule import schedule
from tests.support.known_motion import known_motion, untrained


def small_part_rotates(positions):
    """Return fields of which the first rotates a small part at the side of the molecule about its own edge."""
    fields = torch.zeros(2, len(positions), 3)
    part = (positions - positions.new_tensor([18.0, 0.0, 0.0])).norm(dim=1) < 13
    arms = (positions[part] - positions.new_tensor([8.0, 0.0, 0.0])) * 0.35
    fields[0, part] = torch.linalg.cross(positions.new_tensor([0.0, 0.0, 1.0]).expand_as(arms), arms)
    return fields


def likeness(motions, latents):
    """Return the largest correlation of a motion with the true latent."""
    return max(
        (float(torch.corrcoef(torch.stack([found, latents]))[0, 1].abs()) for found in motions.latents.T), default=0.0
    )


@pytest.mark.slow
def test_a_small_part_is_found_where_principal_components_of_the_whole_find_nothing():
    model, data, latents = known_motion(n=1500, noise=5.0, field=small_part_rotates)
    trainer = untrained(model, data, torch.arange(1500))
    basis = _smooth_basis(model.gaussians.positions.detach(), 0)
    of_all = _strongest(trainer, trainer.rows, basis, (10.0, 20.0), 2)
    of_parts = linear_motions(trainer, 2)
    assert likeness(of_parts, latents[:, 0]) > likeness(of_all, latents[:, 0]) + 0.1
    moving = small_part_rotates(model.gaussians.positions)[0].any(1)
    strongest = of_parts.fields[0].square().sum(1)
    assert strongest[moving].sum() > 0.5 * strongest.sum()


@pytest.mark.slow
def test_a_part_that_the_other_half_saw_moving_is_found_where_the_scan_finds_nothing():
    model, data, latents = known_motion(n=1000, noise=7.0, field=small_part_rotates)
    trainer = untrained(model, data, torch.arange(1000))
    alone = linear_motions(trainer, 2)
    assert len(alone.fields) == 0 and len(alone.spheres) == 0
    positions = model.gaussians.positions.detach()
    moving = positions[small_part_rotates(positions)[0].any(1)]
    sphere = torch.cat([moving.mean(0), (moving - moving.mean(0)).norm(dim=1).max()[None]])
    other = replace(alone, spheres=sphere[None], resolution=20.0)
    there = also_at(trainer, alone, other, 2)
    assert len(there.fields) == 1 and likeness(there, latents[:, 0]) > 0.15
    # Where nothing moves, nothing is found; and where it was found before, it is not looked for again.
    elsewhere = replace(other, spheres=other.spheres * sphere.new_tensor([-1, -1, -1, 1]))
    assert also_at(trainer, alone, elsewhere, 2) is alone
    assert also_at(trainer, there, other, 2) is there


def test_parts_move_as_rigid_bodies_and_forces_are_the_gradient_along_their_motions():
    positions = 20 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    parts = Parts.everywhere(positions, 0)
    assert 0 < len(parts) and parts.weights.min() >= 0 and parts.weights.max() <= 1
    forces = torch.randn(5, 200, 3, generator=torch.Generator().manual_seed(1))
    for part in (0, len(parts) - 1):
        direct = torch.einsum("bnc,knc->bk", forces, parts.fields(part))
        assert torch.allclose(parts.along(forces)[:, part], direct, rtol=1e-3, atol=1e-3)
        inside = parts.weights[part] == 1
        field = parts.fields(part)[:, inside]
        if inside.sum() > 2:
            # To first order, distances within stay.
            lines = positions[inside][:, None] - positions[inside]
            change = (field[:, :, None] - field[:, None]) * lines
            assert change.sum(-1).abs().max() < 1e-2


def test_noise_has_no_moving_part_and_a_planted_one_is_found_first():
    generator = torch.Generator().manual_seed(0)
    scores, noise, null = (torch.randn(400, 50, 6, generator=generator) for _ in range(3))
    assert moving_parts(scores, noise, null, torch.eye(50)) == []
    scores[:, 7] += torch.randn(400, 1, generator=generator) * torch.tensor([1.5, 0, 0, 0.5, 0, 0])
    assert moving_parts(scores, noise, null, torch.eye(50)) == [7]


def test_a_latent_that_images_say_little_about_loses_its_variance_and_none_runs_away():
    model, data, _ = known_motion(n=4)
    trainer = HalfTrainer(model, data, torch.arange(4), TrainOptions(n_latents=2), 1)
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 2, generator=generator) * torch.tensor([2.0, 0.1]) + torch.tensor([1.0, 0.0])
    # An image measures its latent with variance 4; the prior starts as the standard normal distribution.
    measured = true + 2 * torch.randn(4000, 2, generator=generator)
    model.latent_mean.zero_()
    model.latent_covariance.copy_(torch.eye(2))
    widths = []
    for _ in range(12):
        # What an inference with this prior would give.
        prior = torch.linalg.inv(model.latent_covariance)
        covariance = torch.linalg.inv(prior + torch.eye(2) / 4)
        latents = (measured / 4 + model.latent_mean @ prior) @ covariance
        posterior = LatentPosterior(latents, covariance.expand(4000, 2, 2), torch.zeros(4000))
        latents, covariances = trainer.fit_prior(posterior)
        widths.append(model.latent_covariance.diagonal().clone())
    # The second loses its variance at once; the first grows a step at a time, to what it is.
    assert widths[0][1] < 0.35 and widths[0][0] < 1.5
    assert widths[-1][0] == pytest.approx(4.0, abs=1.2) and widths[-1][1] < 0.2
    assert model.latent_mean.tolist() == pytest.approx([1.0, 0.0], abs=0.15)
    assert latents[:, 1].std() < 0.2 and covariances.shape == (4000, 2, 2)


@pytest.mark.slow
def test_held_out_images_tell_how_large_the_motion_is():
    model, data, latents = known_motion(n=400, noise=1.0)
    trainer = HalfTrainer(model, data, torch.arange(200), TrainOptions(n_latents=2), 1, torch.arange(200, 400))
    trainer.latents = infer_latents(model, data, trainer.rows, [latents[:200]], 3).latents
    right = motion_amplitude(trainer, trainer.held_out)
    assert abs(right.slope - 1) < 3 * right.error < 0.2
    assert right.gain > 3 * right.gain_error
    with torch.no_grad():
        model.decoder.fields[-1].weight.mul_(0.5)
        model.decoder.fields[-1].bias.mul_(0.5)
    small = motion_amplitude(trainer, trainer.held_out)
    assert small.slope > 1.2 and small.gain < right.gain
    before = trainer.stiffness
    # Restraints weigh less once motion can bear less than a third of them.
    for _ in range(3):
        assert adjust_regularisation(trainer).slope == small.slope
    assert model.regularisation_share < 1 / 3
    assert trainer.stiffness < before
    # It grows again, but not beyond the options.
    assert Amplitude(0.5, 0.1, 0.0, 0.0).factor > 1
    trainer.scale_regularisation(1.0)
    assert trainer.stiffness == before


def test_the_weight_of_the_restraints_is_paid_once():
    model, data, _ = known_motion(n=40)
    weights = []
    for n in (900, 9000):
        rows = torch.zeros(n, dtype=torch.long)
        weights.append(HalfTrainer(model, data, rows, TrainOptions(n_latents=2), 1).stiffness * n)
    assert weights[0] == pytest.approx(weights[1])
    few = HalfTrainer(model, data, torch.arange(20), TrainOptions(n_latents=2), 1)
    assert few.stiffness == TrainOptions().stiffness


@pytest.mark.parametrize("term", ["regularity", "rigidity"])
def test_restraints_change_the_shape_of_weak_motion_and_not_its_size(term):
    model, data, latents = known_motion(n=40)
    last, along = model.decoder.fields[-1], {}
    for regularisation, share in (("fixed", 0.0), ("fixed", 1.0), ("dynamic", 0.0)):
        options = TrainOptions(n_latents=2, regularisation=regularisation)
        trainer = HalfTrainer(model, data, torch.arange(40), options, 1)
        trainer.latents, trainer.started = latents, True
        trainer.scale_regularisation(share)
        trainer.rebuild_graph()
        weights, noise = model.frequency_weights(), torch.zeros(40, 2)
        deformed = DeformedBatch(trainer, data.batch(trainer.rows), weights, noise, lambda batch: latents)
        value = TERMS[term].value(deformed)
        gradients = torch.autograd.grad(value, list(last.parameters()))
        # By the logarithm of the size of all fields: 2 for a restraint that grows with its square.
        slope = sum((g * p).sum() for g, p in zip(gradients, last.parameters(), strict=True)) / value
        along[regularisation, share] = float(slope.detach())
        assert max(float(g.abs().max()) for g in gradients) > 1e-4
    # Where the signal is strong, the size is safe, and restraints keep what is torn from growing.
    assert abs(along["fixed", 0.0]) < 0.2
    assert along["fixed", 1.0] == pytest.approx(2, abs=0.2) and along["dynamic", 0.0] == pytest.approx(2, abs=0.2)


def test_restraints_of_weak_motion_have_a_weight_that_would_have_shrunk_it():
    model, data, _ = known_motion(n=40)
    trainer = HalfTrainer(model, data, torch.arange(20), TrainOptions(n_latents=2), 1)
    weights = {}
    for share in (0.1, 0.5, 1.0):
        trainer.scale_regularisation(share)
        weights[share] = trainer.stiffness / trainer.options.stiffness, trainer.rigidity / trainer.options.rigidity
    assert weights == {0.1: pytest.approx((0.3, 0.3)), 0.5: (1.0, 1.0), 1.0: (1.0, 1.0)}


def test_the_decoder_takes_smaller_steps_as_refinement_goes_on():
    rates = [epoch.decoder_rate for epoch in schedule(TrainOptions()) if epoch.kind == "refinement"]
    assert rates[0] == 1 and rates[-1] == pytest.approx(0.3) and rates == sorted(rates, reverse=True)
    assert {epoch.decoder_rate for epoch in schedule(TrainOptions(latent_refinement=False))} == {1.0}


def test_forces_and_torques_are_summed_as_the_motions_of_parts_say():
    generator = torch.Generator().manual_seed(0)
    positions, forces = 20 * torch.randn(500, 3, generator=generator), torch.randn(5, 500, 3, generator=generator)
    parts = Parts.everywhere(positions, 0)
    found = parts.along(forces)
    for part in (0, len(parts) // 2, len(parts) - 1):
        work = torch.einsum("bnc,knc->bk", forces, parts.fields(part))
        torch.testing.assert_close(found[:, part], work, atol=1e-3, rtol=1e-3)
