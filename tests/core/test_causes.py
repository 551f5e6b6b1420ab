"""What differs between particles is named: poses, composition, duplicates, and motion only beyond them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from roma import rotvec_to_rotmat

from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier
from dynamight_core.judging.causes import SUSPECTED, Evidence, find_causes, with_rivals
from dynamight_core.judging.composition import Composition, _two_groups, divide
from dynamight_core.judging.duplicates import Duplicates, find_duplicates
from dynamight_core.judging.explanations import CONTENT, EXPLANATIONS, POSE, Comparison, Explained, region_centres
from dynamight_core.judging.gathering import rigid_share
from dynamight_core.judging.transfer import Transfer, check_transfer
from dynamight_core.judging.verdict import Verdict
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.half import HalfTrainer
from tests.support.known_motion import HeldImages, known_motion

_N = 240
HELD_OUT = torch.arange(80, 120), torch.arange(200, 240)
CTF = CtfParameters.create(torch.linspace(8000.0, 25000.0, _N)[torch.arange(_N) * 7 % _N])


def still_images(poses=0.0, missing=0.0, transfer=None):
    """Return a model, images of the molecule at rest with one fault, and which particles lack a part.

    `poses` is the rms error of the orientations in degrees; `transfer` is applied instead of the stated one.
    """
    model, data, _ = known_motion(_N, noise=1.0)
    data = TrainingImages(data._images, CTF, data._matrices, data.box, data.pixel_size)
    torch.nn.init.zeros_(model.decoder.fields[-1].weight)
    model.latent_covariance.copy_(1e-2 * torch.eye(2))
    generator = torch.Generator().manual_seed(3)
    rows = torch.arange(_N)
    wrong = rotvec_to_rotmat(torch.randn(_N, 3, generator=generator) * np.deg2rad(poses) / 3**0.5)
    lacking = torch.rand(_N, generator=generator) < missing
    right = torch.ones(_N, len(model.gaussians))
    right[lacking] = (model.gaussians.positions[:, 0] < 8).float()
    applied = data.transfer(rows) if transfer is None else transfer(data.transfer(rows))
    with torch.no_grad():
        clean = model.project(wrong @ data._matrices, applied, None, right)
    noise = image_to_fourier(torch.randn(_N, data.box, data.box, generator=generator))
    image = fourier_to_image(clean + noise * float(model.noise_power[1] ** 0.5) / data.box, data.box)
    data._images = HeldImages(image)
    return model, data, lacking


def gains(comparison):
    """Return the mean gain over rest, and its standard error, of poses and of content."""
    found = {}
    for kind in (POSE, CONTENT):
        gain = comparison.gain((kind,))
        found[kind] = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
    return found


def test_errors_of_poses_are_explained_by_poses_and_measured():
    model, data, _ = still_images(poses=5.0)
    explained = Explained(model, model, data, torch.arange(120), region_centres(model))
    found = gains(explained.compare(torch.arange(120, _N), 0))
    assert found[POSE][0] > 5 * found[POSE][1]
    assert found[POSE][0] > 2 * found[CONTENT][0]
    assert explained.priors[POSE,].covariance[:3, :3].trace().sqrt().rad2deg() == pytest.approx(5, rel=0.15)


def test_a_missing_part_is_explained_by_content_and_particles_are_sorted():
    model, data, lacking = still_images(missing=0.4)
    explained = Explained(model, model, data, torch.arange(120), region_centres(model))
    found = gains(explained.compare(torch.arange(120, _N), 0))
    assert found[CONTENT][0] > 5 * found[CONTENT][1]
    assert found[CONTENT][0] > 2 * found[POSE][0]
    rows = torch.arange(_N)
    groups = divide((explained, explained), (CONTENT,), [rows[:120], rows[120:]])
    assert groups.distinct
    assert not groups.empty
    assert float(((groups.groups == 2) == lacking).float().mean()) > 0.95


def test_where_nothing_differs_nothing_is_gained():
    model, data, _ = still_images()
    found = gains(
        Explained(model, model, data, torch.arange(120), region_centres(model)).compare(torch.arange(120, _N), 0)
    )
    for gain, error in found.values():
        assert gain < 3 * error


def test_one_normal_distribution_is_one_group():
    values = np.random.default_rng(0).normal(size=400)
    assert _two_groups(values)[2] < 0
    groups, mixed, evidence = _two_groups(np.concatenate([values[:200], values[200:] + 8]))
    assert evidence > 100
    assert mixed < 0.01
    assert abs(groups[:200].mean() - groups[200:].mean()) > 0.99


def motions_of(fields):
    """Return principal motions with these (K, m, 3) fields at given points, each varying alike."""
    generator = torch.Generator().manual_seed(1)
    coordinates = torch.randn(200, len(fields), generator=generator)
    return PrincipalMotions(POINTS, torch.zeros_like(POINTS), fields, coordinates, torch.ones(len(fields)))


POINTS = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 20


def test_the_rigid_share_is_that_of_rotations_and_shifts_of_the_whole():
    turn = torch.linalg.cross(torch.tensor([0.0, 0, 1]).expand_as(POINTS), POINTS) + torch.tensor([1.0, 2, 3])
    assert rigid_share(motions_of(turn[None])) == pytest.approx(1, abs=1e-4)
    breathing = POINTS - POINTS.mean(0)
    assert rigid_share(motions_of(breathing[None])) < 0.05


def test_images_with_the_same_noise_are_found_across_half_sets():
    model, data, _ = still_images()
    images = data._images._images.clone()
    # The last ten show the particles of the first ten, cut out a pixel apart.
    images[-10:] = images[:10].roll((1, 0), (1, 2))
    data._images = HeldImages(images)
    data._matrices[-10:] = data._matrices[:10]
    halves = torch.ones(_N, dtype=torch.long)
    halves[_N // 2 :] = 2
    particles = SimpleNamespace(
        ctf=CtfParameters.create(torch.full((_N,), 15000.0)),
        matrices=data._matrices,
        image_groups=torch.arange(_N),
    )
    found = find_duplicates(particles, torch.arange(_N), (model, model), data, halves)
    assert found.fraction == pytest.approx(20 / _N)
    assert "noise" in found.reason


@pytest.mark.parametrize("applied, expected", [(None, None), (torch.abs, "flipped"), (torch.square, "premultiplied")])
def test_other_transfer_functions_are_recognised(applied, expected):
    model, data, _ = still_images(transfer=applied)
    trainers = [
        HalfTrainer(model, data, torch.arange(first, first + 80), TrainOptions(n_latents=2), half, HELD_OUT[half - 1])
        for half, first in ((1, 0), (2, _N // 2))
    ]
    found = check_transfer((trainers[0], trainers[1]), (model, model), CTF)
    best = max(found.gains, key=lambda name: found.gains[name])
    assert (best if found.gains[best] > 3 * found.errors[best] else None) == expected
    if expected is None:
        assert abs(found.defocus - 1) < 3 * found.defocus_error + 0.01


def evidence(composition=None, **means):
    """Return evidence with these mean gains over rest by explanation, each with an error of about 0.1."""
    generator = torch.Generator().manual_seed(2)
    misfits = {kinds: torch.zeros(100) for kinds in EXPLANATIONS}
    for kinds in EXPLANATIONS[1:]:
        spread = torch.randn(100, generator=generator)
        misfits[kinds] = spread - spread.mean() - means.get("_".join(kinds), 0.0)
    halves = [Comparison(torch.arange(50), {k: v[50 * h :][:50] for k, v in misfits.items()}) for h in (0, 1)]
    transfer = Transfer({"flipped": -1.0, "premultiplied": -1.0}, {"flipped": 0.1, "premultiplied": 0.1}, 1.0, 0.01)
    duplicates = Duplicates(0.0, 0.0, "")
    everything = torch.ones(100, dtype=torch.bool)
    return Evidence(
        (halves[0], halves[1]),
        torch.arange(100),
        everything,
        5.0,
        0.1,
        0.95,
        composition,
        duplicates,
        transfer,
        2.0,
        1000,
    )


SUPPORTED = Verdict("supported", 3.0, 0.1, -1.0, 0.1, 100, "Motion is supported.")
GROUPS = Composition(torch.ones(10, dtype=torch.long), 0.4, 0.01, 500.0, (1.1, 0.8), 0.2, 1.0)


def decided(verdict, given):
    """Return the verdict beside other causes, and what was found by name."""
    causes = find_causes(verdict, given)
    return with_rivals(verdict, given, causes), {cause.name: cause.found for cause in causes if cause.found}


def test_motion_stays_supported_where_it_explains_more_than_others():
    verdict, found = decided(SUPPORTED, evidence(motion=3, pose=1, content=1.5, motion_pose=3, motion_content=3))
    assert (verdict.verdict, verdict.cause, found) == ("supported", "", {})


def test_errors_of_poses_replace_motion():
    verdict, found = decided(SUPPORTED, evidence(motion=3, pose=3, motion_pose=3, motion_content=3))
    assert (verdict.verdict, verdict.cause) == ("not supported", "poses")
    assert verdict.sentence.startswith("Not motion: errors of poses")
    assert found == {"poses": True}


def test_composition_replaces_motion_and_may_accompany_it():
    verdict, found = decided(SUPPORTED, evidence(GROUPS, motion=2, content=4, motion_pose=2, motion_content=4))
    assert (verdict.verdict, verdict.cause, found) == ("not supported", "composition", {"composition": True})
    verdict, found = decided(SUPPORTED, evidence(GROUPS, motion=3, content=3, motion_pose=3, motion_content=5))
    assert (verdict.verdict, verdict.cause, found) == ("supported", "", {"composition": True})


def test_density_at_two_places_is_no_difference_in_composition():
    moved = replace(GROUPS, mass=(1.01, 0.99), net=0.1)
    verdict, found = decided(SUPPORTED, evidence(moved, motion=2, content=4, motion_pose=2, motion_content=4))
    assert (verdict.verdict, verdict.cause, found) == ("supported", "", {})


def test_images_without_most_of_the_molecule_are_junk():
    empty = Composition(GROUPS.groups, 0.2, 0.01, 500.0, (1.2, 0.1), 1.0, 1.0)
    _, found = decided(SUPPORTED, evidence(empty, motion=2, content=4, motion_pose=2, motion_content=4))
    assert found == {"junk": True}


def test_poses_that_explain_some_of_a_motion_leave_it_and_nearly_all_of_it_replace_it():
    verdict, found = decided(SUPPORTED, evidence(motion=1.6, pose=0.9, motion_pose=1.2, motion_content=1.6))
    assert (verdict.verdict, verdict.cause, found) == ("supported", "", {})
    verdict, found = decided(SUPPORTED, evidence(motion=1.6, pose=1.1, motion_pose=1.5, motion_content=1.6))
    assert (verdict.verdict, verdict.cause, found) == ("undecided", "poses", {"poses": SUSPECTED})
    verdict, found = decided(SUPPORTED, evidence(motion=1.6, pose=1.45, motion_pose=1.9, motion_content=1.6))
    assert (verdict.verdict, verdict.cause, found) == ("not supported", "poses", {"poses": True})
    verdict, found = decided(SUPPORTED, evidence(motion=0.25, pose=0.25, motion_pose=0.3, motion_content=0.25))
    assert (verdict.cause, found) == ("poses", {"poses": SUSPECTED})


def test_too_little_data_says_how_many_particles_would_do():
    undecided = Verdict("undecided", 0.2, 0.1, 0.0, 0.1, 100, "Undecided.")
    causes = {cause.name: cause for cause in find_causes(undecided, evidence())}
    assert causes["too little data"].found is True
    # Three errors at 1.5 times as far: 2.25 times the particles.
    assert "2,200" in causes["too little data"].next_step or "2,300" in causes["too little data"].next_step


def test_a_motion_that_loses_most_of_its_gain_beside_composition_is_undecided():
    given = evidence(GROUPS, motion=2, content=3, motion_pose=2, motion_content=3.6)
    verdict, found = decided(SUPPORTED, given)
    assert (verdict.verdict, verdict.cause, found) == ("undecided", "composition", {"composition": True})


def test_motion_is_seen_beside_composition_where_it_alone_is_undecided():
    alone = Verdict("undecided", 1.0, 0.4, -1.0, 0.1, 100, "Undecided.")
    verdict, _ = decided(alone, evidence(GROUPS, motion=1, content=3, motion_pose=1, motion_content=5))
    assert (verdict.verdict, verdict.cause) == ("supported", "")
    assert "beside another cause" in verdict.sentence


def test_poses_that_explain_nearly_all_of_a_motion_replace_it():
    verdict, found = decided(SUPPORTED, evidence(motion=10, pose=9, motion_pose=10, motion_content=10))
    assert (verdict.verdict, verdict.cause, found) == ("not supported", "poses", {"poses": True})


def test_where_images_lack_the_molecule_motion_is_judged_on_the_others():
    empty = Composition(GROUPS.groups, 0.2, 0.01, 500.0, (1.2, 0.1), 1.0, 1.0)
    given = evidence(empty, motion=2, content=4, motion_pose=2, motion_content=4)
    # Motion explains the images of the molecule, and content the others.
    shown = torch.arange(100) % 5 > 0
    for comparison, half in zip(given.comparisons, shown.split(50), strict=True):
        for kinds, misfit in comparison.misfits.items():
            misfit[half] -= 0.0 if kinds == ("content",) else 3.0 * ("motion" in kinds)
            misfit[half] += 5.0 * (kinds == ("content",))
    given.molecules = shown
    verdict, found = decided(SUPPORTED, given)
    assert (verdict.verdict, verdict.cause) == ("supported", "")
    assert found["junk"] is True
