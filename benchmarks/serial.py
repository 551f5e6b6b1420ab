"""Which part of a training every process of a half-set repeats, and what follows by Amdahl's law.

python -m benchmarks.serial --particles 2000 --box 64 --gaussians 2000

One process and one thread train both half-sets of a simulated hinge, under Python's profiler. Half-sets are trained by
different processes, so the shares are those of a half-set as well.
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import torch

from dynamight_core.judging.summary import summarise
from dynamight_core.options import InputOptions, SimulateOptions, TrainOptions
from dynamight_core.reporter import QUIET
from dynamight_core.simulate.dataset import simulate
from dynamight_core.training.stage import train

# Functions that are not divided among processes, none of which calls another: file and name.
REPEATED = [
    ("read.py", "read_inputs"),
    ("fit.py", "fit_gaussians"),
    ("half.py", "rebuild_graph"),
    ("half.py", "fit_prior"),
    ("refit.py", "place_gaussians"),
    ("point_spread.py", "undo"),
    ("parts.py", "moving_parts"),
    ("linear.py", "_principal_components"),
    ("linear.py", "initialise"),
    ("decoder_fit.py", "fit_decoder"),
    ("large_motion.py", "follow"),
    ("nodes.py", "particle_conformations"),
    ("adam.py", "step"),
    ("progress.py", "check_converging"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--gaussians", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=TrainOptions().epochs)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = {"particles": chosen.particles, "box": chosen.box, "pixel_size": 192.0 / chosen.box}
        files = simulate(SimulateOptions(snr=0.5, seed=10, **size), Path(folder) / "data")
        inputs = InputOptions(star=str(files.particles), map=str(files.consensus))
        options = TrainOptions(n_gaussians=chosen.gaussians, epochs=chosen.epochs, threads=1, device="cpu")
        profile = cProfile.Profile(time.process_time)
        profile.enable()
        trained = train(inputs, options, Path(folder) / "run", reporter=QUIET)
        profile.disable()
        started = time.process_time()
        summarise(trained, QUIET)
        judging = time.process_time() - started
    stats = pstats.Stats(profile)
    total = stats.total_tt
    found = {name: 0.0 for name in REPEATED}
    for (path, _, function), (_, _, _, cumulative, _) in stats.stats.items():
        if (Path(path).name, function) in found:
            found[Path(path).name, function] += cumulative
    for (path, function), seconds in sorted(found.items(), key=lambda item: -item[1]):
        if seconds > 1e-3 * total:
            print(f"{path:18} {function:24} {seconds:7.1f} s  {100 * seconds / total:5.1f} %")
    share = sum(found.values()) / total
    print(f"training {total:.1f} s of CPU time, judging {judging:.1f} s; repeated {100 * share:.1f} % of the training")
    for number in (2, 4, 8):
        fastest = 1 / (share + (1 - share) / number)
        print(f"{number} processes for each half-set: at most {fastest:.1f} times as fast as one")


if __name__ == "__main__":
    main()
