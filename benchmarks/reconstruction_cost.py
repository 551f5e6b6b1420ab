"""Time and memory of a reconstruction by box size and number of particles, fitted and extrapolated.

    python -m benchmarks.reconstruction_cost --boxes 64 128 256 --particles 1000 10000 --threads 1

Data: random images and four modes of motion. The moving region fills 12 % of the box, as in the benchmark's hinge; what
images show does not change the cost. Each measurement runs in its own process, so that its peak memory is its own.
Boxes beyond 128 pixels get a tenth of the particles. Also prints how exact the sums are.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from scipy.optimize import curve_fit

from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.geometry import squared_radius
from dynamight_core.imaging.masks import raised_cosine
from dynamight_core.imaging.modes import Modes
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.voxels import ModalField, Voxels, bordered
from dynamight_core.reconstruction.half_map import HalfReconstruction
from dynamight_core.reconstruction.least_squares import DeformedProjection

MODES, EXTENT = 4, 192.0
# Particles of one application of least squares' operator, and of the comparison with every voxel read singly.
CG_PARTICLES, COMPARED = 32, 4
# Applications of the operator in a least-squares solution of 4 steps, held-out particles and numerator included.
CG_STEPS = 6


def waves(points):
    """Return (MODES, m, 3) smooth fields of mean square about 1 at (m, 3) points, wavelengths 300 A and shorter."""
    factors = torch.arange(1, MODES + 1, device=points.device)[:, None, None] / 50
    return torch.sin(points.roll(1, 1)[None] * factors)


def setup(box, particles, device):
    """Return the particles, modes and region."""
    generator = torch.Generator().manual_seed(0)
    matrices = rotation_matrices(random_rotations(particles, generator))
    ctf = CtfParameters.create(torch.full((particles,), 12000.0))
    images = torch.randn(min(particles, 32), box, box, generator=generator)
    pixel_size = EXTENT / box
    data = ParticleData(
        lambda i: images[i % len(images)],
        lambda i: evaluate_ctf(ctf[i], box, pixel_size),
        matrices,
        box,
        pixel_size,
        None,
        device,
    )
    modes = Modes(ModalField(waves), torch.randn(particles, MODES, generator=generator).to(device), 0.0)
    radius = squared_radius(box).sqrt() / box
    # The displacement fades out, as around a molecule.
    return data, modes, raised_cosine((radius - 0.2) / 0.1)


def measure(box, particles, device):
    """Return the figures of one half-map."""
    # Compiled or loaded before the clock starts.
    data, modes, region = setup(16, 2, device)
    half = HalfReconstruction.of(data, torch.arange(2), modes, region)
    DeformedProjection(data, region, modes.field, modes.coordinates).numerator(torch.arange(2), 2)
    data, modes, region = setup(box, particles, device)
    started, worked = time.monotonic(), time.process_time()
    half = HalfReconstruction.of(data, torch.arange(particles), modes, region)
    half.backprojected(0.3)
    figures = {"box": box, "particles": particles, "cpu": time.process_time() - worked}
    figures["wall"] = time.monotonic() - started
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.device(device).type == "cuda":
        figures["peak"] = torch.cuda.max_memory_allocated() / 2**30
    del half
    operator = DeformedProjection(data, region, modes.field, modes.coordinates)
    values, some = torch.randn(len(operator), device=device), torch.arange(min(particles, CG_PARTICLES))
    operator.normal(values, some[:1], 1)
    worked = time.process_time()
    operator.normal(values, some, len(some))
    figures["cg"] = (time.process_time() - worked) / len(some)
    return figures | errors(box, device)


def errors(box, device):
    """Return how far sums of a few particles are from those of every voxel read singly, at its own displacement.

    Of voxels that do not move, reads are the worse: white images alias.
    """
    data, modes, region = setup(box, COMPARED, device)
    batch = torch.arange(COMPARED)
    sums = HalfReconstruction.of(data, batch, modes, region).sums
    images = bordered(data.projector.reading_grid(data.transforms(batch) * data.transfer(batch).conj() * data.weights))
    found = {}
    for name, volume, field in (("moved", sums.numerator, modes.field), ("still", sums.rigid, None)):
        voxels = Voxels((region > 0).to(device), (box // 2,) * 3, data.pixel_size, field, region.to(device))
        exact = torch.zeros_like(volume)
        for part in voxels.split(2**20):
            part.read(images, part.place(data.poses(batch), modes.coordinates), exact)
        found[name] = float(((volume - exact) * (region > 0)).norm() / exact.norm())
    return found


def fitted(rows):
    """Return a, c, b, p of CPU seconds = a + c box^3 + b n box^p."""
    n, box, seconds = (np.array([row[key] for row in rows], float) for key in ("particles", "box", "cpu"))

    def model(_, a, c, b, p):
        return np.exp(a) + np.exp(c) * (box / 64) ** 3 + np.exp(b) * n * (box / 64) ** p

    start = (np.log(0.1), np.log(0.05), np.log(1e-3), 2.5)
    values, _ = curve_fit(model, None, seconds, start, sigma=seconds, maxfev=20000)
    return float(np.exp(values[0])), float(np.exp(values[1])), float(np.exp(values[2])), float(values[3])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", action="store_true", help="measure one box and number of particles, print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure(arguments.boxes[0], arguments.particles[0], arguments.device)))
        return 0
    rows = []
    for box in arguments.boxes:
        for particles in arguments.particles:
            n = particles if box <= 128 else particles // 10
            words = ["--one", "--boxes", box, "--particles", n, "--threads", arguments.threads]
            words += ["--device", arguments.device]
            done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout)
            rows.append(row)
            print(
                f"box {box}, {n} particles: {row['cpu']:.1f} s of CPU ({row['wall']:.1f} s), "
                f"{1e3 * row['cpu'] / n:.2f} ms a particle, cg {1e3 * row['cg']:.2f} ms a particle and step; peak "
                f"{row['peak']:.2f} GB; off by {row['moved']:.1e} where moved, {row['still']:.1e} where not",
                flush=True,
            )
    if len(rows) >= 4:
        a, c, b, p = fitted(rows)
        print(
            f"CPU seconds = {a:.2g} + {c:.2g} (box / 64)^3 + {1e3 * b:.2g} ms n (box / 64)^{p:.2f}\n"
            f"100,000 particles of box 360: wbp {(a + c * (360 / 64) ** 3 + 1e5 * b * (360 / 64) ** p) / 3600:.2f} "
            "hours of one core"
        )
        cg_power, cg_constant = np.polyfit(np.log([r["box"] for r in rows]), np.log([r["cg"] for r in rows]), 1)
        step = 1e5 * np.exp(cg_constant) * 360**cg_power / 3600
        print(
            f"cg grows as box^{cg_power:.2f}; {CG_STEPS} applications of its operator (4 steps) at box 360: "
            f"{CG_STEPS * step:.1f} hours more"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
