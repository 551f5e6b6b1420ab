"""Maps from preferred views: how well each reconstruction fills directions that few images show.

    python -m benchmarks.preferred_views --seeds 0 1 2

A Fab of an antibody at rest, and moving by up to 45 degrees with its true motions undone; views uniform, and with 60 or
85 % of them within 15 degrees of one axis. No training. Prints the mean FSC of half-maps with the truth: in ranges of
shells, in the sphere inscribed in the box; over all its shells; and over all shells in a mask of the part that moves.
`wbp` is weighted backprojection, `cg` least squares with its mean number of steps, both regularised by the half-maps as
in `dynamight reconstruct`; `slices` are the simulator's slices of padded images, of the molecule at rest.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks.common.runs import WORLD, data_set
from dynamight_core.files import read_map
from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, translation_phases
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.modes import find_modes
from dynamight_core.options import ReconstructOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.reconstruction.deformation import deforming_region
from dynamight_core.reconstruction.fsc import half_map_fsc, soft_mask
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction, noise_to_signal
from dynamight_core.reconstruction.half_sums import HELD_OUT
from dynamight_core.simulate.measures import HingeField, mean_fsc
from dynamight_core.simulate.truth import load_truth

VIEWS = {"uniform": {"cone": 90.0, "cone_fraction": 1.0}, "60 %": {"cone_fraction": 0.6}, "85 %": {}}
RANGES = ((1, 2), (3, 5), (6, 10), (11, 20), (21, 31))


def views_set(views, motion_range, particles, seed):
    """Return the folder of a data set."""
    options = WORLD["preferred-views"] | VIEWS[views] | {"motion_range": motion_range, "particles": particles}
    name = f"views-{views.replace(' %', '')}-{motion_range:.0f}-{particles}-{seed}"
    return data_set(name, seed=seed, **options)


def particle_data(folder, truth):
    """Return the data of a reconstruction from centred images with their true poses and CTFs."""
    reader, box, pixel_size = ImageReader(read_particles(folder / "particles.star")), truth.box, truth.pixel_size

    def images(rows):
        shifts = translation_phases(truth.origins[rows] / pixel_size, box)
        read = torch.as_tensor(reader.read(rows.numpy()))
        return fourier_to_image(image_to_fourier(read.float()) * shifts, box)

    def transfer(rows):
        return evaluate_ctf(truth.ctf[rows], box, pixel_size)

    return ParticleData(images, transfer, truth.matrices(slice(None)), box, pixel_size)


@torch.no_grad()
def maps(folder):
    """Return half-maps, CPU seconds and steps by method of one data set."""
    truth = load_truth(folder / "truth.npz")
    atoms, rows = truth.molecule.positions, [torch.where(truth.half == half)[0] for half in (1, 2)]
    moves = bool(truth.motions.any())
    modes = find_modes(HingeField(truth), truth.motions, atoms, truth.pixel_size) if moves else None
    region = deforming_region(atoms, truth.box, truth.pixel_size, ReconstructOptions().region_radius)
    data, found, seconds, started = particle_data(folder, truth), {}, {}, time.process_time()
    halves = [HalfReconstruction.of(data, own, modes, region) for own in rows]
    first = [half.backprojected(MIN_REGULARISATION) for half in halves]
    mask = soft_mask(sum(first) / 2, truth.pixel_size)
    curve = noise_to_signal(half_map_fsc(*first, mask).corrected)
    found["wbp"] = [half.backprojected(curve) for half in halves]
    seconds["wbp"], started = time.process_time() - started, time.process_time()
    others = [own[:: max(1, len(own) // HELD_OUT)] for own in rows[::-1]]
    solved = [half.least_squares(curve, own) for half, own in zip(halves, others, strict=True)]
    found["cg"] = [volume for volume, _ in solved]
    seconds["cg"] = time.process_time() - started
    if not moves:
        found["slices"] = [
            torch.from_numpy(np.array(read_map(folder / f"consensus_half{half}.mrc")[0])) for half in (1, 2)
        ]
    return truth, found, seconds, np.mean([solution.steps for _, solution in solved])


def figures(truth, volume):
    """Return the mean FSC in each of `RANGES` and over all shells, and in a mask of the part that moves."""
    right, inside = truth.true_map(), sphere(truth.box).float()
    curve = fourier_shell_correlation(volume, right, inside)
    means = [float(curve[first : last + 1].mean()) for first, last in RANGES]
    return [*means, float(curve[1:].mean()), mean_fsc(volume, right, truth.domain_mask(1))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    arguments = parser.parse_args()
    print(
        f"{'views':10s}{'motion':8s}{'map':8s}"
        + "".join(f"{f'{a}-{b}':>14s}" for a, b in RANGES)
        + f"{'all':>14s}{'part':>14s}"
    )
    for views in arguments.views:
        for name, motion_range in (("none", 0.0), ("true", 45.0)):
            results, taken, steps = {}, {}, []
            for seed in arguments.seeds:
                folder = views_set(views, motion_range, arguments.particles, seed)
                truth, found, seconds, number = maps(folder)
                steps.append(number)
                for method, pair in found.items():
                    results.setdefault(method, []).append(np.mean([figures(truth, each) for each in pair], 0))
                    taken.setdefault(method, []).append(seconds.get(method, 0.0))
            for method, rows in results.items():
                of_steps = f", {np.mean(steps):.1f} steps" if method == "cg" else ""
                cells = "".join(f"{m:7.3f} ±{s:.3f}" for m, s in zip(np.mean(rows, 0), np.std(rows, 0), strict=True))
                print(f"{views:10s}{name:8s}{method:8s}{cells}   {np.mean(taken[method]):.1f} s{of_steps}", flush=True)


if __name__ == "__main__":
    main()
