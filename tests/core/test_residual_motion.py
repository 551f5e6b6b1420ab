"""What motion that was not undone takes from the correlation of a map with the truth."""

import pytest
import torch

import dynamight_core.reconstruction.fsc as fsc_module
from dynamight_core.imaging.correlation import fourier_shell_correlation, fsc_deviation
from dynamight_core.imaging.fourier import fourier_to_volume, frequencies_3d, volume_to_fourier
from dynamight_core.imaging.projector import spread_bilinear
from dynamight_core.reconstruction.fsc import half_map_fsc
from dynamight_core.reconstruction.residual import conservative_fsc, include_residual_motion, motion_coherence

BOX, PIXEL_SIZE = 32, 3.0


def _errors(n_points, spread, seed=0, particles=400):
    """Draw (p, m, 3) A: a turn of all points of each particle, of some standard deviation at the farthest."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n_points, 3, generator=generator) * 40 - 20
    axis = torch.tensor([0.0, 0.0, 1.0])
    turn = torch.randn(particles, generator=generator) * spread / 20
    return points, turn[:, None, None] * torch.linalg.cross(axis.expand_as(points), points)


def test_motion_that_is_undone_blurs_nothing():
    coherence = motion_coherence(torch.zeros(50, 40, 3), torch.ones(40), BOX, PIXEL_SIZE)
    assert torch.allclose(coherence, torch.ones(BOX // 2 + 1))


def test_what_is_missed_alike_in_all_particles_is_sharp_elsewhere():
    offset = torch.tensor([5.0, -3.0, 2.0]).expand(50, 40, 3)
    coherence = motion_coherence(offset, torch.ones(40), BOX, PIXEL_SIZE)
    assert torch.allclose(coherence, torch.ones(BOX // 2 + 1), atol=1e-4)


def test_a_blur_that_is_the_same_everywhere_is_a_filter_and_costs_no_correlation():
    generator = torch.Generator().manual_seed(0)
    jitter = torch.randn(4000, 1, 3, generator=generator).expand(-1, 30, -1)
    coherence = motion_coherence(jitter, torch.ones(30), BOX, PIXEL_SIZE)
    assert (coherence[: BOX // 4] > 0.97).all()


def test_half_of_a_structure_washed_out_leaves_the_square_root_of_a_half():
    generator = torch.Generator().manual_seed(0)
    errors = torch.zeros(400, 60, 3)
    errors[:, 30:] = 200 * torch.randn(400, 30, 3, generator=generator)
    coherence = motion_coherence(errors, torch.ones(60), BOX, PIXEL_SIZE)
    assert torch.allclose(coherence[5:], torch.tensor(0.5**0.5), atol=0.02)


def test_it_is_the_correlation_of_a_blurred_map_with_the_map():
    points, errors = _errors(1500, spread=6.0)
    signs = torch.randn(1500, generator=torch.Generator().manual_seed(1))

    def rendered(places, weights):
        grid = places / PIXEL_SIZE + BOX // 2
        return spread_bilinear(weights[None, None], grid[None], BOX)[0, 0]

    sharp = rendered(points, signs)
    blurred = sum(rendered(points + shift, signs) for shift in errors)
    measured = fourier_shell_correlation(sharp, blurred)
    predicted = motion_coherence(errors, signs.abs(), BOX, PIXEL_SIZE)
    assert float(predicted[12]) < 0.85  # there is something to predict
    assert (measured - predicted)[2:14].abs().max() < 0.1
    assert (measured - predicted)[2:14].mean().abs() < 0.03


def test_counted_motion_lowers_the_correlation_with_the_truth_by_the_coherence():
    fsc = torch.tensor([1.0, 0.9, 0.5, 0.143, 0.0, -0.1])
    rho = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.5, 0.5])
    seen = include_residual_motion(fsc, rho)
    with_truth = (2 * fsc.clamp(min=0) / (1 + fsc.clamp(min=0))).sqrt()
    assert torch.allclose((2 * seen.clamp(min=0) / (1 + seen.clamp(min=0))).sqrt(), rho * with_truth, atol=1e-6)
    assert torch.equal(seen[4:], fsc[4:])


def ball(box, radius, centre=0.0):
    """Return a (box, box, box) soft ball."""
    axis = (torch.arange(box) - box // 2).float()
    distance = ((axis[:, None, None] - centre) ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt()
    return torch.sigmoid((radius - distance) / 1.5)


@pytest.mark.parametrize(("box", "radius", "draws"), [(32, 5.0, 150), (64, 9.0, 80), (80, 10.0, 40)])
def test_the_deviation_of_an_fsc_in_a_mask_is_that_of_white_noise(box, radius, draws):
    mask, generator = ball(box, radius, 2.0), torch.Generator().manual_seed(0)
    pairs = (torch.randn(2, *mask.shape, generator=generator) for _ in range(draws))
    drawn = torch.stack([fourier_shell_correlation(*pair, mask) for pair in pairs]).square().mean(0).sqrt()
    ratio = (fsc_deviation(mask) / drawn)[4:]
    assert abs(float(ratio.mean()) - 1) < 0.1
    # Shells stray together, for the mask makes neighbours alike: by 1 / sqrt(2 draws) each.
    assert ratio.min() > 1 - 4 / (2 * draws) ** 0.5
    assert ratio.max() < 1 + 4 / (2 * draws) ** 0.5


@pytest.mark.parametrize("draws", [1, 10])
def test_the_error_of_a_corrected_fsc_is_what_it_strays_by(draws, monkeypatch):
    # Half-maps of a structure that fades into noise; with one draw of random phases, as in large boxes, or ten.
    monkeypatch.setattr(fsc_module, "_MAX_DRAWS", draws)
    box, generator = 48, torch.Generator().manual_seed(0)
    mask = ball(box, 6.0)
    falling = torch.exp(-((frequencies_3d(box).norm(dim=-1) * box / 7) ** 2))
    signal = 60 * fourier_to_volume(volume_to_fourier(torch.randn((box,) * 3, generator=generator)) * falling, box)
    curves, errors, deviation = [], [], fsc_deviation(mask)
    for seed in range(40):
        halves = signal * mask + torch.randn(2, box, box, box, generator=generator)
        found = half_map_fsc(*halves, mask, seed)
        assert found.draws == draws
        curves.append(found.corrected)
        errors.append(found.standard_error(deviation))
    spread, error = torch.stack(curves).std(0), torch.stack(errors).square().mean(0).sqrt()
    ratio = (error / spread)[found.first_corrected + 2 :]
    assert 0.85 < float(ratio.mean()) < 1.25


def test_a_cautious_fsc_takes_off_more_where_less_is_known():
    fsc, large, small = torch.linspace(1, -0.1, 12), torch.full((12,), 0.02), torch.full((12,), 0.1)
    rho = torch.linspace(1, 0.6, 12)
    assert torch.equal(conservative_fsc(fsc, large, None), fsc - large)
    assert (conservative_fsc(fsc, small, rho) < conservative_fsc(fsc, large, rho)).all()
    assert (conservative_fsc(fsc, large, rho) <= conservative_fsc(fsc, large, None)).all()
