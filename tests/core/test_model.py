"""The Gaussian model, its start, the neighbour graph and the decoders."""

import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.fourier import fourier_to_image, lowpass_volume
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.projector import Projector, spread_bilinear
from dynamight_core.model.decoders.basis import BasisDecoder
from dynamight_core.model.decoders.coordinate import CoordinateDecoder
from dynamight_core.model.decoders.encoding import positional_encoding
from dynamight_core.model.encoder import Encoder
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.graph import (
    LongEdges,
    NeighbourGraph,
    deformation_regularity,
    edge_lengths,
    repulsion,
    rigidity,
)
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import (
    START_WIDTH,
    THRESHOLD_DEVIATIONS,
    THRESHOLD_FRACTION,
    THRESHOLD_RESOLUTION,
    fill_region,
    find_molecule,
    fit_to_map,
)
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
    assert deformation_regularity(graph, edge_lengths(graph.edges, moved)) < 1e-8
    stretched = deformation_regularity(graph, edge_lengths(graph.edges, points[None] * 1.1))
    assert torch.allclose(stretched, (0.1 * graph.distances).square().mean(), rtol=1e-3)
    assert repulsion(graph, edge_lengths(graph.edges, points[None] * 10)) == 0
    assert repulsion(graph, edge_lengths(graph.edges, points[None] * 0.1)) > 0.5 * graph.mean_spacing**2


def bar(generator):
    """Return (800, 3) points of a bar of 80 A along x."""
    return (torch.rand(800, 3, generator=generator) - 0.5) * torch.tensor([80.0, 20.0, 20.0])


def test_long_edges_see_a_bending_that_short_ones_hardly_see():
    points = bar(torch.Generator().manual_seed(1))
    # Each cross-section turns by an angle that grows along the bar.
    angle = points[:, 0] / 80 * 0.3
    bent = points.clone()
    bent[:, 1] += angle * points[:, 0]
    long_edges = LongEdges.build(points, points[None], torch.Generator().manual_seed(2))
    graph = NeighbourGraph.build(points)
    lengths = (points[long_edges.edges[:, 0]] - points[long_edges.edges[:, 1]]).norm(dim=1)
    assert torch.allclose(long_edges.distances, lengths, atol=1e-3)
    assert lengths.max() < 30 and lengths.mean() > 12
    short = deformation_regularity(graph, edge_lengths(graph.edges, bent[None]))
    assert rigidity(long_edges, bent[None]) > 4 * short
    assert rigidity(long_edges, points[None]) < 1e-6


def test_long_edges_let_a_hinge_go_and_hold_its_two_sides():
    points = bar(torch.Generator().manual_seed(1))
    right = points[:, 0] > 0
    conformations = []
    for angle in torch.linspace(-0.35, 0.35, 9):
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
        conformations.append(torch.where(right[:, None], points @ turn.T, points))
    noise = 0.05 * torch.randn(9, len(points), 3, generator=torch.Generator().manual_seed(4))
    displaced = torch.stack(conformations) + noise
    long_edges = LongEdges.build(points, displaced, torch.Generator().manual_seed(2))
    across = right[long_edges.edges[:, 0]] != right[long_edges.edges[:, 1]]
    assert long_edges.weights[across].mean() < 0.3 * long_edges.weights[~across].mean()
    assert long_edges.weights.mean() == pytest.approx(1, rel=1e-4)


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


def test_the_threshold_and_the_first_width_are_those_that_are_documented():
    with torch.no_grad():
        volume = GaussianModel(positions(), 7.0, 1.0).render(32, 4.0)
    found = find_molecule(volume, 4.0)
    strongest = np.quantile(lowpass_volume(volume, 4.0, THRESHOLD_RESOLUTION)[sphere(32, 0.45 * 32)].numpy(), 0.999)
    assert found.threshold == pytest.approx(THRESHOLD_FRACTION * strongest, rel=1e-4)
    for value in (f"{THRESHOLD_RESOLUTION:g} A", f"({THRESHOLD_DEVIATIONS})", f"{100 * THRESHOLD_FRACTION:g} %"):
        assert value in find_molecule.__doc__
    untouched = fit_to_map(positions(), volume, 4.0, steps=0)
    assert untouched.widths.item() == pytest.approx(START_WIDTH * NeighbourGraph.build(positions()).mean_spacing)
    assert f"({START_WIDTH})" in fit_to_map.__doc__


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


def test_filling_follows_a_density():
    mask = np.ones((16, 16, 16), bool)
    density = torch.zeros(16, 16, 16)
    density[:, :, 4:8], density[:, :, 8:12] = 1.0, 3.0
    points = fill_region(mask, 2000, 2.0, torch.Generator().manual_seed(0), density)
    column = (points[:, 0] / 2 + 8).round()
    # A voxel reaches half a voxel to either side of its index.
    assert ((column >= 4) & (column <= 12)).all()
    assert (points[:, 0] > (8 - 8.5) * 2).float().mean() == pytest.approx(0.75, abs=0.01)


def test_consensus_frame_lies_on_the_arc_of_a_rotation():
    torch.manual_seed(0)
    model = HalfModel(GaussianModel(torch.tensor([[40.0, 0.0, 0.0]]), 3.0, 1.0), 32, 4.0, 1, "basis", 100.0)
    angles = torch.linspace(-0.5, 0.9, 201)[:, None]
    arc = 40 * torch.cat([angles.cos() - 1, angles.sin(), 0 * angles], 1)
    model.displacements = lambda latents: (40 * torch.cat([latents.cos() - 1, latents.sin(), 0 * latents], 1))[:, None]
    model.set_consensus_frame(model.central_latents(angles)[0])
    assert arc[100] == pytest.approx([40 * (np.cos(0.2) - 1), 40 * np.sin(0.2), 0], abs=1e-3)
    assert (model.consensus_positions.norm() - 40).abs() < 0.1
    assert (model.consensus_positions[0] - torch.tensor([40.0, 0, 0]) - arc[100]).norm() < 2


def test_latents_start_at_the_mean_and_where_particles_are(tmp_path):
    model = HalfModel(GaussianModel(positions(60), 3.0, 1.0), 32, 4.0, 2, "basis", 100.0)
    generator = torch.Generator().manual_seed(0)
    clusters = torch.tensor([[-5.0, 0.0], [4.0, 3.0]]).repeat_interleave(50, 0)
    model.set_latent_centres(clusters + 0.1 * torch.randn(100, 2, generator=generator))
    model.save(tmp_path / "model.safetensors")
    starts = HalfModel.load(tmp_path / "model.safetensors").latent_starts(3)
    assert all(start.shape == (3, 2) for start in starts)
    assert torch.equal(starts[0], torch.zeros(3, 2))
    centres = torch.stack([start[0] for start in starts[1:]])
    assert torch.cdist(clusters, centres).min(1).values.max() < 0.5
    # Particles without motion are all in one place.
    model.set_latent_centres(torch.zeros(100, 2))
    assert not model.latent_centres.any()


def test_a_model_of_another_version_is_refused_in_a_sentence(tmp_path):
    model = HalfModel(GaussianModel(positions(60), 3.0, 1.0), 32, 4.0, 2, "basis", 100.0)
    del model.latent_centres
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="another version"):
        HalfModel.load(tmp_path / "model.safetensors")
