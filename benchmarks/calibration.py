"""Whether stated errors of displacements are the true ones, in every part of the molecule.

    python -m benchmarks.calibration preferred-views three-domains --seeds 0 1 2 [--option refine_poses=true]
    python -m benchmarks.calibration --runs RUN TRUTH.npz [RUN TRUTH.npz ...]

Data: the cases of benchmarks/common/runs.py, simulated and trained when they are first needed and kept in the temporary
folder, or finished runs.

Prints for each run and part (0 is at rest) the rms error over particles and points, stated and true, and their ratio;
then the same for particles in fifths of their stated error, pooled over runs, for all parts and for each. Displacements
are compared about their means over particles: a constant one is a change of the frame.
"""

import argparse
import json

import torch

from benchmarks.common.runs import CASES, case_set, kept_run
from benchmarks.common.world import POINTS, displacements, frame_of
from dynamight_core.judging.errors import displacement_errors
from dynamight_core.options import TrainOptions
from dynamight_core.run import Run
from dynamight_core.sampling import evenly
from dynamight_core.simulate.truth import load_truth


def part_errors(run, truth):
    """Return [part] = (n, 2) rms errors (A) of displacements over a part of n particles, stated and true."""
    parts = {}
    for half, model in enumerate(run.models, 1):
        points = model.consensus_positions.detach()
        labels, rest = truth.at_rest(points, frame_of(truth, run, half))
        rows = torch.where((run.halves == half) & (truth.content == 0))[0]
        for part in range(truth.molecule.n_domains + 1):
            mine = torch.where(labels == part)[0]
            mine = evenly(mine, POINTS)
            wrong = displacements(run, half, points[mine], rows).detach() + points[mine]
            wrong = wrong - truth.molecule.move(rest[mine], labels[mine], truth.motions[rows])
            true = (wrong - wrong.mean(0)).square().sum(-1).mean(1).sqrt()
            stated = displacement_errors(run, points[mine], rows).square().mean(1).sqrt()
            parts.setdefault(part, []).append(torch.stack([stated, true], 1))
    return {part: torch.cat(values) for part, values in parts.items()}


def show(name, values):
    """Print the rms of (n, 2) stated and true errors, and their ratio; return it."""
    stated, true = values.square().mean(0).sqrt().tolist()
    print(f"{name}: stated {stated:.2f} A, true {true:.2f} A, ratio {stated / true:.2f}", flush=True)
    return stated / true


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--option", nargs="*", default=[], help="further training options, name=value")
    parser.add_argument("--runs", nargs="+", default=[], help="finished runs, each with its truth.npz")
    arguments = parser.parse_args()
    options = {name: json.loads(value) for name, value in (item.split("=") for item in arguments.option)}
    options = {"n_gaussians": 2000} | options
    name = "-".join(["run", *(f"{key}{value}" for key, value in sorted(options.items()))])
    sets = [(Run(run), load_truth(path)) for run, path in zip(arguments.runs[::2], arguments.runs[1::2], strict=True)]
    for case in arguments.cases:
        for seed in arguments.seeds:
            folder = case_set(case, seed)
            sets.append((kept_run(folder, TrainOptions(seed=seed, **options), name), load_truth(folder / "truth.npz")))
    pooled = {"at rest": [], "moving": []}
    for run, truth in sets:
        for part, values in part_errors(run, truth).items():
            show(f"{run.path} part {part}", values)
            pooled["moving" if part else "at rest"].append(values)
    for where, values in pooled.items():
        both = torch.cat(values)
        for number, fifth in enumerate(both[:, 0].argsort().tensor_split(5), 1):
            show(f"{where}, fifth {number}", both[fifth])


if __name__ == "__main__":
    main()
