"""What half-maps claim where something moves, with and without the motion that was not undone, and what is true.

    python -m benchmarks.claims hinge --seeds 0 1 2 3 4

In a soft mask around each domain, for maps with learned deformations and without: the shell where the FSC of the
half-maps, corrected by random phases, falls below 0.143 ("claimed"), where it does so with the residual motion counted
("counted") and a standard error of the FSC taken off ("at least"), and where the FSC of their average with the truth
falls below 0.5 ("true"); the rms (A) of the residual motion as it is drawn and as it is. Last, how often a claim is
better than the truth by more than one shell. Data sets and trained runs are those of `reconstruction.py`.
"""

import argparse
import sys

import numpy as np
import torch

from benchmarks.common.maps import half_maps, modes_of
from benchmarks.common.runs import CASES, trained_run
from dynamight_core.imaging.correlation import fsc_deviation
from dynamight_core.options import ReconstructOptions
from dynamight_core.reconstruction.fsc import fourier_shell_correlation, half_map_fsc, resolution_at
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.residual import (
    cautious_fsc,
    count_residual_motion,
    motion_coherence,
    points_in_mask,
    residual_motion,
)

COLUMNS = ("claimed", "counted", "at least", "true", "drawn", "is")


def true_residuals(run, truth, half, modes, points):
    """Return (p, m, 3) A: by how much some particles of a half are missed."""
    rows = torch.where(run.halves == half)[0][:200]
    used = 0.0 if modes is None else modes.field.evaluator(points)(modes.coordinates[rows])
    missed = used - truth.displacements(points, rows)
    return missed - missed.mean(0)


def claims(case, seed):
    """Return figures[kind, domain] = shells and A, in the order of COLUMNS."""
    options = ReconstructOptions()
    truth, run = trained_run(case, seed)
    maps, masks, _ = half_maps(case, seed, ["learned"], ["wbp"], options)
    images = FullImages(run, torch.device("cpu"))
    modes = [modes_of("learned", truth, run, half, images, options) for half in (1, 2)]
    state, box, figures = truth.true_map(), truth.box, {}
    for kind in ("learned", "rigid"):
        used = modes if kind == "learned" else (None, None)
        pair = maps[f"{kind} wbp"]
        for domain, mask in masks.items():
            points, weights = points_in_mask(run, mask, truth.pixel_size)
            drawn = torch.cat([residual_motion(run, half, used[half - 1], points) for half in (1, 2)])
            missed = torch.cat([true_residuals(run, truth, half, used[half - 1], points) for half in (1, 2)])
            found = half_map_fsc(*pair, mask)
            curve = found.corrected
            coherence = motion_coherence(drawn, weights, box, truth.pixel_size)
            counted = count_residual_motion(curve, coherence)
            cautious = cautious_fsc(curve, found.standard_error(fsc_deviation(mask)), coherence)
            with_truth = fourier_shell_correlation((pair[0] + pair[1]) / 2, state, mask)
            ends = [box / resolution_at(c, box, 1.0) for c in (curve, counted, cautious)]
            ends.append(box / resolution_at(with_truth, box, 1.0, 0.5))
            sizes = [float((r - r.mean(0)).square().sum(-1).mean().sqrt()) for r in (drawn, missed)]
            figures[kind, domain] = ends + sizes
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="case", help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    for case in arguments.cases:
        every = []
        print(f"{case:24s}" + "".join(f"{name:>16s}" for name in COLUMNS))
        for seed in arguments.seeds:
            every.append(claims(case, seed))
            for (kind, domain), row in every[-1].items():
                print(f"{seed} {kind} {domain:14s}" + "".join(f"{value:16.2f}" for value in row), flush=True)
        print(f"\nmean and standard deviation over seeds {arguments.seeds}")
        for key in every[0]:
            values = np.array([figures[key] for figures in every])
            spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(COLUMNS))
            cells = [f"{mean:.2f} +- {sd:.2f}" for mean, sd in zip(values.mean(0), spread, strict=True)]
            print(f"{' '.join(key):24s}" + "".join(f"{cell:>16s}" for cell in cells))
            better = (values[:, :3] > values[:, 3:4] + 1).sum(0)
            print(f"{'':24s}" + "".join(f"{f'{n} of {len(values)}':>16s}" for n in better))
    return 0


if __name__ == "__main__":
    sys.exit(main())
