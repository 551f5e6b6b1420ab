"""Half-maps of a run by whose deformations, by which method, and from which images."""

import time
from dataclasses import replace

import numpy as np
import torch

from benchmarks.common.runs import trained_run
from dynamight_core.imaging.backprojection import ParticleData, solve
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, shells
from dynamight_core.imaging.modes import find_modes
from dynamight_core.model.half import ConsensusField
from dynamight_core.options import InvertOptions, ReconstructOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.reconstruction.deformation import deforming_region, half_modes, inverse_path
from dynamight_core.reconstruction.fsc import half_map_fsc, soft_mask
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction, noise_to_signal
from dynamight_core.reconstruction.half_sums import HELD_OUT
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import ForwardFromInverse, load_inverse
from dynamight_core.reconstruction.stage import invert_run
from dynamight_core.reporter import QUIET
from dynamight_core.simulate.measures import HingeField, oracle_angles

# The learned field with and without shrinking, by error weights, through the inverse network, and what no run has.
WAYS = ("learned", "unshrunk", "errors", "inverse", "true", "oracle")
METHODS = ("wbp", "wbp-", "cg", "cg+")
DOMAINS = {"moving": 1, "second": 2, "static": 0}
CONTROLS = ("noise", "phases", "permuted", "own")
# Shell beyond which the control "phases" randomises phases.
RANDOM_FROM = 10


def half_maps(case, seed, ways, methods, options, control=None, noise_seed=0, cone=180.0):
    """Return maps["way method"] = both half-maps, masks by domain, and seconds of one data set."""
    # What was learned is not needed for the deformations that no run has.
    truth, run = trained_run(case, seed, None if set(ways) - {"true", "oracle"} else 4)
    if "inverse" in ways and not inverse_path(run, 1).exists():
        invert_run(run, InvertOptions(seed=seed), QUIET)
    images = FullImages(run, torch.device("cpu"))
    masks = {name: truth.domain_mask(label) for name, label in DOMAINS.items()}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    weights = images.noise_weights(0)
    images.images = controlled(images, control, noise_seed)
    seen = within(run.particles, cone)
    rows = [torch.where((run.halves == half) & seen)[0] for half in (1, 2)]
    errors = torch.tensor(run.table["dynMotionError"].to_numpy())
    maps, seconds, known, shares = {}, {}, [None, None], options.regularisation
    for way in ways:
        started = time.process_time()
        weighted = way == "errors"
        data: ParticleData = images.data(weights, errors if weighted else None)
        halves = []
        for half in (1, 2):
            modes = modes_of(way, truth, run, half, images, options)
            if control == "permuted":
                modes = permuted(modes, run.halves, seed)
            points = run.models[half - 1].consensus_positions
            region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
            same = None if weighted else known[half - 1]
            halves.append(HalfReconstruction.of(data, rows[half - 1], modes, region, known=same))
        if not weighted:
            known = halves
        if shares is None:
            first = [half.backprojected(MIN_REGULARISATION) for half in halves]
            mask = sum(masks.values()).clamp(max=1) if control else soft_mask(sum(first) / 2, images.pixel_size)
            shares = noise_to_signal(half_map_fsc(*first, mask).corrected)
        seconds[f"sums {way}"] = time.process_time() - started
        for method in methods:
            for deformed in (True, False):
                name = f"{way if deformed else 'rigid'} {method}"
                if name in maps:
                    continue
                started = time.process_time()
                if method == "wbp":
                    pair = [half.backprojected(shares, deformed) for half in halves]
                elif method == "wbp-":
                    sums = [half.sums.numerator if deformed else half.sums.rigid for half in halves]
                    pair = [solve(each, half.denominator, shares) for each, half in zip(sums, halves, strict=True)]
                else:
                    raised = torch.as_tensor(shares).clamp(min=MIN_REGULARISATION) if method == "cg+" else shares
                    pair = []
                    for number, half in enumerate(halves):
                        others = rows[1 - number][:: max(1, len(rows[1 - number]) // HELD_OUT)]
                        pair.append(half.least_squares(raised, others, deformed)[0])
                maps[name] = pair
                seconds[name] = time.process_time() - started
    if control is not None:
        masks["molecule"] = sum(masks.values()).clamp(max=1)
    return maps, masks, seconds


def oracle(truth, run, folder):
    """Return (n, 1) posterior-mean angles of who knows structure, noise and poses; kept in the data set's folder."""
    path = folder / "oracle.npy"
    if not path.exists():
        reader = ImageReader(run.particles)
        motion_range = float(truth.angles.abs().max())

        class Raw:
            def __getitem__(self, rows):
                return reader.read(np.asarray(rows))

        np.save(path, oracle_angles(Raw(), truth, motion_range)[0].numpy())
    return torch.from_numpy(np.load(path))[:, None]


def modes_of(way, truth, run, half, images, options):
    """Return the modes of one half's deformations."""
    model = run.models[half - 1]
    if way in ("true", "oracle"):
        angles = truth.angles if way == "true" else oracle(truth, run, run.path.parent)
        return find_modes(HingeField(truth), angles, model.consensus_positions, images.pixel_size)
    if way == "inverse":
        inverse = ForwardFromInverse(load_inverse(inverse_path(run, half)))
        field, latents = ConsensusField(model, inverse), run.latents[half - 1]
        return find_modes(field, latents, model.consensus_positions, images.pixel_size)
    options = ReconstructOptions(**{**vars(options), "shrink": way != "unshrunk"})
    return half_modes(run, half, images, options)[0]


def within(particles, cone):
    """Return (n,) bool: views within `cone` degrees of the z axis, or against it."""
    tilt = torch.rad2deg(particles.angles[:, 1]) % 360
    away = torch.minimum(tilt, 360 - tilt)
    return (away <= cone) | (away >= 180 - cone)


def controlled(images, control, seed):
    """Return what gives (b, box, box) images for a control."""
    given = images.images
    if control not in ("noise", "phases"):
        return given

    def replaced(indices):
        shape = (len(indices), images.box, images.box)
        # The same particle has the same noise in every pass.
        noise = torch.stack(
            [torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed * 10**6 + int(i))) for i in indices]
        )
        if control == "noise":
            return noise
        transforms, random = image_to_fourier(given(indices)), image_to_fourier(noise)
        random = random / random.abs() * transforms.abs()
        return fourier_to_image(torch.where(shells(images.box) < RANDOM_FROM, transforms, random), images.box)

    return replaced


def permuted(modes, halves, seed):
    """Return modes with every particle's coordinates given to another one of its half."""
    coordinates, generator = modes.coordinates.clone(), torch.Generator().manual_seed(seed)
    for half in (1, 2):
        rows = torch.where(halves == half)[0]
        coordinates[rows] = modes.coordinates[rows[torch.randperm(len(rows), generator=generator)]]
    return replace(modes, coordinates=coordinates)
