"""The paper's preset beside the default and a joint model: motion, maps and resolution, claimed and true.

    python -m benchmarks.paper hinge --seeds 0
    python -m benchmarks.paper hinge igg spike --ways default paper --seeds 0 1 2
    python -m benchmarks.paper small --n-gaussians 300 --seeds 10

Cases: hinge and igg as in benchmarks/common/runs.py, spike (three-domains there), and small, a hinge of 600 images of
32 pixels that takes minutes. Data are simulated when they are first needed and kept in the temporary folder, and so are
runs. Ways: default, paper (the preset), joint (the default trained on both half-sets, a control). All have the same
particles and number of Gaussians. `--option paper:batch_size=16` sets an option of training for one way; `paper!invert`
and `paper!reconstruct` in its place those of later stages.

Prints for each data set and way the correlation of the hinge's angle and the error of displacements in moving parts (A)
with the true motion, where the molecule has one hinge; for each part (0 is at rest) the mean FSC of the half-maps with
the truth, with motion corrected and rigid; the resolution claimed (half-maps, FSC 0.143) and true (mean of the
half-maps with the truth, FSC 0.5) in the mask of each part; the verdict; epochs, how much of the fall of the loss was
left at three quarters of them, and CPU seconds of training, inverse and reconstruction.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import starfile
import torch

from benchmarks.common.motion import compare
from benchmarks.common.runs import case_set, data_set, kept_run
from benchmarks.common.world import half_maps, true_frame
from dynamight_core.files import write_map
from dynamight_core.imaging.correlation import fourier_shell_correlation, resolution_at
from dynamight_core.options import InvertOptions, ReconstructOptions, TrainOptions
from dynamight_core.options.completed import completed
from dynamight_core.options.presets import preset_values
from dynamight_core.reconstruction.stage import invert_run, reconstruct_run
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.measures import mean_fsc
from dynamight_core.simulate.truth import load_truth

SMALL = {"particles": 600, "box": 32, "pixel_size": 6.0, "snr": 8.0}
WAYS: dict[str, dict] = {"default": {}, "paper": {"preset": "paper"}, "joint": {"halves": "joint"}}
NAMES = {"hinge": "hinge", "igg": "igg", "spike": "three-domains"}
# FSC with the truth at which half-maps have an FSC of 0.143.
TRUE = 0.5


def folder_of(case, seed):
    """Return the folder of a case's data set."""
    return data_set(f"small-{seed}", seed=seed, **SMALL) if case == "small" else case_set(NAMES[case], seed)


def reconstructed(run, preset, options, truth):
    """Reconstruct a run in the consensus frame with masks of all parts; return masks, truth, and CPU seconds."""
    seconds = {}
    if preset == "paper":
        started = time.process_time()
        invert_run(run, completed(InvertOptions, options.get("invert", {}), preset), QUIET)
        seconds["invert"] = time.process_time() - started
    frame = true_frame(truth, run, "reference")
    masks, paths = [], []
    for part in range(truth.molecule.n_domains + 1):
        masks.append(truth.domain_mask(part, motion=frame))
        paths.append(Path(run.path) / f"part{part}.mrc")
        write_map(paths[-1], masks[-1].numpy(), truth.pixel_size)
    given = {"regions": list(map(str, paths)), "device": "cpu", "conformation": "reference"}
    started = time.process_time()
    reconstruct_run(run, completed(ReconstructOptions, given | options.get("reconstruct", {}), preset), QUIET)
    seconds["reconstruct"] = time.process_time() - started
    return masks, truth.true_map(frame[None])[0], seconds


def map_figures(run, masks, right, pixel_size):
    """Return FSC with the truth and resolutions of the maps in each part."""
    folder, figures = Path(run.path) / "reconstruction", {}
    curves = starfile.read(folder / "fsc.star")["fsc"]
    for name, place in (("corrected", folder), ("rigid", folder / "rigid")):
        pair = half_maps(place)
        for part, mask in enumerate(masks):
            figures[f"fsc {name} part{part}"] = float(np.mean([mean_fsc(volume, right, mask) for volume in pair]))
            if name == "corrected":
                claimed = torch.tensor(curves[f"dynRegion_part{part}"].to_numpy())
                with_truth = fourier_shell_correlation((pair[0] + pair[1]) / 2, right, mask)
                figures[f"claimed part{part}"] = resolution_at(claimed, len(right), pixel_size)
                figures[f"true part{part}"] = resolution_at(with_truth, len(right), pixel_size, TRUE)
    return figures


def convergence(run):
    """Return epochs, whether training stopped, and the fraction of the loss's fall after three quarters of them."""
    lines = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["fixed_loss"] for line in lines if line["half"] == 1 and line["fixed_loss"] is not None]
    left = (losses[len(losses) * 3 // 4] - losses[-1]) / (losses[0] - losses[-1])
    stopped = bool(lines[-1].get("stopped", False))
    return {"epochs": lines[-1]["epoch"], "stopped": stopped, "fall left": left, "rises": lines[-1]["rises"]}


def benchmark(case, seed, way, n_gaussians, options):
    """Train, reconstruct and measure one data set in one way; return the figures."""
    folder = folder_of(case, seed)
    truth = load_truth(folder / "truth.npz")
    given = {"seed": seed, "n_gaussians": n_gaussians, "device": "cpu"} | WAYS[way] | options.get("train", {})
    training = completed(TrainOptions, given)
    words = "-".join(f"{name}{value}" for name, value in sorted(options.get("train", {}).items()))
    started = time.process_time()
    inputs = preset_values(training.preset, "input")
    run = kept_run(folder, training, f"{way}-{n_gaussians}-{words}".rstrip("-"), **inputs)
    figures = {"case": case, "seed": seed, "way": way, "seconds train": time.process_time() - started}
    figures |= convergence(run) | {"verdict": run.summary["verdict"]["verdict"]}
    if truth.molecule.n_domains == 1:
        found = compare(run, run, truth, "train")
        figures |= {name: found[name] for name in ("r", "error", "motion", "static") if name in found}
    masks, right, seconds = reconstructed(Run(run.path), training.preset, options, truth)
    figures |= map_figures(run, masks, right, truth.pixel_size)
    return figures | {f"seconds {name}": value for name, value in seconds.items()}


def read_options(words):
    """Return the options by way and stage: of "paper:epochs=100" and "paper!invert:epochs=50"."""
    found: dict[str, dict] = {}
    for word in words:
        place, _, setting = word.partition(":")
        way, _, stage = place.partition("!")
        name, _, value = setting.partition("=")
        found.setdefault(way, {}).setdefault(stage or "train", {})[name] = json.loads(value)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=("small", *NAMES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default", "paper"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n-gaussians", type=int, default=2000)
    parser.add_argument("--option", nargs="*", default=[], help="WAY:NAME=VALUE, or WAY!STAGE:NAME=VALUE")
    arguments = parser.parse_args()
    options = read_options(arguments.option)
    for case in arguments.cases:
        for seed in arguments.seeds:
            for way in arguments.ways:
                figures = benchmark(case, seed, way, arguments.n_gaussians, options.get(way, {}))
                print(
                    json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}), flush=True
                )


if __name__ == "__main__":
    main()
