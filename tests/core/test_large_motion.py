"""Large motions: followed from neighbour to neighbour in latent space."""

import numpy as np
import pytest
import torch
from roma import rotvec_to_rotmat

from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import fourier_to_image, shells
from dynamight_core.imaging.map_likelihood import MapLikelihood, likelihood_box
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.model.regions import Placement, Regions
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.large_motion import follow_large_motion
from dynamight_core.training.nodes import particle_sums
from dynamight_core.training.reference import _move, central_latents, update_references
from dynamight_core.training.schedule import Epoch
from tests.support.known_motion import HeldImages, known_motion

BOX, PIXEL = 36, 6.0
AXIS = torch.tensor([0.0, 0.0, 1.0])


def turns(angles):
    return rotvec_to_rotmat(angles[:, None] * AXIS)


def slab(size, centre, n, generator):
    return (torch.rand(n, 3, generator=generator) - 0.5) * torch.tensor(size) + torch.tensor(centre)


def turning(n=1500, held_out=150, blurred=True):
    """Return the trainer of a model whose field carries an arm around as it turns through a circle, and the angles."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    body = slab([50.0, 44.0, 40.0], [0.0, 0.0, 0.0], 250, generator)
    # Longer than wide, and another shape at each end, so that every turn shows.
    arm = slab([50.0, 22.0, 22.0], [50.0, 0.0, 0.0], 100, generator)
    arm = torch.cat([arm, slab([18.0, 22.0, 22.0], [64.0, 20.0, 0.0], 50, generator)])
    positions = torch.cat([body, arm])
    if blurred:
        # What training finds: the mean over all turns, in the middle of the arm.
        around = turns(torch.rand(150, generator=generator) * 2 * torch.pi)
        blob = arm.mean(0) + (around @ (arm - arm.mean(0))[..., None])[..., 0]
        positions = torch.cat([body + 5 * torch.randn(250, 3, generator=generator), blob])
    angles = (torch.rand(n, generator=generator) * 2 - 1) * torch.pi
    matrices = rotation_matrices(random_rotations(n, generator))
    ctf = CtfParameters.create(torch.full((n,), 15000.0))
    model = HalfModel(GaussianModel(positions, 3.0, 1.0), BOX, PIXEL, 2, "basis", 180.0)
    data = TrainingImages(HeldImages(None), ctf, matrices, BOX, PIXEL)
    arms = torch.einsum("bij,nj->bni", turns(angles), arm)
    moved = torch.cat([body.expand(n, -1, -1), arms], 1)
    with torch.no_grad():
        image = fourier_to_image(model.project(matrices, data.transfer(torch.arange(n)), moved), BOX)
    sigma = 2 * float(image.std())
    data._images = HeldImages(image + sigma * torch.randn(image.shape, generator=generator))
    model.noise_power.fill_(sigma**2 * BOX**2)
    model.resolution.fill_(20.0)
    options = TrainOptions(n_latents=2)
    trainer = HalfTrainer(model, data, torch.arange(n - held_out), options, 1, held_out=torch.arange(n - held_out, n))
    trainer.latents = torch.stack([angles.cos(), angles.sin()], 1)[:-held_out]
    trainer.covariances = trainer.covariances * 1e-4
    trainer.started = True
    trainer._set_prior(trainer.latents, trainer.covariances.mean(0))
    carried = torch.zeros(n, 400, 3)
    carried[:, 250:] = (arms.mean(1) - arm.mean(0))[:, None]
    bring_to(trainer, carried[:-held_out], positions)
    return trainer, angles[:-held_out]


def bring_to(trainer, displacements, positions):
    decoder = trainer.model.decoder
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        chosen = torch.randint(len(displacements), (32,), generator=generator)
        found = decoder.displacements(trainer.latents[chosen], positions)
        loss = (found - displacements[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def turned_by(trainer):
    """Return the angle (radians) by which the arm turns about the axis in each training particle."""
    model = trainer.model
    displaced = model.gaussians.positions + model.displacements(trainer.latents)
    arm = displaced.square().sum(-1).mean(0).sqrt() > 32
    assert 80 < arm.sum() < 200
    points = displaced[:, arm, :2] - displaced[:, arm, :2].mean(1, keepdim=True)
    first = points[:1]
    dot = (first * points).sum((1, 2))
    cross = (first[..., 0] * points[..., 1] - first[..., 1] * points[..., 0]).sum(1)
    return torch.atan2(cross, dot)


def slope(found, angles):
    """Return by how much a found angle changes where the true one does by 1, over small changes."""
    order = angles.argsort()
    true, found = angles[order], found[order]
    change, turned = true[20:] - true[:-20], found[20:] - found[:-20]
    turned = torch.atan2(turned.sin(), turned.cos())
    return float((change * turned).sum() / change.square().sum())


def test_an_arm_that_was_carried_around_turns_through_the_whole_circle():
    trainer, angles = turning()
    followed = follow_large_motion(trainer, 1)
    assert followed.taken and followed.gain > 3 * followed.gain_error
    assert "continues from it" in followed.sentence
    found = turned_by(trainer)
    assert slope(found, angles) == pytest.approx(1, abs=0.1)
    error = found - angles
    error = error - torch.atan2(error.sin().mean(), error.cos().mean())
    assert torch.atan2(error.sin(), error.cos()).abs().median() < 0.2


def test_a_field_that_explains_the_images_is_kept():
    trainer, angles = turning(900, blurred=False)
    arm = trainer.model.gaussians.positions.detach()[250:]
    wanted = torch.zeros(len(angles), 400, 3)
    wanted[:, 250:] = torch.einsum("bij,nj->bni", turns(angles), arm) - arm
    for _ in range(8):
        bring_to(trainer, wanted, trainer.model.gaussians.positions.detach())
    # Latents and their prior may improve.
    kept = ("gaussians.", "decoder.", "noise_power", "resolution")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items() if name.startswith(kept)}
    followed = follow_large_motion(trainer, 1)
    assert followed.gain is not None and not followed.taken
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_small_motions_are_not_followed():
    model, data, latents = known_motion()
    trainer = HalfTrainer(model, data, torch.arange(30), TrainOptions(n_latents=2), 1, held_out=torch.arange(30, 40))
    trainer.latents = 0.1 * latents[:30]
    followed = follow_large_motion(trainer, 1)
    assert followed.gain is None and "no large motion" in followed.sentence


def test_the_likelihood_of_a_map_is_that_of_its_images():
    trainer, _ = turning(300, 50, blurred=False)
    model, resolution = trainer.model, 18.0
    sums = particle_sums(trainer, torch.arange(250))
    likelihood = MapLikelihood.of(sums, 250, PIXEL, resolution)
    box = likelihood_box(BOX, PIXEL, resolution)
    assert box < BOX
    batch = trainer.data.batch(torch.arange(250))
    # Registration looks at a softly filtered map, which training does not.
    soft = torch.exp(-((shells(BOX) / (BOX * PIXEL) * resolution) ** 4))
    weights = model.frequency_weights(0) * soft * (shells(BOX) < box // 2)
    by_images, by_map = [], []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for size in (0.0, 4.0, 8.0):
            positions = model.gaussians.positions + size * torch.randn(400, 3, generator=generator)
            residual = model.project(batch.matrices, batch.transfer, positions.expand(250, -1, -1)) - batch.transforms
            by_images.append(0.5 * float((residual.abs().square() * weights).sum()) / 250)
            scale = (BOX / box) ** 3
            by_map.append(
                float(likelihood.energy(scale * model.gaussians.transform(box, PIXEL * BOX / box, positions)))
            )
    changes = torch.tensor(by_images).diff()
    # Points are spread on grids of other sizes, whose aliases differ.
    torch.testing.assert_close(torch.tensor(by_map).diff(), changes, rtol=0, atol=0.1 * float(changes.abs().max()))


def test_regions_that_move_as_one_move_their_points_rigidly():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * 20
    regions = Regions.build(points, 8, 0)
    torch.testing.assert_close(regions.move(regions.at_rest()), points, atol=1e-4, rtol=0)
    vector, shift = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[4.0, 5.0, -6.0]])
    together = torch.zeros(len(regions), dtype=torch.long)
    placement = regions.at_rest().turned(together, vector, shift)
    rotation, centre = rotvec_to_rotmat(vector)[0], regions.centres.mean(0)
    expected = (points - centre) @ rotation.T + centre + shift
    torch.testing.assert_close(regions.move(placement), expected, atol=1e-3, rtol=0)


def test_a_motion_repeated_goes_on_about_its_own_centre():
    start = Placement(torch.eye(3)[None], torch.tensor([[10.0, 0.0, 0.0]]))
    step = turns(torch.tensor([0.5]))
    once = Placement(step, (step @ start.positions[..., None])[..., 0])
    twice = once.repeated(start)
    torch.testing.assert_close(twice.rotations, step @ step)
    torch.testing.assert_close(twice.positions, (step @ once.positions[..., None])[..., 0], atol=1e-4, rtol=0)


def whole_turns(trainer, angles):
    """Bring the decoder to the true motion."""
    positions = trainer.model.gaussians.positions.detach()
    arm, wanted = positions[250:], torch.zeros(len(angles), 400, 3)
    wanted[:, 250:] = torch.einsum("bij,nj->bni", turns(angles), arm) - arm
    for _ in range(4):
        bring_to(trainer, wanted, positions)


def test_a_reference_that_moves_far_leaves_the_conformations_of_particles():
    trainers = [turning(500, 100, blurred=False) for _ in range(2)]
    for trainer, angles in trainers:
        whole_turns(trainer, angles)
    first, second = (trainer for trainer, _ in trainers)
    second.half = 2
    # The first half's reference lies a quarter of a turn away.
    quarter = first.latents[(trainers[0][1] - torch.pi / 2).abs().argsort()[:20]]
    with torch.no_grad():
        _move(first, quarter)
        before = second.model.gaussians.positions + second.model.displacements(second.latents)
        update_references((first, second))
        after = second.model.gaussians.positions + second.model.displacements(second.latents)
    here = second.model.gaussians.positions.detach()[250:].mean(0)
    assert torch.atan2(here[1], here[0]) == pytest.approx(np.pi / 2, abs=0.4)
    assert (after - before).square().sum(-1).mean().sqrt() < 4


def test_on_a_circle_the_consensus_frame_is_one_conformation_in_both_halves():
    def on_circle(start):
        model = HalfModel(GaussianModel(torch.zeros(1, 3), 3.0, 1.0), BOX, PIXEL, 1, "basis", 100.0)
        model.displacements = lambda latents: 40 * circle(latents + start)
        model.evaluator = lambda positions: model.displacements
        return model

    def circle(angles):
        return torch.cat([angles.cos(), angles.sin(), 0 * angles], 1)[:, None]

    models, angles = {1: on_circle(0.0), 2: on_circle(2.0)}, torch.linspace(-np.pi, np.pi, 300)[:-1, None]
    chosen = central_latents(models, {1: angles, 2: angles})
    frames = [models[half].displacements(latents).mean(0)[0] for half, latents in sorted(chosen.items())]
    assert all(frame.norm() > 30 for frame in frames)
    assert (frames[0] - frames[1]).norm() < 12


def test_a_reference_update_counts_the_turn_of_a_part():
    """Without it, moves of the reference average out over a circle of turns."""
    trainer, angles = turning(500, 100, blurred=False)
    positions = trainer.model.gaussians.positions
    arm = positions.detach()[250:].clone()
    wanted = torch.zeros(len(angles), 400, 3)
    wanted[:, 250:] = torch.einsum("bij,nj->bni", turns(angles), arm) - arm
    for _ in range(4):
        bring_to(trainer, wanted, positions.detach())
    true = positions.detach()[250:].clone()
    positions.data[250:] += torch.tensor([0.0, 3.0, 0.0])
    for number in range(10):
        run_epoch(trainer, Epoch("reference"), number)
    assert (positions.detach()[250:] - true).mean(0)[1].abs() < 1.5
