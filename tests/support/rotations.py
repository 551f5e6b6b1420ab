"""Rotations about axes, independent of the libraries that the engine uses."""

import torch


def axis_rotations(axis: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Return the matrices of rotations about one axis (Rodrigues' formula).

    Parameters
    ----------
    axis
        (3,) direction; need not be of unit length.
    angles
        (...,) radians, right-handed about `axis`.

    Returns
    -------
    torch.Tensor
        (..., 3, 3) matrices.
    """
    x, y, z = (axis / axis.norm()).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=angles.dtype, device=angles.device)
    angles = angles[..., None, None]
    identity = torch.eye(3, dtype=angles.dtype, device=angles.device)
    return identity + torch.sin(angles) * cross + (1 - torch.cos(angles)) * (cross @ cross)
