"""Parts that move by themselves, linkers, missing parts, junk and wrong poses are what they say they are."""

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from scipy.spatial.transform import Rotation

from dynamight_core.imaging.fourier import fourier_to_image
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.options import SimulateOptions
from dynamight_core.simulate.dataset import noisy_images, simulate, white_noise
from dynamight_core.simulate.draw import draw_truth
from dynamight_core.simulate.measures import mean_fsc, oracle_posteriors, turn_slope
from dynamight_core.simulate.parts import Part, draw_motions
from dynamight_core.simulate.truth import NOISE, OTHER, load_truth

MASK = torch.ones(40, 40, 40)
FAB, OTHER_FAB = "H/1-213 L", "K/1-213 M"
AXIS, OTHER_AXIS = "axis H/213/CA H/244/CA", "axis K/213/CA K/244/CA"


def options(*parts, **more):
    common = {"molecule": "igg", "particles": 300, "box": 40, "pixel_size": 6.5, "seed": 3}
    return SimulateOptions(**common | {"part": list(parts) or None} | more)


def truth_of(*parts, **more):
    chosen = options(*parts, **more)
    return draw_truth(chosen, torch.Generator().manual_seed(chosen.seed))[0]


def test_parts_move_by_themselves_about_their_own_axes():
    truth = truth_of(f"{FAB}; {AXIS}; range 30", f"{OTHER_FAB}; {OTHER_AXIS}; peaks 0 42; spread 2")
    first, second = torch.rad2deg(truth.angles).T
    assert first.abs().max() <= 30
    assert abs(first.std() / (30 / 3**0.5) - 1) < 0.1
    nearest = torch.minimum((second - 0).abs(), (second - 42).abs())
    assert nearest.square().mean().sqrt() < 2.5
    assert 0.4 < (second > 21).float().mean() < 0.6
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    moved, molecule = truth.positions(slice(0, 20)), truth.molecule
    assert torch.equal(moved[:, molecule.moving == 0], molecule.positions[molecule.moving == 0].expand(20, -1, -1))
    alone = truth.molecule.move(
        molecule.positions, molecule.moving, truth.motions[:20] * torch.tensor([0.0, 1.0])[:, None]
    )
    assert torch.equal(moved[:, molecule.moving == 2], alone[:, molecule.moving == 2])


def test_a_full_turn_covers_the_circle_evenly():
    angles = torch.rad2deg(truth_of(motion_range=180.0).angles)
    assert np.histogram(angles, 6, (-180, 180))[0].min() > 30


def test_a_linker_tilts_within_its_cone_twists_and_shifts():
    part, direction = Part("L", pivot="H/213/CA", cone=70, twist=90, shift=5), torch.tensor([0.6, 0.0, 0.8])
    motions = draw_motions(part, 4000, direction, torch.Generator().manual_seed(0))
    turned = Rotation.from_rotvec(motions[:, :3].numpy()).apply(direction.numpy())
    cosine = turned @ direction.numpy()
    lowest = np.cos(np.deg2rad(70))
    assert cosine.min() > lowest - 1e-6
    # Uniform over the sphere within the cone.
    assert np.allclose(
        np.quantile(cosine, [0.25, 0.5, 0.75]), lowest + (1 - lowest) * np.array([0.25, 0.5, 0.75]), atol=0.02
    )
    assert np.linalg.norm(turned.mean(0) - cosine.mean() * direction.numpy()) < 0.03
    distance = motions[:, 3:].norm(dim=1)
    assert distance.max() <= 5
    assert abs(float((distance / 5).pow(3).mean()) - 0.5) < 0.02
    truth = truth_of(f"{FAB}; pivot H/213/CA; cone 70; twist 90; shift 5")
    pivot = truth.molecule.axis_points
    steps = truth.molecule.move(pivot, torch.tensor([1]), truth.motions) - pivot
    assert torch.allclose(steps[:, 0], truth.motions[:, 0, 3:], atol=1e-4)


def test_a_twist_alone_is_a_rotation_about_the_linker():
    direction = torch.tensor([0.0, 0.6, 0.8])
    motions = draw_motions(Part("L", pivot="H/213/CA", twist=90), 200, direction, torch.Generator().manual_seed(0))
    assert torch.linalg.cross(motions[:, :3], direction.expand(200, 3)).norm(dim=1).max() < 1e-5
    assert 80 < torch.rad2deg(motions[:, :3] @ direction).max() <= 90


def test_a_missing_part_is_not_in_the_images():
    truth = truth_of(f"{FAB}; missing 0.4", particles=60)
    assert 0.2 < 1 - truth.present.float().mean() < 0.6
    whole = torch.stack([truth.project(slice(None), domain=label) for label in (0, 1)])
    sums = truth.project(slice(None))
    assert torch.allclose(sums, whole.sum(0), atol=1e-3 * float(sums.abs().max()))
    assert (whole[1].abs().amax((1, 2)) > 0).eq(truth.present[:, 0] == 1).all()


@pytest.mark.parametrize(("kind", "code"), [("noise", NOISE), ("other", OTHER)])
def test_junk_shows_noise_or_another_molecule(kind, code):
    truth, clear = truth_of(junk=0.3, junk_content=kind), truth_of()
    junk = truth.content == code
    assert 0.2 < junk.float().mean() < 0.4
    images, right = (fourier_to_image(t.project(slice(0, 60)), t.box) for t in (truth, clear))
    assert torch.allclose(images[~junk[:60]], right[~junk[:60]], atol=1e-3)
    shown = images[junk[:60]].sum((1, 2))
    if kind == "noise":
        assert shown.abs().max() < 1e-3
    else:
        # As heavy as the molecule, and something else.
        assert torch.allclose(shown, right[0].sum().expand_as(shown), rtol=0.01)
        assert torch.corrcoef(torch.stack([images[junk[:60]].flatten(), right[junk[:60]].flatten()]))[0, 1] < 0.9


def test_wrong_poses_are_in_the_star_file_and_right_ones_in_the_truth(tmp_path):
    rigid = {"motion_range": 0.0, "particles": 600, "snr": 20.0}
    files = simulate(options(pose_error=5.0, shift_error=3.0, **rigid), tmp_path / "wrong")
    right = simulate(options(**rigid), tmp_path / "right")
    truth, particles = load_truth(files.truth), starfile.read(files.particles)["particles"]
    given = torch.tensor(particles[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()).deg2rad()
    errors = rotation_matrices(given) @ rotation_matrices(truth.euler.double()).transpose(1, 2)
    angles = np.rad2deg(Rotation.from_matrix(errors.numpy()).magnitude())
    assert abs((angles**2).mean() ** 0.5 / 5 - 1) < 0.1
    shifts = particles[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy() - truth.origins.numpy()
    assert abs((shifts**2).sum(1).mean() ** 0.5 / 3 - 1) < 0.1
    assert torch.allclose(rotation_matrices(truth.star_euler), rotation_matrices(given).float(), atol=1e-5)
    # The images are the same; the consensus is blurred by the errors.
    assert files.stack.read_bytes()[1024:] == right.stack.read_bytes()[1024:]
    sharp, blurred = (mean_fsc(torch.tensor(mrcfile.read(f.consensus)), truth.true_map(), MASK) for f in (right, files))
    assert sharp > blurred + 0.05


def test_preferred_views_lie_in_the_cone_and_the_others_anywhere():
    tilt = truth_of(cone=15.0, cone_fraction=0.85, particles=2000).euler[:, 1].cos().abs()
    inside = (tilt > np.cos(np.deg2rad(15))).float().mean()
    # A few of the uniform ones lie in the cone by chance.
    assert abs(inside - (0.85 + 0.15 * (1 - np.cos(np.deg2rad(15))))) < 0.03
    assert tilt.min() < 0.1


def test_cryobench_defines_the_ratio_by_all_pixels_of_the_images_after_the_ctf(tmp_path):
    files = simulate(options(snr=0.05, snr_definition="cryobench", particles=100), tmp_path)
    truth = load_truth(files.truth)
    clean = fourier_to_image(truth.clean_transforms(slice(None)), truth.box)
    assert abs(float(clean.var(correction=0)) / 0.05 - 1) < 1e-3


def test_truth_reads_back_and_files_of_version_0_1_0_are_understood(tmp_path):
    part = f"{FAB}; pivot H/213/CA; cone 70; twist 90; missing 0.3"
    files = simulate(options(part, particles=20, junk=0.2, junk_content="other", pose_error=2.0), tmp_path / "new")
    truth, again = truth_of(part, particles=20, junk=0.2, junk_content="other", pose_error=2.0), load_truth(files.truth)
    for name in ("motions", "euler", "star_euler"):
        assert torch.allclose(getattr(truth, name), getattr(again, name), atol=1e-5)
    for name in ("present", "content", "origins", "star_origins"):
        assert torch.equal(getattr(truth, name), getattr(again, name))
    assert torch.equal(truth.other.positions, again.other.positions)
    with np.load(simulate(options(particles=20), tmp_path / "old").truth) as data:
        old = {n: data[n] for n in data.files if n not in ("rotations", "shifts", "present", "content")}
    old = {name: values for name, values in old.items() if not name.startswith(("star_", "other_"))}
    np.savez(tmp_path / "old.npz", **old)
    before, after = load_truth(tmp_path / "old.npz"), load_truth(tmp_path / "old" / "truth.npz")
    assert torch.allclose(before.positions(slice(None)), after.positions(slice(None)), atol=1e-4)
    images, again = before.project(slice(None)), after.project(slice(None))
    assert (images - again).norm() < 1e-4 * again.norm()


def test_points_of_any_conformation_move_with_their_parts():
    truth = truth_of(
        f"{FAB}; pivot H/213/CA; cone 70; twist 90; shift 5", f"{OTHER_FAB}; {OTHER_AXIS}; range 60", box=48
    )
    frame, atoms = truth.motions[7], truth.positions(slice(7, 8))[0]
    apart = torch.cdist(atoms, atoms).topk(2, largest=False).values[:, 1] > 0.5
    found = atoms + truth.displacements(atoms, slice(0, 20), frame)
    assert torch.allclose(found[:, apart], truth.positions(slice(0, 20))[:, apart], atol=1e-2)
    labels, rest = truth.at_rest(atoms, frame)
    assert torch.allclose(truth.molecule.move(rest, labels, frame[None])[0], atoms, atol=1e-3)


def test_the_oracle_of_two_parts_is_that_of_all_their_pairs():
    """The mean-field posterior of each part has the mean of the exact one, which tries all pairs of motions."""
    truth = truth_of(f"{FAB}; {AXIS}; range 40", f"{OTHER_FAB}; {OTHER_AXIS}; range 40", particles=24)
    truth.scale = 0.007
    rows = torch.arange(24)
    images = noisy_images(truth, slice(0, 24), white_noise(truth, slice(0, 24), torch.Generator().manual_seed(1)))
    grid = torch.deg2rad(torch.linspace(-38, 38, 13))
    candidates = [truth.molecule.motions(grid[:, None].expand(-1, 2))[:, k] for k in range(2)]
    found = [posterior @ grid for posterior in oracle_posteriors(images, truth, candidates, rows)]
    logits = torch.zeros(24, 13, 13)
    for i, first in enumerate(grid):
        for j, second in enumerate(grid):
            clean = truth.clean_transforms(rows, torch.stack([first, second]).expand(24, -1))
            logits[:, i, j] = -0.5 * (images - fourier_to_image(clean, truth.box)).square().sum((1, 2))
    joint = torch.softmax(logits.flatten(1), 1).reshape(24, 13, 13)
    exact = [joint.sum(2) @ grid, joint.sum(1) @ grid]
    deviation = (joint.sum(2) @ grid.square() - exact[0].square()).sqrt()
    assert 0.05 < deviation.mean() < 0.35
    for mine, other in zip(found, exact, strict=True):
        assert (mine - other).square().mean().sqrt() < 0.3 * deviation.mean()


def test_the_slope_of_rotations_holds_over_the_whole_circle():
    generator = torch.Generator().manual_seed(0)
    true = (2 * torch.rand(2000, generator=generator) - 1) * torch.pi
    noise = 0.5 * torch.randn(2000, generator=generator)
    assert abs(turn_slope((true + 1 + noise).remainder(2 * torch.pi), true) - 1) < 0.05
    assert abs(turn_slope(0.5 * true + noise, true) - 0.5) < 0.05
    assert abs(turn_slope(noise, true)) < 0.05
