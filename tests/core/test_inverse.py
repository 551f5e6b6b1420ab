"""The inverse field: its round trip, its file, and the map through it."""

import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.masks import sphere
from dynamight_core.options import InvertOptions
from dynamight_core.reconstruction.inverse import (
    ForwardFromInverse,
    InverseField,
    fit_inverse,
    load_inverse,
    save_inverse,
)
from dynamight_core.simulate.measures import HingeField
from tests.support.hinge_images import BOX, PIXEL, wbp


@pytest.fixture(scope="module")
def inverse(hinge):
    generator = torch.Generator().manual_seed(0)
    atoms = hinge.truth.molecule.positions
    chosen = atoms[torch.randperm(len(atoms), generator=generator)[:400]]
    options = InvertOptions(epochs=40, particles_per_epoch=64, batch_size=16, points_per_batch=64)
    return *fit_inverse(HingeField(hinge.truth), hinge.truth.angles, chosen, BOX * PIXEL, BOX, options), chosen


def test_inverse_undoes_the_motion_on_and_off_the_gaussians(inverse):
    _, report, _ = inverse
    assert report.motion > 2
    assert report.on_gaussians < 0.35 * report.motion
    assert report.off_gaussians < 0.4 * report.motion
    assert report.losses[-1] < 0.2 * report.losses[0]


def test_report_is_the_round_trip(inverse, hinge):
    field, report, points = inverse
    moved = points + HingeField(hinge.truth).evaluator(points)(hinge.truth.angles)
    back = moved + field.displacements(hinge.truth.angles, moved)
    rms = float((back - points).square().sum(-1).mean().sqrt())
    assert rms == pytest.approx(report.on_gaussians, rel=0.15)


def test_forward_field_from_the_inverse_is_two_x_minus_the_inverse(inverse):
    field, _, points = inverse
    latents = torch.tensor([[0.1], [-0.2]])
    came_from = points + field.displacements(latents, points)
    forward = points + ForwardFromInverse(field).evaluator(points)(latents)
    assert torch.allclose(forward, 2 * points - came_from, atol=1e-4)


def test_map_through_the_inverse_lies_between_rigid_and_exact(inverse, hinge, rigid_sums):
    field, _, _ = inverse
    near = sphere(BOX, radius=11)
    through = wbp(hinge.sums(field=ForwardFromInverse(field), latents=hinge.truth.angles, region=near))
    exact = wbp(hinge.sums(field=HingeField(hinge.truth), latents=hinge.truth.angles))
    assert hinge.mean_fsc(wbp(rigid_sums), 1) < hinge.mean_fsc(through, 1) < hinge.mean_fsc(exact, 1) + 0.01


def test_inverse_comes_back_from_its_file(inverse, tmp_path):
    field, _, points = inverse
    save_inverse(tmp_path / "inverse.safetensors", field)
    again = load_inverse(tmp_path / "inverse.safetensors")
    latents = torch.tensor([[0.15]])
    assert torch.equal(again.displacements(latents, points), field.displacements(latents, points))


def test_same_seed_gives_the_same_inverse(hinge):
    def fit(seed):
        options = InvertOptions(epochs=1, particles_per_epoch=32, seed=seed)
        points = hinge.truth.molecule.positions[::30]
        return fit_inverse(HingeField(hinge.truth), hinge.truth.angles, points, BOX * PIXEL, BOX, options)[1].losses

    assert fit(1) == fit(1) != fit(2)


def test_a_file_that_is_no_inverse_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_inverse(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not an inverse field"):
        load_inverse(tmp_path / "bad.safetensors")


def test_inverse_starts_at_no_motion():
    field = InverseField(2, 100.0, 32)
    points = torch.randn(3, 7, 3)
    assert torch.equal(field.displacements(torch.randn(3, 2), points), torch.zeros(3, 7, 3))
    assert torch.equal(field.displacements(torch.randn(3, 2), points[0]), torch.zeros(3, 7, 3))


def test_inverse_of_fixed_points_equals_that_of_points_per_particle(inverse):
    field, _, points = inverse
    latents = torch.tensor([[0.1], [-0.2]])
    fixed, each = field.displacements(latents, points), field.displacements(latents, points.expand(2, -1, -1))
    assert torch.allclose(fixed, each, atol=1e-4)
