"""The detection limit: how much motion could go undetected at the noise level and particle count of a run.

Finding a direction of motion among p directions is finding the leading principal component of noisy data. With n
samples and a signal-to-noise ratio x along the direction, this requires x > sqrt(p / n) (Baik, Ben Arous & Peche,
Annals of Probability 2005). Here x is the power by which the motion changes the images of a particle, in units of their
noise, and p is the number of smooth deformations of a molecule.
"""

import math
from collections.abc import Sequence

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import TrainingImages

# Training needs about this factor more than the theoretical bound. Of simulated hinges (benchmarks/engine.py), those 2
# and 4 times as strong as the bound were missed, and those 20 times as strong were found.
_MARGIN = 4.0
# Smooth deformations have three components in each independent region, a third of the molecule's diameter wide.
_DIMENSIONS = 3 * 3**3
# Trial motions: caps with these fractions of the Gaussians rotate about their joint with the rest, each in several
# random directions.
_FRACTIONS, _DIRECTIONS = (0.1, 0.2, 0.4), 4
_IMAGES = 128
# Quantile of the trial motions' limits that is reported.
_QUANTILE = 0.75
# Initial size of a trial motion, A rms over the molecule.
_START = 2.0


@torch.no_grad()
def unseen_motion(
    models: tuple[HalfModel, HalfModel], data: TrainingImages, rows: Sequence[torch.Tensor], seed: int
) -> float:
    """Return the motion (A rms over the molecule) below which the less visible motions can go undetected.

    Parameters
    ----------
    models
        of both half-sets.
    data
        training images; only their transfer functions and poses are used.
    rows
        (n,) training particles of each half-set.
    seed
        of the random trial motions.
    """
    limits = [_limit(model, data, rows[half], seed * 10 + half) for half, model in enumerate(models)]
    return sum(limits) / len(limits)


def _limit(model: HalfModel, data: TrainingImages, rows: torch.Tensor, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    positions = model.gaussians.positions
    caps = [_cap(positions, fraction, generator) for fraction in _FRACTIONS for _ in range(_DIRECTIONS)]
    chosen = rows[torch.randperm(len(rows), generator=generator)[: data.at_once(_IMAGES)]]
    needed = _MARGIN * math.sqrt(_DIMENSIONS / len(rows))
    # However noisy the images, the motion is not larger than the molecule.
    largest = float((positions - positions.mean(0)).norm(dim=1).max())
    views, weights = [], model.seen_weights()
    for part in chosen.split(data.at_once(64)):
        batch = data.batch(part).within(weights)
        views.append((batch.matrices, batch.transfer, model.project(batch.matrices, batch.transfer)))
    limits = []
    for cap in caps:
        limit = _START
        # The change of an image grows more slowly than the square of the motion: measure it near the limit.
        for _ in range(3):
            power = _change(model, views, positions + _rotated(positions, *cap, limit)) / len(chosen)
            limit = min(largest, limit * math.sqrt(needed / max(power, 1e-12)))
        limits.append(limit)
    return float(torch.tensor(limits).quantile(_QUANTILE))


def _change(
    model: HalfModel, views: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], moved: torch.Tensor
) -> float:
    """Return the power, in units of the noise, by which (n, 3) moved positions change images, summed over images.

    Each view has (b, 3, 3) matrices, (b, box, box//2+1) transfer functions and the model's images without motion.
    """
    weights = model.seen_weights()
    power = 0.0
    for matrices, transfer, rest in views:
        change = model.project(matrices, transfer, moved.expand(len(matrices), -1, -1)) - rest
        power += float((change.abs().square() * weights).sum())
    return power


def _cap(
    positions: torch.Tensor, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the (n,) bool cap of a molecule in a random direction, and the (3,) point and axis of its rotation."""
    direction, other = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator).to(positions), dim=1)
    height = positions @ direction
    order = height.argsort()
    cap = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    n = max(2, round(fraction * len(positions)))
    cap[order[-n:]] = True
    joint = positions[order[-n:][: max(1, n // 10)]].mean(0)
    return cap, joint, torch.nn.functional.normalize(torch.linalg.cross(direction, other), dim=0)


def _rotated(
    positions: torch.Tensor, cap: torch.Tensor, joint: torch.Tensor, axis: torch.Tensor, size: float
) -> torch.Tensor:
    """Return the (n, 3) displacement of a rotating cap, to first order, scaled to `size` A rms over the molecule."""
    shift = torch.linalg.cross(axis.expand_as(positions), positions - joint) * cap[:, None]
    return shift * (size / shift.square().sum(1).mean().sqrt())
