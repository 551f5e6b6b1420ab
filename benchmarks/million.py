"""Time and memory of check, one epoch and analyse by the number of particles, in many stacks of tiny images.

    python -m benchmarks.million OUT [--particles 100000 300000 1000000] [--stacks 5000]

Images of 16 pixels, from 2,000 simulated particles with new noise in each copy. Each command is a process of its own:
its time of the processor (s), time by the clock (s) and peak memory (GB) are printed, and the power of the number of
particles with which the time of the processor grows. `python -m benchmarks.conversion` has the same of Scipion.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import mrcfile
import numpy as np

_BASE = 2000
_TRAIN = "--n-gaussians 50 --epochs 1 --warm-up-epochs 1 --n-latents 2 --n-motions 2 --refits 0 --reference-epochs 0"
_TRAIN += " --batch-size 2000 --no-large-motions --device cpu --threads 1"


def write_particles(out: Path, base: Path, n: int, stacks: int) -> Path:
    """Write n particles in stacks of as many images each; return the STAR file."""
    out.mkdir(parents=True)
    head, rows = [], []
    for line in (base / "particles.star").read_text().splitlines():
        (rows if "@" in line else head).append(line)
    images = mrcfile.read(base / "particles.mrcs").astype(np.float32)
    values = [row.split("@", 1)[1].split(maxsplit=1)[1] for row in rows]
    numbers, each = np.random.default_rng(n), n // stacks
    (out / "stacks").mkdir()
    with open(out / "particles.star", "w") as star:
        star.write(
            "\n".join(line for line in head if line.strip()).replace("data_particles", "\ndata_particles\n") + "\n"
        )
        for stack in range(stacks):
            chosen = np.arange(stack * each, (stack + 1) * each) % len(rows)
            noisy = images[chosen] + 0.1 * numbers.standard_normal((each, *images.shape[1:]), dtype=np.float32)
            name = f"stacks/{stack:05d}.mrcs"
            with mrcfile.new(out / name) as mrc:
                mrc.set_data(noisy)
                mrc.set_image_stack()
            star.writelines(f"{i + 1:06d}@{name}\t{values[row]}\n" for i, row in enumerate(chosen))
    return out / "particles.star"


def measured(words: str) -> tuple[float, float, float]:
    """Run a command in a process of its own; return its processor time and time (s) and its peak memory (GB)."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dynamight_core", *shlex.split(words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process.stdout, process.stderr:
        _, told = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{words} ends with {os.waitstatus_to_exitcode(status)}: {told.decode()[-500:]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--particles", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--stacks", type=int, default=5000)
    arguments = parser.parse_args()
    out = arguments.out
    shutil.rmtree(out, ignore_errors=True)
    base, told = out / "base", {}
    measured(f"simulate {base} --particles {_BASE} --box 16 --pixel-size 9 --snr 1 --threads 1")
    for n in arguments.particles:
        star, run = write_particles(out / str(n), base, n, arguments.stacks), out / str(n) / "run"
        volume = f"--map {base}/consensus.mrc"
        for name, words in {
            "check": f"check {star} {volume} {_TRAIN}",
            "train": f"train {star} {run} {volume} {_TRAIN}",
            "analyse": f"analyse {run} --embedding pca --threads 1",
        }.items():
            told.setdefault(name, []).append(measured(words))
            print(f"{n} particles, {name}: {' '.join(f'{value:.1f}' for value in told[name][-1])}", flush=True)
    for name, values in told.items():
        powers = [
            np.log(second[0] / first[0]) / np.log(more / fewer)
            for (first, second), (fewer, more) in zip(pairwise(values), pairwise(arguments.particles), strict=True)
        ]
        print(f"{name}: power {' '.join(f'{power:.2f}' for power in powers)}")


if __name__ == "__main__":
    main()
