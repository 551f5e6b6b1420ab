"""Measures of runs on simulated parts that move by themselves: motion, states and maps against truth and oracle."""

import numpy as np
import torch
from roma import rotmat_geodesic_distance, special_procrustes
from scipy.spatial.transform import Rotation

from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.files import read_map
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.modes import find_modes
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.model.half import ConsensusField
from dynamight_core.model.partition import kabsch
from dynamight_core.options import ReconstructOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.star import read_blocks
from dynamight_core.reconstruction.deformation import conformation_coordinates, deforming_region, half_modes
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.sampling import evenly
from dynamight_core.simulate.measures import (
    HingeField,
    correlation,
    knn_r2,
    mean_fsc,
    oracle_posteriors,
    prior_motions,
    turn_slope,
)

# Points of each part whose motion is compared.
POINTS = 60
# Motions of each part that the oracle knows: enough for a rotation about an axis, and for one on a linker.
CANDIDATES, LINKER_CANDIDATES = 72, 600
# Fraction of a half-set's particles, and smallest number, that stand for one conformation.
NEAR, MIN_NEAR = 0.01, 20
BATCH = 64
WHERE = ("whole", "parts")


def frame_of(truth, run, half):
    """Return the (domains, 6) motions of the conformation that a half-set's consensus frame shows."""
    model, rows = run.models[half - 1], torch.where(run.halves == half)[0]
    evaluate = ConsensusField(model).evaluator(model.consensus_positions[::10])
    size = [evaluate(part).square().sum((1, 2)) for part in run.latents[half - 1][rows].split(BATCH)]
    near = rows[torch.cat(size).argsort()[: max(MIN_NEAR, int(NEAR * len(rows)))]]
    return truth.motions[near[medoid(truth.positions(near)[:, ::50].flatten(1))]]


def true_frame(truth, run, conformation):
    """Return the (domains, 6) true motions of the particles nearest to a conformation."""
    distance = (run.motions.coordinates - conformation_coordinates(run, conformation)).norm(dim=1)
    distance = distance.where(truth.content == 0, torch.inf)
    near = distance.argsort()[: max(MIN_NEAR, int(NEAR * len(truth)))]
    return truth.motions[near[medoid(truth.positions(near)[:, ::50].flatten(1))]]


def half_maps(folder):
    """Return both half-maps in a folder."""
    return [torch.from_numpy(np.array(read_map(folder / f"half{half}_unfil.mrc")[0])) for half in (1, 2)]


def medoid(values):
    """Return the index of the (n, d) row that is nearest to the others."""
    return int(torch.cdist(values, values).sum(1).argmin())


def is_linked(truth, domain):
    """Return whether a moving domain (from 0) hangs on a linker."""
    rotations = truth.motions[:, domain, :3]
    across = torch.linalg.cross(rotations, truth.molecule.axis_directions[domain].expand_as(rotations))
    return bool(across.norm(dim=1).max() > 1e-3 or truth.motions[:, domain, 3:].any())


def oracle(truth, run, n):
    """Return n particles, candidate motions of each part, and their probabilities there; None if nothing moves."""
    rows = torch.where(truth.content == 0)[0]
    if not truth.motions.std(0).any():
        return None
    rows = evenly(rows, n)
    numbers = [LINKER_CANDIDATES if is_linked(truth, k) else CANDIDATES for k in range(truth.molecule.n_domains)]
    candidates = [prior_motions(truth, k, number) for k, number in enumerate(numbers)]
    reader = ImageReader(run.particles)

    class Raw:
        def __getitem__(self, chosen):
            return reader.read(np.asarray(chosen))

    return rows, candidates, oracle_posteriors(Raw(), truth, candidates, rows)


@torch.no_grad()
def motion_figures(truth, run, known):
    """Return figures of each moving part, means over halves: decoded displacements and rotation, and the oracle's.

    Displacements are compared about their means over particles: `r`, `slope` on the truth, `error` and `motion` (A
    rms). `turn_slope` is of the rotation of a part about its own centre, along its axis and over the whole circle;
    `turn_agreement` is 1 if found and true angles differ by a constant, and 0 if they have nothing in common. On a
    linker, `turn_error` is the median angle (degrees) between found and true rotations, `turn_motion` the median true
    one. `oracle_` compares the posterior means of the oracle `known` with the truth, and `expected_` the decoded motion
    with these.
    """
    figures = {}
    for half, model in enumerate(run.models, 1):
        frame = frame_of(truth, run, half)
        points = model.consensus_positions
        labels, rest = truth.at_rest(points, frame)
        rows = torch.where((run.halves == half) & (truth.content == 0))[0]
        for domain in range(truth.molecule.n_domains):
            mine = torch.where(labels == domain + 1)[0]
            mine = evenly(mine, POINTS)
            found = displacements(run, half, points[mine], rows)
            true = truth.molecule.move(rest[mine], labels[mine], truth.motions[rows]) - points[mine]
            if true.std(0).max() < 0.1:
                part = {"motion": spread(found)}
            else:
                part = {"r": centred_r(found, true), "slope": slope(found, true), "motion": spread(found)}
                part |= {"true_motion": spread(true), "error": spread(found - true)}
                part["knn_r2"] = knn_r2(run.latents[half - 1][rows], true.flatten(1))
                part |= turns(truth, domain, rows, frame, points[mine], found, true)
                part |= expected(truth, run, half, known, domain, points[mine], rest[mine])
            for name, value in part.items():
                key = f"part{domain + 1} {name}"
                figures[key] = figures.get(key, 0.0) + value / len(run.models)
    return figures


def cause_figures(truth, run):
    """Return the causes that were found, purity of the groups of composition, and errors of orientations, degrees."""
    said = [f"{c['name']}{'' if c['found'] is True else '?'}" for c in run.summary["causes"] if c["found"]]
    figures = {"conclusion": run.summary["conclusion"]["title"], "causes": "; ".join(said)}
    table = read_blocks(run.path / "particles.star")["particles"]
    if "dynComposition" in table:
        less = table["dynComposition"].astype(int).to_numpy() == 2
        odd = (truth.content > 0) | (truth.present == 0).any(1)
        figures["purity"] = float((torch.from_numpy(less) == odd).float().mean())
    if not torch.equal(truth.euler, truth.star_euler):
        right, given = rotation_matrices(truth.euler), rotation_matrices(truth.star_euler)
        figures |= {"pose error given": angle_between(given, right)}
        figures["pose error"] = angle_between(run.particles.matrices.double(), right)
    return figures | {"motion": float(run.summary["motion_between_particles_rms"])}


def angle_between(matrices, right):
    """Return the rms angle (degrees) between (n, 3, 3) rotations and the right ones, up to one turn of the molecule."""
    matrices, right = matrices.double(), right.double()
    whole = special_procrustes((matrices.transpose(1, 2) @ right).mean(0))
    return float(rotmat_geodesic_distance(matrices @ whole, right).square().mean().sqrt().rad2deg())


def displacements(run, half, points, rows):
    """Return the decoded (b, m, 3) displacements of (m, 3) points of the consensus frame in particles."""
    evaluate = ConsensusField(run.models[half - 1]).evaluator(points)
    return torch.cat([evaluate(part) for part in run.latents[half - 1][rows].split(BATCH)])


def spread(values):
    """Return the rms length (A) of (b, m, 3) vectors about their means over b."""
    return float((values - values.mean(0)).square().sum(-1).mean().sqrt())


def slope(found, true):
    """Return the least-squares slope of (b, m, 3) vectors on true ones, both about their means over b."""
    centred = true - true.mean(0)
    return float((found * centred).sum() / centred.square().sum())


def centred_r(found, true):
    """Return the correlation of (b, m, 3) vectors, both about their means over b; 0 if one does not vary."""
    if spread(found) < 1e-6:
        return 0.0
    return correlation(found - found.mean(0), true - true.mean(0))


def rotations(points, moved):
    """Return the least-squares rotations of (m, 3) points to (b, m, 3), each about their own centres."""
    products = torch.einsum("mi,bmj->bij", points - points.mean(0), moved - moved.mean(1, keepdim=True))
    return Rotation.from_matrix(kabsch(products.double().numpy()))


def turns(truth, domain, rows, frame, points, found, true):
    """Return figures of the rotation of one part about its own centre."""
    turned, right = rotations(points, points + found), rotations(points, points + true)
    if is_linked(truth, domain):
        return {
            "turn_error": float(np.median(np.rad2deg((turned.inv() * right).magnitude()))),
            "turn_motion": float(np.median(np.rad2deg(right.magnitude()))),
        }
    axis = truth.molecule.axis_directions[domain]
    angles = torch.from_numpy(turned.as_rotvec()).float() @ axis
    true_angles = truth.angles[rows, domain] - frame[domain, :3] @ axis
    difference = torch.polar(torch.ones(len(rows)), angles - true_angles)
    return {
        "turn_slope": turn_slope(angles, true_angles),
        "turn_agreement": float(difference.mean().abs()),
    }


def expected(truth, run, half, known, domain, points, rest):
    """Return the decoded motion of one part against the oracle's posterior mean, and this against the truth."""
    rows, candidates, posteriors = known
    own = run.halves[rows] == half
    rows, posterior = rows[own], posteriors[domain][own]
    labels = torch.full((len(points),), domain + 1)

    def moved(motions):
        every = torch.zeros(len(motions), truth.molecule.n_domains, 6)
        every[:, domain] = motions
        return truth.molecule.move(rest, labels, every) - points

    mean = torch.einsum("bg,gmc->bmc", posterior, moved(candidates[domain]))
    true, found = moved(truth.motions[rows, domain]), displacements(run, half, points, rows)
    return {
        "oracle_r": centred_r(mean, true),
        "oracle_error": spread(mean - true),
        "expected_r": centred_r(found, mean),
        "expected_slope": slope(found, mean),
    }


def area(volume, truth, mask=None):
    """Return the area under the FSC over i / D of two (D, D, D) maps; at most 0.484 for D = 64."""
    curve = fourier_shell_correlation(volume, truth, mask)[1 : len(volume) // 2]
    return float(curve.sum()) / len(volume)


@torch.no_grad()
def state_figures(truth, run, n, n_true):
    """Return CryoBench's area under the FSC of states with the truth, whole and in the moving parts.

    A state is the Gaussian model at the medoid of the latents of the particles that are truly nearest to one of n
    conformations, mean over halves; beside it the consensus map, and for `n_true` of them all images backprojected with
    their true motions.
    """
    chosen = truth.angles[:, 0].argsort(stable=True)
    chosen = chosen[((torch.arange(n) + 0.5) * len(chosen) / n).long()]
    models, atoms = StateModels(run), torch.linspace(0, len(truth.molecule) - 1, 200).long()
    shapes = truth.positions(slice(None))[:, atoms].flatten(1)
    consensus = torch.from_numpy(np.array(read_map(run.config.inputs.map)[0]))
    rows = {"states": [], "consensus": [], "true": []}
    for number, row in enumerate(chosen):
        motion = truth.motions[row]
        right = truth.true_map(motion[None])[0]
        masks = [truth.domain_mask(k + 1, motion=motion) for k in range(truth.molecule.n_domains)]
        maps = {"consensus": consensus, "states": torch.from_numpy(_state(run, models, shapes, row))}
        if number % max(1, n // max(1, n_true)) == 0 and n_true:
            maps["true"] = true_state(truth, run, motion)
        for name, volume in maps.items():
            parts = np.mean([area(volume, right, mask) for mask in masks])
            rows[name].append((area(volume, right), parts))
    areas = {name: np.mean(values, 0) for name, values in rows.items() if values}
    return {f"auc {name} {where}": float(pair[i]) for name, pair in areas.items() for i, where in enumerate(WHERE)}


def _state(run, models, shapes, row):
    volumes = []
    for half in (1, 2):
        own = torch.where(run.halves == half)[0]
        near = own[(shapes[own] - shapes[row]).square().sum(1).argsort()[: max(MIN_NEAR, int(NEAR * len(own)))]]
        latents = run.latents[half - 1][near]
        volumes.append(models.volume_at_latent(half, latents[medoid(latents)]))
    return np.mean(volumes, 0)


def true_state(truth, run, motion):
    """Return the map of one conformation from all images with their true motions."""
    images = FullImages(run, torch.device("cpu"))
    points = truth.molecule.positions_at(motion[None])[0]
    modes = find_modes(HingeField(truth, motion), truth.motions, points, truth.pixel_size)
    region = deforming_region(points, truth.box, truth.pixel_size, ReconstructOptions().region_radius)
    rows = torch.arange(len(truth))
    return HalfReconstruction.of(images.data(images.noise_weights(0)), rows, modes, region).backprojected(
        MIN_REGULARISATION
    )


@torch.no_grad()
def map_figures(truth, run):
    """Return the mean FSC of rigid, learned and true maps with the truth in each part, and the gap closed.

    Means over half-maps. Each is in the frame of its half's consensus, which is where the truth is taken.
    """
    images, options, figures = FullImages(run, torch.device("cpu")), ReconstructOptions(), {}
    data = images.data(images.noise_weights(0))
    for half, model in enumerate(run.models, 1):
        frame, points = frame_of(truth, run, half), model.consensus_positions
        right, rows = truth.true_map(frame[None])[0], torch.where(run.halves == half)[0]
        region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
        learned = HalfReconstruction.of(data, rows, half_modes(run, half, images, options)[0], region)
        true = find_modes(HingeField(truth, frame), truth.motions, points, images.pixel_size)
        true = HalfReconstruction.of(data, rows, true, region, known=learned)
        maps = {"rigid": learned.backprojected(MIN_REGULARISATION, deformed=False)}
        maps |= {"learned": learned.backprojected(MIN_REGULARISATION), "true": true.backprojected(MIN_REGULARISATION)}
        for label in range(truth.molecule.n_domains + 1):
            mask = truth.domain_mask(label, motion=frame)
            for name, volume in maps.items():
                key = f"fsc {name} part{label}"
                figures[key] = figures.get(key, 0.0) + mean_fsc(volume, right, mask) / 2
    for label in range(1, truth.molecule.n_domains + 1):
        rigid, learned, true = (figures[f"fsc {name} part{label}"] for name in ("rigid", "learned", "true"))
        if true - rigid > 1e-3:
            figures[f"gap closed part{label}"] = (learned - rigid) / (true - rigid)
    return figures
