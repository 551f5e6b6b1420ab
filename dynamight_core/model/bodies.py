"""Rigid bodies: the parts that masks divide a molecule into, and the membership of a point in each.

A point belongs to the body whose mask it lies deepest in. Depth changes evenly from point to point, so that where two
bodies meet, half-way between their masks, membership goes over from one to the other across a joint of fixed width,
however soft or wide the masks' edges are; outside the joints a point belongs to one body alone. What lies farther
outside all masks than a joint is wide belongs to the largest body.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from dynamight_core.imaging.geometry import interpolate, mask_points
from dynamight_core.imaging.masks import distance_from

# Voxels that depths are kept on, and that they are measured on, A.
_SPACING, _FINE = 3.0, 2.0
# Membership in a body falls to nothing where another is this much deeper, A; across a joint between flat faces depths
# change twice as fast as positions do.
_JOINT = 8.0
# Two bodies touch if at least this many voxels belong to both; a voxel half in either counts a quarter.
_MIN_CONTACT = 5.0


@dataclass(frozen=True)
class RigidBodies:
    """Bodies of a molecule in the frame of the consensus map.

    Parameters
    ----------
    depths
        (B, m, m, m) depth in each mask, A, negative outside, over the extent of the box, [z, y, x].
    largest
        body with most of the molecule, which stays where it is.
    pivots
        (B, 3) A, what each rotates about: the middle of its joint with its parent, or its own.
    parents
        (B,) body that each hangs on and moves along with: of those that it touches, the one by which the largest is
        reached; -1 for the largest, and where none is reached.
    centres
        (B, 3) A, centre of each.
    radii
        (B,) A, rms distance of each from its pivot.
    shares
        (B,) fraction of the molecule in each.
    """

    depths: torch.Tensor
    largest: int
    pivots: torch.Tensor
    parents: torch.Tensor
    centres: torch.Tensor
    radii: torch.Tensor
    shares: torch.Tensor

    def __len__(self) -> int:
        return len(self.depths)

    @classmethod
    def from_masks(
        cls, masks: list[NDArray[np.float32]], pixel_size: float, molecule: NDArray[np.bool_]
    ) -> "RigidBodies":
        """Divide a molecule.

        Parameters
        ----------
        masks
            two or more of (box, box, box), 0 to 1, [z, y, x].
        pixel_size
            A.
        molecule
            (box, box, box) bool, where it is.
        """
        box = molecule.shape[0]
        extent = box * pixel_size
        depths = torch.stack([_depths(mask, pixel_size) for mask in masks])
        points = torch.from_numpy(mask_points(molecule, pixel_size)).float()
        # By what lies in masks: nothing else belongs to the largest yet, and the joints are where masks meet.
        points_within = points[interpolate(depths, points, extent).amax(1) > 0]
        within = memberships(depths, None, points_within, extent)
        largest = int(within.sum(0).argmax())
        inside = memberships(depths, largest, points, extent)
        mass = inside.sum(0).clamp(min=1e-6)
        centres = inside.T @ points / mass[:, None]
        parents, pivots = _tree(within.T @ within, largest), centres.clone()
        for body in torch.where(parents >= 0)[0]:
            joint = within[:, body] * within[:, parents[body]]
            pivots[body] = joint @ points_within / joint.sum()
        squares = (points[:, None] - pivots).square().sum(-1)
        radii = ((inside * squares).sum(0) / mass).sqrt()
        return cls(depths, largest, pivots, parents, centres, radii, mass / len(points))


def _tree(contacts: torch.Tensor, root: int) -> torch.Tensor:
    """Return the (B,) parents of bodies, from their (B, B) contacts: a tree of the closest ones; -1 for roots."""
    parents = torch.full((len(contacts),), -1)
    placed = torch.zeros(len(contacts), dtype=torch.bool)
    placed[root] = True
    while not placed.all():
        open_contacts = contacts.clone()
        open_contacts[placed], open_contacts[:, ~placed] = -1, -1
        body, other = divmod(int(open_contacts.argmax()), len(contacts))
        if open_contacts[body, other] > _MIN_CONTACT:
            parents[body] = other
        else:
            # Nothing that is left touches what is placed: the next one stands by itself.
            body = int(placed.long().argmin())
        placed[body] = True
    return parents


def memberships(depths: torch.Tensor, largest: int | None, points: torch.Tensor, extent: float) -> torch.Tensor:
    """Return the (n, B) memberships of (n, 3) points (A) in bodies, from 0 to 1; those of a point add up to 1.

    Parameters
    ----------
    depths
        (B, m, m, m), as in `RigidBodies`.
    largest
        body that what lies far outside all masks belongs to; if None, it is divided as what lies inside.
    extent
        of the box, A.
    """
    return divided(interpolate(depths, points, extent), largest)


def divided(depth: torch.Tensor, largest: int | None) -> torch.Tensor:
    """Return the (n, B) memberships of points with (n, B) depths (A) in the masks of bodies; see `memberships`."""
    if largest is not None:
        others = torch.cat([depth[:, :largest], depth[:, largest + 1 :]], 1)
        depth = depth.index_copy(
            1,
            torch.tensor([largest], device=depth.device),
            torch.maximum(depth[:, [largest]], -others.amax(1, keepdim=True) - _JOINT),
        )
    behind = depth.amax(1, keepdim=True) - depth
    weights = torch.relu(1 - behind / _JOINT).square()
    return weights / weights.sum(1, keepdim=True)


def _depths(mask: NDArray[np.float32], pixel_size: float) -> torch.Tensor:
    """Return the (m, m, m) depths in a (box, box, box) mask's surface at 0.5, A, negative outside."""
    box = mask.shape[0]
    extent = box * pixel_size
    fine = _resample(mask, round(extent / _FINE))
    voxel = extent / len(fine)
    inside = fine > 0.5
    if not inside.any():
        raise ValueError("no voxel above 0.5")
    depth = distance_from(~inside, voxel) - distance_from(inside, voxel)
    # Distances go to the nearest voxel on the other side: the surface is half a voxel nearer.
    depth -= np.sign(depth) * voxel / 2
    return torch.from_numpy(_resample(ndimage.gaussian_filter(depth, 1.0), round(extent / _SPACING))).float()


def _resample(volume: NDArray[np.floating[Any]], size: int) -> NDArray[np.float32]:
    """Return a cubic volume on `size` voxels of the same extent, trilinear, origins at the middle of either."""
    box = volume.shape[0]
    scale = box / size
    resampled: NDArray[np.float32] = ndimage.affine_transform(
        volume.astype(np.float32),
        scale * np.eye(3),
        box // 2 - scale * (size // 2),
        (size,) * 3,
        order=1,
        mode="nearest",
    )
    return resampled
