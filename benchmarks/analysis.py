"""Principal motions and rigid domains of finished runs of simulated data, held against the truth.

python benchmarks/analysis.py RUN TRUTH [RUN TRUTH ...]        TRUTH is the truth.npz of the data set

Prints a JSON object for each run: the overlap of the first motions (as many as domains move) with the true field, from
0 to 1; the Rand index of the rigid domains over the common points; and for each moving domain the correlation of the
angle with the truth and both standard deviations, degrees.
"""

import json
import sys

import numpy as np
import torch
from sklearn.metrics import rand_score

from dynamight_core.analysis.domains import find_domains
from dynamight_core.analysis.results import Run
from dynamight_core.simulate.truth import Truth, load_truth


def overlap(run: Run, truth: Truth) -> float:
    """Return the share of the true motions' variance that the first principal motions span, its square root."""
    n = truth.molecule.n_domains
    rows = torch.linspace(0, len(truth) - 1, min(len(truth), 1000)).long()
    true = truth.displacements(run.motions.points, rows)
    true = (true - true.mean(0)).flatten(1).double()
    basis = torch.linalg.qr(run.motions.components[:n].flatten(1).double().T)[0]
    return float(((true @ basis).square().sum() / true.square().sum()).sqrt())


def compare(run: Run, truth: Truth) -> dict:
    """Return what is printed of a run."""
    found = find_domains(run.motions)
    true = truth.domains(run.motions.points).numpy()
    out = {"run": str(run.path), "overlap": overlap(run, truth), "domains": len(found)}
    out["rand"] = rand_score(true, found.labels)
    for domain in range(1, len(found)):
        moving = np.bincount(true[found.labels == domain]).argmax()
        if moving == 0:
            continue
        angle, expected = found.angles[:, domain], torch.rad2deg(truth.angles[:, moving - 1]).numpy()
        out[f"domain_{moving}_angle_correlation"] = abs(float(np.corrcoef(angle, expected)[0, 1]))
        out[f"domain_{moving}_angle_std"] = [float(angle.std()), float(expected.std())]
    return out


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or len(words) % 2:
        sys.exit(__doc__)
    for path, truth in zip(words[::2], words[1::2], strict=True):
        print(json.dumps(compare(Run.open(path), load_truth(truth))))
