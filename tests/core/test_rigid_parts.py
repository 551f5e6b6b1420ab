"""Rigid parts: found in a field that carries them along, and taken where they explain images better."""

import numpy as np
import torch
from roma import rotvec_to_rotmat

from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import fourier_to_image
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.model.partition import connected_parts, divisions
from dynamight_core.options import TrainOptions
from dynamight_core.training.checkpoint import checkpoint_of, load_checkpoint
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.decoder_fit import fit_decoder
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.rigid_parts import try_rigid_parts
from tests.support.known_motion import HeldImages

BOX, PIXEL, N, HELD_OUT = 32, 6.0, 600, 150
HINGE = torch.tensor([22.0, 0.0, 0.0])


def molecule(generator):
    """Return a body, and an arm that is at one side of it."""
    body = (torch.rand(250, 3, generator=generator) - 0.5) * torch.tensor([44.0, 50.0, 44.0])
    arm = (torch.rand(120, 3, generator=generator) - 0.5) * torch.tensor([40.0, 22.0, 16.0])
    return body, arm + torch.tensor([44.0, 0.0, 0.0])


def swung(arm, angles):
    """Return the (b, n, 3) displacements of the arm as it swings about z at the hinge."""
    rotations = rotvec_to_rotmat(angles[:, None] * torch.tensor([0.0, 0.0, 1.0]))
    return torch.einsum("bij,nj->bni", rotations - torch.eye(3), arm - HINGE)


def bent(arm, angles):
    """Return the (b, n, 3) displacements of the arm as it bends, more the farther it is from the hinge."""
    along = (arm[:, 0] - HINGE[0]).clamp(min=0) / 40
    still = torch.zeros(len(angles), len(arm))
    return torch.stack([still, 25 * angles[:, None] * along**2, still], -1)


def trainer_of(field, motion=swung, noise=3.0):
    """Return the trainer of a model brought to a field of (arm, angles), on images in which the arm has a motion."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    body, arm = molecule(generator)
    angles = 0.3 * torch.randn(N, generator=generator)
    matrices = rotation_matrices(random_rotations(N, generator))
    model = HalfModel(GaussianModel(torch.cat([body, arm]), 4.0, 1.0), BOX, PIXEL, 2, "basis", 180.0)
    data = TrainingImages(HeldImages(None), CtfParameters.create(torch.full((N,), 15000.0)), matrices, BOX, PIXEL)
    moved = torch.cat([body.expand(N, -1, -1), arm + motion(arm, angles)], 1)
    with torch.no_grad():
        image = fourier_to_image(model.project(matrices, data.transfer(torch.arange(N)), moved), BOX)
    sigma = noise * float(image.std())
    data._images = HeldImages(image + sigma * torch.randn(N, BOX, BOX, generator=generator))
    model.noise_power.fill_(BOX**2 * sigma**2)
    options = TrainOptions(n_latents=2, batch_size=50)
    trainer = HalfTrainer(model, data, torch.arange(N - HELD_OUT), options, 1, held_out=torch.arange(N - HELD_OUT, N))
    trainer.latents = torch.stack([angles, torch.zeros(N)], 1)[: N - HELD_OUT] / 0.3
    trainer.started = True
    wanted = torch.cat([torch.zeros(N, 250, 3), field(arm, angles)], 1)
    fit_decoder(trainer, lambda particles, chosen: wanted[particles][:, chosen])
    return trainer, arm, angles


def carried(arm, angles):
    """Return the displacements of an arm that is carried along without turning."""
    return swung(arm, angles).mean(1, keepdim=True).expand(-1, len(arm), -1)


def turned(trainer, arm, rows):
    """Return by how much the model turns the arm about z in its training particles, radians."""
    with torch.no_grad():
        shift = trainer.model.displacements(trainer.latents[rows], arm)
    arms = (arm - arm.mean(0))[:, :2]
    moved = arms + (shift - shift.mean(1, keepdim=True))[..., :2]
    cross = (arms[:, 0] * moved[..., 1] - arms[:, 1] * moved[..., 0]).sum(1)
    return torch.atan2(cross, (arms * moved).sum((1, 2)))


def test_an_arm_that_is_carried_along_is_found_to_swing_and_a_checkpoint_keeps_that(tmp_path):
    trainer, arm, angles = trainer_of(carried)
    rows = torch.arange(N - HELD_OUT)
    assert turned(trainer, arm, rows).std() < 0.1
    tried = try_rigid_parts(trainer, 1)
    assert tried.taken and tried.number == 2 and tried.gain > 0
    assert "training continues with them" in tried.sentence
    assert trainer.model.decoder_name == "bodies"
    found = turned(trainer, arm, rows)
    assert abs(np.corrcoef(found, angles[rows])[0, 1]) > 0.9
    # Within three epochs; before, it was a tenth at most.
    assert found.std() > 0.4 * angles.std()
    # Restraints of the old field are gone, and bodies are not replaced again.
    assert trainer.long_edges is None
    assert try_rigid_parts(trainer, 2) is None
    checkpoint_of(trainer, 3, {}).save(tmp_path)
    fresh, _, _ = trainer_of(carried)
    load_checkpoint(tmp_path, 3, fresh)
    assert fresh.model.decoder_name == "bodies"
    latents = trainer.latents[:5]
    assert torch.equal(fresh.model.displacements(latents), trainer.model.displacements(latents))


def test_a_field_that_bends_as_the_molecule_does_is_kept():
    trainer, _, _ = trainer_of(bent, motion=bent, noise=1.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    tried = try_rigid_parts(trainer, 1)
    assert tried.gain < 0 and not tried.taken
    assert "training continues without them" in tried.sentence
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_nothing_is_tried_without_motion_or_where_a_mask_says_what_moves():
    trainer, _, _ = trainer_of(carried)
    trainer.model.motion_mask = torch.ones(16, 16, 16)
    assert try_rigid_parts(trainer, 1) is None
    trainer.model.motion_mask = None
    trainer.latents = torch.zeros_like(trainer.latents)
    assert try_rigid_parts(trainer, 1) is None


def test_two_arms_that_move_alike_are_two_parts():
    points = np.random.default_rng(0).uniform(-1, 1, (600, 3)) * [60, 12, 12]
    left, right = points[:, 0] < -25, points[:, 0] > 25
    conformations = np.stack([points + [0, step, 0] * (left | right)[:, None] for step in (-6.0, 0.0, 6.0)])
    found, residuals = divisions(points, conformations, 6, 0.25, 0.01)
    assert len(found) == 2 and residuals[1] < 0.1 * residuals[0]
    labels = connected_parts(points, found[1])
    assert len(set(labels[left])) == len(set(labels[right])) == 1
    assert len({labels[left][0], labels[right][0], labels[~left & ~right][0]}) == 3
