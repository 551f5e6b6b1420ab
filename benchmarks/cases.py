"""Cases like the world: how well states, maps and motions follow parts that move by themselves.

    python -m benchmarks.cases full-turn --seeds 0 1 2
    python -m benchmarks.cases two-small-domains --seeds 0 1 2 3 4 --option epochs=60
    python -m benchmarks.cases two-small-domains-2000 --seeds 0 1 2
    python -m benchmarks.cases linker --seeds 0 --no-maps
    python -m benchmarks.cases wrong-poses --simulate-only

Cases: full-turn, linker, three-domains, preferred-views, two-small-domains (also with 2,000 and 20,000 particles),
missing-part, wrong-poses, junk; `WORLD` in benchmarks/common/runs.py has their options of `dynamight simulate`. Data
are simulated when they are first needed and kept in the temporary folder, and so are runs with the same options.

Prints one JSON object per data set, then mean and standard deviation over seeds. See `motion_figures`, `state_figures`
and `map_figures` in benchmarks/common/world.py for the figures. Parts are counted from 1; part 0 is at rest.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.common.runs import WORLD, case_set, kept_run
from benchmarks.common.world import cause_figures, map_figures, motion_figures, oracle, state_figures
from dynamight_core.options import TrainOptions
from dynamight_core.simulate.truth import load_truth


def benchmark(case, seed, options, arguments):
    """Simulate, train and measure one data set; return the figures as a dictionary."""
    folder = case_set(case, seed)
    truth = load_truth(folder / "truth.npz")
    started = time.process_time()
    name = "-".join(["run", *(f"{key}{value}" for key, value in sorted(options.items()))]).replace("/", "-")
    run = kept_run(folder, TrainOptions(seed=seed, **options), name)
    figures = {"case": case, "seed": seed, "seconds_train": time.process_time() - started}
    verdict = run.summary["verdict"]
    figures |= {"verdict": verdict["verdict"], "gain": verdict["gain"]}
    figures |= cause_figures(truth, run)
    figures |= motion_figures(truth, run, oracle(truth, run, arguments.oracle))
    if arguments.states:
        figures |= state_figures(truth, run, arguments.states, arguments.true_states)
    if not arguments.no_maps:
        figures |= map_figures(truth, run)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=WORLD)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-gaussians", type=int, default=2000)
    parser.add_argument("--option", nargs="*", default=[], help="further training options, name=value")
    parser.add_argument("--oracle", type=int, default=400, help="particles that the oracle is asked about")
    parser.add_argument("--states", type=int, default=20, help="conformations whose states are compared; 0 for none")
    parser.add_argument("--true-states", type=int, default=2, help="of these, also from all images with true motions")
    parser.add_argument("--no-maps", action="store_true", help="omit the reconstructions")
    parser.add_argument("--simulate-only", action="store_true", help="print the folder of each data set and stop")
    parser.add_argument("--out", type=Path, help="append each data set's figures to this file, a JSON object a line")
    arguments = parser.parse_args()
    options = {"n_gaussians": arguments.n_gaussians}
    options |= {name: json.loads(value) for name, value in (item.split("=") for item in arguments.option)}
    results = []
    for seed in arguments.seeds:
        if arguments.simulate_only:
            print(case_set(arguments.case, seed), flush=True)
            continue
        results.append(benchmark(arguments.case, seed, options, arguments))
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in results[-1].items()}), flush=True)
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    numbers = {name for result in results for name, value in result.items() if isinstance(value, float)}
    for name in [name for name in (results[0] if results else {}) if name in numbers]:
        values = [result[name] for result in results if name in result]
        print(f"{name:28s}{np.mean(values):10.3f}{np.std(values):10.3f}   over seeds {arguments.seeds}")


if __name__ == "__main__":
    main()
