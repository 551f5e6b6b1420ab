"""Run by torchrun: what the processes compute together must be what each of them computes alone.

torchrun --nproc-per-node 4 tests/support/shared_work.py
"""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from dynamight_core import processes
from dynamight_core.groups import ALONE, collect, current_group, exchange, own_halves, within, world
from dynamight_core.options import TrainOptions
from dynamight_core.training.amplitude import motion_amplitude
from dynamight_core.training.convergence import fixed_loss
from dynamight_core.training.epochs import balance_regularisation, run_epoch
from dynamight_core.training.fit import grey_scale
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import data_terms, infer_latents, random_pixels
from dynamight_core.training.linear import linear_motions
from dynamight_core.training.nodes import particle_sums
from dynamight_core.training.poses import most_likely_poses
from dynamight_core.training.reference import update_references
from dynamight_core.training.refit import deformed_map
from dynamight_core.training.schedule import Epoch
from tests.support.known_motion import known_motion, untrained

N = 150
CLOSE = 1e-4


def trainer_of(**options):
    """Return a trainer that has found the known motion, in the same state each time."""
    model, data, latents = known_motion(N)
    chosen = TrainOptions(n_latents=2, batch_size=50, **options)
    rows = torch.arange(N - 30)
    trainer = HalfTrainer(model, data, rows, chosen, 1, torch.arange(N - 30, N), torch.arange(N - 10, N))
    trainer.latents, trainer.started = latents[rows], True
    model.decoder.requires_grad_(True)
    trainer.scale_regularisation(0.2)
    trainer.rebuild_graph()
    return trainer


def epoch(kind, **options):
    """Return the values of a model and its metrics after an epoch."""

    def work():
        trainer = trainer_of(**options)
        means = run_epoch(trainer, Epoch(kind, sparse=0.1), 3)
        state = trainer.model.state_dict().values()
        return torch.tensor([*means.losses.values(), means.motion]), *state

    return work


def noise_and_loss():
    trainer = trainer_of()
    trainer.estimate_noise(True)
    balance_regularisation(trainer, 1)
    return trainer.model.noise_power, torch.tensor([fixed_loss(trainer), trainer.stiffness])


def inferred():
    trainer = trainer_of()
    energy = trainer.infer(steps=2, others=4)
    posterior = infer_latents(
        trainer.model, trainer.data, trainer.held_out, trainer.model.latent_starts(30), 3, None, True
    )
    pixels = random_pixels(30, trainer.model.box, torch.Generator().manual_seed(0))
    terms = data_terms(trainer.model, trainer.data, trainer.held_out, posterior.latents, pixels)
    size = motion_amplitude(trainer, trainer.held_out)
    found = posterior.latents, posterior.covariances, terms, trainer.latents, trainer.covariances
    return *found, torch.tensor([energy, size.slope, size.error, size.gain]), *trainer.encode_all()


def maps():
    trainer = trainer_of()
    mask = np.ones((trainer.model.box,) * 3, dtype=bool)
    sums = particle_sums(trainer, torch.arange(40))
    return (
        deformed_map(trainer, mask),
        sums.images(),
        torch.tensor(grey_scale(trainer.model, trainer.data, trainer.rows)),
    )


def poses():
    trainer = trainer_of()
    return (most_likely_poses(trainer.model, trainer.data, trainer.rows, trainer.latents),)


def linear():
    model, data, _ = known_motion(400)
    trainer = untrained(model, data, torch.arange(400))
    trainer.estimate_noise(False)
    motions = linear_motions(trainer, 2)
    return motions.fields, motions.latents, motions.spheres, torch.tensor([motions.gain, motions.resolution])


def reference():
    trainer = trainer_of()
    moved = update_references((trainer,))
    return torch.tensor(moved), *trainer.model.state_dict().values()


WORK = {
    "warm-up": epoch("warm-up"),
    "encoder": epoch("encoder", encoder_epochs=3),
    "encoder, validation": epoch("encoder", encoder_epochs=3, validation_trains_encoders=True),
    "refinement": epoch("refinement"),
    "refinement, dynamic": epoch("refinement", regularisation="dynamic"),
    "reference": epoch("reference"),
    "noise and loss": noise_and_loss,
    "inference": inferred,
    "maps": maps,
    "poses": poses,
    "reference update": reference,
    "linear": linear,
}


def check_messages():
    """Check what a group does with rows, sums, values and half-sets."""
    group = world()
    rows = torch.arange(11)
    assert group.gather(group.shard(rows)).tolist() == rows.tolist()
    assert group.gather(group.shard(rows[:2])[:, None].float()).tolist() == [[0.0], [1.0]]
    dealt = [0, 1, 2][: group.size] if group.size < 4 else None
    mine, share = group.deal(3)
    total = torch.tensor([share, float(len(mine)) * bool(share)])
    group.sum_(total)
    assert total.tolist() == [1.0, 3.0], dealt
    assert group.agreed({"rank": group.rank, "where": torch.full((2,), group.rank)})["where"].tolist() == [0, 0]
    assert group.once(lambda: f"only {group.rank}") == "only 0"
    value = torch.full((), float(group.rank + 1), requires_grad=True)
    # Of the square of a sum: twice the sum, for each process once.
    (group.total(value).square() / group.size).backward()
    assert value.grad == group.size * (group.size + 1)
    halves, own = own_halves((1, 2))
    assert len(halves) == 1
    with within(own):
        members = torch.ones(3)
        current_group().sum_(members)
        # Half-sets are not mixed: every member is of this one.
        assert members.tolist() == [own.size] * 3
    assert exchange({halves[0]: torch.tensor(halves[0] * 10)}) == {1: 10, 2: 20}
    assert collect({halves[0]: halves[0]}) == ({1: 1, 2: 2} if processes.is_first() else {})


def check_traffic():
    """Check that a step sends its gradients once, and an inference what it has found."""
    trainer = trainer_of()
    trainer.encoded = trainer.encoded[:0]
    trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    steps = len(trainer.batches(3)[0])
    with within(world()):
        before = dict(world().sent)
        run_epoch(trainer, Epoch("refinement", sparse=0.1), 3)
        middle = dict(world().sent)
        infer_latents(trainer.model, trainer.data, trainer.held_out, [trainer.latents[:30]], 1)
    gradients = (middle["sum"] - before["sum"]) / steps
    # Restraints add some numbers to a step, and metrics some to an epoch.
    assert 4 * trained * 0.99 < gradients < 4 * trained + 200, (gradients, trained)
    gathered = world().sent["gather"] - middle.get("gather", 0)
    assert gathered * world().size == 30 * 4 * (2 + 4 + 1), gathered


def main():
    torch.set_num_threads(1)
    check_messages()
    check_traffic()
    for name, work in WORK.items():
        with within(ALONE):
            alone = copy.deepcopy(work())
        with within(world()):
            together = work()
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            one, other = one.detach().double(), other.detach().double()
            difference = float((one - other).norm() / one.norm().clamp(min=1e-9))
            if difference > CLOSE:
                raise AssertionError(f"{name}, value {number}: {difference:.2g} of {tuple(one.shape)}")
        if processes.is_first():
            print(f"{name}: as one process", flush=True)


if __name__ == "__main__":
    main()
