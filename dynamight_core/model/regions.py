"""Regions of a molecule that rotate and shift, blended where they meet: a coarse description of any deformation."""

from dataclasses import dataclass

import torch
from scipy.cluster.vq import kmeans2

from dynamight_core.imaging.poses import rotvec_to_rotmat

# Width of the blend, as a fraction of the mean distance of neighbouring centres.
_BLEND = 0.5


@dataclass(frozen=True)
class Regions:
    """Points, each of which belongs to a few of R regions.

    Parameters
    ----------
    points
        (n, 3) A.
    centres
        (R, 3) A.
    weights
        (n, R) memberships, which add up to 1.
    """

    points: torch.Tensor
    centres: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def build(cls, points: torch.Tensor, number: int, seed: int) -> "Regions":
        """Divide (n, 3) points (A) into a number of regions of about one size."""
        number = max(2, min(number, len(points) // 5))
        found = kmeans2(points.cpu().numpy().astype(float), number, minit="++", seed=seed)[0]
        return cls.around(points, torch.from_numpy(found).to(points))

    @classmethod
    def around(cls, points: torch.Tensor, centres: torch.Tensor) -> "Regions":
        """Divide (n, 3) points (A) into regions around (R, 3) centres (A)."""
        spacing = torch.cdist(centres, centres).topk(2, largest=False).values[:, 1].mean()
        squares = torch.cdist(points, centres).square()
        return cls(points, centres, torch.softmax(-squares / (2 * (_BLEND * spacing) ** 2), 1))

    def __len__(self) -> int:
        return len(self.centres)

    def at_rest(self) -> "Placement":
        """Return the placement that moves nothing."""
        rotations = torch.eye(3).to(self.centres).repeat(len(self), 1, 1)
        return Placement(rotations, self.centres)

    def move(self, placement: "Placement") -> torch.Tensor:
        """Return where the points are, (n, 3) A, under a placement of the regions."""
        offsets = placement.positions - _rotate(placement.rotations, self.centres)
        blended = self.weights @ torch.cat([placement.rotations, offsets[:, :, None]], 2).flatten(1)
        transforms = blended.reshape(-1, 3, 4)
        return _rotate(transforms[:, :, :3], self.points) + transforms[:, :, 3]


@dataclass(frozen=True)
class Placement:
    """Where regions are.

    Parameters
    ----------
    rotations
        (R, 3, 3) of each about its centre.
    positions
        (R, 3) A, of each centre.
    """

    rotations: torch.Tensor
    positions: torch.Tensor

    def shifted(self, shifts: torch.Tensor) -> "Placement":
        """Return the placement after (R, 3) shifts, A."""
        return Placement(self.rotations, self.positions + shifts)

    def repeated(self, before: "Placement") -> "Placement":
        """Return the placement one step further: the motion since `before`, repeated."""
        step = self.rotations @ before.rotations.transpose(1, 2)
        return Placement(step @ self.rotations, self.positions + _rotate(step, self.positions - before.positions))

    def turned(self, parts: torch.Tensor, vectors: torch.Tensor, shifts: torch.Tensor) -> "Placement":
        """Return the placement after each of P parts has rotated about its centre, and shifted.

        Parameters
        ----------
        parts
            (R,) part of each region, from 0 to P - 1.
        vectors
            (P, 3) rotation vectors, radians.
        shifts
            (P, 3) A.
        """
        totals = self.positions.new_zeros(len(vectors), 3).index_add_(0, parts, self.positions)
        counts = torch.bincount(parts, minlength=len(vectors)).clamp(min=1)
        centres = (totals / counts[:, None])[parts]
        rotations = rotvec_to_rotmat(vectors)[parts]
        positions = _rotate(rotations, self.positions - centres) + centres + shifts[parts]
        return Placement(rotations @ self.rotations, positions)

    def detach(self) -> "Placement":
        """Return it without a gradient."""
        return Placement(self.rotations.detach(), self.positions.detach())


def _rotate(rotations: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return (n, 3) points rotated by (n, 3, 3) matrices."""
    return (rotations @ points[..., None])[..., 0]
