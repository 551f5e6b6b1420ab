"""A deformation seen from another conformation than the consensus: the map is then solved in that frame."""

import torch

from dynamight_core.imaging.voxels import Evaluator, Field

# The motion between neighbouring voxels is small against their distance: some steps are plenty.
_STEPS = 12


class FrameField:
    """The displacements of points of a conformation z0: from x = c + delta(z0, c) to c + delta(z, c).

    Parameters
    ----------
    field
        on the consensus frame.
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
