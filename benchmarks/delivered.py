"""The map that `dynamight reconstruct` delivers, beside the rigid one and the one corrected everywhere.

    python -m benchmarks.delivered hinge full-turn linker three-domains missing-part wrong-poses --seeds 0 1 2
    python -m benchmarks.delivered --judged RESULTS

Data: the cases of benchmarks/common/runs.py, simulated and trained when they are first needed and kept in the temporary
folder; or the runs of benchmarks/judge.py in its folder RESULTS in which motion is used.

Prints for each data set and part (0 is at rest) the mean FSC with the truth, mean of the half-maps: of the rigid map,
of the map corrected everywhere (`--no-choose-density`) and of the delivered one, and the fractions of the delivered
density: rigid, corrected, of near particles. The truth is the conformation of the map: the medoid of the true motions
of the particles whose coordinates are nearest to it. Then CPU seconds without and with the choice, and at the end how
far the delivered map is below the rigid one and below the better of the two others, at worst.

Where poses are wrong, the maps are in the consensus frame: a conformation is a rotation of the whole molecule there.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.runs import CASES, case_set, kept_run
from benchmarks.common.world import half_maps, true_frame
from dynamight_core.files import read_map
from dynamight_core.options import ReconstructOptions, TrainOptions
from dynamight_core.reconstruction.deformation import supported
from dynamight_core.reconstruction.densities import MOTION_USED
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.measures import mean_fsc
from dynamight_core.simulate.truth import load_truth

NAMES = ("rigid", "corrected", "delivered")


def maps_of(run, options, folder):
    """Return the half-maps by name, the weight of motion, conformation, and CPU seconds without and with the choice."""
    copy = shutil.copytree(run.path, folder / "run", ignore=shutil.ignore_patterns("reconstruction"))
    maps, seconds = {}, []
    for choose, name in ((False, "corrected"), (True, "delivered")):
        # Not counted: modules that are loaded, and voxel loops that are compiled, once.
        run = Run(copy)
        started = time.process_time()
        reconstruct_run(run, replace(options, choose_density=choose), QUIET)
        seconds.append(time.process_time() - started)
        maps[name] = half_maps(copy / "reconstruction")
    maps["rigid"] = half_maps(copy / "reconstruction" / "rigid")
    used = copy / "reconstruction" / MOTION_USED
    weight = torch.from_numpy(np.array(read_map(used)[0])) if used.exists() else torch.zeros_like(maps["rigid"][0])
    return maps, weight, Run(copy).config.stages["reconstruct"]["conformation"], seconds


def benchmark(name, run, truth, options):
    """Print the figures of one data set; return [part] = FSC of `NAMES`."""
    if not torch.equal(truth.euler, truth.star_euler):
        options = replace(options, conformation="reference")
    with tempfile.TemporaryDirectory() as temporary:
        maps, weight, conformation, seconds = maps_of(run, options, Path(temporary))
    frame = true_frame(truth, run, conformation)
    right, rows = truth.true_map(frame[None])[0], []
    for part in range(truth.molecule.n_domains + 1):
        mask = truth.domain_mask(part, motion=frame)
        found = [float(np.mean([mean_fsc(volume, right, mask) for volume in maps[which]])) for which in NAMES]
        used = float((weight * mask).sum() / mask.sum())
        text = "  ".join(f"{which} {value:.4f}" for which, value in zip(NAMES, found, strict=True))
        print(f"{name} part {part}: {text}  motion used {used:.2f}", flush=True)
        rows.append(found)
    verdict = run.summary["verdict"]["verdict"]
    print(f"{name}: {verdict}, {conformation}; {seconds[0]:.1f} s, with choice {seconds[1]:.1f} s", flush=True)
    return rows


def kept_sets(cases, seeds):
    """Yield the name, run and truth of each case and seed."""
    for case in cases:
        for seed in seeds:
            folder = case_set(case, seed)
            run = kept_run(folder, TrainOptions(seed=seed, n_gaussians=2000), "run-n_gaussians2000")
            yield f"{case} {seed}", run, load_truth(folder / "truth.npz")


def judged_sets(results):
    """Yield the name, run and truth of the runs of benchmarks/judge.py whose motion a reconstruction uses."""
    for path in sorted(results.glob("*/run")):
        if (path / "analysis" / "summary.json").exists():
            run = Run(path)
            if supported(run):
                yield path.parent.name, run, load_truth(path.parent / "truth.npz")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"one or more of {', '.join(CASES)}")
    parser.add_argument("--judged", type=Path, help="folder of benchmarks/judge.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", default="auto")
    arguments = parser.parse_args()
    options = ReconstructOptions(method=arguments.method, controls=False)
    sets = judged_sets(arguments.judged) if arguments.judged else kept_sets(arguments.cases, arguments.seeds)
    rows = [row for name, run, truth in sets for row in benchmark(name, run, truth, options)]
    rigid, corrected, delivered = np.array(rows).T
    print(f"{len(rows)} parts, {int((delivered < rigid - 0.005).sum())} below rigid by more than 0.005")
    gains = [(values - rigid).mean() for values in (delivered, corrected)]
    print(f"mean gain of the delivered map {gains[0]:.4f}, of the corrected {gains[1]:.4f}")
    print(f"at worst above rigid by {(delivered - rigid).min():.4f}")
    print(f"at worst above the better of both by {(delivered - np.maximum(rigid, corrected)).min():.4f}")


if __name__ == "__main__":
    main()
