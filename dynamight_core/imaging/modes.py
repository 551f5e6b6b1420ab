"""The deformations of a half-set as a few modes, evaluated at voxels once and not once per particle.

PCA is applied to the displacements of all particles at some points about the consensus (not about their mean, so that
without modes there is no motion). At any other point, the deformation is then a combination of K fields with the
coordinates of the particle, up to a known remainder; and each mode can have its own weight.
"""

from dataclasses import dataclass, replace

import torch

from dynamight_core.groups import current_group
from dynamight_core.image_series import ImageSeries, per_image
from dynamight_core.imaging.geometry import Field, mixed
from dynamight_core.imaging.voxels import ModalField
from dynamight_core.sampling import evenly

# Points and particles of the PCA; fields are fitted to the same particles.
_POINTS, _PARTICLES = 600, 400
_BATCH = 32
# The modes leave less than this fraction of a pixel, or are this many.
_MAX_REMAINDER, _MAX_MODES = 0.02, 24


@dataclass(frozen=True)
class Modes:
    """Deformations delta_i(x) = sum_k c_ik phi_k(x) of n particles.

    Parameters
    ----------
    field
        phi, of mean square 1 over the points of the PCA.
    coordinates
        (n, K) c, A rms.
    remainder
        A rms over particles and points that K modes do not explain.
    exact
        the field and the (n, d) latents that the modes stand for, where voxels are moved by these instead; None where
        they are moved by the modes.
    """

    field: ModalField
    coordinates: torch.Tensor
    remainder: float
    exact: tuple[Field, torch.Tensor] | None = None

    @property
    def moved_by(self) -> tuple[Field, torch.Tensor]:
        """The field that moves voxels, and its latents."""
        return (self.field, self.coordinates) if self.exact is None else self.exact

    def __len__(self) -> int:
        return self.coordinates.shape[1]

    def of_images(self, series: ImageSeries | None) -> "Modes":
        """Return the modes with the coordinates of each image's particle."""
        if series is None:
            return self
        exact = None if self.exact is None else (self.exact[0], per_image(series, self.exact[1]))
        return replace(self, coordinates=per_image(series, self.coordinates), exact=exact)

    def scaled(self, factors: torch.Tensor) -> "Modes":
        """Return the modes with coordinates times (K,) factors; modes of factor 0 are dropped."""
        kept = torch.where(factors.cpu() > 0)[0]
        field = self.field
        chosen = ModalField(lambda points: field.fields(points)[kept.to(points.device)])
        coordinates = self.coordinates[:, kept] * factors[kept].to(self.coordinates)
        return replace(self, field=chosen, coordinates=coordinates)


@torch.no_grad()
def find_modes(field: Field, latents: torch.Tensor, points: torch.Tensor, pixel_size: float) -> Modes:
    """Find the modes of n particles' deformations.

    Parameters
    ----------
    field
        in the consensus frame.
    latents
        (n, d), on the field's device.
    points
        (m, 3) of the molecule, A.
    pixel_size
        A; it sets the remainder.
    """
    n = len(latents)
    points = evenly(points, _POINTS)
    sample = latents[torch.linspace(0, n - 1, min(n, _PARTICLES)).long()]
    evaluate = field.evaluator(points)
    shifts = torch.cat([evaluate(part).flatten(1) for part in sample.split(_BATCH)])
    squares, vectors = torch.linalg.eigh(shifts @ shifts.T / (len(points) * len(sample)))
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    left = squares.flip(0).cumsum(0).flip(0)  # remainder of the first k modes, k = 0, 1, ...
    n_modes = min(int((left > (_MAX_REMAINDER * pixel_size) ** 2).sum()), _MAX_MODES)
    basis = vectors[:, :n_modes].T @ shifts
    basis = basis / basis.norm(dim=1, keepdim=True).clamp(min=1e-12) * len(points) ** 0.5
    group, own = current_group(), [basis.new_empty(0, n_modes)]
    own += [evaluate(part).flatten(1) @ basis.T for part in group.split(latents, _BATCH)]
    coordinates = group.gather(torch.cat(own)) / len(points)
    fit = torch.linalg.pinv(shifts @ basis.T / len(points))

    @torch.no_grad()
    def fields(at: torch.Tensor) -> torch.Tensor:
        return mixed(field.evaluator(at), sample, fit, _BATCH)

    remainder = float(left[n_modes].sqrt()) if n_modes < len(left) else 0.0
    return Modes(ModalField(fields), coordinates, remainder)
