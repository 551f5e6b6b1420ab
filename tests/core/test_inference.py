"""Inference of latents: its accuracy, its error, and what stays held out."""

import pytest
import torch

from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier
from dynamight_core.judging.errors import _propagated
from dynamight_core.judging.verdict import drawn, judge
from dynamight_core.training.inference import LatentPosterior, data_terms, infer_latents, random_pixels
from tests.support.known_motion import known_motion


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


@pytest.mark.slow
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
    alone = judge((model, model), (model, model), data, halves, everyone, torch.arange(40), 0)
    paired = judge((model, model), (model, model), data, halves, everyone, torch.arange(40) // 2, 0)
    assert (alone.particles, paired.particles) == (40, 20)
    assert paired.gain == pytest.approx(alone.gain, rel=1e-4)


def test_inference_does_not_see_pixels_outside_its_share():
    model, data, latents = known_motion()
    rows = torch.arange(len(latents))
    nothing = torch.zeros(len(rows), 32, 17, dtype=torch.bool)
    posterior = infer_latents(model, data, rows, [latents], steps=6, pixels=nothing)
    assert torch.allclose(posterior.latents, model.latent_mean.expand_as(latents), atol=1e-2)
    assert torch.allclose(posterior.covariances[0], model.latent_covariance, atol=1e-4)


def test_posterior_width_is_propagated_a_linear_decoder_exactly():
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(3, 5 * 3, generator=generator)
    root = torch.randn(4, 3, 3, generator=generator)
    covariances = root @ root.transpose(1, 2) + torch.eye(3)
    latents = torch.randn(4, 3, generator=generator)

    def evaluate(z):
        return (z @ field).reshape(len(z), 5, 3)

    expected = torch.einsum("ip,bij,jp->bp", field, covariances, field).reshape(4, 5, 3).sum(-1)
    assert torch.allclose(_propagated(evaluate, latents, covariances, evaluate(latents)), expected, rtol=1e-3)


def test_a_direction_that_no_image_shows_stays_at_its_prior_and_costs_nothing(monkeypatch):
    model, data, latents = known_motion(noise=1.0)
    # The second latent moves nothing; correlated with the first, it is known as far as that tells it.
    evaluate, projected = model.decoder.coefficients, []
    monkeypatch.setattr(model.decoder, "coefficients", lambda z: evaluate(torch.stack([z[:, 0], 0 * z[:, 1]], 1)))
    project = model.project

    def counted(matrices, *arguments):
        projected.append(len(matrices))
        return project(matrices, *arguments)

    monkeypatch.setattr(model, "project", counted)
    model.latent_covariance.copy_(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    rows, found, cost = torch.arange(len(latents)), {}, {}
    for every in (False, True):
        projected.clear()
        found[every] = infer_latents(model, data, rows, [torch.zeros_like(latents)], steps=6, every=every)
        cost[every] = sum(projected)
    torch.testing.assert_close(found[False].latents, found[True].latents, atol=0.05, rtol=0)
    torch.testing.assert_close(found[False].covariances, found[True].covariances, atol=0.02, rtol=0)
    torch.testing.assert_close(found[False].latents[:, 1], 0.5 * found[False].latents[:, 0])
    # Three measurements of each of 40 particles tell which directions are seen.
    assert cost[False] - 3 * 40 < 0.75 * cost[True]


def test_the_verdict_compares_the_image_that_the_posterior_expects():
    model, data, latents = known_motion(noise=2.0)
    rows, everything = torch.arange(40), torch.ones(40, 32, 17, dtype=torch.bool)
    roots = torch.tensor([[0.8, 0.0], [0.3, 0.5]])
    posterior = LatentPosterior(latents, (roots @ roots.T).repeat(40, 1, 1), torch.zeros(40))
    draws = drawn(posterior, torch.Generator().manual_seed(0))
    assert draws.shape == (8, 40, 2)
    offsets = (draws - latents).flatten(0, 1)
    assert offsets.mean(0).abs().max() < 0.15
    assert (torch.cov(offsets.T) - roots @ roots.T).abs().max() < 0.15
    batch, weights = data.batch(rows), model.frequency_weights()

    def of_mean_image(draws):
        with torch.no_grad():
            shifts = torch.stack([model.displacements(draw) for draw in draws])
            images = [
                model.project(batch.matrices, batch.transfer, model.gaussians.positions + each) for each in shifts
            ]
        residual = torch.stack(images).mean(0) - batch.transforms
        return 0.5 * (residual.abs().square() * weights).sum((1, 2))

    # Eight draws compare as all draws would, not as the mean of eight images does.
    generator = torch.Generator().manual_seed(1)
    several = [drawn(posterior, generator) for _ in range(60)]
    all_draws = of_mean_image(torch.cat(several)).mean()
    eight = torch.stack([of_mean_image(draws).mean() for draws in several]).mean()
    found = torch.stack([data_terms(model, data, rows, draws, everything).mean() for draws in several]).mean()
    assert eight - all_draws > 0.1
    assert abs(found - all_draws) < 0.2 * (eight - all_draws)
