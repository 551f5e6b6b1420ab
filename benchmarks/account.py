"""What a particle must cost in each stage of a training, and what it costs, on one core.

    python -m benchmarks.account --box 64 128 --gaussians 2000 10000

The floor counts what cannot be avoided. For an image of the model, this is the displacement of each Gaussian as a
product with the decoder's fields, its rotation, four additions to pixels, and a Fourier transform. Products are at the
speed of this machine's matrix product. Additions to pixels are at that of its compiled loop with all data in the cache.
A training step needs three times an image of the model, once forwards and twice backwards. An inference needs an image
for the start, and in each step one for each direction and one for the new place. The linear start needs an image and a
backward pass for each filter, and a reading of forces for each filter and set of noise images. Filtered images are
counted at their smaller size. Bytes are counted as if nothing stayed in the cache.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from dynamight_core.imaging.compiled import spread_moved
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import encode, infer_latents
from dynamight_core.training.linear import RESOLUTIONS, linear_motions, noise_draws
from dynamight_core.training.refit import deformed_map
from dynamight_core.training.schedule import Epoch

EXTENT, RESOLUTION, PARTICLES, LATENTS, STEPS = 192.0, 14.0, 512, 2, 2


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the least time of some calls."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


class Images:
    """Random images, the same few for all particles."""

    def __init__(self, box: int):
        self._images = torch.randn(64, box, box, generator=torch.Generator().manual_seed(0))

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (b, box, box) images."""
        return self._images[rows % len(self._images)]


def trainer_of(box: int, gaussians: int) -> HalfTrainer:
    """Return a trainer of a sphere of Gaussians that moves, with random images."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(gaussians, 3, generator=generator), dim=1)
    radii = 0.3 * EXTENT * torch.rand(gaussians, 1, generator=generator) ** (1 / 3)
    model = HalfModel(GaussianModel(directions * radii, 2.0, 1.0), box, EXTENT / box, LATENTS, "basis", 0.9 * EXTENT)
    torch.nn.init.normal_(model.decoder.fields[-1].weight, std=0.3)
    model.resolution.fill_(RESOLUTION)
    ctf = CtfParameters.create(torch.full((PARTICLES,), 15000.0))
    matrices = rotation_matrices(random_rotations(PARTICLES, generator))
    data = TrainingImages(Images(box), ctf, matrices, box, EXTENT / box)
    options = TrainOptions(n_latents=LATENTS, n_gaussians=gaussians)
    trainer = HalfTrainer(model, data, torch.arange(PARTICLES), options, 1)
    trainer.latents = torch.randn(PARTICLES, LATENTS, generator=generator)
    trainer.started = True
    trainer.rebuild_graph()
    return trainer


def ceilings() -> tuple[float, float]:
    """Return operations a second of a matrix product, and additions to pixels a second, of one core."""
    one, other = torch.randn(512, 512), torch.randn(512, 512)
    products = 2 * 512**3 / seconds(lambda: one @ other)
    n, zero = 2000, np.zeros((8, 3, 2000), np.float32)
    points = np.random.default_rng(0).uniform(2, 60, (3, n)).astype(np.float32)
    poses = np.tile(np.eye(2, 4, dtype=np.float32), (8, 1, 1))
    weights, grids = np.ones(n, np.float32), np.zeros((8, 64, 64), np.float32)
    return products, 4 * 8 * n / seconds(lambda: spread_moved(0, 8, points, zero, poses, weights, grids))


def floors(trainer: HalfTrainer, products: float, additions: float) -> dict[str, tuple[float, float]]:
    """Return floor (seconds) and bytes of a particle by stage."""
    model = trainer.model
    n, box = len(model.gaussians), model.box
    seen = len(model.seen_weights())
    fields = model.decoder.n_fields

    def image(size: int) -> float:
        grid = model._projector(size).grid_size
        transform = 2.5 * grid**2 * np.log2(grid**2)
        return (n * (6 * fields + 12) + transform) / products + 4 * n / additions

    def moved(size: int) -> float:
        return 4 * (2 * 3 * n + 2 * model._projector(size).grid_size ** 2 + 4 * size**2)

    of_motion, bytes_of_motion = image(seen), moved(seen)
    tried = [len(model.seen_weights(resolution)) for resolution in RESOLUTIONS]
    draws = 1 + 2 * noise_draws(PARTICLES)
    inferred = 1 + STEPS * (LATENTS + 1)
    return {
        "image of the model": (of_motion, bytes_of_motion),
        "training step": (3 * of_motion, 3 * bytes_of_motion),
        "inference": (inferred * of_motion, inferred * bytes_of_motion),
        "linear start": (
            sum(image(size) * (1 + draws) for size in tried),
            sum(moved(size) * (1 + draws) for size in tried),
        ),
        "encoder": (0.0, 4.0 * box**2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--box", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--gaussians", type=int, nargs="+", default=[2000, 10_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    products, additions = ceilings()
    print(f"one core: {products / 1e9:.0f} GFLOP/s in products, {additions / 1e9:.2f} G additions to pixels a second")
    print("box Gaussians stage | floor us, kB | measured us | over floor")
    for box in arguments.box:
        for gaussians in arguments.gaussians:
            _measure(trainer_of(box, gaussians), products, additions)


def _measure(trainer: HalfTrainer, products: float, additions: float) -> None:
    model, data, rows = trainer.model, trainer.data, trainer.rows
    weights = model.seen_weights()
    batch = data.batch(rows[:64]).within(weights)
    latents = [trainer.latents]
    mask = np.zeros((model.box,) * 3, bool)
    inner = slice(model.box // 5, -(model.box // 5))
    mask[inner, inner, inner] = True
    with torch.no_grad():
        projection = model.deformed_projection()
        found = {
            "image of the model": seconds(lambda: projection(latents[0][:64], batch.matrices, batch.transfer)) / 64,
            "inference": seconds(lambda: infer_latents(model, data, rows, latents, STEPS, every=True), 1) / len(rows),
            "encoder": seconds(lambda: encode(model, data, rows), 1) / len(rows),
            "map of a refit": seconds(lambda: deformed_map(trainer, mask), 1) / len(rows),
        }
    found["training step"] = seconds(lambda: run_epoch(trainer, Epoch("refinement"), 1), 2) / len(rows)
    found["linear start"] = seconds(lambda: linear_motions(trainer, LATENTS), 1) / len(rows)
    known = floors(trainer, products, additions)
    for stage, measured in found.items():
        floor, moved = known.get(stage, (0.0, 0.0))
        over = f"{measured / floor:.1f}" if floor else "-"
        print(
            f"{model.box:4d} {len(model.gaussians):6d} {stage:18s} | {1e6 * floor:7.0f}, {moved / 1e3:7.0f} | "
            f"{1e6 * measured:7.0f} | {over}",
            flush=True,
        )


if __name__ == "__main__":
    main()
