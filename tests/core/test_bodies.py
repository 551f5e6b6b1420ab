"""Rigid bodies: how masks divide a molecule, how bodies move, and what a run recovers of them."""

import json

import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from roma import rotvec_to_rotmat

import dynamight_core.training.stage as run_module
from dynamight_core.analysis.bodies import (
    BodyMotions,
    _into_z,
    body_motions,
    particle_table,
    summary_table,
    write_bodies,
)
from dynamight_core.analysis.domain_files import write_domains
from dynamight_core.analysis.domains import find_domains
from dynamight_core.analysis.report import write_report
from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.files import read_map, write_map
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.judging.summary import summarise
from dynamight_core.model.bodies import RigidBodies, memberships
from dynamight_core.model.decoders.bodies import BodiesDecoder
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.read import read_inputs
from dynamight_core.training.stage import train
from tests.support.command_line import dynamight
from tests.support.rotations import axis_rotations

BOX, PIXEL = 40, 4.0
EXTENT = BOX * PIXEL
# Three boxes in a row along x, the one in the middle the largest: from, to.
SLABS = [(-60.0, -24.0), (-24.0, 28.0), (28.0, 60.0)]


def grid(box=BOX, pixel_size=PIXEL):
    axis = (np.arange(box) - box // 2) * pixel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return x, y, z


def slab(low, high, edge=0.0):
    """Return a mask of a box 40 A thick, soft by `edge` (A) beyond its faces along x."""
    x, y, z = grid()
    along = np.clip(1 - np.maximum(low - x, x - high) / edge, 0, 1) if edge else (x >= low) & (x < high)
    return (along * (np.maximum(abs(y), abs(z)) <= 20)).astype(np.float32)


def three_bodies(edge=0.0):
    molecule = slab(SLABS[0][0], SLABS[-1][1]) > 0
    return RigidBodies.from_masks([slab(*ends, edge) for ends in SLABS], PIXEL, molecule)


def decoder(bodies=None, n_latents=4, size=1.0):
    """Return a decoder whose bodies turn and shift at random."""
    made = BodiesDecoder(n_latents, EXTENT, three_bodies() if bodies is None else bodies)
    torch.nn.init.normal_(made.motion.weight, std=size, generator=torch.Generator().manual_seed(0))
    return made


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def axes_of(outputs):
    """Return the (b, 2, 3) rotation vectors that small (b, 24) outputs of the decoder's motion are to first order."""
    matrices = outputs.reshape(len(outputs), 2, 4, 3)[:, :, :3]
    skew = (matrices - matrices.transpose(2, 3)) / 2
    return torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)


def points_along_x(n=1200):
    return torch.stack([torch.linspace(-58, 58, n), torch.full((n,), 3.0), torch.full((n,), -5.0)], 1)


def test_rotation_vectors_become_rotations_about_their_axes():
    vectors = random(20, 3)
    expected = torch.stack([axis_rotations(v, v.norm()) for v in vectors])
    torch.testing.assert_close(rotvec_to_rotmat(vectors), expected, atol=1e-5, rtol=0)
    none = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(rotvec_to_rotmat(none)[0, 2, 1], none)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, 0.0]]))


def test_a_rotation_by_180_degrees_has_a_vector_of_that_length():
    half_turns = np.array([np.diag([-1.0, 1.0, -1.0]), np.diag([1.0, -1.0, -1.0])])
    zeros = np.zeros((1, 2, 3))
    motions = BodyMotions(np.arange(1, 3), half_turns[None], zeros, zeros, zeros, zeros[0])
    np.testing.assert_allclose(np.abs(motions.vectors), [[[0, np.pi, 0], [np.pi, 0, 0]]])


def test_the_body_in_the_middle_is_the_largest_and_others_turn_about_their_joints_with_it():
    bodies = three_bodies()
    assert bodies.largest == 1
    torch.testing.assert_close(bodies.shares.sum(), torch.tensor(1.0))
    torch.testing.assert_close(bodies.pivots[[0, 2], 0], torch.tensor([-26.0, 26.0]), atol=2.5, rtol=0)
    assert bodies.pivots[:, 1:].abs().max() < 2.5


def test_a_body_at_the_end_of_a_chain_moves_along_with_the_one_before():
    ends = [(28.0, 60.0), (8.0, 28.0), (-60.0, 8.0)]
    molecule = slab(-60, 60) > 0
    bodies = RigidBodies.from_masks([slab(*pair) for pair in ends], PIXEL, molecule)
    assert bodies.largest == 2
    assert bodies.parents.tolist() == [1, 2, -1]
    made = decoder(bodies)
    # The first body does nothing by itself: it and the second are one body, generators included.
    made.motion.weight.data[:12] = 0
    points = torch.tensor([[40.0, 2.0, 0.0], [18.0, 0.0, 1.0], [52.0, -5.0, 3.0], [-30.0, 0.0, 0.0]])
    moved = points + made.displacements(random(5, 4), points).detach()
    distances = (moved[:, 1:3] - moved[:, :1]).norm(dim=2)
    torch.testing.assert_close(distances, (points[1:3] - points[0]).norm(dim=1).expand(5, 2), atol=1e-3, rtol=0)
    assert (moved - points)[:, :3].norm(dim=2).min() > 0.1
    step = 1e-3
    turned = axes_of(10.0 * step * made.motion(random(5, 4)))
    made.motion.weight.data[21:] = 0
    outputs = turned.flatten(1)
    # Axes come before bodies.
    fields = made.linear_basis(points)[:6].reshape(3, 2, 4, 3).transpose(0, 1).flatten(0, 1)
    expected = torch.einsum("bk,knc->bnc", outputs, fields)
    torch.testing.assert_close(made.displacements(step * random(5, 4), points), expected, atol=2e-4, rtol=0)


def test_bodies_that_touch_none_turn_about_their_own_centres():
    masks = [slab(-60.0, -30.0), slab(-20.0, 60.0)]
    bodies = RigidBodies.from_masks(masks, PIXEL, sum(masks) > 0)
    assert bodies.parents.tolist() == [-1, -1]
    assert torch.equal(bodies.pivots, bodies.centres)


@pytest.mark.parametrize("edge", [0.0, 8.0, 16.0])
def test_a_joint_lies_half_way_between_masks_however_soft_they_are(edge):
    bodies = three_bodies(edge)
    points = points_along_x()
    shares = memberships(bodies.depths, bodies.largest, points, EXTENT)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(points)))
    for left, right, face in ((0, 1, -26.0), (1, 2, 26.0)):
        # Where a point goes from one body to the next.
        crossing = points[(shares[:, left] * shares[:, right]).argmax(), 0]
        assert abs(float(crossing) - face) < 3.0
    # Whole outside the joints.
    assert (shares.amax(1) == 1).float().mean() > 0.8


def test_what_lies_far_outside_all_masks_belongs_to_the_largest_body():
    bodies = three_bodies()
    far = torch.tensor([[45.0, 60.0, 0.0], [-45.0, 0.0, 55.0], [0.0, 60.0, 0.0]])
    near = torch.tensor([[45.0, 21.0, 0.0]])
    shares = memberships(bodies.depths, bodies.largest, torch.cat([far, near]), EXTENT)
    assert (shares[:3, 1] == 1).all()
    assert shares[3, 2] == 1


def test_bodies_are_exactly_rigid_and_the_largest_rests():
    made = decoder()
    points = random(400, 3) * torch.tensor([25.0, 8.0, 8.0])
    shares = memberships(made.depths, 1, points, EXTENT)
    moved = points + made.displacements(random(3, 4), points).detach()
    for body in range(3):
        mine = shares[:, body] == 1
        assert mine.sum() > 20
        before, after = (p[..., :, None, :] - p[..., None, :, :] for p in (points[mine], moved[:, mine]))
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1).expand(3, -1, -1), atol=1e-3, rtol=0)
        assert ((moved[:, mine] - points[mine]).abs().max() > 1) == (body != 1)
    assert (moved - points)[:, shares[:, 1] == 1].abs().max() == 0


def test_the_field_is_continuous_across_the_joints():
    made = decoder()
    points = points_along_x()
    shift = made.displacements(random(3, 4), points).detach()
    step = (points[1, 0] - points[0, 0]).item()
    difference = (shift[:, 1:] - shift[:, :-1]).norm(dim=-1).amax()
    # Where bodies meet, displacements differ by some Angstroms, spread over a joint of about 8 A.
    assert shift.norm(dim=-1).max() > 5
    assert difference < 0.6 * shift.norm(dim=-1).max() * step


def shift_of(made):
    """Return how far the reference has taken the centre of a body from its mask, A."""
    return float(
        (
            (made.mask_rotations @ made.centres[made.moving][..., None])[..., 0]
            + made.mask_shifts
            - made.centres[made.moving]
        )
        .norm(dim=1)
        .max()
    )


def test_no_latent_is_no_motion_and_a_reference_that_moved_is_followed():
    made = decoder(size=0.3)
    points = points_along_x(300)
    assert made.displacements(torch.zeros(1, 4), points).abs().max() < 1e-5
    latents, middle = random(5, 4), random(1, 4, seed=2)
    inside = memberships(made.depths, 1, points, EXTENT).amax(1) == 1
    before, first = (points + made.displacements(latents, points))[:, inside], made.memberships(points[inside])
    moved = (points + made.displacements(middle, points)[0]).detach()
    made.absorb(middle)
    # Bodies have left their masks, and take their points along.
    assert shift_of(made) > 5
    kept = (made.memberships(moved[inside]) - first).abs().amax(1) < 1e-3
    assert kept.float().mean() > 0.95
    after = moved[inside] + made.displacements(latents, moved[inside])
    torch.testing.assert_close(after[:, kept], before[:, kept], atol=1e-3, rtol=0)
    assert made.displacements(middle, moved).abs().max() < 1e-4


def test_generators_are_the_derivatives_of_the_motions():
    made = decoder()
    points, latents, step = random(200, 3) * 20, random(3, 4), 1e-3
    outputs = 10.0 * step * made.motion(latents)
    # Rotations about x, y, z of both bodies, then their shifts.
    shifts = outputs.reshape(3, 2, 4, 3)[:, :, 3]
    outputs = torch.cat([each.transpose(1, 2).flatten(1) for each in (axes_of(outputs), shifts)], 1)
    expected = torch.einsum("bk,knc->bnc", outputs, made.linear_basis(points))
    torch.testing.assert_close(made.displacements(step * latents, points), expected, atol=2e-4, rtol=0)


def test_a_circle_of_latents_turns_a_body_through_the_whole_circle():
    made = decoder(n_latents=2, size=0.0)
    angles = torch.linspace(-torch.pi, torch.pi, 25)
    wanted = rotvec_to_rotmat(angles[:, None] * torch.tensor([1.0, 0.0, 0.0]))
    with torch.no_grad():
        made.base[0] = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
        # cos and sin in the plane of the rotation.
        cosine, sine = torch.diag(torch.tensor([0.0, 1.0, 1.0])), torch.tensor([[0, 0, 0], [0, 0, -1], [0, 1, 0.0]])
        matrices = torch.stack([cosine, sine], -1) * made.radii[made.moving[0]] / 10
        made.motion.weight.data.reshape(2, 4, 3, 2)[0, :3] = matrices
    rotations = made.motions(torch.stack([angles.cos(), angles.sin()], 1))[0][:, 0]
    torch.testing.assert_close(rotations @ rotations[12].T, wanted, atol=1e-5, rtol=0)


def test_a_model_with_bodies_is_read_back_as_it_was(tmp_path):
    gaussians = GaussianModel(random(50, 3) * 20, 6.0, 1.0)
    model = HalfModel(gaussians, BOX, PIXEL, 4, "bodies", 120.0, bodies=three_bodies())
    torch.nn.init.normal_(model.decoder.motion.weight)
    model.set_consensus_frame(random(10, 4))
    model.save(tmp_path / "model.safetensors")
    read = HalfModel.load(tmp_path / "model.safetensors")
    latents, points = random(3, 4), random(30, 3) * 20
    for first, second in zip(model.decoder.motions(latents), read.decoder.motions(latents), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(model.consensus_evaluator(points)(latents), read.consensus_evaluator(points)(latents))
    assert not read.reference_shift.any()


def test_a_turn_about_a_joint_costs_nothing_and_a_slide_its_square():
    made = decoder()
    weight = made.motion.weight.data.reshape(2, 4, 3, 4)
    weight[:, 3] = 0
    assert made.prior_energy(random(10, 4)) == 0
    # 10 A per unit of the latent, in the first body alone: half of (10 A / 2 A) squared.
    weight[0, 3, 0, 0] = 1
    assert made.prior_energy(torch.eye(4)[:1]).item() == pytest.approx(12.5)
    made.jointed = torch.zeros(2, dtype=torch.bool)
    assert made.prior_energy(random(10, 4)) == 0


@pytest.mark.parametrize("axis", [[1.0, 2.0, -3.0], [-2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
def test_an_axis_is_turned_into_z(axis):
    turn = _into_z(np.array(axis))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(turn @ axis, [0, 0, np.linalg.norm(axis)], atol=1e-12)


# ---------------------------------------------------------------------------------------- on simulated particles


@pytest.fixture(scope="module")
def masks(hinge_set, tmp_path_factory):
    """Return files of masks of the hinge's true domains."""
    truth, folder = load_truth(hinge_set.truth), tmp_path_factory.mktemp("masks")
    for label in (0, 1):
        write_map(folder / f"body{label}.mrc", truth.domain_mask(label).numpy(), truth.pixel_size)
    return [str(folder / f"body{label}.mrc") for label in (0, 1)]


def inputs(files, masks):
    return InputOptions(star=str(files.particles), map=str(files.consensus), bodies=list(masks))


@pytest.fixture(scope="module")
def bodies_run(hinge_set, masks, tmp_path_factory):
    """Return a run of the small hinge set with two rigid bodies."""
    options = TrainOptions(n_gaussians=400, n_latents=2, epochs=10)
    trained = train(inputs(hinge_set, masks), options, tmp_path_factory.mktemp("bodies") / "run", reporter=QUIET)
    return summarise(trained, reporter=QUIET)


def test_training_recovers_the_hinge_as_a_turn_of_its_body(hinge_set, bodies_run):
    truth, run = load_truth(hinge_set.truth), bodies_run
    motions = body_motions(run)
    assert list(motions.numbers) == [2]
    table = particle_table(motions)
    true = np.degrees(truth.angles[:, 0].numpy())
    found = table["body2_rotation_y_deg"].to_numpy()
    slope, _ = np.polyfit(true, found, 1)
    assert np.corrcoef(true, found)[0, 1] > 0.85
    assert 0.7 < slope < 1.2
    # Errors have the size of what they are errors of.
    left = (found - found.mean() - slope * (true - true.mean())).std()
    assert 0.4 < np.sqrt((table["body2_rotation_error_y_deg"] ** 2).mean()) / left < 1.6
    for half, model in enumerate(run.models):
        points = model.consensus_positions
        resting = memberships(model.decoder.depths, 0, points, model.box * model.pixel_size)[:, 0] == 1
        assert resting.sum() > 100
        assert model.consensus_evaluator(points)(run.latents[half])[:, resting].abs().max() < 1e-3


def test_tables_and_the_report_name_the_bodies(bodies_run, masks):
    summary = summary_table(bodies_run, body_motions(bodies_run))
    assert list(summary["mask"]) == ["body0.mrc", "body1.mrc"]
    assert summary["share"].sum() == pytest.approx(1)
    assert np.isnan(summary["angle_std_deg"][0])
    assert summary["angle_std_deg"][1] > 5
    lines = []
    written = write_bodies(bodies_run, Reporter(lines.append))
    assert "Body 2 (body1.mrc): rotation" in lines[0]
    names = [path.name for path in written]
    assert names == ["bodies.csv", "bodies_summary.csv", "relion_bodies.star", "relion_data.star"]
    assert len(pd.read_csv(written[0])) == len(bodies_run.halves)
    write_domains(bodies_run, find_domains(bodies_run.motions), reporter=QUIET)
    html = write_report(bodies_run, reporter=QUIET).read_text()
    assert html.count('id="bodies"') == 1
    assert "body1.mrc" in html


def test_relion_would_put_every_body_where_it_is(bodies_run, masks):
    write_bodies(bodies_run, QUIET)
    blocks = starfile.read(bodies_run.path / "analysis" / "relion_data.star", always_dict=True)
    assert list(blocks) == ["optics", "particles", "images_body_1", "images_body_2"]
    bodies = starfile.read(bodies_run.path / "analysis" / "relion_bodies.star")
    assert list(bodies["rlnBodyMaskName"]) == masks
    assert list(bodies["rlnBodyRotateRelativeTo"]) == [2, 1]
    rest = blocks["images_body_1"]
    assert (rest["rlnAngleTilt"] == 90).all()
    assert not rest[["rlnAngleRot", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy().any()
    # As relion_flex_analyse puts it together: A = A_consensus O' E(0, 90, 0)' E(angles) O about the mask's centre.
    columns = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    consensus, angles = (
        rotation_matrices(torch.deg2rad(torch.tensor(table[columns].to_numpy(dtype=float))))
        for table in (blocks["particles"], blocks["images_body_2"])
    )
    centres = []
    for path in masks:
        mask, pixel_size = read_map(path)
        weights = torch.tensor(mask.sum() / mask.size).new_tensor(mask)
        x, y, z = (torch.tensor(axis) for axis in grid(len(mask), 1.0))
        centre = torch.stack([(weights * axis).sum() for axis in (x, y, z)]) / weights.sum()
        centres.append(centre.round().double() * pixel_size)
    orient = torch.from_numpy(_into_z((centres[1] - centres[0]).numpy()))
    upright = rotation_matrices(torch.tensor([0.0, torch.pi / 2, 0.0], dtype=torch.float64))
    matrices = consensus @ orient.T @ upright.T @ angles @ orient
    offsets = torch.tensor(blocks["images_body_2"][["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy(dtype=float))
    point = torch.tensor([30.0, 5.0, -4.0], dtype=torch.float64)
    seen = (matrices @ (point - centres[1]))[:, :2] + (consensus @ centres[1])[:, :2] - offsets
    # Against the model's own displacement of the point.
    own = torch.stack(
        [
            bodies_run.models[half - 1].consensus_evaluator(point[None].float())(latent[None])[0, 0]
            for half, latent in zip(bodies_run.halves, bodies_run.own_latents(), strict=True)
        ]
    )
    expected = (consensus @ (point + own.double())[..., None])[:, :2, 0]
    torch.testing.assert_close(seen, expected.detach(), atol=2e-3, rtol=0)


@pytest.mark.slow
def test_a_run_with_bodies_that_was_stopped_resumes_to_the_same_numbers(hinge_set, masks, tmp_path, monkeypatch):
    options = TrainOptions(n_gaussians=200, n_latents=2, epochs=5, warm_up_epochs=1, refits=1, reference_interval=3)
    quiet = {"reporter": QUIET}
    train(inputs(hinge_set, masks), options, tmp_path / "whole", **quiet)
    monkeypatch.setattr(run_module, "_CHECKPOINT_SECONDS", 0.0)
    original = run_module._run_epoch

    def epoch(kind, current, trainer):
        if current == 5 and trainer.half == 2:
            raise KeyboardInterrupt
        return original(kind, current, trainer)

    monkeypatch.setattr(run_module, "_run_epoch", epoch)
    with pytest.raises(KeyboardInterrupt):
        train(inputs(hinge_set, masks), options, tmp_path / "stopped", **quiet)
    monkeypatch.setattr(run_module, "_run_epoch", original)
    train(inputs(hinge_set, masks), options, tmp_path / "stopped", resume=True, **quiet)
    models = [HalfModel.load(tmp_path / name / "half2" / "model.safetensors") for name in ("whole", "stopped")]
    for first, second in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(first, second)
    assert RunConfig.read(tmp_path / "stopped").train.decoder == "bodies"
    assert json.loads((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()[-1])["data"] > 0
    with pytest.raises(InputError, match="bodies"):
        other = inputs(hinge_set, masks[::-1])
        train(other, options, tmp_path / "stopped", resume=True, **quiet)
    other.start_from = str(tmp_path / "whole")
    with pytest.raises(InputError, match="other masks of --bodies"):
        train(other, options, tmp_path / "continued", **quiet)


def test_domains_of_a_free_run_are_bodies_as_they_are(hinge_set, trained):
    truth, (_, run) = load_truth(hinge_set.truth), trained
    found = write_domains(run, find_domains(run.motions, 2), reporter=QUIET)
    bodies = read_inputs(inputs(hinge_set, [str(p) for p in found if p.suffix == ".mrc"]), TrainOptions()).bodies
    atoms = truth.molecule.positions
    shares = memberships(bodies.depths, bodies.largest, atoms, truth.box * truth.pixel_size)
    right = shares[torch.arange(len(atoms)), truth.molecule.moving]
    assert bodies.largest == 0
    assert right.mean() > 0.85


# --------------------------------------------------------------------------------------------------- bad masks


def _other_box(folder, good):
    write_map(folder / "bad.mrc", np.pad(read_map(good[1])[0], 2), read_map(good[1])[1])
    return [good[0], folder / "bad.mrc"]


def _other_pixel(folder, good):
    write_map(folder / "bad.mrc", read_map(good[1])[0], 5.0)
    return [good[0], folder / "bad.mrc"]


def _empty(folder, good):
    write_map(folder / "bad.mrc", 0.4 * read_map(good[1])[0], read_map(good[1])[1])
    return [good[0], folder / "bad.mrc"]


def _outside(folder, good):
    mask = np.zeros_like(read_map(good[1])[0])
    mask[:4, :4, :4] = 1
    write_map(folder / "bad.mrc", mask, read_map(good[1])[1])
    return [good[0], folder / "bad.mrc"]


def _density(folder, good):
    write_map(folder / "bad.mrc", 3 * read_map(good[1])[0], read_map(good[1])[1])
    return [good[0], folder / "bad.mrc"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, good: good[:1], "--bodies is .*; give 2 or more files"),
        (lambda folder, good: [good[0], good[0]], "overlap in most of the former"),
        (lambda folder, good: [good[0], folder / "none.mrc"], "none.mrc does not exist"),
        (_other_box, "box of 36 voxels, but the particles have 32 pixels"),
        (_other_pixel, "pixel size of 5 A, but the particles have 6 A"),
        (_empty, "bad.mrc is empty"),
        (_outside, "bad.mrc misses the molecule"),
        (_density, "bad.mrc has values from 0 to 3; use 0 to 1"),
    ],
)
def test_masks_that_are_no_bodies_are_refused(hinge_set, masks, tmp_path, make, words):
    bad = [str(path) for path in make(tmp_path, masks)]
    with pytest.raises(InputError, match=words):
        read_inputs(inputs(hinge_set, bad), TrainOptions())


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ({}, {"decoder": "bodies"}, "no mask of any; give --bodies"),
        ({"bodies": "masks"}, {"decoder": "coordinate"}, "leave --decoder out"),
        ({"bodies": "masks", "mask": "masks"}, {}, "leave --mask out"),
        ({"bodies": "masks"}, {"regularisation": "dynamic"}, "--regularisation dynamic weights distances"),
    ],
)
def test_bodies_do_not_go_with_another_decoder_or_a_motion_mask(hinge_set, masks, tmp_path, given, options, words):
    chosen = InputOptions(str(hinge_set.particles), str(hinge_set.consensus))
    chosen.bodies = masks if "bodies" in given else None
    chosen.mask = masks[0] if "mask" in given else None
    with pytest.raises(InputError, match=words):
        train(chosen, TrainOptions(**options), tmp_path / "run", reporter=QUIET)


def test_masks_follow_one_option_or_several(hinge_set, masks, monkeypatch):
    # What is free changes from one call to the next.
    monkeypatch.setattr("dynamight_core.training.check.available_memory", lambda: 8 * 2**30)
    words = ["check", hinge_set.particles, "--map", hinge_set.consensus, "--no-images", "--bodies", *masks]
    code, text = dynamight(*words)
    assert code == 0, text
    assert "The input is ready for training." in text
    assert dynamight(*words[:-2], masks[0], "--bodies", masks[1]) == (code, text)
    code, text = dynamight(*words[:-1])
    assert code == 2
    assert "--bodies" in text
