"""RELION's angles and origins, and Scipion's matrices.

Scipion stores the inverse of the 4 x 4 matrix from the volume to the image, with shifts in pixels.
"""

import numpy as np


def posesOfMatrices(matrices, samplingRate):
    """Return RELION's rot, tilt, psi (degrees) and origins x and y (Å), each (n,), of Scipion's (n, 4, 4) matrices."""
    inverse = np.linalg.inv(matrices)
    origin = -inverse[:, :3, 3] * samplingRate
    return *eulerAngles(inverse[:, :3, :3]), origin[:, 0], origin[:, 1]


def matricesOfPoses(rot, tilt, psi, x, y, samplingRate):
    """Return Scipion's (n, 4, 4) matrices of RELION's angles (degrees) and origins (Å), each (n,)."""
    matrices = np.tile(np.eye(4), (len(rot), 1, 1))
    matrices[:, :3, :3] = rotationMatrices(rot, tilt, psi)
    matrices[:, 0, 3], matrices[:, 1, 3] = -x / samplingRate, -y / samplingRate
    return np.linalg.inv(matrices)


def findImproper(matrices):
    """Return an (n,) mask of the (n, 4, 4) matrices whose upper left is not a rotation."""
    rotation = matrices[:, :3, :3]
    improper = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2)) > 1e-3
    return improper | (np.linalg.det(rotation) < 0)


def eulerAngles(rotation):
    """Return rot, tilt and psi (degrees, each (n,)) of (n, 3, 3) rotations in RELION's ZYZ convention."""
    sine = np.hypot(rotation[:, 0, 2], rotation[:, 1, 2])
    tilt = np.arctan2(sine, rotation[:, 2, 2])
    rot = np.arctan2(rotation[:, 2, 1], rotation[:, 2, 0])
    psi = np.arctan2(rotation[:, 1, 2], -rotation[:, 0, 2])
    # For views along z, only the sum or difference of rot and psi is defined.
    flat = sine < 1e-8
    up = np.where(rotation[:, 2, 2] > 0, 1, -1)
    rot = np.where(flat, 0, rot)
    psi = np.where(flat, np.arctan2(-up * rotation[:, 1, 0], rotation[:, 1, 1]), psi)
    return np.rad2deg(rot), np.rad2deg(tilt), np.rad2deg(psi)


def rotationMatrices(rot, tilt, psi):
    """Return the (n, 3, 3) rotations of RELION's angles (degrees, each (n,)): from the volume to the image."""
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.deg2rad([rot, tilt, psi])), np.sin(np.deg2rad([rot, tilt, psi]))
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
