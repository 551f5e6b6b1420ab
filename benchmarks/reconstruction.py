"""Half-maps against the truth: by backprojection and by least squares, with no, learned and true deformations.

    python -m benchmarks.reconstruction hinge --seeds 0 1 2
    python -m benchmarks.reconstruction hinge hinge60 cone few --seeds 0 --ways learned true
    python -m benchmarks.reconstruction hinge --seeds 0 --ways unshrunk --control noise
    python -m benchmarks.reconstruction --show FIGURES.jsonl

Data: the cases of benchmarks/common/runs.py, simulated and trained when they are first needed and kept in the temporary
folder.

Each number is a mean FSC over shells with the true map, in a soft mask around one domain: of half-map 1, of half-map 2
and of their average (`mean`). `between` is the mean FSC of the two half-maps. `claims` is the shell where the corrected
half-map FSC falls below 0.143; `shells` is the shell where the FSC of the average with the truth falls below 0.5.

Methods: `wbp`, `cg`, and each with the regularisation of the other. `wbp-` has as little as `cg`; `cg+` has at least
0.3, as `wbp` does. The row `fourier` is the simulator's independent reconstruction without deformation.

Controls replace what could make the half-maps agree. `noise` replaces the images by white noise, `phases` their phases
beyond shell 10 by random ones, and `permuted` each particle's deformation by that of another particle. `own` replaces
nothing, for images that are noise already. `beyond` counts the shells whose corrected FSC is more than three standard
deviations from zero. The standard deviation comes from volumes of white noise. With several draws of noise, it comes
from all pairs of a first and a second half-map.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.maps import CONTROLS, DOMAINS, METHODS, RANDOM_FROM, WAYS, half_maps
from benchmarks.common.runs import CASES, case_set, trained_run
from dynamight_core.files import read_map
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.fsc import fourier_shell_correlation, half_map_fsc, resolution_at
from dynamight_core.simulate.measures import mean_fsc
from dynamight_core.simulate.truth import load_truth

# Shells that the mask blurs across the one from which phases are random.
BLUR = 3
# Draws of noise for its control.
DRAWS = 4


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


def benchmark(case, seed, ways, methods, options, control=None, cone=180.0):
    """Return figures["way method"]["domain figure"] and seconds of one data set."""
    if control == "noise":
        return noise_control(case, seed, ways, methods, options)
    maps, masks, seconds = half_maps(case, seed, ways, methods, options, control, seed, cone)
    if control is not None:
        return {name: against_zero(pair, masks, control) for name, pair in maps.items()}, seconds
    folder = case_set(case, seed)
    truth = load_truth(folder / "truth.npz")
    if cone >= 90:
        maps["fourier"] = [torch.from_numpy(read_map(folder / f"consensus_half{half}.mrc")[0]) for half in (1, 2)]
    return {name: against_truth(pair, truth, masks) for name, pair in maps.items()}, seconds


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
    parser.add_argument("--control", choices=CONTROLS, help="replace what the half-maps must not share")
    parser.add_argument(
        "--cone", type=float, default=180.0, help="use only views within this angle of one axis, degrees"
    )
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
