"""Uneven views: the kernel of a whole box, and maps that are not worse for directions with many views."""

from dataclasses import replace

import pytest
import torch

from dynamight_core.imaging import wide_kernel
from dynamight_core.imaging.backprojection import filter_volume, solve
from dynamight_core.imaging.conjugate_gradients import conjugate_gradients
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.fourier import lowpass_volume
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.modes import find_modes
from dynamight_core.imaging.wide_kernel import WideKernel
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.checks import check_views, choose_method
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.least_squares import DeformedProjection
from dynamight_core.reporter import Reporter
from dynamight_core.simulate.measures import HingeField
from tests.support.fourier_maps import reconstruct_fourier
from tests.support.hinge_images import BOX, PIXEL, HingeImages, noise

# As half-maps have it: noise is little in the first shells, and as much as signal in the last.
SHARES = 0.01 + (torch.arange(BOX // 2 + 1) / (BOX // 2)).square()
PREFERRED = {"cone": 15.0, "cone_fraction": 0.85}


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Return images of the hinge at rest, 85 % of them within 15 degrees of one axis."""
    return HingeImages(tmp_path_factory.mktemp("still"), particles=500, snr=2.0, motion_range=0.0, **PREFERRED)


@pytest.fixture(scope="module")
def half(still):
    """Return the reconstruction of these images."""
    return HalfReconstruction.of(still.particles(), still.everything, None, sphere(BOX))


def correlations(images, volume, first, last):
    """Return the mean FSC with the truth from a first to a last shell, in the sphere inscribed in the box."""
    curve = fourier_shell_correlation(volume, images.truth.true_map(), sphere(BOX).float())
    return float(curve[first : last + 1].mean())


def test_the_kernel_is_the_projection_and_backprojection_of_any_map_without_motion(still, half):
    volume = lowpass_volume(noise(BOX, 0), PIXEL, 20.0) * sphere(BOX)
    operator = DeformedProjection(still.particles(), sphere(BOX))
    exact = operator.volume(operator.normal(volume[operator.shape], still.everything, 32))
    grid = (2 * BOX,) * 3
    convolved = torch.fft.irfftn(torch.fft.rfftn(volume, s=grid) * half.kernel.transform, s=grid)
    assert (convolved[:BOX, :BOX, :BOX] * sphere(BOX) - exact).norm() < 0.01 * exact.norm()
    # A filter on the grid of the map is off by a tenth.
    assert (filter_volume(volume, half.denominator) * sphere(BOX) - exact).norm() > 0.05 * exact.norm()


def test_preferred_views_make_a_map_as_good_as_slices_of_padded_images(still, half):
    t = still.truth
    padded = reconstruct_fourier(still.raw, t.ctf, t.euler, t.origins, BOX, PIXEL)
    ours = half.backprojected(SHARES)
    divided = solve(half.sums.rigid, half.denominator, SHARES.clamp(min=MIN_REGULARISATION))
    for first, last in ((1, 2), (3, 5), (6, 10), (11, 15)):
        assert correlations(still, ours, first, last) > correlations(still, padded, first, last) - 0.02
    assert correlations(still, ours, 3, 5) > correlations(still, divided, 3, 5) + 0.3
    for label in (0, 1):
        assert still.mean_fsc(ours, label) > still.mean_fsc(padded, label)


def test_a_coarser_grid_changes_high_frequencies_alone(still, half, monkeypatch):
    monkeypatch.setattr(wide_kernel, "_LARGEST", 24)
    kernel = WideKernel.of(still.particles(), still.everything)
    assert kernel.size == 24 and kernel.transform.shape == (48, 48, 25)
    coarse, fine = replace(half, kernel=kernel).backprojected(SHARES), half.backprojected(SHARES)
    assert float(fourier_shell_correlation(coarse, fine)[1:5].min()) > 0.995
    scale = lowpass_volume(coarse, PIXEL, 48.0).norm() / lowpass_volume(fine, PIXEL, 48.0).norm()
    assert abs(scale - 1) < 0.02
    divided = solve(half.sums.rigid, half.denominator, SHARES)
    assert float(fourier_shell_correlation(coarse, divided)[12:].min()) > 0.999


def test_the_map_of_a_numerator_is_symmetric(half):
    first, second = noise(BOX, 1), noise(BOX, 2)
    one, other = half.filtered(first, 0.3), half.filtered(second, 0.3)
    assert abs(float((first * other).sum() - (one * second).sum())) < 1e-4 * float(first.norm() * other.norm())


def test_kernels_of_disjoint_particles_add_up(still, half):
    first, second = (WideKernel.of(still.particles(), rows) for rows in still.everything.split(300))
    transform = half.kernel.transform
    assert torch.allclose((first + second).transform, transform, atol=1e-5 * float(transform.max()))


def test_moving_parts_of_preferred_views_are_solved_by_least_squares_in_few_steps(tmp_path):
    images = HingeImages(tmp_path, particles=500, snr=2.0, motion_range=30.0, **PREFERRED)
    t = images.truth
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)
    held_out, used = images.everything[:30], images.everything[30:]
    half = HalfReconstruction.of(images.particles(), used, modes, sphere(BOX, radius=13).float())
    solved, solution = half.least_squares(SHARES, held_out)
    slow, slower = replace(half, kernel=None).least_squares(SHARES, held_out)
    assert solution.steps < slower.steps
    for label in (0, 1):
        assert images.mean_fsc(solved, label) > images.mean_fsc(half.backprojected(SHARES), label) + 0.05
        assert images.mean_fsc(solved, label) > images.mean_fsc(slow, label)


def test_uneven_views_are_noticed_and_solved_by_least_squares(half, hinge):
    said, cpu = [], torch.device("cpu")
    even = HalfReconstruction.of(hinge.particles(), hinge.everything[:150], None, sphere(BOX))
    assert even.kernel is None and not check_views(even.denominator, 1, PIXEL, Reporter(said.append)) and not said
    # Where 150 more images are from everywhere, no direction is missing.
    assert check_views(half.denominator + even.denominator, 1, PIXEL, Reporter(said.append))
    assert "more views than others in half-set 1" in said[0]
    assert choose_method(True, BOX, cpu, ReconstructOptions(), Reporter(said.append)) == "cg"


def test_conjugate_gradients_solve_a_small_system_in_as_many_steps_as_it_has_unknowns():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, target = matrix @ matrix.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    steps = conjugate_gradients(matrix.__matmul__, lambda x: x / matrix.diagonal(), target, torch.zeros_like(target))
    for _, (values, residual) in zip(range(6), steps, strict=False):
        assert torch.allclose(residual, target - matrix @ values)
    assert torch.allclose(values, torch.linalg.solve(matrix, target))
