"""Maps against the truth: rigid, weighted backprojection and least squares, by whose deformations.

    python benchmarks/reconstruction.py hinge --seeds 0 1 2
    python benchmarks/reconstruction.py rigid --seeds 0 1
    python benchmarks/reconstruction.py hinge --seeds 10 11 --ways learned true --cone 60
    python benchmarks/reconstruction.py hinge60 --seeds 10 11 --ways learned true --particles 300

Data sets and trained runs are kept in the temporary folder and used again. Every figure is a mean FSC over shells with
the true state in a soft mask around a domain: "half", the mean over both half-maps, and "mean", of their average;
"between" is that of the halves; "claims" is the shell where the halves' FSC falls below 0.143, "shells" where that of
the average with the truth falls below 0.5.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measures import HingeField, mean_fsc, oracle_angles

from dynamight_core.analysis.results import Run, summarise
from dynamight_core.config import InputOptions, TrainOptions
from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.model.half import ConsensusField
from dynamight_core.options import InvertOptions, ReconstructOptions, SimulateOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.reconstruction.deformation import deforming_region, half_modes, inverse_path
from dynamight_core.reconstruction.fsc import fourier_shell_correlation, half_map_fsc, resolution_at, soft_mask
from dynamight_core.reconstruction.half_map import LEAST_SHARE, HalfReconstruction, shares_from_fsc
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import ForwardFromInverse, load_inverse
from dynamight_core.reconstruction.modes import find_modes
from dynamight_core.reconstruction.stage import HELD_OUT, invert_run
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.run import train

FOLDER = Path(tempfile.gettempdir()) / "dynamight-benchmarks"
CASES = {
    "hinge": {},
    "peaks": {"angle_distribution": "two-peaks"},
    "rigid": {"motion_range": 0.0},
    "hinge40": {"motion_range": 40.0},
    "hinge60": {"motion_range": 60.0},
    "two": {"molecule": "two-hinges"},
    "coloured": {"noise": "coloured"},
    "clear": {"snr": 5.0},
    "noisy": {"snr": 0.05},
    "igg": {"molecule": "igg", "particles": 4000, "pixel_size": 4.0, "motion_range": 40.0},
}
# The learned field with and without shrinking, by error weights, through the inverse network, and what no run has.
WAYS = ("learned", "unshrunk", "errors", "inverse", "true", "oracle")
DOMAINS = {"moving": 1, "second": 2, "static": 0}


def quiet(*_):
    """Say nothing."""


def trained_run(case, seed, say=print):
    """Return truth and finished run of a data set, made if they are not there."""
    folder = FOLDER / f"{case}-{seed}"
    if not (folder / "truth.npz").exists():
        simulate(SimulateOptions(seed=seed, **CASES[case]), folder)
    if not (folder / "keep" / "latents.safetensors").exists():
        say(f"training {folder / 'keep'}")
        inputs = InputOptions(star=str(folder / "particles.star"), map=str(folder / "consensus.mrc"))
        trained = train(inputs, TrainOptions(seed=seed, n_gaussians=2000), folder / "keep", overwrite=True, say=quiet)
        summarise(trained, say=quiet)
    return load_truth(folder / "truth.npz"), Run(folder / "keep")


def oracle(truth, run, folder):
    """Return (n, 1) posterior-mean angles of who knows structure, noise and poses; kept in the data set's folder."""
    path = folder / "oracle.npy"
    if not path.exists():
        reader = ImageReader(run.particles)
        motion_range = float(truth.angles.abs().max())

        class Raw:
            def __getitem__(self, rows):
                return reader.read(np.asarray(rows))

        np.save(path, oracle_angles(Raw(), truth, motion_range)[0].numpy())
    return torch.from_numpy(np.load(path))[:, None]


def modes_of(way, truth, run, half, images, options):
    """Return the modes of one half's deformations."""
    model = run.models[half - 1]
    if way in ("true", "oracle"):
        angles = truth.angles if way == "true" else oracle(truth, run, run.path.parent)
        return find_modes(HingeField(truth), angles, model.consensus_positions, images.pixel_size)
    if way == "inverse":
        inverse = ForwardFromInverse(load_inverse(inverse_path(run, half)))
        field, latents = ConsensusField(model, inverse), run.latents[half - 1]
        return find_modes(field, latents, model.consensus_positions, images.pixel_size)
    options = ReconstructOptions(**{**vars(options), "shrink": way != "unshrunk"})
    return half_modes(run, half, images, options)[0]


def chosen_rows(run, half, particles=None, cone=180.0):
    """Return the rows of a half, of views within `cone` degrees of the z axis or against it, `particles` in both."""
    tilt = torch.rad2deg(run.particles.angles[:, 1]) % 360
    away = torch.minimum(tilt, 360 - tilt)
    rows = torch.where((run.halves == half) & ((away <= cone) | (away >= 180 - cone)))[0]
    return rows if particles is None else rows[: particles // 2]


def benchmark(case, seed, ways, methods, options, particles=None, cone=180.0, say=print):
    """Return figures[way, method][domain, "half" or "mean"] and seconds of one data set."""
    truth, run = trained_run(case, seed, say)
    if "inverse" in ways and not inverse_path(run, 1).exists():
        invert_run(run, InvertOptions(seed=seed), quiet)
    images = FullImages(run, torch.device("cpu"))
    state = truth.true_map()
    masks = {name: truth.domain_mask(label) for name, label in DOMAINS.items()}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    weights = images.noise_weights(0)
    rows = [chosen_rows(run, half, particles, cone) for half in (1, 2)]
    errors = torch.tensor(run.table["dynMotionError"].to_numpy())
    maps, seconds, denominators, shares = {}, {}, [None, None], options.regularisation
    for way in ways:
        started = time.process_time()
        weighted = way == "errors"
        data: ParticleData = images.data(weights, errors if weighted else None)
        halves = []
        for half in (1, 2):
            modes = modes_of(way, truth, run, half, images, options)
            points = run.models[half - 1].consensus_positions
            region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
            halves.append(
                HalfReconstruction.of(
                    data, rows[half - 1], modes, region, denominator=None if weighted else denominators[half - 1]
                )
            )
        if not weighted:
            denominators = [half.denominator for half in halves]
        if shares is None:
            first = [half.backprojected(LEAST_SHARE) for half in halves]
            fsc = half_map_fsc(*first, soft_mask((first[0] + first[1]) / 2, images.pixel_size)).corrected
            shares = shares_from_fsc(fsc)
        seconds[way] = time.process_time() - started
        for method in methods:
            for deformed in (True, False):
                name = way if deformed else "rigid"
                if (name, method) in maps:
                    continue
                started = time.process_time()
                if method == "wbp":
                    pair = [half.backprojected(shares, deformed) for half in halves]
                else:
                    pair = []
                    for number, half in enumerate(halves):
                        others = rows[1 - number][:: max(1, len(rows[1 - number]) // HELD_OUT)]
                        pair.append(half.least_squares(shares, others, deformed)[0])
                maps[name, method] = pair
                seconds[name, method] = time.process_time() - started
    figures = {}
    for key, pair in maps.items():
        row = {}
        for domain, mask in masks.items():
            row[domain, "half"] = sum(mean_fsc(volume, state, mask) for volume in pair) / 2
            row[domain, "mean"] = mean_fsc((pair[0] + pair[1]) / 2, state, mask)
            between = fourier_shell_correlation(*pair, mask)
            row[domain, "between"] = float(between[1:].mean())
            # Shells where the halves' FSC claims that the map ends, and where the truth says so.
            box = images.box
            row[domain, "claims"] = box / resolution_at(half_map_fsc(*pair, mask).corrected, box, 1.0)
            row[domain, "shells"] = box / resolution_at(
                fourier_shell_correlation((pair[0] + pair[1]) / 2, state, mask), box, 1.0, 0.5
            )
        figures[key] = row
    return figures, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--methods", nargs="+", default=["wbp", "cg"])
    parser.add_argument("--particles", type=int, help="use so many")
    parser.add_argument("--cone", type=float, default=180.0, help="views within so many degrees of one axis")
    parser.add_argument("--option", nargs="*", default=[], help="options of reconstruct, name=value")
    parser.add_argument("--out", type=Path, help="append figures to this file, a JSON object a line")
    arguments = parser.parse_args()
    options = ReconstructOptions(**{k: json.loads(v) for k, v in (item.split("=") for item in arguments.option)})
    every = []
    for seed in arguments.seeds:
        figures, seconds = benchmark(
            arguments.case, seed, arguments.ways, arguments.methods, options, arguments.particles, arguments.cone
        )
        every.append(figures)
        shown = {" ".join(k) if isinstance(k, tuple) else f"sums {k}": round(v, 1) for k, v in seconds.items()}
        print(f"{arguments.case} {seed}: CPU seconds {shown}", flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                plain = {" ".join(k): {" ".join(d): v for d, v in row.items()} for k, row in figures.items()}
                file.write(json.dumps({"case": arguments.case, "seed": seed, "figures": plain}) + "\n")
    columns = list(next(iter(every[0].values())))
    print("\n" + " ".join([f"{'':18s}", *(f"{' '.join(c):>16s}" for c in columns), "  gap closed"]))
    for key in every[0]:
        cells = [[figures[key][c] for figures in every] for c in columns]
        text = [f"{np.mean(c):.4f}+-{np.std(c, ddof=1) if len(c) > 1 else 0:.3f}" for c in cells]
        gap = ""
        rigid, true = ("rigid", key[1]), ("true", key[1])
        if true in every[0] and key not in (rigid, true):
            c = ("moving", "half")
            gaps = [(f[key][c] - f[rigid][c]) / (f[true][c] - f[rigid][c]) for f in every]
            gap = f"{np.mean(gaps):.3f}+-{np.std(gaps, ddof=1) if len(gaps) > 1 else 0:.3f}"
        print(" ".join([f"{' '.join(key):18s}", *(f"{t:>16s}" for t in text), f"{gap:>14s}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
