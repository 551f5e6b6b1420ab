"""A half's deformations as a few modes: evaluated on voxels once, not once per particle.

Displacements of all particles on some points are analysed by PCA about the consensus (not about their mean, so that
no mode means no motion). What the decoder does on any other point is then a combination of K fields with the
coordinates of the particle, exact up to a stated remainder; and each mode can be weighted by what the data say of it.
"""

from dataclasses import dataclass, replace

import torch

from dynamight_core.imaging.voxels import Field, ModalField

# Points and particles that the modes are found on; fields are fitted to the same particles.
_POINTS, _PARTICLES = 600, 400
_BATCH = 32
# Modes end where what they leave is below this share of a pixel, or at this number.
_REMAINDER, _MOST = 0.02, 24


@dataclass(frozen=True)
class Modes:
    """Deformations delta_i(x) = sum_k c_ik phi_k(x) of n particles.

    Parameters
    ----------
    field
        phi, of mean square 1 over the points that the modes were found on.
    coordinates
        (n, K) c, A rms.
    remainder
        A rms over particles and points: what K modes leave out.
    """

    field: ModalField
    coordinates: torch.Tensor
    remainder: float

    def __len__(self) -> int:
        return self.coordinates.shape[1]

    def scaled(self, factors: torch.Tensor) -> "Modes":
        """Return the modes with coordinates times (K,) factors; modes of factor 0 are dropped."""
        kept = torch.where(factors.cpu() > 0)[0]
        field = self.field
        chosen = ModalField(lambda points: field.fields(points)[kept.to(points.device)])
        coordinates = self.coordinates[:, kept] * factors[kept].to(self.coordinates)
        return replace(self, field=chosen, coordinates=coordinates)


@torch.no_grad()
def find_modes(field: Field, latents: torch.Tensor, points: torch.Tensor, pixel_size: float) -> Modes:
    """Analyse the deformations of n particles.

    Parameters
    ----------
    field
        on the consensus frame.
    latents
        (n, d), on the field's device.
    points
        (m, 3) of the molecule, A.
    pixel_size
        A, what the remainder is measured by.
    """
    n = len(latents)
    points = points[torch.linspace(0, len(points) - 1, min(len(points), _POINTS)).long()]
    sample = latents[torch.linspace(0, n - 1, min(n, _PARTICLES)).long()]
    evaluate = field.evaluator(points)
    shifts = torch.cat([evaluate(part).flatten(1) for part in sample.split(_BATCH)])
    squares, vectors = torch.linalg.eigh(shifts @ shifts.T / (len(points) * len(sample)))
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    left = squares.flip(0).cumsum(0).flip(0)  # what the first k modes leave, k = 0, 1, ...
    n_modes = min(int((left > (_REMAINDER * pixel_size) ** 2).sum()), _MOST)
    basis = vectors[:, :n_modes].T @ shifts
    basis = basis / basis.norm(dim=1, keepdim=True).clamp(min=1e-12) * len(points) ** 0.5
    coordinates = torch.cat([evaluate(part).flatten(1) @ basis.T for part in latents.split(_BATCH)]) / len(points)
    fit = torch.linalg.pinv(shifts @ basis.T / len(points))

    @torch.no_grad()
    def fields(at: torch.Tensor) -> torch.Tensor:
        evaluate, total = field.evaluator(at), at.new_zeros(n_modes, len(at), 3)
        for part, weights in zip(sample.split(_BATCH), fit.split(_BATCH, 1), strict=True):
            total += torch.tensordot(weights, evaluate(part), dims=1)
        return total

    remainder = float(left[n_modes].sqrt()) if n_modes < len(left) else 0.0
    return Modes(ModalField(fields), coordinates, remainder)
