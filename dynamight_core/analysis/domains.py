"""Rigid bodies: the parts of a molecule that move as one, and how each turns and shifts in every particle.

Points belong to one domain if a single rotation and translation explains how they move. Domains and their rigid
motions are found in turns, as in k-means with rigid motions in the place of means: each point joins the domain whose
motion it follows best, each domain's motion is that of its points (Kabsch, Acta Cryst. A 1976). Displacements are
linear in the particles' coordinates, and with them the matrices that Kabsch's method needs: a particle costs little.

A learned field turns a small domain less than it moves it: near the hinge it is too large, at the tip too small. A
turn about a domain's own middle sees only that difference; about the joint, where the domain meets the largest one and
its chain keeps it, the displacement of the whole domain counts. That is how hinged domains are measured.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, header_origin, write_map
from dynamight_core.imaging.geometry import nearest_voxels
from dynamight_core.imaging.masks import distance_from, distance_from_voxels, raised_cosine
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Conformations that domains are found on, neighbours that a point's rigid motion and membership are smoothed over.
_CONFORMATIONS, _NEIGHBOURS = 24, 24
_ITERATIONS, _STARTS = 40, 6
# Domains are tried while each takes away at least this share of what was left, and until they leave less than this, A.
_WORTH, _LEAST_RESIDUAL = 0.15, 0.25
# The last domain that is kept took away at least this share of what was left: a field that bends a little over a rigid
# domain makes it better told by two, but not twice as well.
_HALVED = 0.5
_MOST_DOMAINS = 6
# A domain is hinged where it meets the largest if turns about there leave less than this share of its motion.
_HINGED = 0.15
# A domain has at least this share of the points.
_SMALLEST = 0.02
# Reach of a mask around the points of its domain, and the width of its soft edge, A.
_REACH, _EDGE = 7.0, 6.0


@dataclass
class Domains:
    """Rigid domains of a molecule and their motion in every particle.

    Parameters
    ----------
    labels
        (m,) domain of each common point, from 0, the largest first.
    residuals
        rms over points and particles of what rigid bodies leave of the motion about the mean, A, for 1, 2, ... domains
        until no more were worth it.
    angles
        (n, d) degrees by which each domain is turned from its mean conformation, against domain 0: positive about
        `axes`, which for domain 0 is its own turn in the consensus frame.
    shifts
        (n, d, 3) A; of each domain's centre, against domain 0 in the same way.
    axes
        (d, 3) unit vectors, the main axis of each domain's turns.
    centres
        (d, 3) A, centres of the domains in the mean conformation, consensus frame.
    joints
        (3,) A, where a domain is hinged to domain 0, which its turns keep in place and `shifts` are what its centre
        moves beyond; None for domain 0 and where a domain turns and shifts freely.
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
    """Divide the common points of a run into rigid domains.

    Parameters
    ----------
    motions
        of the run.
    n_domains
        how many; as many as are worth it if None.
    seed
        of the starts.

    Raises
    ------
    InputError
        if there are fewer points than a domain needs.
    """
    points = (motions.points + motions.mean).numpy().astype(float)
    if n_domains is not None and not 1 <= n_domains <= len(points) // 20:
        raise InputError(f"--domains is {n_domains}; give a number from 1 to {len(points) // 20}")
    coordinates = motions.coordinates.numpy().astype(float)
    components = motions.components.numpy().astype(float)
    conformations = points + np.tensordot(_typical(coordinates), components, 1)
    neighbours = cKDTree(points).query(points, k=min(_NEIGHBOURS, len(points)))[1]
    features = _local_motions(points, conformations, neighbours)
    rng = np.random.default_rng(seed)
    divisions, residuals = [], []
    for count in range(1, (n_domains or _MOST_DOMAINS) + 1):
        labels, residual = _divide(points, conformations, features, neighbours, count, rng)
        if n_domains is None and residuals and residual > (1 - _WORTH) * residuals[-1]:
            break
        divisions.append(labels)
        residuals.append(residual)
        if n_domains is None and residual < _LEAST_RESIDUAL:
            break
    count = n_domains or _enough(residuals)
    found = divisions[count - 1]
    order = np.argsort(-np.bincount(found))
    labels = np.argsort(order)[found]
    return _rigid_motions(points, components, coordinates, labels, residuals[:count])


def _enough(residuals: list[float]) -> int:
    """Return the most domains of which the last halved what was left; if none did, those of which it took away most.

    `residuals` are what 1, 2, ... domains leave.
    """
    left = np.array(residuals[1:]) / residuals[:-1]
    halved = np.flatnonzero(left <= 1 - _HALVED)
    if len(halved):
        return int(halved[-1]) + 2
    return int(left.argmin()) + 2 if len(left) else 1


def _typical(coordinates: np.ndarray) -> np.ndarray:
    """Return the (s, K) coordinates of particles that stand for all: k-means centres, and their standard deviations."""
    sample = coordinates[np.linspace(0, len(coordinates) - 1, min(len(coordinates), 5000)).astype(int)]
    sample = sample - coordinates.mean(0)
    chosen = kmeans2(sample, min(_CONFORMATIONS, len(sample)), minit="++", seed=0)[0]
    return np.concatenate([chosen, 2 * np.diag(coordinates.std(0))])


def _local_motions(points: np.ndarray, conformations: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Return (m, features) of how the surroundings of each point move: displacements and turns in all conformations.

    Turns are brought to A by the molecule's radius, so that either is worth what it moves.
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
        turn = np.einsum("mij,mj->mi", inertia, moment)
        # The motion that the surroundings would give the molecule's centre: the same for all of one body.
        central = local.mean(1) + np.cross(turn, points.mean(0) - points[neighbours].mean(1))
        parts += [central, turn * radius]
    return np.concatenate(parts, 1)


def _divide(points, conformations, features, neighbours, count, rng) -> tuple[np.ndarray, float]:
    """Return the (m,) labels of `count` domains and the rms that they leave over, the best of several starts."""
    best = None
    for _ in range(1 if count == 1 else _STARTS):
        labels = kmeans2(features, count, minit="++", seed=rng)[1]
        for _ in range(_ITERATIONS):
            errors = _errors(points, conformations, labels, count)
            # A point's neighbours are likely in its domain: their errors count with its own.
            smooth = 0.5 * errors + 0.5 * errors[neighbours[:, :9]].mean(1)
            new = smooth.argmin(1)
            if (new == labels).all():
                break
            labels = new
        labels = _without_crumbs(points, smooth, labels, count)
        residual = np.sqrt(_errors(points, conformations, labels, count)[np.arange(len(points)), labels].mean())
        if best is None or residual < best[1]:
            best = labels, float(residual)
    return best


def _errors(points, conformations, labels, count) -> np.ndarray:
    """Return (m, count) mean squared distances (A^2) of points from where each domain's rigid motion takes them."""
    errors = np.full((len(points), count), np.inf)
    for domain in range(count):
        mine = labels == domain
        if mine.sum() < max(4, _SMALLEST * len(points)):
            continue
        centre = points[mine].mean(0)
        total = np.zeros(len(points))
        for conformation in conformations:
            moved_centre = conformation[mine].mean(0)
            rotation = kabsch(((points[mine] - centre).T @ (conformation[mine] - moved_centre))[None])[0]
            total += ((moved_centre + (points - centre) @ rotation.T - conformation) ** 2).sum(1)
        errors[:, domain] = total / len(conformations)
    return errors


def _without_crumbs(points, errors, labels, count) -> np.ndarray:
    """Return labels of which each domain is one piece: smaller pieces join the domain that fits them next best."""
    spacing = np.median(cKDTree(points).query(points, k=7)[0][:, -1])
    pairs = cKDTree(points).query_pairs(1.5 * spacing, output_type="ndarray")
    labels = labels.copy()
    for _ in range(3):
        same = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
        graph = csr_matrix((np.ones(len(same)), (same[:, 0], same[:, 1])), shape=(len(points),) * 2)
        pieces = connected_components(graph, directed=False)[1]
        sizes = np.bincount(pieces)
        crumbs = sizes[pieces] < max(4, _SMALLEST * len(points))
        if not crumbs.any() or count == 1:
            break
        for piece in np.unique(pieces[crumbs]):
            mine = pieces == piece
            others = errors[mine].mean(0)
            others[labels[mine][0]] = np.inf
            # Where no other domain fits at all, it stays.
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
    """Return the domains with their rotation and shift in all particles, against the largest."""
    centred = coordinates - coordinates.mean(0)
    points = points + np.tensordot(coordinates.mean(0), components, 1)
    base, base_centre = points[labels == 0], points[labels == 0].mean(0)
    base_fields = components[:, labels == 0]
    rotation = kabsch(_products(base - base_centre, base_fields, centred))
    undone, base_shift = np.swapaxes(rotation, 1, 2), centred @ base_fields.mean(1)
    vectors = Rotation.from_matrix(rotation).as_rotvec()
    angles, shifts, axes, centres, joints = [], [base_shift], [], [base_centre], [None]
    turns = [vectors]
    for domain in range(1, labels.max() + 1):
        mine = labels == domain
        own, fields = points[mine], components[:, mine]
        centre = own.mean(0)
        free = undone @ kabsch(_products(own - centre, fields, centred))
        # Seen from domain 0: its motion is undone.
        place = centre + centred @ fields.mean(1) - base_centre - base_shift
        shift = np.einsum("nij,nj->ni", undone, place) + base_centre - centre
        joint = _joint(own, base)
        if joint is not None:
            # Points as seen from domain 0, and the turn that fits them best with the joint at rest.
            offset = base_centre - joint - np.einsum("nij,nj->ni", undone, base_centre - joint + base_shift)
            product = np.einsum("nij,nkj->nki", undone, _products(own - joint, fields, centred))
            product += len(own) * np.einsum("i,nj->nij", centre - joint, offset)
            hinged = kabsch(product)
            beyond = shift - np.einsum("nij,j->ni", hinged - np.eye(3), centre - joint)
            if _left(own, centre, free, shift, hinged, beyond) > _HINGED:
                joint = None
            else:
                free, shift = hinged, beyond
        turns.append(Rotation.from_matrix(free).as_rotvec())
        shifts.append(shift)
        centres.append(centre)
        joints.append(joint)
    for vectors in turns:
        axis = np.linalg.svd(vectors, full_matrices=False)[2][0]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        angles.append(np.degrees(np.linalg.norm(vectors, axis=1) * np.where(vectors @ axis < 0, -1.0, 1.0)))
        axes.append(axis)
    return Domains(
        labels, residuals, np.stack(angles, 1), np.stack(shifts, 1), np.stack(axes), np.stack(centres), joints
    )


def _products(x: np.ndarray, fields: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return the (n, 3, 3) sums x (x + sum_k c_k field_k)^T of n particles: linear in c."""
    return x.T @ x + np.tensordot(coordinates, np.einsum("mi,kmj->kij", x, fields), 1)


def _joint(own: np.ndarray, base: np.ndarray) -> np.ndarray | None:
    """Return the middle (3,) of where a domain's (m, 3) points meet those of domain 0; None where they do not."""
    spacing = np.median(cKDTree(own).query(own, k=min(7, len(own)))[0][:, -1])
    distance, partner = cKDTree(base).query(own)
    close = distance.argsort()[: max(4, len(own) // 20)]
    if distance[close].mean() > 2 * spacing:
        return None
    return (own[close].mean(0) + base[partner[close]].mean(0)) / 2


def _left(own, centre, free, shift, hinged, beyond) -> float:
    """Return what a turn about the joint leaves of a domain's motion that a free one explains, as a share.

    `beyond` is the shift of the domain's centre beyond the turn. The second moment of the points stands for them.
    """
    arms = own - centre
    second = arms.T @ arms / len(own)

    def power(difference, shifts):
        return (np.einsum("nij,jk,nik->n", difference, second, difference) + (shifts**2).sum(1)).mean()

    return power(free - hinged, beyond) / max(power(free - np.eye(3), shift), 1e-12)


def summary_table(domains: Domains, run: Run) -> pd.DataFrame:
    """Return a row for each domain: its size, motion, error and the spread of its angles and shifts."""
    motion, error = (np.asarray(run.summary[name]) for name in ("point_motion", "point_error"))
    rows = []
    for domain in range(len(domains)):
        mine = domains.labels == domain
        angle, shift, joint = domains.angles[:, domain], domains.shifts[:, domain], domains.joints[domain]
        moved, wrong = (float(np.sqrt((values[mine] ** 2).mean())) for values in (motion, error))
        rows.append(
            {
                "domain": domain + 1,
                "against": "consensus" if domain == 0 else "domain 1",
                "share_of_points": mine.mean(),
                "motion_A": moved,
                "error_A": wrong,
                "motion_beyond_error_A": float(np.sqrt(max(0.0, moved**2 - wrong**2))),
                "angle_std_deg": angle.std(),
                "angle_low_deg": np.quantile(angle, 0.025),
                "angle_high_deg": np.quantile(angle, 0.975),
                "shift_rms_A": np.sqrt(((shift - shift.mean(0)) ** 2).sum(1).mean()),
                **{f"axis_{name}": domains.axes[domain, i] for i, name in enumerate("xyz")},
                **{f"centre_{name}_A": domains.centres[domain, i] for i, name in enumerate("xyz")},
                **{f"joint_{name}_A": np.nan if joint is None else joint[i] for i, name in enumerate("xyz")},
            }
        )
    return pd.DataFrame(rows)


def write_domains(run: Run, domains: Domains, reporter: Reporter = PRINT) -> list[Path]:
    """Write masks, motions and points of the domains to RUN/analysis/domains.

    ``domainN_mask.mrc`` is 1 within 7 A of the domain's Gaussians (both halves'), nearer to them than to those of
    others, with a soft edge of 6 A: for focused refinement, or as the bodies of multi-body refinement. ``domains.csv``
    has a row for each domain, ``particles.csv`` the angle (degrees) and shift (A) of each in every particle, in the
    order of particles.star, and for each and the whole molecule the amount of its motion about the mean (A rms) and its
    direction, the mean displacement (A); ``points.csv`` the domain, motion and error of the common points,
    ``residuals.csv`` what domains leave over. ``bodies.star`` is the --multibody_masks of RELION, two domains or more.

    Parameters
    ----------
    run
        finished and summarised.
    domains
        of its motions.
    reporter
        takes lines for the user.
    """
    out = run.path / "analysis" / "domains"
    for earlier in (*out.glob("domain*_mask.mrc"), *out.glob("bodies.star")):
        earlier.unlink()
    places = (run.motions.points + run.motions.mean).numpy()
    gaussians = np.concatenate([model.consensus_positions.cpu().numpy() for model in run.models])
    labels = domains.labels[cKDTree(run.motions.points.numpy()).query(gaussians)[1]]
    corner = header_origin(run.config.inputs.map)
    written = []
    for domain, mask in enumerate(masks(gaussians, labels, len(domains), run.box, run.pixel_size), 1):
        written.append(out / f"domain{domain}_mask.mrc")
        write_map(written[-1], mask, run.pixel_size, corner)
    columns = {}
    for domain in range(len(domains)):
        columns[f"domain{domain + 1}_angle_deg"] = domains.angles[:, domain]
        for i, name in enumerate("xyz"):
            columns[f"domain{domain + 1}_shift_{name}_A"] = domains.shifts[:, domain, i]
    columns |= _amounts(run, domains)
    points = pd.DataFrame(places, columns=["x_A", "y_A", "z_A"]).assign(domain=domains.labels + 1)
    motion, error = (np.asarray(run.summary[name]) for name in ("point_motion", "point_error"))
    beyond = np.sqrt(np.clip(motion**2 - error**2, 0, None))
    points = points.assign(motion_A=motion, error_A=error, motion_beyond_error_A=beyond)
    residuals = pd.DataFrame({"domains": range(1, len(domains.residuals) + 1), "residual_rms_A": domains.residuals})
    tables = {
        "domains": summary_table(domains, run),
        "particles": pd.DataFrame(columns),
        "points": points,
        "residuals": residuals,
    }
    for name, table in tables.items():
        written.append(out / f"{name}.csv")
        with atomic_path(written[-1]) as path:
            table.to_csv(path, index=False, float_format="%.5g")
    if len(domains) > 1:
        written.append(_write_bodies(out, domains))
    many = f"{len(domains)} rigid domains" if len(domains) > 1 else "one rigid domain"
    reporter.say(f"The motion is that of {many}; masks, angles and shifts are in {out}.")
    return written


def _amounts(run: Run, domains: Domains) -> dict[str, np.ndarray]:
    """Return columns of how much and whereto each domain, and the molecule, has moved from its mean conformation."""
    coordinates = run.motions.coordinates.double().numpy()
    centred = coordinates - coordinates.mean(0)
    components = run.motions.components.double().numpy()
    parts = {"molecule": np.ones(len(domains.labels), dtype=bool)}
    parts |= {f"domain{domain + 1}": domains.labels == domain for domain in range(len(domains))}
    columns = {}
    for name, mine in parts.items():
        fields = components[:, mine]
        # The mean square over points is a quadratic form of the coordinates.
        form = np.einsum("kmi,lmi->kl", fields, fields) / mine.sum()
        columns[f"{name}_motion_A"] = np.sqrt(np.clip(((centred @ form) * centred).sum(1), 0, None))
        mean = centred @ fields.mean(1)
        columns |= {f"{name}_mean_{axis}_A": mean[:, i] for i, axis in enumerate("xyz")}
    return columns


def _write_bodies(out: Path, domains: Domains) -> Path:
    """Write bodies.star for RELION's multi-body refinement: each body is turned against the largest, that against it.

    The priors are twice as wide as what was found, which is drawn towards the mean, and at least 2 degrees and 1 A.
    """
    n = len(domains)
    spread = np.sqrt(((domains.shifts - domains.shifts.mean(0)) ** 2).sum(2).mean(0) / 3)
    table = pd.DataFrame(
        {
            "rlnBodyMaskName": [str((out / f"domain{domain + 1}_mask.mrc").resolve()) for domain in range(n)],
            "rlnBodyRotateRelativeTo": [2, *[1] * (n - 1)],
            "rlnBodySigmaAngles": np.maximum(2.0, 2 * domains.angles.std(0)).round(1),
            "rlnBodySigmaOffsetAngst": np.maximum(1.0, 2 * spread).round(1),
        }
    )
    with atomic_path(out / "bodies.star") as path:
        starfile.write({"": table}, path)
    return out / "bodies.star"


def masks(gaussians: np.ndarray, labels: np.ndarray, n_domains: int, box: int, pixel_size: float) -> list[np.ndarray]:
    """Return (box, box, box) masks, 0 to 1, around the points of each domain.

    Parameters
    ----------
    gaussians
        (p, 3) A, the origin at the box's centre.
    labels
        (p,) domains, from 0.
    n_domains, box, pixel_size
        how many; pixels and A.
    """
    voxels = np.clip(nearest_voxels(gaussians, box, pixel_size), 0, box - 1)
    distances = []
    for domain in range(n_domains):
        distances.append(distance_from_voxels(voxels[labels == domain], box, pixel_size).astype(np.float32))
    distances = np.stack(distances)
    nearest = distances.argmin(0)
    out = []
    for domain in range(n_domains):
        core = (nearest == domain) & (distances[domain] <= _REACH)
        out.append(raised_cosine(distance_from(core, pixel_size) / _EDGE).astype(np.float32))
    return out
