"""A deformation in the frame of another conformation than the consensus, in which the map is then solved."""

import numpy as np
import torch
from scipy.spatial import cKDTree

from dynamight_core.imaging.geometry import grid_points, interpolate, to_points
from dynamight_core.imaging.voxels import ModalField

# Newton steps back to the consensus, the distance (A) at which derivatives are taken, and the least determinant of the
# deformation's gradient: below, it folds.
_STEPS, _DISTANCE, _FOLDED = 5, 1.0, 0.05
# Gaussians around a point that say where it comes from, and A added to their distances.
_NEIGHBOURS, _SOFTENING = 8, 1.0
# A field is sampled this finely (A), and as far from the Gaussians.
_SPACING, _REACH = 4.0, 28.0


class StateField(ModalField):
    """The displacements of points of a state, from x to where a particle has them: sum_k (c_k - m_k) phi_k(u(x)).

    u(x) is the point of the consensus that the state has at x. The latents are coordinates c minus those of the state,
    so that they can be scaled.

    Parameters
    ----------
    field
        phi, in the consensus frame.
    state
        (K,) m, coordinates of the state.
    points
        (m, 3) of the molecule, consensus frame, A.
    """

    def __init__(self, field: ModalField, state: torch.Tensor, points: torch.Tensor):
        super().__init__(lambda at: field.fields(self.consensus(at)))
        self._field, self._state = field, state[None]
        self._shifts = field.evaluator(points)(self._state)[0]
        self.positions = points + self._shifts

    def consensus(self, points: torch.Tensor) -> torch.Tensor:
        """Return (p, 3) u of (p, 3) points x of the state, A.

        Newton's method starts where the neighbouring Gaussians come from, and keeps the iterate that comes nearest to
        x. (Where the motion turns by more than a radian, fixed-point iteration would diverge.)
        """
        distance, nearest = cKDTree(self.positions.cpu().numpy()).query(points.cpu().numpy(), k=_NEIGHBOURS)
        weight = torch.from_numpy(1 / (distance + _SOFTENING)).to(points)
        shifts = self._shifts[torch.from_numpy(nearest).to(points.device)]
        best = points - (shifts * (weight / weight.sum(1, keepdim=True))[..., None]).sum(1)
        candidate, least = best, torch.full((len(points),), torch.inf, device=points.device)
        for _ in range(_STEPS):
            moved = self._moved(candidate)
            missed = points - moved
            error = missed.square().sum(1)
            best = torch.where((error < least)[:, None], candidate, best)
            least = torch.minimum(error, least)
            axes = _DISTANCE * torch.eye(3).to(points)
            gradient = torch.stack([self._moved(candidate + axis) - moved for axis in axes], 2) / _DISTANCE
            regular = torch.linalg.det(gradient) > _FOLDED
            gradient = torch.where(regular[:, None, None], gradient, torch.eye(3).to(points))
            candidate = candidate + torch.linalg.solve(gradient, missed)
        return best

    def _moved(self, points: torch.Tensor) -> torch.Tensor:
        """Return where (p, 3) points of the consensus lie in the state, A."""
        return points + self._field.evaluator(points)(self._state)[0]


def sampled_field(field: ModalField, points: torch.Tensor, extent: float) -> ModalField:
    """Return a field that is read from a grid: as smooth as a decoder is, it need not be evaluated at every point.

    Parameters
    ----------
    field
        to sample.
    points
        (m, 3) of the molecule, A; beyond them, the field fades out.
    extent
        of the box, A.
    """
    size = 2 * int(np.ceil(extent / _SPACING / 2))
    grid = grid_points(to_points(np.arange(float(size)), size, extent / size))
    near = np.isfinite(cKDTree(points.cpu().numpy()).query(grid, distance_upper_bound=_REACH)[0])
    values = field.fields(torch.from_numpy(grid[near]).to(points))
    volume = values.new_zeros(3 * len(values), size**3)
    volume[:, torch.from_numpy(near).to(points.device)] = values.transpose(1, 2).flatten(0, 1)
    volume = volume.view(-1, size, size, size)
    return ModalField(lambda at: interpolate(volume, at, extent, "zeros").T.unflatten(0, (-1, 3)).transpose(1, 2))
