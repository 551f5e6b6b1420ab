"""Whether training has converged: the loss on the same images, in the same units, in every epoch.

The loss of an epoch is in units of its noise spectrum Sigma, which is estimated again as training goes, and on the
frequencies of its low-pass filter. A better Sigma alone can make it rise. Here, the images are a fixed sample of the
training particles, Sigma and filter are those of the first epoch with motion, and latents are not drawn at random.
"""

from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.losses import data_loss

# Images that the loss is measured on.
_IMAGES = 256


@torch.no_grad()
def fixed_loss(trainer: HalfTrainer) -> float:
    """Return the mean data loss of a fixed sample of a half-set's images, in units that the first call fixes."""
    if trainer.fixed_weights is None:
        trainer.fixed_weights = trainer.model.seen_weights().clone()
    number = trainer.data.at_once(_IMAGES)
    sample = trainer.rows[:: max(1, len(trainer.rows) // number)][:number]
    group, total = current_group(), torch.zeros((), dtype=torch.float64, device=trainer.data.device)
    for rows in group.split(sample, trainer.data.at_once(128)):
        batch = trainer.data.batch(rows).within(trainer.fixed_weights)
        positions = trainer.model.gaussians.positions + trainer.model.displacements(trainer.current_latents(rows))
        total += data_loss(trainer, batch, positions, trainer.fixed_weights).double() * len(rows)
    group.sum_(total)
    return float(total) / len(sample)


@dataclass
class Rises:
    """How often the loss of a half-set has risen from one epoch to the next.

    Parameters
    ----------
    number
        of rises.
    last
        loss of the epoch before.
    """

    number: int = 0
    last: float = float("inf")

    def add(self, loss: float | None) -> None:
        """Count the loss of an epoch; None where there is no motion yet."""
        if loss is not None:
            self.number += loss > self.last
            self.last = loss
