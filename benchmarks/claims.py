"""Does the resolution of half-maps hold where something moves? Claimed against true resolution, by domain.

    python -m benchmarks.claims hinge --seeds 0 1 2 3 4

Data: the cases and runs of benchmarks/common/runs.py.

For each domain, in a soft mask, with learned deformations and without: the shell where the corrected half-map FSC falls
below 0.143 (`claimed`), the same with residual motion counted (`counted`) and with one standard error of the FSC taken
off as well (`at least`), and the shell where the FSC of the average with the truth falls below 0.5 (`true`). Then the
residual motion in A rms, as estimated (`drawn`) and as it is (`is`). The last line of a case counts the claims that
are better than the truth by more than one shell.
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
    conservative_fsc,
    include_residual_motion,
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
            points, weights, _ = points_in_mask(run, mask, truth.pixel_size)
            drawn = torch.cat([residual_motion(run, half, used[half - 1], points) for half in (1, 2)])
            missed = torch.cat([true_residuals(run, truth, half, used[half - 1], points) for half in (1, 2)])
            found = half_map_fsc(*pair, mask)
            curve = found.corrected
            coherence = motion_coherence(drawn, weights, box, truth.pixel_size)
            counted = include_residual_motion(curve, coherence)
            cautious = conservative_fsc(curve, found.standard_error(fsc_deviation(mask)), coherence)
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
