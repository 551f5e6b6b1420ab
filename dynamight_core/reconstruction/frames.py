"""A deformation in the frame of another conformation than the consensus, in which the map is then solved."""

import torch

from dynamight_core.imaging.geometry import Evaluator, Field

# Fixed-point iteration converges fast: motion changes little between neighbouring voxels.
_STEPS = 12


class FrameField:
    """The displacements of points of a conformation z0: from x = c + delta(z0, c) to c + delta(z, c).

    Parameters
    ----------
    field
        in the consensus frame.
    latent
        (d,) of the conformation.
    """

    def __init__(self, field: Field, latent: torch.Tensor):
        self.field, self.latent = field, latent[None]

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        consensus = points
        for _ in range(_STEPS):
            consensus = points - self.field.evaluator(consensus)(self.latent)[0]
        evaluate, offset = self.field.evaluator(consensus), consensus - points
        return lambda latents: offset + evaluate(latents)
