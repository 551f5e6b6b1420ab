"""States from the particles near them, beside those of the model, the field alone and the kernel alone.

    python -m benchmarks.local_states turn --seeds 0 1 2

Data: the cases and runs of benchmarks/common/runs.py.

For conformations that particles truly have, evenly spaced in the rank of the first angle, the state at the median
coordinates of the particles nearest to it is compared with the true map: area under the FSC over shell / box (at most
0.484 at 64 pixels; arXiv 2408.05526), without a mask and in soft masks of the moving parts (their mean). A row for each

- model: Gaussian models of both half-sets;
- consensus: all particles at rest;
- field: all particles, moved to the state;
- kernel: the particles near it at rest, at the bandwidth that is best in the moving parts by the truth;
- local: `dynamight states --method local`;
- true: all particles with their true motion.

Maps of particles are filtered by the local FSC of their half-maps, as the command does.

The last columns are means over the moving part: effective number of particles, and trust in the field.
"""

import argparse
import sys
import time

import numpy as np
import torch

from benchmarks.common.runs import CASES, trained_run
from benchmarks.common.world import area
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.imaging.modes import find_modes
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.deformation import deforming_region
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.local_filter import locally_filtered
from dynamight_core.reconstruction.local_states import LocalStates
from dynamight_core.reporter import QUIET
from dynamight_core.simulate.measures import HingeField

NAMES = ("model", "consensus", "field", "kernel", "local", "true")
# Particles truly nearest to a conformation, as a fraction of all.
NEAR = 0.01


def true_state(truth, images, motion):
    """Return the map of one conformation, (domains, 6), of all particles with their true motion."""
    atoms = truth.molecule.positions_at(motion[None])[0]
    modes = find_modes(HingeField(truth, motion), truth.motions, atoms, truth.pixel_size)
    region = deforming_region(atoms, truth.box, truth.pixel_size, ReconstructOptions().region_radius)
    data = images.data(images.noise_weights(0))
    halves = [torch.where(truth.half == half)[0] for half in (1, 2)]
    pair = [HalfReconstruction.of(data, rows, modes, region).backprojected(MIN_REGULARISATION) for rows in halves]
    return locally_filtered(*pair, truth.pixel_size)


@torch.no_grad()
def figures(case, seed, n_states, n_true):
    """Return [name] = (whole, parts) areas, mean over states, and mean particles, trust and seconds of a state."""
    truth, run = trained_run(case, seed)
    local, models, images = LocalStates(run, QUIET), StateModels(run), FullImages(run, torch.device("cpu"))
    order = truth.angles[:, 0].argsort(stable=True)
    chosen = order[((torch.arange(n_states) + 0.5) * len(order) / n_states).long()]
    areas, chosen_by, seconds = {name: [] for name in NAMES}, [], 0.0
    for number, row in enumerate(chosen):
        angles = truth.angles[row]
        near = (truth.angles - angles).square().sum(1).argsort()[: max(20, int(NEAR * len(truth)))]
        coordinates = run.motions.coordinates[near].median(0).values
        motion = truth.motions[row]
        right = truth.true_map(motion[None])[0]
        masks = [truth.domain_mask(k + 1, motion=motion) for k in range(truth.molecule.n_domains)]

        def measured(volume, right=right, masks=masks):
            return area(volume, right), float(np.mean([area(volume, right, mask) for mask in masks]))

        started = time.process_time()
        state = local.reconstruct(coordinates)
        seconds += (time.process_time() - started) / n_states
        _, first, second = local.candidates(coordinates)

        def of(bandwidth, trust, first=first, second=second):
            return locally_filtered(first.volumes[bandwidth, trust], second.volumes[bandwidth, trust], truth.pixel_size)

        kernels = [measured(of(bandwidth, 0)) for bandwidth in range(len(first.volumes))]
        areas["kernel"].append(max(kernels, key=lambda pair: pair[1]))
        maps = {
            "model": torch.from_numpy(models.volume(coordinates)),
            "consensus": of(-1, 0),
            "field": of(-1, 1),
            "local": locally_filtered(*state.half_maps, truth.pixel_size),
        }
        if number % max(1, n_states // n_true) == 0:
            maps["true"] = true_state(truth, images, motion)
        for name, volume in maps.items():
            areas[name].append(measured(volume))
        chosen_by.append((state.row()["effective_particles"], state.row()["trust"]))
    return {name: np.mean(values, 0) for name, values in areas.items()}, (*np.mean(chosen_by, 0), seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--states", type=int, default=24, help="number of conformations")
    parser.add_argument("--true-states", type=int, default=3, help="of these, also with true motions")
    arguments = parser.parse_args()
    every = []
    for seed in arguments.seeds:
        areas, (particles, trust, seconds) = figures(arguments.case, seed, arguments.states, arguments.true_states)
        text = "  ".join(f"{name} {whole:.3f} / {parts:.3f}" for name, (whole, parts) in areas.items())
        print(
            f"{arguments.case} {seed}: {text}  particles {particles:.0f}  trust {trust:.2f}  {seconds:.1f} s",
            flush=True,
        )
        every.append([areas[name] for name in NAMES])
    for name, mean, deviation in zip(NAMES, np.mean(every, 0), np.std(every, 0), strict=True):
        print(f"{name:<10} whole {mean[0]:.3f} +- {deviation[0]:.3f}   parts {mean[1]:.3f} +- {deviation[1]:.3f}")


if __name__ == "__main__":
    sys.exit(main())
