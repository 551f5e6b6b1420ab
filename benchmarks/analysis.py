"""Analysis of finished runs against the truth: motions, rigid domains, distributions and error estimates.

    python -m benchmarks.analysis RUN TRUTH [RUN TRUTH ...]

Data: any runs of simulated data sets; TRUTH is the truth.npz of the data set.

Prints one JSON object per run. `overlap`, 0 to 1: how much of the true motion the first principal motions span, as many
as domains move. `rand`: the Rand index of the rigid domains over the common points. For each moving domain, the
correlation of its angle with the truth, and both standard deviations in degrees. For one moving domain, the
Kolmogorov-Smirnov distance of the distribution along motion 1 to the true distribution of angles about their mean: with
the errors taken out, and of the coordinates as estimated. `two_peaks_` is the same for particles drawn to have two
peaks at 0.6 of the range. The last lines pool all runs: predicted and true error (A rms) of each fifth of the
particles, sorted by predicted error.
"""

import json
import sys

import numpy as np
import torch
from sklearn.metrics import rand_score

from dynamight_core.analysis.domains import find_domains
from dynamight_core.judging.distribution import corrected_distribution
from dynamight_core.judging.errors import coordinate_variances, motion_errors
from dynamight_core.run import Run
from dynamight_core.simulate.measures import hinge_angle
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
    if truth.molecule.n_domains == 1:
        out |= angle_distribution(run, truth)
    return out


def angle_distribution(run: Run, truth: Truth) -> dict:
    """Return the distances of the distribution along motion 1, as an angle, to the true one."""
    motions, molecule = run.motions, truth.molecule
    moving = truth.domains(motions.points) == 1
    rest = motions.points + motions.mean
    # The angle of the motion's own field about the hinge.
    ends = torch.tensor([-2.0, 2.0])[:, None, None] * motions.components[0] + rest
    angles = hinge_angle(ends[:, moving], rest[moving], molecule.axis_points[0], molecule.axis_directions[0])
    slope = float(torch.rad2deg(angles[1] - angles[0])) / 4
    rows = torch.arange(len(run.halves))
    coordinates = motions.coordinates[:, 0].double().numpy()
    variances = coordinate_variances(run, rows)[:, 0].double().numpy()
    angles = np.degrees(truth.angles[:, 0].double().numpy())
    away = np.abs(angles) / np.abs(angles).max() - 0.6
    peaks = np.random.default_rng(0).random(len(angles)) < np.exp(-0.5 * (away / 0.1) ** 2)
    out = {}
    for name, kept in (("", np.ones(len(angles), dtype=bool)), ("two_peaks_", peaks)):
        found = corrected_distribution(coordinates[kept], variances[kept])
        true = np.sort((angles[kept] - angles[kept].mean()) / slope)
        ranks = (np.arange(len(true)) + 0.5) / len(true)
        mean = np.average(found.values, weights=found.density)
        plain = np.sort(coordinates[kept] - coordinates[kept].mean())
        out |= {
            f"{name}ks_errors_taken_out": float(np.abs(found.cumulative(true + mean) - ranks).max()),
            f"{name}ks_as_estimated": float(np.abs(np.interp(true, plain, ranks) - ranks).max()),
            f"{name}angle_std": [found.spread * abs(slope), float(angles[kept].std())],
        }
    return out


def errors(run: Run, truth: Truth) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (n,) predicted and true errors of the particles, A rms."""
    points, n = run.motions.points, len(run.halves)
    with torch.no_grad():
        evaluators = [model.consensus_evaluator(points) for model in run.models]
        predicted = motion_errors(evaluators, run.models, run.latents, run.covariances, run.halves).particle
        true = torch.zeros(n)
        for rows in torch.arange(n).split(128):
            shifts = [evaluate(run.latents[h][rows]) for h, evaluate in enumerate(evaluators)]
            own = torch.where((run.halves[rows] == 1)[:, None, None], *shifts)
            true[rows] = (own - truth.displacements(points, rows)).square().sum(-1).mean(1).sqrt()
    return predicted, true


def rms(values: torch.Tensor) -> float:
    """Return the root mean square."""
    return float(values.square().mean().sqrt())


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or len(words) % 2:
        sys.exit(__doc__)
    pooled = []
    for path, name in zip(words[::2], words[1::2], strict=True):
        run, truth = Run(path), load_truth(name)
        print(json.dumps(compare(run, truth)), flush=True)
        pooled.append(errors(run, truth))
    predicted, true = (torch.cat(parts) for parts in zip(*pooled, strict=True))
    print(f"all: predicted {rms(predicted):.2f}, true {rms(true):.2f}")
    for fifth in predicted.argsort().tensor_split(5):
        ratio = rms(predicted[fifth]) / rms(true[fifth])
        print(f"fifth: predicted {rms(predicted[fifth]):.2f}, true {rms(true[fifth]):.2f}, ratio {ratio:.2f}")
