"""Maps against the truth: rigid, weighted backprojection and least squares, by whose deformations.

    python benchmarks/reconstruction.py hinge --seeds 0 1 2
    python benchmarks/reconstruction.py hinge hinge60 cone few --seeds 0 --ways learned true
    python benchmarks/reconstruction.py hinge --seeds 0 --ways unshrunk --control noise
    python benchmarks/reconstruction.py --show FIGURES.jsonl

Data sets and trained runs are kept in the temporary folder and used again. Every figure is a mean FSC over shells with
the true state in a soft mask around a domain, of half-map 1, of half-map 2 and of their average ("mean"). "between" is
that of the halves; "claims" the shell where the halves' FSC, corrected by random phases, falls below 0.143, "shells"
that where the FSC of the average with the truth falls below 0.5. Methods: wbp, cg, and each at the other's
regularisation: wbp- as little as cg has, cg+ nowhere below 0.3, as wbp has. The row fourier is the independent
reconstruction of the simulator (torch-fourier-slice), without deformation.

Controls replace what could make half-maps agree: "noise", the images by white noise; "phases", their phases beyond
shell 10 by random ones; "permuted", each particle's deformation by that of another one of its half; "own" nothing, for
images that are noise already. Shells in which the corrected FSC is more than three standard deviations from zero are
counted ("beyond"). The standard deviation is that of the FSC of white noise volumes, or, where maps were made of
several draws of noise, that of all pairs of a first half-map and a second one.
"""

import argparse
import fcntl
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measures import HingeField, mean_fsc, oracle_angles

from dynamight_core.config import InputOptions, TrainOptions
from dynamight_core.files import read_map
from dynamight_core.imaging.backprojection import ParticleData, solve
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, shells
from dynamight_core.judging.summary import summarise
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
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.stage import train

FOLDER = Path(tempfile.gettempdir()) / "dynamight-benchmarks"
CASES = {
    "hinge": {},
    "peaks": {"angle_distribution": "two-peaks"},
    "rigid": {"motion_range": 0.0},
    "hinge40": {"motion_range": 40.0},
    "hinge60": {"motion_range": 60.0},
    "two": {"molecule": "two-hinges"},
    "two6000": {"molecule": "two-hinges", "particles": 6000},
    "cone": {"cone": 60.0},
    "coloured": {"noise": "coloured"},
    "few": {"particles": 300},
    "many": {"particles": 10000},
    "clear": {"snr": 5.0},
    "noisy": {"snr": 0.05},
    "noise": {"snr": 1e-6},
}
IGG = {"molecule": "igg", "particles": 4000, "pixel_size": 4.0, "motion_range": 40.0}
for _fine, _sampling in {"": {}, "128": {"box": 128, "pixel_size": 2.0}}.items():
    CASES["igg" + _fine] = IGG | _sampling
    CASES["igg" + _fine + "-coloured"] = IGG | _sampling | {"noise": "coloured"}
    CASES["igg" + _fine + "-measured"] = IGG | _sampling | {"views": "measured"}
    CASES["igg" + _fine + "-both"] = IGG | _sampling | {"noise": "coloured", "views": "measured"}
# The learned field with and without shrinking, by error weights, through the inverse network, and what no run has.
WAYS = ("learned", "unshrunk", "errors", "inverse", "true", "oracle")
METHODS = ("wbp", "wbp-", "cg", "cg+")
DOMAINS = {"moving": 1, "second": 2, "static": 0}
CONTROLS = ("noise", "phases", "permuted", "own")
# Shell beyond which a control randomises phases, and shells that the mask blurs across it.
RANDOM_FROM, BLUR = 10, 3
# Draws of noise for its control.
DRAWS = 4


def quiet(*_, **__):
    """Say nothing."""


def trained_run(case, seed, say=print, epochs=None):
    """Return truth and finished run of a data set, made if they are not there; of few `epochs` for a start alone."""
    folder = FOLDER / f"{case}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        # Several benchmarks may want one data set.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "truth.npz").exists():
            simulate(SimulateOptions(seed=seed, **CASES[case]), folder)
        kept = folder / ("keep" if epochs is None else "brief")
        if not (kept / "latents.safetensors").exists():
            say(f"training {kept}", flush=True)
            # Noise has no consensus: particles that hold nothing are given that of a molecule.
            known = FOLDER / f"hinge-{seed}" if case == "noise" else folder
            inputs = InputOptions(star=str(folder / "particles.star"), map=str(known / "consensus.mrc"))
            options = TrainOptions(seed=seed, n_gaussians=2000)
            options = options if epochs is None else replace(options, epochs=epochs, refits=0)
            summarise(train(inputs, options, kept, overwrite=True, reporter=QUIET), reporter=QUIET)
    return load_truth(folder / "truth.npz"), Run(kept)


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


def within(particles, cone):
    """Return (n,) bool: views within `cone` degrees of the z axis, or against it."""
    tilt = torch.rad2deg(particles.angles[:, 1]) % 360
    away = torch.minimum(tilt, 360 - tilt)
    return (away <= cone) | (away >= 180 - cone)


def controlled(images, control, seed):
    """Return what gives (b, box, box) images for a control."""
    given = images.images
    if control not in ("noise", "phases"):
        return given

    def replaced(indices):
        shape = (len(indices), images.box, images.box)
        # The same particle has the same noise in every pass.
        noise = torch.stack(
            [torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed * 10**6 + int(i))) for i in indices]
        )
        if control == "noise":
            return noise
        transforms, random = image_to_fourier(given(indices)), image_to_fourier(noise)
        random = random / random.abs() * transforms.abs()
        return fourier_to_image(torch.where(shells(images.box) < RANDOM_FROM, transforms, random), images.box)

    return replaced


def permuted(modes, halves, seed):
    """Return modes with every particle's coordinates given to another one of its half."""
    coordinates, generator = modes.coordinates.clone(), torch.Generator().manual_seed(seed)
    for half in (1, 2):
        rows = torch.where(halves == half)[0]
        coordinates[rows] = modes.coordinates[rows[torch.randperm(len(rows), generator=generator)]]
    return replace(modes, coordinates=coordinates)


def noise_control(case, seed, ways, methods, options):
    """Return figures["way method"]["domain figure"] of maps of several draws of noise, and seconds."""
    draws, masks, seconds = [], None, {}
    for draw in range(DRAWS):
        maps, masks, took = half_maps(case, seed, ways, methods, options, "noise", 1000 * draw + seed)
        draws.append(maps)
        seconds |= {f"{name}, {draw}": value for name, value in took.items()}
    figures = {}
    for name in draws[0]:
        row = figures[name] = {}
        for domain, mask in masks.items():
            firsts, others = ([maps[name][half] for maps in draws] for half in (0, 1))
            curves = torch.stack([half_map_fsc(a, b, mask).corrected[1:] for a in firsts for b in others])
            deviation = curves.square().mean(0).sqrt()
            # Pairs of one draw are independent, the others give the deviation.
            own = curves[:: DRAWS + 1]
            row[f"{domain} corrected"] = float(own.mean())
            row[f"{domain} error"] = float(curves.mean(1).std() / DRAWS)
            row[f"{domain} deviation"] = float(deviation.mean())
            row[f"{domain} white"] = float(chance_deviation(mask)[1:].mean())
            row[f"{domain} beyond"] = float((own.abs() > 3 * deviation).sum(1).float().mean())
    return figures, seconds


def benchmark(case, seed, ways, methods, options, control=None, cone=180.0, say=print):
    """Return figures["way method"]["domain figure"] and seconds of one data set."""
    if control == "noise":
        return noise_control(case, seed, ways, methods, options)
    maps, masks, seconds = half_maps(case, seed, ways, methods, options, control, seed, cone, say)
    if control is not None:
        return {name: against_zero(pair, masks, control) for name, pair in maps.items()}, seconds
    folder = FOLDER / f"{case}-{seed}"
    truth = load_truth(folder / "truth.npz")
    if cone >= 90:
        maps["fourier"] = [torch.from_numpy(read_map(folder / f"consensus_half{half}.mrc")[0]) for half in (1, 2)]
    return {name: against_truth(pair, truth, masks) for name, pair in maps.items()}, seconds


def half_maps(case, seed, ways, methods, options, control=None, noise_seed=0, cone=180.0, say=print):
    """Return maps["way method"] = both half-maps, masks by domain, and seconds of one data set."""
    # What was learned is not needed for the deformations that no run has.
    truth, run = trained_run(case, seed, say, None if set(ways) - {"true", "oracle"} else 4)
    if "inverse" in ways and not inverse_path(run, 1).exists():
        invert_run(run, InvertOptions(seed=seed), QUIET)
    images = FullImages(run, torch.device("cpu"))
    masks = {name: truth.domain_mask(label) for name, label in DOMAINS.items()}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    weights = images.noise_weights(0)
    images.images = controlled(images, control, noise_seed)
    seen = within(run.particles, cone)
    rows = [torch.where((run.halves == half) & seen)[0] for half in (1, 2)]
    errors = torch.tensor(run.table["dynMotionError"].to_numpy())
    maps, seconds, denominators, shares = {}, {}, [None, None], options.regularisation
    for way in ways:
        started = time.process_time()
        weighted = way == "errors"
        data: ParticleData = images.data(weights, errors if weighted else None)
        halves = []
        for half in (1, 2):
            modes = modes_of(way, truth, run, half, images, options)
            if control == "permuted":
                modes = permuted(modes, run.halves, seed)
            points = run.models[half - 1].consensus_positions
            region = deforming_region(points, images.box, images.pixel_size, options.region_radius)
            denominator = None if weighted else denominators[half - 1]
            halves.append(HalfReconstruction.of(data, rows[half - 1], modes, region, denominator=denominator))
        if not weighted:
            denominators = [half.denominator for half in halves]
        if shares is None:
            first = [half.backprojected(LEAST_SHARE) for half in halves]
            mask = sum(masks.values()).clamp(max=1) if control else soft_mask(sum(first) / 2, images.pixel_size)
            shares = shares_from_fsc(half_map_fsc(*first, mask).corrected)
        seconds[f"sums {way}"] = time.process_time() - started
        for method in methods:
            for deformed in (True, False):
                name = f"{way if deformed else 'rigid'} {method}"
                if name in maps:
                    continue
                started = time.process_time()
                if method == "wbp":
                    pair = [half.backprojected(shares, deformed) for half in halves]
                elif method == "wbp-":
                    sums = [half.sums.numerator if deformed else half.sums.rigid for half in halves]
                    pair = [solve(each, half.denominator, shares) for each, half in zip(sums, halves, strict=True)]
                else:
                    raised = torch.as_tensor(shares).clamp(min=LEAST_SHARE) if method == "cg+" else shares
                    pair = []
                    for number, half in enumerate(halves):
                        others = rows[1 - number][:: max(1, len(rows[1 - number]) // HELD_OUT)]
                        pair.append(half.least_squares(raised, others, deformed)[0])
                maps[name] = pair
                seconds[name] = time.process_time() - started
    if control is not None:
        masks["molecule"] = sum(masks.values()).clamp(max=1)
    return maps, masks, seconds


def against_truth(pair, truth, masks):
    """Return figures["domain figure"] of two half-maps."""
    state, box, average, row = truth.true_map(), truth.box, (pair[0] + pair[1]) / 2, {}
    for domain, mask in masks.items():
        row[f"{domain} half1"], row[f"{domain} half2"] = (mean_fsc(volume, state, mask) for volume in pair)
        row[f"{domain} mean"] = mean_fsc(average, state, mask)
        row[f"{domain} between"] = float(fourier_shell_correlation(*pair, mask)[1:].mean())
        row[f"{domain} claims"] = box / resolution_at(half_map_fsc(*pair, mask).corrected, box, 1.0)
        row[f"{domain} shells"] = box / resolution_at(fourier_shell_correlation(average, state, mask), box, 1.0, 0.5)
    return row


def against_zero(pair, masks, control):
    """Return figures["domain figure"] of two half-maps that should share nothing beyond some shell."""
    row, first = {}, RANDOM_FROM + BLUR if control == "phases" else 1
    for domain, mask in masks.items():
        curves = half_map_fsc(*pair, mask)
        chance = chance_deviation(mask)[first:]
        row[f"{domain} corrected"] = float(curves.corrected[first:].mean())
        row[f"{domain} masked"] = float(curves.masked[first:].mean())
        row[f"{domain} unmasked"] = float(curves.unmasked[first:].mean())
        row[f"{domain} largest"] = float((curves.corrected[first:] / chance).abs().max())
        row[f"{domain} beyond"] = float(((curves.corrected[first:] / chance).abs() > 3).sum())
    return row


def chance_deviation(mask, n=100):
    """Return (box//2+1,) standard deviations of the FSC of white noise volumes in a mask."""
    generator, curves = torch.Generator().manual_seed(0), []
    for _ in range(n):
        curves.append(fourier_shell_correlation(*torch.randn(2, *mask.shape, generator=generator), mask))
    return torch.stack(curves).square().mean(0).sqrt()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="case", help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--methods", nargs="+", default=["wbp", "cg"], choices=METHODS)
    parser.add_argument("--control", choices=CONTROLS, help="what half-maps must not share")
    parser.add_argument("--cone", type=float, default=180.0, help="use views within so many degrees of one axis")
    parser.add_argument("--option", nargs="*", default=[], help="options of reconstruct, name=value")
    parser.add_argument("--prepare", action="store_true", help="make data sets and runs alone")
    parser.add_argument("--out", type=Path, help="append figures to this file, a JSON object a line")
    parser.add_argument("--show", type=Path, help="print the tables of such a file")
    arguments = parser.parse_args()
    options = ReconstructOptions(**{k: json.loads(v) for k, v in (item.split("=") for item in arguments.option)})
    lines = [] if arguments.show is None else [json.loads(line) for line in arguments.show.read_text().splitlines()]
    for case in arguments.cases:
        for seed in arguments.seeds:
            if arguments.prepare:
                trained_run(case, seed)
                continue
            figures, seconds = benchmark(
                case, seed, arguments.ways, arguments.methods, options, arguments.control, arguments.cone
            )
            name = case if arguments.cone >= 90 else f"{case} within {arguments.cone:g}"
            lines.append({"case": name, "seed": seed, "control": arguments.control, "figures": figures})
            print(f"{case} {seed}: CPU seconds", {k: round(v, 1) for k, v in seconds.items()}, flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(lines[-1] | {"seconds": seconds}) + "\n")
    found = {}
    for line in lines:
        kind = (line["case"], line.get("control"))
        seeds = found.setdefault(kind, {})
        seeds[line["seed"]] = seeds.get(line["seed"], {}) | line["figures"]
    for (case, control), seeds in found.items():
        show(f"{case}, {control}" if control else case, seeds)
    plain = {case: seeds for (case, control), seeds in found.items() if control is None}
    if len(plain) > 1:
        show_together(plain)
    return 0


def show(case, seeds):
    """Print every figure of a case, mean and standard deviation over seeds, a table for each domain."""
    every = list(seeds.values())
    names = [name for name in every[0] if all(name in figures for figures in every)]
    columns = list(every[0][names[0]])
    for domain in dict.fromkeys(column.split()[0] for column in columns):
        chosen = [column for column in columns if column.split()[0] == domain]
        print(f"\n{case}, seeds {' '.join(map(str, seeds))}: {domain}")
        print(" ".join([f"{'':15s}", *(f"{column.split()[1]:>17s}" for column in chosen), "     of the way"]))
        for name in names:
            cells = [[figures[name][column] for figures in every] for column in chosen]
            text = [f"{np.mean(c):8.4f} +- {np.std(c, ddof=1) if len(c) > 1 else 0:5.4f}" for c in cells]
            way, _, method = name.partition(" ")
            rigid, true, gaps = f"rigid {method}", f"true {method}", []
            if domain != "static" and true in names and way != "rigid" and name != true:
                r, t, x = ([of(f, n, domain) for f in every] for n in (rigid, true, name))
                gaps = [100 * (c - a) / (b - a) for a, b, c in zip(r, t, x, strict=True) if b - a > 0.005]
            gap = f"{np.mean(gaps):6.0f} +- {np.std(gaps, ddof=1) if len(gaps) > 1 else 0:2.0f} %" if gaps else ""
            print(" ".join([f"{name:15s}", *(f"{t:>17s}" for t in text), gap]).rstrip())


def of(figures, name, domain="moving"):
    """Return the mean over both half-maps."""
    return (figures[name][f"{domain} half1"] + figures[name][f"{domain} half2"]) / 2


def show_together(cases):
    """Print the mean over the half-maps of every case in one line, per domain."""
    first = [set(figures) for seeds in cases.values() for figures in seeds.values()]
    order = [f"{way} {method}" for way in ("rigid", *WAYS) for method in METHODS]
    names = [name for name in order if any(name in some for some in first)]
    for domain in DOMAINS:
        print(f"\n{domain + ' domain':16s}" + " ".join(f"{name:>13s}" for name in names))
        for case, seeds in cases.items():
            figures = [f for f in seeds.values() if f"{domain} half1" in next(iter(f.values()))]
            cells = [[of(f, name, domain) for f in figures if name in f] for name in names]
            if figures:
                print(f"{case:16s}" + " ".join(f"{np.mean(c):13.4f}" if c else f"{'':13s}" for c in cells))


if __name__ == "__main__":
    sys.exit(main())
