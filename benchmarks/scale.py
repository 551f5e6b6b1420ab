"""Time, memory and quality of a training and a reconstruction by box, Gaussians, particles, threads and processes.

    python -m benchmarks.scale --box 64 128 --gaussians 1000 2000 4000 --particles 1000 2000 4000 --threads 1

One value of each option is varied at a time, the others being the first of theirs. Each run is a process of its own, so
that its time and peak memory are its own; times are of the processor, which other programs on the machine change least.
Beside each, the correlation of the motion with the true angle, and what `check` says of the memory. Then, for each
option, the power with which the time grows, and what a law fitted to all runs says of data that do not fit here:

    seconds = program + particles (a Gaussians + c box^2)
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from benchmarks.common.runs import data_set
from dynamight_core.options import TrainOptions
from dynamight_core.run import Run
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.check import estimate_memory

EXTENT = 192.0
# Data that do not fit here: particles, box, Gaussians.
LARGE = ((100_000, 360, 10_000), (100_000, 360, 30_000), (1_000_000, 256, 10_000))


@dataclass(frozen=True)
class Size:
    """What is varied: box (pixels), Gaussians, particles, threads and processes."""

    box: int
    gaussians: int
    particles: int
    threads: int
    processes: int


@dataclass(frozen=True)
class Cost:
    """What a run took: wall and processor seconds and peak memory (bytes) of both stages, and its quality."""

    train_wall: float
    train: float
    train_memory: int
    reconstruct: float
    reconstruct_memory: int
    r: float


def measured(command: list[str], log: Path) -> tuple[float, float, int]:
    """Return wall and processor seconds and the peak memory (bytes) of a program; it must succeed."""
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed; see {log}")
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def run_of(size: Size, seed: int) -> Cost:
    """Train and reconstruct the hinge at a size."""
    folder = data_set(
        f"scale-{size.box}-{size.particles}-{seed}",
        particles=size.particles,
        box=size.box,
        pixel_size=EXTENT / size.box,
        seed=seed,
    )
    run = folder / f"run-{size.gaussians}-{size.threads}-{size.processes}"
    engine = [sys.executable, "-m", "dynamight_core"]
    common = ["--threads", str(size.threads), "--device", "cpu"]
    if size.processes > 1:
        common += ["--processes", str(size.processes)]
    train = [*engine, "train", str(folder / "particles.star"), str(run), "--map", str(folder / "consensus.mrc")]
    train += ["--n-gaussians", str(size.gaussians), "--overwrite", *common]
    wall, seconds, memory = measured(train, folder / "train.log")
    _, more, its_memory = measured(
        [*engine, "reconstruct", str(run), "--overwrite", *common], folder / "reconstruct.log"
    )
    found = Run(run).motions.coordinates[:, 0].numpy()
    angles = load_truth(folder / "truth.npz").angles[:, 0].numpy()
    return Cost(wall, seconds, memory, more, its_memory, abs(float(np.corrcoef(found, angles)[0, 1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--box", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--gaussians", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    varied = {name: getattr(arguments, name) for name in ("box", "gaussians", "particles", "threads", "processes")}
    first = {name: values[0] for name, values in varied.items()}
    sizes = [Size(**first)]
    sizes += [Size(**(first | {name: value})) for name, values in varied.items() for value in values[1:]]
    costs: dict[Size, Cost] = {}
    print("box Gaussians particles threads processes | train s (wall) CPU s, GB (check) | reconstruct CPU s, GB | r")
    for size in sizes:
        cost = costs[size] = run_of(size, arguments.seed)
        expected = estimate_memory(
            size.particles, size.box, TrainOptions(n_gaussians=size.gaussians), 1 + (size.threads > 1)
        )
        print(
            f"{size.box:3d} {size.gaussians:6d} {size.particles:7d} {size.threads:2d} {size.processes:2d} | "
            f"{cost.train_wall:6.1f} {cost.train:7.1f}, {cost.train_memory / 1e9:.2f} ({expected / 1e9:.2f}) | "
            f"{cost.reconstruct:6.1f}, {cost.reconstruct_memory / 1e9:.2f} | {cost.r:.3f}",
            flush=True,
        )
    for name, values in varied.items():
        if len(values) > 2:
            seconds = [costs[Size(**(first | {name: value}))].train for value in values]
            power = np.polyfit(np.log(values), np.log(seconds), 1)[0]
            print(f"the time of training grows with {name} to the power {power:.2f} ({len(values)} values)")
    _extrapolate(costs)


def _extrapolate(costs: dict[Size, Cost]) -> None:
    """Fit the law of the time, and say what it gives for large data."""
    alone = {size: cost for size, cost in costs.items() if size.threads == size.processes == 1}
    if len(alone) < 4:
        return
    rows = [(1, size.particles * size.gaussians, size.particles * size.box**2) for size in alone]
    matrix, times = np.array(rows, dtype=float), np.array([cost.train for cost in alone.values()])
    (program, a, c), _ = nnls(matrix / times[:, None], np.ones(len(times)))
    error = np.abs(matrix @ (program, a, c) / times - 1).max()
    print(
        f"program {program:.1f} s, a {1e6 * a:.2f} us, c {1e9 * c:.1f} ns; largest error of the law {100 * error:.0f} %"
    )
    for particles, box, gaussians in LARGE:
        hours = (program + particles * (a * gaussians + c * box**2)) / 3600
        print(f"{particles} particles, box {box}, {gaussians} Gaussians: {hours:.1f} hours of one core (extrapolated)")


if __name__ == "__main__":
    main()
