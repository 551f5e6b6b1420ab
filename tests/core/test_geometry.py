"""Points, voxels and masks agree on one origin, the centre of voxel box // 2."""

import numpy as np
import pytest
import torch

from dynamight_core.imaging.geometry import (
    LinearEvaluator,
    grid_points,
    image_radius,
    inside_box,
    interpolate,
    mask_points,
    mixed,
    nearest_voxels,
    pixel_axis,
    scaled,
    shifted,
    squared_radius,
    to_grid,
    to_points,
    to_voxels,
)
from dynamight_core.imaging.masks import distance_from, distance_from_voxels, raised_cosine, soft_circle, sphere

PIXEL = 2.5


@pytest.mark.parametrize("box", [24, 25])
def test_voxels_and_points_are_inverses_in_both_libraries(box):
    voxels = np.random.default_rng(0).uniform(0, box, (50, 3))
    points = to_points(voxels, box, PIXEL)
    np.testing.assert_allclose(to_voxels(points, box, PIXEL), voxels, atol=1e-12)
    torch.testing.assert_close(to_points(torch.from_numpy(voxels), box, PIXEL), torch.from_numpy(points))
    torch.testing.assert_close(
        to_grid(torch.from_numpy(points), box, box * PIXEL), torch.from_numpy(voxels), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("box", [24, 25])
def test_the_origin_is_the_centre_of_voxel_half_the_box(box):
    assert (nearest_voxels(np.zeros((1, 3)), box, PIXEL) == box // 2).all()
    assert pixel_axis(box)[box // 2] == 0
    assert image_radius(box)[box // 2, box // 2] == 0
    assert squared_radius(box)[(box // 2,) * 3] == 0
    assert sphere(box, radius=0).nonzero().tolist() == [[box // 2] * 3]


def test_points_of_a_mask_come_back_to_its_voxels():
    mask = np.zeros((16,) * 3, dtype=bool)
    mask[2, 5, 11] = mask[9, 8, 0] = True
    points = mask_points(mask, PIXEL)
    np.testing.assert_array_equal(points[0], np.array([11 - 8, 5 - 8, 2 - 8]) * PIXEL)
    np.testing.assert_array_equal(nearest_voxels(points, 16, PIXEL), np.argwhere(mask))


def test_voxels_outside_the_box_are_found():
    edge = 8 * PIXEL
    voxels = nearest_voxels(np.array([[-edge, 0, 0], [0, edge, 0], [0, 0, -edge - PIXEL]]), 16, PIXEL)
    assert inside_box(voxels, 16).tolist() == [True, False, False]


def test_grid_points_run_along_x_first():
    np.testing.assert_array_equal(grid_points(np.array([0.0, 1.0]))[:3], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])


def test_interpolation_is_exact_for_a_linear_volume():
    box, extent = 12, 12 * PIXEL
    x = pixel_axis(box) * PIXEL
    volume = x + 2 * x[:, None] + 3 * x[:, None, None]
    points = (torch.rand(40, 3, dtype=torch.float32) - 0.5) * 8 * PIXEL
    expected = points @ torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(interpolate(volume[None], points, extent)[:, 0], expected, atol=1e-3, rtol=0)
    far = torch.tensor([[100.0, 0, 0]])
    assert interpolate(volume[None], far, extent)[0, 0] == volume[box // 2, box // 2, -1]
    assert interpolate(volume[None], far, extent, "zeros") == 0


def test_the_soft_edge_falls_from_one_to_zero_with_its_half_in_the_middle():
    fractions = np.array([-3.0, 0.0, 0.5, 1.0, 7.0])
    np.testing.assert_allclose(raised_cosine(fractions), [1, 1, 0.5, 0, 0], atol=1e-12)
    torch.testing.assert_close(raised_cosine(torch.from_numpy(fractions)), torch.from_numpy(raised_cosine(fractions)))
    falling = raised_cosine(np.linspace(0, 1, 50))
    assert (np.diff(falling) < 0).all()
    np.testing.assert_allclose(falling + falling[::-1], 1)


def test_a_soft_circle_keeps_its_diameter_and_its_width():
    mask, radius = soft_circle(64, PIXEL, 80.0, width=10.0), image_radius(64) * PIXEL
    assert (mask[radius <= 40] == 1).all()
    assert (mask[radius >= 50] == 0).all()
    assert ((mask > 0) & (mask < 1))[(radius > 41) & (radius < 49)].all()


def test_distances_are_those_to_the_nearest_voxel():
    voxels = np.array([[3, 4, 5], [10, 10, 10]])
    distance = distance_from_voxels(voxels, 12, PIXEL)
    every = np.argwhere(np.ones((12,) * 3))
    expected = np.linalg.norm(every[:, None] - voxels, axis=2).min(1) * PIXEL
    np.testing.assert_allclose(distance.ravel(), expected)
    np.testing.assert_array_equal(distance_from(distance == 0, PIXEL), distance)


def test_displacements_that_are_linear_are_mixed_scaled_and_shifted_as_any_others():
    generator = torch.Generator().manual_seed(0)
    basis, offset, factor = (torch.randn(*shape, generator=generator) for shape in ((4, 7, 3), (7, 3), (7, 1)))
    latents, weights = torch.randn(50, 4, generator=generator), torch.randn(2, 50, generator=generator)
    linear = LinearEvaluator(torch.tanh, basis)

    def general(z):
        return torch.einsum("bf,fnc->bnc", torch.tanh(z), basis)

    for one, other in (
        (linear, general),
        (scaled(shifted(linear, offset), factor), scaled(shifted(general, offset), factor)),
    ):
        torch.testing.assert_close(one(latents), other(latents))
        expected = torch.einsum("kb,bnc->knc", weights, other(latents))
        torch.testing.assert_close(mixed(one, latents, weights), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mixed(other, latents, weights, batch_size=8), expected, atol=1e-4, rtol=1e-4)
