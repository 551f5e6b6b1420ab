"""The Gaussian model, its start, the neighbour graph and the decoders."""

import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.fourier import fourier_to_image
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.projector import Projector, spread_bilinear
from dynamight_core.model.decoders import BasisDecoder, CoordinateDecoder, positional_encoding
from dynamight_core.model.encoder import Encoder
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.graph import NeighbourGraph, deformation_regularity, edge_lengths, repulsion
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import fill_region, find_molecule, fit_to_map
from dynamight_core.simulate.truth import load_truth


def positions(n=200, spread=15.0, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * spread


def model(n=200, box=32, pixel_size=4.0, n_classes=1):
    gaussians = GaussianModel(positions(n), 6.0, 1.0, n_classes, torch.Generator().manual_seed(0))
    return HalfModel(gaussians, box, pixel_size, 3, "basis", 100.0)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_projection_of_the_model_is_the_sum_of_its_density_along_z(n_classes):
    gaussians = GaussianModel(positions(), 8.0, 1.0, n_classes, torch.Generator().manual_seed(0))
    box, pixel_size = 48, 4.0
    with torch.no_grad():
        image = fourier_to_image(gaussians.project(Projector(box, pixel_size, 2), torch.eye(3)[None]), box)[0]
        density = gaussians.render(box, pixel_size)
    assert (image - density.sum(0)).norm() < 5e-3 * image.norm()


def test_density_is_the_sum_of_the_gaussians():
    gaussians = GaussianModel(positions(), 9.0, 2.5)
    box, pixel_size = 32, 4.0
    axis = (torch.arange(box) - box // 2) * pixel_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    grid = torch.stack([x, y, z], -1).reshape(-1, 3)
    expected = 2.5 * torch.exp(-torch.cdist(grid, positions()).square() / (2 * 81)).sum(1).reshape(box, box, box)
    with torch.no_grad():
        # Trilinear spreading errs by some per cent for one Gaussian, independently for each.
        assert (gaussians.render(box, pixel_size) - expected).norm() < 0.02 * expected.norm()


def test_spreading_keeps_mass_and_centre():
    points = torch.rand(100, 3) * 10 + 10
    weights = torch.rand(100)
    grid = spread_bilinear(weights[None, None], points[None], 32)[0, 0]
    index = torch.arange(32.0)
    centre = torch.stack([(grid.sum(others) * index).sum() for others in ((0, 1), (0, 2), (1, 2))])
    assert torch.allclose(grid.sum(), weights.sum(), rtol=1e-5)
    assert torch.allclose(centre / weights.sum(), (points * weights[:, None]).sum(0) / weights.sum(), rtol=1e-4)


def test_graph_joins_each_pair_closer_than_the_limit_once():
    points = positions()
    graph = NeighbourGraph.build(points)
    distances = torch.cdist(points, points)
    spacing = distances.topk(3, largest=False).values[:, 1:].mean()
    expected = {(i, j) for i, j in (distances < 1.5 * spacing).nonzero().tolist() if i < j}
    assert graph.mean_spacing == pytest.approx(float(spacing), rel=1e-5)
    assert {tuple(sorted(edge)) for edge in graph.edges.tolist()} == expected
    assert len(graph.edges) == len(expected)


def test_regularity_does_not_see_rigid_motion_and_sees_stretching():
    points = positions()
    graph = NeighbourGraph.build(points)
    matrix = rotation_matrices(random_rotations(2, torch.Generator().manual_seed(3)))
    moved = points @ matrix.transpose(1, 2) + torch.tensor([5.0, -3.0, 2.0])
    assert deformation_regularity(graph, edge_lengths(graph, moved)) < 1e-8
    stretched = deformation_regularity(graph, edge_lengths(graph, points[None] * 1.1))
    assert torch.allclose(stretched, (0.1 * graph.distances).square().mean(), rtol=1e-3)
    assert repulsion(graph, edge_lengths(graph, points[None] * 10)) == 0
    assert repulsion(graph, edge_lengths(graph, points[None] * 0.1)) > 0.5 * graph.mean_spacing**2


@pytest.mark.parametrize("decoder", [BasisDecoder(3, 128.0), CoordinateDecoder(3, 128.0, 32)])
def test_decoders_start_without_motion(decoder):
    assert not decoder.displacements(torch.randn(4, 3), positions(20)).any()


def test_coordinate_decoder_is_the_network_of_code_and_latent():
    decoder = CoordinateDecoder(3, 128.0, 32)
    torch.nn.init.normal_(decoder.layers[-1].weight)
    points, latents = positions(20), torch.randn(4, 3)
    code = positional_encoding(points, 128.0, 10, 8.0)
    joined = torch.cat([code.expand(4, -1, -1), latents[:, None].expand(-1, 20, -1)], -1)
    expected = decoder.layers(joined) * 4.0
    assert torch.allclose(decoder.displacements(latents, points), expected, atol=1e-4)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in decoder.layers) == 8
    assert all(layer.bias is None for layer in decoder.layers if isinstance(layer, torch.nn.Linear))


def test_basis_decoder_absorbs_a_moved_reference():
    decoder = BasisDecoder(3, 128.0)
    torch.nn.init.normal_(decoder.fields[-1].weight)
    latents, points = torch.randn(5, 3), positions(20)
    before = decoder.displacements(latents, points)
    decoder.absorb(latents[:1])
    after = decoder.displacements(latents, points)
    assert torch.allclose(after, before - before[:1], atol=1e-4)


def test_encoder_ignores_what_lies_outside_its_mask():
    encoder = Encoder(32, 3, 8.0)
    images = torch.randn(2, 32, 32)
    outside = images.clone()
    outside[:, :3] += 100
    assert torch.allclose(encoder(images)[0], encoder(outside)[0], atol=1e-5)


def test_gaussians_start_in_the_molecule_of_a_noisy_unmasked_map(hinge_set):
    truth = load_truth(hinge_set.truth)
    volume, pixel_size = read_map(hinge_set.consensus)
    region = find_molecule(torch.from_numpy(volume), pixel_size)
    points = fill_region(region.mask, 500, pixel_size, torch.Generator().manual_seed(0))
    distance = torch.cdist(points, truth.molecule.positions).amin(1)
    assert (distance > 10).float().mean() <= 0.02
    # The weak moving domain must not be lost.
    moving = (truth.domains(points) == 1).float().mean()
    assert 0.1 < moving < 0.3
    assert not region.warnings


def test_a_map_of_noise_is_warned_about():
    noise = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    try:
        assert find_molecule(noise, 6.0).warnings
    except ValueError as error:
        assert "threshold" in str(error)


def test_fit_explains_a_map():
    truth = GaussianModel(positions(), 7.0, 1.0)
    with torch.no_grad():
        volume = truth.render(32, 4.0)
    start = positions() + torch.randn(200, 3, generator=torch.Generator().manual_seed(9)) * 4
    fitted = fit_to_map(start, volume, 4.0)
    with torch.no_grad():
        correlation = np.corrcoef(fitted.render(32, 4.0).flatten(), volume.flatten())[0, 1]
    assert correlation > 0.98


def test_half_model_comes_back_from_its_file(tmp_path):
    saved = model(n_classes=2)
    torch.nn.init.normal_(saved.decoder.fields[-1].weight)
    saved.latent_mean += 1
    saved.motion_mask = torch.rand(32, 32, 32)
    saved.save(tmp_path / "model.safetensors")
    loaded = HalfModel.load(tmp_path / "model.safetensors")
    latents = torch.randn(2, 3)
    assert torch.equal(loaded.displacements(latents), saved.displacements(latents))
    assert loaded.projector == saved.projector
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_damaged_model_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="train the run again"):
        HalfModel.load(tmp_path / "model.safetensors")


def test_motion_mask_holds_points_outside_it_still():
    half = model()
    torch.nn.init.normal_(half.decoder.fields[-1].weight)
    half.motion_mask = torch.zeros(32, 32, 32)
    half.motion_mask[:, :, 16:] = 1
    points = torch.tensor([[-30.0, 5, 5], [30.0, 5, 5]])
    shift = half.displacements(torch.randn(1, 3), points)[0]
    assert not shift[0].any()
    assert shift[1].norm() > 0
