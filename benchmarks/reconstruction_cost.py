"""Time and memory of the sums of a reconstruction, over box sizes; both are linear in the particles.

    python benchmarks/reconstruction_cost.py --boxes 64 128 256 --threads 2

Random images of a molecule that fills as much of its box as the benchmark's hinge (12 % of the voxels move, 4 modes).
"""

import argparse
import resource
import sys
import time

import numpy as np
import torch

from dynamight_core.imaging.backprojection import ParticleData, inscribed_sphere
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.voxels import ModalField
from dynamight_core.reconstruction.half_map import HalfReconstruction
from dynamight_core.reconstruction.modes import Modes

MODES = 4


def cost(box, particles, device):
    """Return wall and CPU seconds a particle, the seconds of the solution, and the peak memory in GB."""
    generator = torch.Generator().manual_seed(0)
    matrices = rotation_matrices(random_rotations(particles, generator))
    ctf = CtfParameters.create(torch.full((particles,), 12000.0))
    images = torch.randn(min(particles, 32), box, box, generator=generator)

    def read(indices):
        return images[indices % len(images)]

    pixel_size = 192.0 / box
    data = ParticleData(read, lambda i: evaluate_ctf(ctf[i], box, pixel_size), matrices, box, pixel_size, None, device)
    field = ModalField(lambda points: torch.sin(points.T[None] * torch.arange(1, MODES + 1)[:, None, None] / 50).mT)
    modes = Modes(field, torch.randn(particles, MODES, generator=generator).to(device), 0.0)
    region = inscribed_sphere(box, radius=0.3 * box).float()
    started, worked = time.monotonic(), time.process_time()
    half = HalfReconstruction.of(data, torch.arange(particles), modes, region)
    wall, cpu = time.monotonic() - started, time.process_time() - worked
    started = time.monotonic()
    half.backprojected(0.3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.device(device).type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    return wall / particles, cpu / particles, time.monotonic() - started, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = []
    for box in arguments.boxes:
        wall, cpu, solution, peak = cost(box, arguments.particles, arguments.device)
        found.append(cpu)
        print(
            f"box {box}: {1e3 * wall:.2f} ms a particle ({1e3 * cpu:.2f} ms of CPU), solution {solution:.2f} s, "
            f"peak {peak:.2f} GB",
            flush=True,
        )
    if len(found) > 1:
        power, constant = np.polyfit(np.log(arguments.boxes), np.log(found), 1)
        at_360 = np.exp(constant) * 360**power
        print(f"CPU time grows as box^{power:.2f}; 100,000 particles of box 360: {1e5 * at_360 / 3600:.1f} CPU hours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
