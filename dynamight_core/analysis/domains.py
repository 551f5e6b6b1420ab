"""Rigid-body domains: parts of a molecule that move as one, with their rotation and shift in every particle.

`dynamight_core.model.partition` divides the molecule. Displacements are linear in the particles' coordinates, and so
are the matrices of Kabsch's method (Acta Cryst. A 1976). A particle therefore costs little.

A smooth field rotates a small domain less than it displaces it: its motion is too large near the hinge and too small at
the tip. The rotation about the domain's own centre depends only on that difference. The chain holds the domain where it
meets the largest one. About that joint, the displacement of the whole domain counts, so hinged domains are measured
there.
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dynamight_core.analysis.molecule import main_rotation
from dynamight_core.errors import InputError
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.model.partition import divisions, kabsch

# Conformations used to find domains.
_CONFORMATIONS = 24
# Domains are added while each explains at least this fraction of the residual, and until it is below this (A).
_MIN_REDUCTION, _MIN_RESIDUAL = 0.15, 0.25
# The last domain must explain at least this fraction of the residual: two domains fit a field that bends over a
# rigid-body domain better, but not twice as well.
_HALVED = 0.5
_MAX_DOMAINS = 6
# A domain is hinged to the largest if rotations about their joint leave less than this fraction of its motion.
_MAX_UNHINGED = 0.15


@dataclass
class Domains:
    """Rigid-body domains of a molecule and their motion in every particle.

    Parameters
    ----------
    labels
        (m,) domain of each common point, from 0, the largest first.
    residuals
        motion about the mean that 1, 2, ... rigid bodies leave unexplained, A rms over points and particles.
    angles
        (n, d) rotation of each domain from its mean conformation, relative to domain 0, degrees; positive about `axes`.
        For domain 0, its own rotation in the consensus frame.
    shifts
        (n, d, 3) shift of each domain's centre, relative to domain 0 in the same way, A.
    axes
        (d, 3) main axis of rotation of each domain, unit vectors.
    centres
        (d, 3) centres of the domains in the mean conformation, consensus frame, A.
    joints
        (3,) A where a domain is hinged to domain 0: rotations keep the joint in place, and `shifts` are the motion of
        the centre beyond the rotation. None for domain 0, and for domains that rotate and shift freely.
    """

    labels: np.ndarray
    residuals: list[float]
    angles: np.ndarray
    shifts: np.ndarray
    axes: np.ndarray
    centres: np.ndarray
    joints: list[np.ndarray | None]

    def __len__(self) -> int:
        return len(self.centres)


def find_domains(motions: PrincipalMotions, n_domains: int | None = None, seed: int = 0) -> Domains:
    """Divide the common points of a run into rigid-body domains.

    Parameters
    ----------
    motions
        of the run.
    n_domains
        number of domains; chosen automatically if None.
    seed
        of the random initialisation.

    Raises
    ------
    InputError
        if there are too few points for `n_domains`.
    """
    points = (motions.points + motions.mean).double().numpy()
    if n_domains is not None and not 1 <= n_domains <= len(points) // 20:
        raise InputError(f"--domains is {n_domains}; give a number from 1 to {len(points) // 20}")
    coordinates = motions.coordinates.numpy().astype(float)
    components = motions.components.numpy().astype(float)
    conformations: np.ndarray = points + np.tensordot(_representative(coordinates), components, 1)
    reduction = _MIN_REDUCTION if n_domains is None else -np.inf
    residual = _MIN_RESIDUAL if n_domains is None else 0.0
    found, residuals = divisions(points, conformations, n_domains or _MAX_DOMAINS, reduction, residual, seed)
    count = n_domains or _best_count(residuals)
    order = np.argsort(-np.bincount(found[count - 1]))
    labels = np.argsort(order)[found[count - 1]]
    return _rigid_motions(points, components, coordinates, labels, residuals[:count])


def _best_count(residuals: list[float]) -> int:
    """Return the largest number of domains of which the last halved the residual, given residuals of 1, 2, ... domains.

    If none halved it, return the number whose last domain reduced it most.
    """
    remaining = np.array(residuals[1:]) / residuals[:-1]
    halved = np.flatnonzero(remaining <= 1 - _HALVED)
    if len(halved):
        return int(halved[-1]) + 2
    return int(remaining.argmin()) + 2 if len(remaining) else 1


def _representative(coordinates: np.ndarray) -> np.ndarray:
    """Return (s, K) coordinates that represent all particles: k-means centres, and two deviations along each motion."""
    sample = coordinates[np.linspace(0, len(coordinates) - 1, min(len(coordinates), 5000)).astype(int)]
    sample = sample - coordinates.mean(0)
    centres = kmeans2(sample, min(_CONFORMATIONS, len(sample)), minit="++", seed=0)[0]
    return np.concatenate([centres, 2 * np.diag(coordinates.std(0))])


def _rigid_motions(points, components, coordinates, labels, residuals) -> Domains:
    """Return the domains with their rotation and shift in all particles, relative to the largest."""
    centred = coordinates - coordinates.mean(0)
    points = points + np.tensordot(coordinates.mean(0), components, 1)
    base, base_centre = points[labels == 0], points[labels == 0].mean(0)
    base_fields = components[:, labels == 0]
    rotation = kabsch(_products(base - base_centre, base_fields, centred))
    inverse, base_shift = np.swapaxes(rotation, 1, 2), centred @ base_fields.mean(1)
    rotations = [Rotation.from_matrix(rotation).as_rotvec()]
    shifts, centres = [base_shift], [base_centre]
    joints: list[np.ndarray | None] = [None]
    for domain in range(1, labels.max() + 1):
        mine = labels == domain
        own, fields = points[mine], components[:, mine]
        centre = own.mean(0)
        # In the frame of domain 0.
        free = inverse @ kabsch(_products(own - centre, fields, centred))
        offset = centre + centred @ fields.mean(1) - base_centre - base_shift
        shift = np.einsum("nij,nj->ni", inverse, offset) + base_centre - centre
        joint = _joint(own, base)
        if joint is not None:
            # The rotation that fits the points best and keeps the joint in place.
            offset = base_centre - joint - np.einsum("nij,nj->ni", inverse, base_centre - joint + base_shift)
            product = np.einsum("nij,nkj->nki", inverse, _products(own - joint, fields, centred))
            product += len(own) * np.einsum("i,nj->nij", centre - joint, offset)
            hinged = kabsch(product)
            beyond = shift - np.einsum("nij,j->ni", hinged - np.eye(3), centre - joint)
            if _unhinged_fraction(own - centre, free, shift, hinged, beyond) > _MAX_UNHINGED:
                joint = None
            else:
                free, shift = hinged, beyond
        rotations.append(Rotation.from_matrix(free).as_rotvec())
        shifts.append(shift)
        centres.append(centre)
        joints.append(joint)
    axes, angles = zip(*map(main_rotation, rotations), strict=True)
    return Domains(
        labels, residuals, np.stack(angles, 1), np.stack(shifts, 1), np.stack(axes), np.stack(centres), joints
    )


def _products(x: np.ndarray, fields: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return the (n, 3, 3) sums over points of x (x + sum_k c_k field_k)^T for n particles: linear in c."""
    return x.T @ x + np.tensordot(coordinates, np.einsum("mi,kmj->kij", x, fields), 1)


def _joint(own: np.ndarray, base: np.ndarray) -> np.ndarray | None:
    """Return the (3,) middle of the contact between a domain's (m, 3) points and domain 0; None without contact."""
    spacing = np.median(cKDTree(own).query(own, k=min(7, len(own)))[0][:, -1])
    distance, partner = cKDTree(base).query(own)
    close = distance.argsort()[: max(4, len(own) // 20)]
    if distance[close].mean() > 2 * spacing:
        return None
    return (own[close].mean(0) + base[partner[close]].mean(0)) / 2


def _unhinged_fraction(arms, free, shift, hinged, beyond) -> float:
    """Return the fraction of a domain's rigid motion that rotations about the joint do not explain.

    `arms` are the (m, 3) points about their centre; `beyond` is the shift of the centre beyond the rotation.
    """
    second = arms.T @ arms / len(arms)

    def power(difference, shifts):
        return (np.einsum("nij,jk,nik->n", difference, second, difference) + (shifts**2).sum(1)).mean()

    return power(free - hinged, beyond) / max(power(free - np.eye(3), shift), 1e-12)
