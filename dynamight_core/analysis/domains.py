"""Rigid-body domains: parts of a molecule that move as one, with their rotation and shift in every particle.

Points belong to one domain if one rotation and one translation explain their motion. Domains and their motions are
found alternately, as in k-means: each point joins the domain whose motion fits it best, then the motion of each domain
is fitted to its points (Kabsch, Acta Cryst. A 1976). Displacements are linear in the particles' coordinates, and so are
the matrices of Kabsch's method. A particle therefore costs little.

A smooth field rotates a small domain less than it displaces it: its motion is too large near the hinge and too small at
the tip. The rotation about the domain's own centre depends only on that difference. The chain holds the domain where it
meets the largest one. About that joint, the displacement of the whole domain counts, so hinged domains are measured
there.
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dynamight_core.analysis.molecule import main_rotation
from dynamight_core.errors import InputError
from dynamight_core.model.motions import PrincipalMotions

# Conformations used to find domains, and neighbours that smooth the motion and the domain of a point.
_CONFORMATIONS, _NEIGHBOURS = 24, 24
_ITERATIONS, _STARTS = 40, 6
# Domains are added while each explains at least this fraction of the residual, and until it is below this (A).
_MIN_REDUCTION, _MIN_RESIDUAL = 0.15, 0.25
# The last domain must explain at least this fraction of the residual: two domains fit a field that bends over a
# rigid-body domain better, but not twice as well.
_HALVED = 0.5
_MAX_DOMAINS = 6
# A domain is hinged to the largest if rotations about their joint leave less than this fraction of its motion.
_MAX_UNHINGED = 0.15
# Minimum fraction of the points in a domain.
_MIN_FRACTION = 0.02


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
    points = (motions.points + motions.mean).numpy().astype(float)
    if n_domains is not None and not 1 <= n_domains <= len(points) // 20:
        raise InputError(f"--domains is {n_domains}; give a number from 1 to {len(points) // 20}")
    coordinates = motions.coordinates.numpy().astype(float)
    components = motions.components.numpy().astype(float)
    conformations = points + np.tensordot(_representative(coordinates), components, 1)
    neighbours = cKDTree(points).query(points, k=min(_NEIGHBOURS, len(points)))[1]
    features = _local_motions(points, conformations, neighbours)
    rng = np.random.default_rng(seed)
    divisions: list[np.ndarray] = []
    residuals: list[float] = []
    for count in range(1, (n_domains or _MAX_DOMAINS) + 1):
        labels, residual = _divide(points, conformations, features, neighbours, count, rng)
        if n_domains is None and residuals and residual > (1 - _MIN_REDUCTION) * residuals[-1]:
            break
        divisions.append(labels)
        residuals.append(residual)
        if n_domains is None and residual < _MIN_RESIDUAL:
            break
    count = n_domains or _best_count(residuals)
    found = divisions[count - 1]
    order = np.argsort(-np.bincount(found))
    labels = np.argsort(order)[found]
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


def _local_motions(points: np.ndarray, conformations: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Return (m, features): displacement and rotation of the surroundings of each point, in all conformations.

    Rotations are multiplied by the molecule's radius (A), which makes them comparable with displacements.
    """
    radius = np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean())
    parts = []
    around = points[neighbours] - points[neighbours].mean(1, keepdims=True)
    second = np.einsum("mki,mkj->mij", around, around)
    inertia = np.linalg.pinv(np.trace(second, axis1=1, axis2=2)[:, None, None] * np.eye(3) - second)
    for conformation in conformations:
        shift = conformation - points
        local = shift[neighbours]
        moment = np.cross(around, local - local.mean(1, keepdims=True)).sum(1)
        rotation = np.einsum("mij,mj->mi", inertia, moment)
        # Extrapolated to the molecule's centre, the motion is the same for all points of a rigid body.
        central = local.mean(1) + np.cross(rotation, points.mean(0) - points[neighbours].mean(1))
        parts += [central, rotation * radius]
    return np.concatenate(parts, 1)


def _divide(points, conformations, features, neighbours, count, rng) -> tuple[np.ndarray, float]:
    """Return (m,) labels of `count` domains and their residual (A rms), the best of several random starts."""
    best = np.zeros(len(points), dtype=int), np.inf
    for _ in range(1 if count == 1 else _STARTS):
        labels = kmeans2(features, count, minit="++", seed=rng)[1]
        for _ in range(_ITERATIONS):
            errors = _errors(points, conformations, labels, count)
            # Neighbours are probably in the same domain, so their errors count too.
            smooth = 0.5 * errors + 0.5 * errors[neighbours[:, :9]].mean(1)
            new = smooth.argmin(1)
            if (new == labels).all():
                break
            labels = new
        labels = _merge_small_pieces(points, smooth, labels, count)
        residual = np.sqrt(_errors(points, conformations, labels, count)[np.arange(len(points)), labels].mean())
        if residual < best[1]:
            best = labels, float(residual)
    return best


def _errors(points, conformations, labels, count) -> np.ndarray:
    """Return (m, count) mean squared errors (A^2) of the rigid motion of each domain at each point."""
    errors = np.full((len(points), count), np.inf)
    for domain in range(count):
        mine = labels == domain
        if mine.sum() < max(4, _MIN_FRACTION * len(points)):
            continue
        centre = points[mine].mean(0)
        total = np.zeros(len(points))
        for conformation in conformations:
            moved_centre = conformation[mine].mean(0)
            rotation = kabsch(((points[mine] - centre).T @ (conformation[mine] - moved_centre))[None])[0]
            total += ((moved_centre + (points - centre) @ rotation.T - conformation) ** 2).sum(1)
        errors[:, domain] = total / len(conformations)
    return errors


def _merge_small_pieces(points, errors, labels, count) -> np.ndarray:
    """Return labels in which small disconnected pieces have joined the domain that fits them second best."""
    spacing = np.median(cKDTree(points).query(points, k=7)[0][:, -1])
    pairs = cKDTree(points).query_pairs(1.5 * spacing, output_type="ndarray")
    labels = labels.copy()
    for _ in range(3):
        same = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
        graph = csr_matrix((np.ones(len(same)), (same[:, 0], same[:, 1])), shape=(len(points),) * 2)
        pieces = connected_components(graph, directed=False)[1]
        sizes = np.bincount(pieces)
        small = sizes[pieces] < max(4, _MIN_FRACTION * len(points))
        if not small.any() or count == 1:
            break
        for piece in np.unique(pieces[small]):
            mine = pieces == piece
            others = errors[mine].mean(0)
            others[labels[mine][0]] = np.inf
            # If there is no other domain, the piece stays.
            if np.isfinite(others).any():
                labels[mine] = others.argmin()
    return labels


def kabsch(products: np.ndarray) -> np.ndarray:
    """Return the (b, 3, 3) rotations R that minimise sum |R x - y|^2 for the (b, 3, 3) products sum x y^T."""
    u, _, v = np.linalg.svd(products)
    sign = np.sign(np.linalg.det(u) * np.linalg.det(v))
    u[:, :, 2] *= sign[:, None]
    return np.swapaxes(u @ v, 1, 2)


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
