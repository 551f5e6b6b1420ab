"""Particle orientations: RELION's ZYZ Euler angles and rotation matrices.

A matrix A takes volume coordinates to image coordinates, ``x_image = A x_volume``; the projection runs along z of the
image frame. Rotation vectors are left to roma (with gradients) and scipy. See docs/conventions.md.
"""

import torch


def rotvec_to_rotmat(vectors: torch.Tensor) -> torch.Tensor:
    """Return the (..., 3, 3) rotation matrices of (..., 3) rotation vectors in radians, with gradients.

    roma imports the compiler of torch, which takes most of a second: only where it is needed.
    """
    from roma import rotvec_to_rotmat as matrices_of

    matrices: torch.Tensor = matrices_of(vectors)
    return matrices


def rotmat_to_rotvec(matrices: torch.Tensor) -> torch.Tensor:
    """Return the (..., 3) rotation vectors, in radians, of (..., 3, 3) rotation matrices; see `rotvec_to_rotmat`."""
    from roma import rotmat_to_rotvec as vectors_of

    vectors: torch.Tensor = vectors_of(matrices)
    return vectors


def rotation_matrices(angles: torch.Tensor) -> torch.Tensor:
    """Return the rotation matrices of RELION's Euler angles.

    Parameters
    ----------
    angles
        (..., 3) rot, tilt, psi in radians.

    Returns
    -------
    torch.Tensor
        (..., 3, 3) matrices A with ``x_image = A x_volume``.
    """
    ca, cb, cg = torch.cos(angles).unbind(-1)
    sa, sb, sg = torch.sin(angles).unbind(-1)
    rows = [
        cg * cb * ca - sg * sa,
        cg * cb * sa + sg * ca,
        -cg * sb,
        -sg * cb * ca - cg * sa,
        -sg * cb * sa + cg * ca,
        sg * sb,
        sb * ca,
        sb * sa,
        cb,
    ]
    return torch.stack(rows, -1).reshape(*angles.shape[:-1], 3, 3)


def euler_angles(matrices: torch.Tensor) -> torch.Tensor:
    """Return RELION's Euler angles of rotation matrices; the inverse of `rotation_matrices`.

    At a tilt of 0 or 180 degrees only one in-plane angle is defined: it is returned as psi, and rot is 0.

    Parameters
    ----------
    matrices
        (..., 3, 3) rotation matrices.

    Returns
    -------
    torch.Tensor
        (..., 3) rot, tilt, psi in radians, tilt in [0, pi].
    """
    sin_tilt = torch.hypot(matrices[..., 2, 0], matrices[..., 2, 1])
    tilt = torch.atan2(sin_tilt, matrices[..., 2, 2])
    free = sin_tilt > 1e-6
    rot = torch.where(free, torch.atan2(matrices[..., 2, 1], matrices[..., 2, 0]), torch.zeros_like(tilt))
    psi_free = torch.atan2(matrices[..., 1, 2], -matrices[..., 0, 2])
    # At the poles A is a rotation in the plane: with rot = 0 its second column is (sin psi, cos psi).
    psi_pole = torch.atan2(matrices[..., 0, 1], matrices[..., 1, 1])
    return torch.stack([rot, tilt, torch.where(free, psi_free, psi_pole)], -1)


def random_rotations(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return (n, 3) Euler angles in radians of rotations drawn uniformly from SO(3)."""
    uniform = torch.rand(n, 3, generator=generator)
    rot, psi = 2 * torch.pi * uniform[:, 0] - torch.pi, 2 * torch.pi * uniform[:, 2] - torch.pi
    return torch.stack([rot, torch.arccos(1 - 2 * uniform[:, 1]), psi], -1)
