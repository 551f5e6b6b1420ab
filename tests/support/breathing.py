"""A package of one module that adds a decoder and a loss term to the engine; `extension` installs it."""

import torch
from torch import nn

from dynamight_core.model.decoders.base import Decoder
from dynamight_core.training.losses import LossTerm


class Breathing(Decoder):
    """Every particle is the reference, scaled about the centre of the box by a factor linear in the latent."""

    def __init__(self, n_latents):
        super().__init__()
        self.scale = nn.Linear(n_latents, 1, bias=False)
        nn.init.zeros_(self.scale.weight)

    @classmethod
    def build(cls, inputs):
        return cls(inputs.n_latents)

    def evaluator(self, positions):
        return lambda latents: self.scale(latents)[:, None] * positions


def drift(deformed) -> torch.Tensor:
    """Return the mean square by which molecules move as a whole, A^2."""
    return deformed.displacement.mean(1).square().sum(-1).mean()


DRIFT = LossTerm(drift)
