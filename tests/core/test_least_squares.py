"""Modes, frames and least squares: deformations on a grid, other conformations, and missing views."""

import re

import pytest
import torch
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.imaging.backprojection import solve
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.fourier import fourier_to_image, frequencies_2d, image_to_fourier, shells
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.modes import find_modes
from dynamight_core.imaging.projector import Projector
from dynamight_core.imaging.voxels import ModalField
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction import checks
from dynamight_core.reconstruction.checks import check_halves, check_views
from dynamight_core.reconstruction.frames import StateField, sampled_field
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction, noise_to_signal
from dynamight_core.reconstruction.least_squares import DeformedProjection
from dynamight_core.reporter import Reporter
from dynamight_core.simulate.measures import HingeField
from tests.support.hinge_images import BOX, PIXEL, wbp


def test_modes_reproduce_a_rotation_on_and_between_the_points_they_were_found_on(hinge):
    t = hinge.truth
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions[::3], PIXEL)
    assert len(modes) == 2 and modes.remainder < 0.02 * PIXEL
    others = t.molecule.positions[1::7]
    exact = HingeField(t).evaluator(others)(t.angles)
    found = modes.field.evaluator(others)(modes.coordinates)
    assert float((found - exact).square().sum(-1).mean().sqrt()) < 0.04 * PIXEL
    assert find_modes(HingeField(t), 0 * t.angles, t.molecule.positions, PIXEL).coordinates.shape == (len(t), 0)


def test_modes_and_the_field_itself_give_the_same_sums(hinge):
    t, some = hinge.truth, hinge.everything[::20]
    region = 0.5 + 0.5 * sphere(BOX, radius=6).float()
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)
    fast = hinge.sums(some, field=modes.field, latents=modes.coordinates, region=region, kernel=False).numerator
    plain = _Plain(modes.field)
    slow = hinge.sums(some, field=plain, latents=modes.coordinates, region=region, kernel=False).numerator
    assert torch.allclose(fast, slow, atol=1e-4 * float(slow.abs().max()))


class _Plain:
    """A modal field that does not say so."""

    def __init__(self, field):
        self.evaluator = field.evaluator


def test_dropped_modes_move_nothing(hinge):
    t = hinge.truth
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)
    half = modes.scaled(torch.tensor([0.5, 0.0]))
    assert len(half) == 1 and torch.allclose(half.coordinates[:, 0], modes.coordinates[:, 0] / 2)
    assert half.field.fields(t.molecule.positions[:5]).shape == (1, 5, 3)
    still = HalfReconstruction.of(hinge.particles(), hinge.everything[::30], modes.scaled(torch.zeros(2)), sphere(BOX))
    assert torch.equal(still.sums.numerator, still.sums.rigid)


def test_a_state_keeps_its_own_conformation_still_and_moves_back_to_the_consensus(hinge):
    t = hinge.truth
    atoms = t.molecule.positions
    modes = find_modes(_Exact(t), t.angles, atoms, PIXEL)
    state = modes.coordinates[t.angles[:, 0].argmax()]
    field = StateField(modes.field, state, atoms)
    assert torch.equal(field.positions, atoms + modes.field.evaluator(atoms)(state[None])[0])
    back = field.positions + field.evaluator(field.positions)(-state[None])[0]
    assert float((back - atoms).abs().max()) < 1e-2
    assert float(field.evaluator(field.positions)(0 * state[None]).abs().max()) == 0


def test_a_state_that_is_turned_half_round_is_found_again_in_the_consensus():
    # A rotation by any angle about z: the cosine minus one, and the sine.
    turn = torch.tensor([[[-1.0, 0, 0], [0, -1, 0], [0, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]])
    field = ModalField(lambda points: torch.einsum("kij,mj->kmi", turn, points))
    angle = torch.tensor(2.8)
    points = 20 * torch.randn(800, 3, generator=torch.Generator().manual_seed(0))
    state = StateField(field, torch.stack([1 - angle.cos(), angle.sin()]), points)
    between = (state.positions[:50] + state.positions[50:100]) / 2
    inverse = torch.linalg.inv(torch.eye(3) + (1 - angle.cos()) * turn[0] + angle.sin() * turn[1])
    assert float((state.consensus(between) - between @ inverse.T).norm(dim=1).max()) < 0.01


def test_a_field_read_from_a_grid_is_the_field_near_the_molecule_and_none_far_away(hinge):
    t = hinge.truth
    modes = find_modes(_Exact(t), t.angles, t.molecule.positions, PIXEL)
    sampled = sampled_field(modes.field, t.molecule.positions, BOX * PIXEL)
    near = t.molecule.positions[::9] + 3
    error = (sampled.fields(near) - modes.field.fields(near)).square().sum(-1).mean(1).sqrt()
    assert float(error.max()) < 0.05
    assert not sampled.fields(torch.full((1, 3), 0.49 * BOX * PIXEL)).any()


class _Exact(HingeField):
    """The hinge as a smooth field: points turn in proportion to how far they lie along x."""

    def evaluator(self, points):
        share = torch.sigmoid(points[:, :1] / 10)
        turned = torch.ones(len(points), dtype=torch.long)
        return lambda angles: share * (self.truth.molecule.move(points, turned, angles) - points)


def test_a_map_solved_in_another_frame_shows_that_conformation(hinge):
    t, angle = hinge.truth, torch.tensor([0.35])
    there = t.molecule.positions_at(angle[None])[0]
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)

    class Frame:
        def evaluator(self, points):
            labels = t.molecule.moving[cKDTree(there.numpy()).query(points.numpy())[1]]
            return lambda angles: t.molecule.move(points, labels, angles - angle) - points

    assert len(modes) == 2
    volume = wbp(hinge.sums(field=Frame(), latents=t.angles))
    mask = (t.true_map(0.35) > 0.2 * float(t.true_map(0.35).max())).float()
    at_angle = fourier_shell_correlation(volume, t.true_map(0.35), mask)[1:].mean()
    at_rest = fourier_shell_correlation(volume, t.true_map(0.0), mask)[1:].mean()
    assert at_angle > at_rest + 0.1


def test_deformed_projection_and_backprojection_are_adjoint(hinge):
    t = hinge.truth
    batch = hinge.everything[:7]
    operator = DeformedProjection(hinge.particles(), sphere(BOX, radius=12), HingeField(t), t.angles)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(operator), generator=generator)
    images = torch.randn(7, BOX, BOX, generator=generator)
    projected = fourier_to_image(operator.project(values, batch), BOX).double()
    read = operator.backproject(image_to_fourier(images), batch).double()
    forward, adjoint = float((projected * images).sum()), float((values * read).sum())
    scale = float(projected.norm() * images.norm())
    assert abs(forward - adjoint) < 1e-5 * scale
    other = torch.randn(len(operator), generator=generator)
    left = float(other.double() @ operator.normal(values, batch, 3).double())
    right = float(values.double() @ operator.normal(other, batch, 7).double())
    assert abs(left - right) < 1e-4 * abs(float(values @ operator.normal(values, batch, 7)))


def test_bilinear_spreading_on_the_finer_grid_errs_by_a_few_per_cent_up_to_nyquist(hinge):
    # Against the sum over voxels, exact at every frequency, for a white map.
    generator = torch.Generator().manual_seed(1)
    operator = DeformedProjection(hinge.particles(), sphere(BOX, radius=9), None, None)
    values = torch.randn(len(operator), generator=generator)
    batch = hinge.everything[:3]
    got = operator.project(values, batch)
    voxels = (operator.shape.nonzero().flip(1) - BOX // 2) * PIXEL
    places = Projector(BOX, PIXEL).image_points(voxels, hinge.matrices[batch]) - BOX // 2
    phase = -2 * torch.pi * torch.einsum("hwc,bnc->bhwn", frequencies_2d(BOX), places)
    exact = (torch.polar(torch.ones_like(phase), phase) * values).sum(-1)
    for low, high, limit in ((1, 8, 0.02), (8, 12, 0.05), (12, 16, 0.1)):
        ring = (shells(BOX) >= low) & (shells(BOX) < high)
        assert float((got - exact)[:, ring].norm() / exact[:, ring].norm()) < limit


def test_least_squares_explains_held_out_images_better_and_agrees_with_backprojection(hinge):
    t = hinge.truth
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)
    used, held_out = hinge.everything[:270], hinge.everything[270:]
    region = sphere(BOX, radius=13).float()
    half = HalfReconstruction.of(hinge.particles(), used, modes, region)
    volume, solution = half.least_squares(0.3, held_out, max_steps=4)
    assert 1 <= solution.steps <= 4
    assert solution.residuals[solution.steps] < solution.residuals[0]
    plain = half.backprojected(0.3)
    for label in (0, 1):
        assert hinge.mean_fsc(volume, label) > hinge.mean_fsc(plain, label) - 0.01
    # Outside the region the solvent is that of the backprojection.
    assert torch.allclose(volume[region == 0], plain[region == 0], atol=1e-5 * float(plain.abs().max()))


def test_a_missing_cone_is_noticed_and_filled_better_by_least_squares(hinge):
    t = hinge.truth
    near = torch.where((torch.rad2deg(t.euler[:, 1]) % 180 - 90).abs() > 45)[0]
    said = []
    every = HalfReconstruction.of(hinge.particles(), hinge.everything, None, sphere(BOX))
    assert not check_views(every.denominator, 1, PIXEL, Reporter(said.append)) and not said
    region = sphere(BOX, radius=13).float()
    half = HalfReconstruction.of(hinge.particles(), near[20:], None, region)
    assert check_views(half.denominator, 1, PIXEL, Reporter(said.append))
    assert re.search(r"Note: \d+ % of the directions", said[0])
    # Noise over signal as half-maps have it: little in the first shells, as much as signal in the last.
    shares = 0.02 + (torch.arange(BOX // 2 + 1) / (BOX // 2)).square()
    solved = half.least_squares(shares, near[:20], max_steps=6)[0]
    divided = solve(half.sums.rigid, half.denominator, shares.clamp(min=MIN_REGULARISATION))
    for label in (0, 1):
        # Half of this is owed to the kernel of uneven views, which backprojection has as well.
        assert hinge.mean_fsc(solved, label) > hinge.mean_fsc(divided, label) + 0.03
        assert hinge.mean_fsc(solved, label) > hinge.mean_fsc(half.backprojected(shares), label)


def test_automatic_method_goes_by_missing_views_and_by_memory(monkeypatch):
    said, options, cpu = [], ReconstructOptions(), torch.device("cpu")
    monkeypatch.setattr(checks, "available_memory", lambda: 6 * 10**8)
    assert checks.choose_method(False, 64, cpu, options, Reporter(said.append)) == "wbp"
    assert checks.choose_method(True, 64, cpu, options, Reporter(said.append)) == "cg" and not said
    checks.check_memory(192, cpu, options)
    assert checks.choose_method(True, 192, cpu, options, Reporter(said.append)) == "wbp"
    assert "0.6 GB are free" in said[0]
    with pytest.raises(InputError, match="use --method wbp"):
        checks.check_memory(192, cpu, ReconstructOptions(method="cg"))
    with pytest.raises(InputError, match=r"box 512 needs about [\d.]+ GB"):
        checks.check_memory(512, cpu, options)


def test_half_sets_of_very_different_size_are_noticed():
    said = []
    check_halves(torch.tensor([1] * 60 + [2] * 45), Reporter(said.append))
    assert not said
    check_halves(torch.tensor([1] * 80 + [2] * 25), Reporter(said.append))
    assert "80 and 25 particles" in said[0]


def test_signal_to_noise_of_a_shell_sets_its_regularisation():
    shares = noise_to_signal(torch.tensor([1.0, 0.9, 0.5, 0.2, -0.1, 0.3]))
    assert torch.allclose(shares[1:3], torch.tensor([1 / 9, 1.0]), rtol=1e-4)
    assert (shares[3:] == shares[5]).all() and shares[5] > 2
