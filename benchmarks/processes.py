"""How much a whole training changes with the number of processes, beside its change with the number of threads.

python -m benchmarks.processes --particles 400 --epochs 3

A simulated hinge (32 pixels of 6 A, SNR 8) is trained by one process with one thread for each half-set, by one process
with two threads for each, and by two and four processes with one thread each. Printed: the rms difference of the
displacements from those of the first training, beside the motion and the uncertainty that it reports.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from dynamight_core.options import SimulateOptions
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import simulate

CASES = {
    "one process": (1, 2),
    "one process, twice the threads": (1, 4),
    "two processes": (2, 2),
    "four processes": (4, 4),
}


@torch.no_grad()
def displacements(run: Run, points: torch.Tensor) -> torch.Tensor:
    """Return the (n, m, 3) displacements (A) of points in all particles, each by its own half-set's decoder."""
    found = torch.empty(len(run.halves), len(points), 3)
    for half, model in enumerate(run.models, 1):
        rows = torch.where(run.halves == half)[0]
        found[rows] = model.consensus_evaluator(points)(run.latents[half - 1][rows])
    return found


def rms(values: torch.Tensor) -> float:
    """Return the rms length of (n, m, 3) displacements."""
    return float(values.square().sum(-1).mean().sqrt())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = {"particles": chosen.particles, "box": 32, "pixel_size": 6.0}
        files = simulate(SimulateOptions(snr=8.0, seed=chosen.seed, **size), Path(folder) / "data")
        words = ["train", files.particles, "RUN", "--map", files.consensus, "--n-gaussians", 300, "--n-latents", 3]
        words += ["--epochs", chosen.epochs, "--warm-up-epochs", 1, "--device", "cpu"]
        first, points = None, torch.empty(0, 3)
        for name, (number, threads) in CASES.items():
            run = Path(folder) / name.replace(" ", "_").replace(",", "")
            words[2] = run
            command = [sys.executable, "-m", "dynamight_core", *words, "--processes", number, "--threads", threads]
            environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env=environment)
            found = Run(run)
            if first is None:
                points = found.motions.points
            moved = displacements(found, points)
            first = moved if first is None else first
            summary = found.summary
            print(
                f"{name:32} difference {rms(moved - first):.3f} A, motion {rms(moved):.2f} A, "
                f"uncertainty {summary['error_rms']:.2f} A, verdict {summary['verdict']['verdict']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
