"""How much motion could be there and go unseen.

What a run learns says nothing of motion that its images are too noisy or too few to show. Finding a direction of
motion among many is finding the leading principal component of noisy data: with x the ratio of signal to noise
along the direction, in p dimensions and with n samples, it can be done above x = sqrt(p / n) only (Baik, Ben Arous
& Peche, Annals of Probability 2005). Here x is the power that a motion changes an image by, in units of its noise,
and p the number of smooth deformations of a molecule.
"""

import math

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import TrainingImages

# What is learned step by step must be stronger than the least that can be found at all by about this factor: of
# simulated hinges (benchmarks/engine.py), those 2 and 4 times as strong were missed, those 20 times as strong found.
_MARGIN = 4.0
# Smooth deformations of a molecule have three components in so many independent regions: of a third of its diameter.
_DIMENSIONS = 3 * 3**3
# The motions that are tried: caps of the molecule, these shares of its Gaussians, that turn about where they join
# the rest, so many of each in random directions.
_SHARES, _DIRECTIONS = (0.1, 0.2, 0.4), 4
_PARTICLES = 128
# Three quarters of them show earlier than what is reported.
_VISIBILITY = 0.75
# Where the search starts, A rms over the molecule.
_START = 2.0


@torch.no_grad()
def unseen_motion(models: tuple[HalfModel, HalfModel], data: TrainingImages, rows, seed: int) -> float:
    """Return the motion (A rms over the molecule) up to which motion of the less visible kinds may go unseen.

    Parameters
    ----------
    models
        of both halves.
    data
        images that they were trained on; only transfer functions and poses are looked at.
    rows
        pair of (n,) training particles of each half.
    seed
        of the random motions that are tried.
    """
    limits = [_limit(model, data, rows[half], seed * 10 + half) for half, model in enumerate(models)]
    return sum(limits) / len(limits)


def _limit(model: HalfModel, data: TrainingImages, rows: torch.Tensor, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    positions = model.gaussians.positions
    caps = [_cap(positions, share, generator) for share in _SHARES for _ in range(_DIRECTIONS)]
    chosen = rows[torch.randperm(len(rows), generator=generator)[:_PARTICLES]]
    needed = _MARGIN * math.sqrt(_DIMENSIONS / len(rows))
    # Images that show nothing at all do not make a molecule move farther than it is large.
    largest = float((positions - positions.mean(0)).norm(dim=1).max())
    views = []
    for part in chosen.split(64):
        batch = data.batch(part)
        views.append((batch.matrices, batch.transfer, model.project(batch.matrices, batch.transfer)))
    limits = []
    for cap in caps:
        limit = _START
        # The change of an image grows less than with the square of the motion: measure it where it is asked about.
        for _ in range(3):
            power = _change(model, views, positions + _turned(positions, *cap, limit))
            limit = min(largest, limit * math.sqrt(needed / max(power, 1e-12)))
        limits.append(limit)
    return float(torch.tensor(limits).quantile(_VISIBILITY))


def _change(model: HalfModel, views: list[tuple], moved: torch.Tensor) -> float:
    """Return the power, in units of the noise, by which (n, 3) moved positions change an image on average.

    Each view has (b, 3, 3) matrices, (b, box, box//2+1) transfer functions and the model's images at rest.
    """
    weights = model.frequency_weights()
    power, count = 0.0, 0
    for matrices, transfer, rest in views:
        change = model.project(matrices, transfer, moved.expand(len(matrices), -1, -1)) - rest
        power += float((change.abs().square() * weights).sum())
        count += len(matrices)
    return power / count


def _cap(positions: torch.Tensor, share: float, generator: torch.Generator):
    """Return the (n,) bool cap of a molecule in a random direction, the point (3,) and axis (3,) it turns about."""
    direction, other = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator).to(positions), dim=1)
    height = positions @ direction
    order = height.argsort()
    cap = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    n = max(2, round(share * len(positions)))
    cap[order[-n:]] = True
    joint = positions[order[-n:][: max(1, n // 10)]].mean(0)
    return cap, joint, torch.nn.functional.normalize(torch.linalg.cross(direction, other), dim=0)


def _turned(positions: torch.Tensor, cap: torch.Tensor, joint, axis, size: float) -> torch.Tensor:
    """Return the (n, 3) displacement of a cap that turns, of `size` A rms over the whole molecule, to first order."""
    shift = torch.linalg.cross(axis.expand_as(positions), positions - joint) * cap[:, None]
    return shift * (size / shift.square().sum(1).mean().sqrt())
