"""The division of a molecule into parts that move as rigid bodies, by the motion of its points.

Points belong to one part if one rotation and one translation explain their motion. Parts and their motions are found
alternately, as in k-means: each point joins the part whose motion fits it best, then the motion of each part is fitted
to its points (Kabsch, Acta Cryst. A 1976).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

# Neighbours that smooth the motion and the part of a point.
_NEIGHBOURS = 24
_ITERATIONS, _STARTS = 40, 6
# Minimum fraction of the points in a part.
MIN_FRACTION = 0.02

Points = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def divisions(
    points: Points, conformations: Points, most: int, min_reduction: float, min_residual: float = 0.0, seed: int = 0
) -> tuple[list[Labels], list[float]]:
    """Divide points into 1, 2, ... parts, while one more part explains enough of the motion.

    Parameters
    ----------
    points
        (m, 3) A.
    conformations
        (s, m, 3) where they move to, A.
    most
        number of parts.
    min_reduction
        fraction of the residual that one more part must explain; that part is not in the result if it does not.
    min_residual
        A, of a division that is good enough.
    seed
        of the random initialisation.

    Returns
    -------
    tuple
        (m,) part of each point, and the residual (A rms over points and conformations), of each division.
    """
    neighbours = cKDTree(points).query(points, k=min(_NEIGHBOURS, len(points)))[1]
    features = _local_motions(points, conformations, neighbours)
    rng = np.random.default_rng(seed)
    found: list[Labels] = []
    residuals: list[float] = []
    for count in range(1, most + 1):
        labels, residual = _divide(points, conformations, features, neighbours, count, rng)
        if residuals and residual > (1 - min_reduction) * residuals[-1]:
            break
        found.append(labels)
        residuals.append(residual)
        if residual < min_residual:
            break
    return found, residuals


def connected_parts(points: Points, labels: Labels) -> Labels:
    """Return the labels of (m, 3) points with each disconnected piece of a part as a part of its own."""
    return _pieces(points, labels, _contacts(points))


def _local_motions(points: Points, conformations: Points, neighbours: Labels) -> Points:
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


def _divide(
    points: Points, conformations: Points, features: Points, neighbours: Labels, count: int, rng: np.random.Generator
) -> tuple[Labels, float]:
    """Return (m,) labels of `count` parts and their residual (A rms), the best of several random starts."""
    best: tuple[Labels, float] = np.zeros(len(points), dtype=int), np.inf
    for _ in range(1 if count == 1 else _STARTS):
        labels = kmeans2(features, count, minit="++", seed=rng)[1]
        for _ in range(_ITERATIONS):
            errors = _errors(points, conformations, labels, count)
            # Neighbours are probably in the same part, so their errors count too.
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


def _errors(points: Points, conformations: Points, labels: Labels, count: int) -> Points:
    """Return (m, count) mean squared errors (A^2) of the rigid motion of each part at each point."""
    errors = np.full((len(points), count), np.inf)
    for part in range(count):
        mine = labels == part
        if mine.sum() < max(4, MIN_FRACTION * len(points)):
            continue
        centre = points[mine].mean(0)
        total = np.zeros(len(points))
        for conformation in conformations:
            moved_centre = conformation[mine].mean(0)
            rotation = kabsch(((points[mine] - centre).T @ (conformation[mine] - moved_centre))[None])[0]
            total += ((moved_centre + (points - centre) @ rotation.T - conformation) ** 2).sum(1)
        errors[:, part] = total / len(conformations)
    return errors


def _merge_small_pieces(points: Points, errors: Points, labels: Labels, count: int) -> Labels:
    """Return labels in which small disconnected pieces have joined the part that fits them second best."""
    contacts = _contacts(points)
    labels = labels.copy()
    for _ in range(3):
        pieces = _pieces(points, labels, contacts)
        sizes = np.bincount(pieces)
        small = sizes[pieces] < max(4, MIN_FRACTION * len(points))
        if not small.any() or count == 1:
            break
        for piece in np.unique(pieces[small]):
            mine = pieces == piece
            others = errors[mine].mean(0)
            others[labels[mine][0]] = np.inf
            # If there is no other part, the piece stays.
            if np.isfinite(others).any():
                labels[mine] = others.argmin()
    return labels


def _contacts(points: Points) -> Labels:
    """Return the (c, 2) pairs of points that are neighbours."""
    spacing = np.median(cKDTree(points).query(points, k=min(7, len(points)))[0][:, -1])
    pairs: Labels = cKDTree(points).query_pairs(1.5 * spacing, output_type="ndarray")
    return pairs


def _pieces(points: Points, labels: Labels, contacts: Labels) -> Labels:
    """Return the (m,) connected piece of its part that each point is in."""
    same = contacts[labels[contacts[:, 0]] == labels[contacts[:, 1]]]
    graph = csr_matrix((np.ones(len(same)), (same[:, 0], same[:, 1])), shape=(len(points),) * 2)
    pieces: Labels = connected_components(graph, directed=False)[1]
    return pieces


def kabsch(products: Points) -> Points:
    """Return the (b, 3, 3) rotations R that minimise sum |R x - y|^2 for the (b, 3, 3) products sum x y^T."""
    u, _, v = np.linalg.svd(products)
    sign = np.sign(np.linalg.det(u) * np.linalg.det(v))
    u[:, :, 2] *= sign[:, None]
    return np.swapaxes(u @ v, 1, 2)
