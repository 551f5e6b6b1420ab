"""The uncertainty of each displacement.

It has two parts. The decoders of the two half-sets, trained on different particles, disagree about an image. And the
noise of the image makes its latent uncertain: the width of the latent's posterior, propagated through the decoder.
Neither part contains the other, because both half-sets see the same image with the same noise. Systematic error shared
by both half-sets is in neither part; both are multiplied by a factor measured on simulated molecules. If no motion is
supported, undetected motion is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynamight_core.imaging.geometry import Evaluator
from dynamight_core.model.half import HalfModel
from dynamight_core.run import Run
from dynamight_core.sampling import evenly

# Ratio of the true error to the two parts: 1.17 on simulated hinges, 1.12 to 1.25 in each fifth of their particles
# (benchmarks/analysis.py, seeds 10 and 11); 1.2 and 1.3 on others with larger motions.
SYSTEMATIC = 1.2
# Points on which the error of a coordinate is computed.
_POINTS = 400
# Points that represent a region, and particles whose errors at them are held at a time.
_REGION_POINTS, _ROWS = 100, 10_000


@dataclass
class MotionErrors:
    """Error estimates of displacements, A rms.

    Parameters
    ----------
    particle
        (n,) rms over points of the error of each particle, including systematic error.
    point
        (m,) rms over particles of the error at each point, including systematic error.
    disagreement
        (n,) the part from the disagreement of the decoders, for one half-set.
    posterior
        (n,) the part from the latent's posterior.
    """

    particle: torch.Tensor
    point: torch.Tensor
    disagreement: torch.Tensor
    posterior: torch.Tensor


@torch.no_grad()
def motion_errors(
    evaluators: Sequence[Evaluator],
    models: tuple[HalfModel, HalfModel],
    latents: torch.Tensor,
    covariances: torch.Tensor,
    halves: torch.Tensor,
    unseen: float = 0.0,
    batch: int = 64,
) -> MotionErrors:
    """Estimate the errors of all particles at common points.

    Parameters
    ----------
    evaluators
        of both half-sets at the common points, latents to (b, m, 3) displacements in A.
    models
        of both half-sets.
    latents, covariances
        (2, n, d) and (2, n, d, d) of all particles under both half-sets.
    halves
        (n,) 1 or 2.
    unseen
        A rms, undetected motion; added to the errors of all particles and points.
    """
    n = len(halves)
    device = models[0].latent_mean.device
    particle, point = torch.zeros(n), torch.zeros(())
    disagreement, posterior = torch.zeros(n), torch.zeros(n)
    for rows in torch.arange(n).split(batch):
        between, width = _variances(evaluators, latents, covariances, halves, rows, device)
        total = SYSTEMATIC**2 * (between + width) + unseen**2
        particle[rows] = total.mean(1).sqrt().cpu()
        disagreement[rows] = between.mean(1).sqrt().cpu()
        posterior[rows] = width.mean(1).sqrt().cpu()
        point = point + total.sum(0).cpu() / n
    return MotionErrors(particle, point.sqrt(), disagreement, posterior)


def undetected_motion(summary: dict[str, Any]) -> float:
    """Return the motion (A rms) that errors include because it may be there undetected: none where it is supported."""
    return 0.0 if summary["verdict"]["verdict"] == "supported" else float(summary["unseen_motion_rms"])


@torch.no_grad()
def displacement_errors(run: Run, points: torch.Tensor, rows: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Return the (b, m) errors (A) of the displacements of points in chosen particles.

    What a run keeps of a particle determines its error at any point: the latents under both decoders, and their
    posterior covariances, d numbers and d x d for each half-set. A table of all particles and points is not kept.

    Parameters
    ----------
    run
        finished and summarised.
    points
        (m, 3) A in the consensus frame, origin at the centre of the box.
    rows
        (b,) particles, from 0.
    batch
        particles at a time.
    """
    summary, device = run.summary, run.models[0].latent_mean.device
    unseen = undetected_motion(summary)
    evaluators = [model.consensus_evaluator(points.to(device)) for model in run.models]
    errors = torch.zeros(len(rows), len(points))
    for part in torch.arange(len(rows)).split(batch):
        between, width = _variances(evaluators, run.latents, run.covariances, run.halves, rows[part], device)
        errors[part] = (SYSTEMATIC**2 * (between + width) + unseen**2).sqrt().cpu()
    return errors


def region_errors(run: Run, labels: torch.Tensor, n_regions: int, rows: torch.Tensor) -> torch.Tensor:
    """Return the (b, regions) errors (A rms over a region) of the displacements of regions in (b,) particles.

    Parameters
    ----------
    run
        finished and summarised.
    labels
        (m,) region of each of the run's common points, from 0.
    n_regions
        their number.
    rows
        (b,) particles, from 0.
    """
    errors = torch.zeros(len(rows), n_regions)
    for region in range(n_regions):
        inside = torch.where(labels == region)[0]
        # A mean over points: a subset determines it.
        some = evenly(inside, _REGION_POINTS)
        for part in torch.arange(len(rows)).split(_ROWS):
            found = displacement_errors(run, run.motions.points[some], rows[part])
            errors[part, region] = found.square().mean(1).sqrt()
    return errors


def _variances(
    evaluators: Sequence[Evaluator],
    latents: torch.Tensor,
    covariances: torch.Tensor,
    halves: torch.Tensor,
    rows: torch.Tensor,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (b, m) variances (A^2) of displacements of (b,) particles: of disagreement, and of the posterior."""
    shifts = [evaluate(latents[h][rows].to(device)) for h, evaluate in enumerate(evaluators)]
    # Both half-sets have the same variance: half that of their difference.
    between = (shifts[0] - shifts[1]).square().sum(-1) / 2
    width = torch.zeros_like(between)
    for h in (0, 1):
        mine = torch.where(halves[rows] == h + 1)[0]
        if len(mine):
            own = rows[mine]
            width[mine] = _propagated(
                evaluators[h], latents[h][own].to(device), covariances[h][own].to(device), shifts[h][mine]
            )
    return between, width


def known_coordinates(run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the coordinates of all particles (A rms), their error variances (A^2), and along which motions they count.

    Returns
    -------
    tuple
        (n, K) coordinates and variances, and (K,) bool: where the error exceeds the variation, a coordinate says
        nothing on which particles are near to each other.
    """
    coordinates = run.motions.coordinates.float()
    variances = coordinate_variances(run, torch.arange(len(coordinates)))
    return coordinates, variances, coordinates.var(0) > variances.mean(0)


@torch.no_grad()
def coordinate_variances(run: Run, rows: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Return the (b, K) error variances (A^2) of the coordinates of (b,) particles along the principal motions.

    The same two parts as in `motion_errors`, including systematic error.
    """
    motions = run.motions
    # A coordinate is a mean over points: a subset determines it.
    some = evenly(torch.arange(len(motions.points)), _POINTS)
    components = motions.components[:, some].flatten(1)
    # Components have a mean square of 1 over all points, and correlate slightly over a subset: least squares.
    solver = torch.linalg.pinv(components)
    evaluators = [model.consensus_evaluator(motions.points[some]) for model in run.models]
    variances = torch.zeros(len(rows), len(components))
    for part in torch.arange(len(rows)).split(batch):
        chosen = rows[part]
        shifts = [evaluate(run.latents[h][chosen]).flatten(1) for h, evaluate in enumerate(evaluators)]
        variance = ((shifts[0] - shifts[1]) @ solver).square() / 2
        for h, evaluate in enumerate(evaluators):
            mine = torch.where(run.halves[chosen] == h + 1)[0]
            own = chosen[mine]
            latents, spread = run.latents[h][own], _root(run.covariances[h][own])
            for axis in range(latents.shape[1]):
                moved = evaluate(latents + spread[:, :, axis]).flatten(1) - shifts[h][mine]
                variance[mine] += (moved @ solver).square()
        variances[part] = SYSTEMATIC**2 * variance
    return variances


def _propagated(
    evaluate: Evaluator, latents: torch.Tensor, covariances: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Return (b, m) variances (A^2) of displacements under Gaussian latents, to first order."""
    spread = _root(covariances)
    variance = torch.zeros(shift.shape[:2], device=shift.device)
    for axis in range(latents.shape[1]):
        # One standard deviation along each column of the factor; their squares add up to the variance.
        variance += (evaluate(latents + spread[:, :, axis]) - shift).square().sum(-1)
    return variance


def _root(covariances: torch.Tensor) -> torch.Tensor:
    """Return (b, d, d) factors R with R R' = C of covariances C, which rounding may have made slightly indefinite."""
    values, vectors = torch.linalg.eigh(covariances)
    return vectors * values.clamp(min=0).sqrt()[:, None]
