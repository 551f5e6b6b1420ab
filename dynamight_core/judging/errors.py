"""How far each displacement can be trusted.

Two errors add up. The decoders of the two halves, trained on different particles, disagree on one image by
what they learned differently. And the image's own noise leaves its latent uncertain: the width of the latent's
posterior, pushed through the decoder. The first is invisible in the second and the second in the first, since
both halves see the same image with the same noise. What both halves do wrong alike, a field that bends where the
molecule turns, is in neither: both parts are raised by a factor that simulated molecules gave. Where no motion was
found, there is another: motion that the images are too noisy or too few to show.
"""

from dataclasses import dataclass

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.run import Run

# True over estimated error where only the two visible parts are counted: 1.17 on simulated hinges, 1.12 to 1.25 in each
# fifth of their particles (benchmarks/analysis.py, seeds 10 and 11); 1.2 and 1.3 on others with larger motions.
ALIKE = 1.2
# Points that a coordinate's error is computed on.
_SOME = 400


@dataclass
class MotionErrors:
    """Error estimates of displacements, A rms.

    Parameters
    ----------
    particle
        (n,) rms over points of the error of each particle, what both halves do alike included.
    point
        (m,) rms over particles of the error at each point, the same included.
    disagreement
        (n,) the part of it that is the decoders', for one half.
    posterior
        (n,) the part that is the latent's posterior.
    """

    particle: torch.Tensor
    point: torch.Tensor
    disagreement: torch.Tensor
    posterior: torch.Tensor


@torch.no_grad()
def motion_errors(
    evaluators, models: tuple[HalfModel, HalfModel], latents, covariances, halves, unseen: float = 0.0, batch: int = 64
) -> MotionErrors:
    """Estimate the errors of all particles at common points.

    Parameters
    ----------
    evaluators
        of both halves at the common points, latents to (b, m, 3) displacements in A.
    models
        of both halves.
    latents, covariances
        (2, n, d) and (2, n, d, d) of all particles under both halves.
    halves
        (n,) 1 or 2.
    unseen
        A rms, of motion that may be there unseen; adds to the errors of all particles and points.
    """
    n = len(halves)
    device = models[0].latent_mean.device
    particle, point = torch.zeros(n), 0.0
    disagreement, posterior = torch.zeros(n), torch.zeros(n)
    for rows in torch.arange(n).split(batch):
        shifts = [evaluate(latents[h][rows].to(device)) for h, evaluate in enumerate(evaluators)]
        # Each half errs alike: the variance of one is half that of the difference.
        between = (shifts[0] - shifts[1]).square().sum(-1) / 2
        width = torch.zeros_like(between)
        for h in (0, 1):
            mine = torch.where(halves[rows] == h + 1)[0]
            if len(mine):
                own = rows[mine]
                width[mine] = _pushed_through(
                    evaluators[h], latents[h][own].to(device), covariances[h][own].to(device), shifts[h][mine]
                )
        total = ALIKE**2 * (between + width) + unseen**2
        particle[rows] = total.mean(1).sqrt().cpu()
        disagreement[rows] = between.mean(1).sqrt().cpu()
        posterior[rows] = width.mean(1).sqrt().cpu()
        point = point + total.sum(0).cpu() / n
    return MotionErrors(particle, point.sqrt(), disagreement, posterior)


@torch.no_grad()
def coordinate_variances(run: Run, rows: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Return the (b, K) error variances (A^2) of the coordinates of (b,) particles along the principal motions.

    Both parts of the error, and what both halves do alike, as in `motion_errors`.
    """
    motions = run.motions
    # A coordinate is a mean over points: some of them tell it.
    some = torch.linspace(0, len(motions.points) - 1, min(len(motions.points), _SOME)).long()
    components = motions.components[:, some].flatten(1)
    # Components are of unit mean square over all points, and correlate a little over some: least squares.
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
            latents, spread = run.latents[h][own], torch.linalg.cholesky(run.covariances[h][own])
            for axis in range(latents.shape[1]):
                moved = evaluate(latents + spread[:, :, axis]).flatten(1) - shifts[h][mine]
                variance[mine] += (moved @ solver).square()
        variances[part] = ALIKE**2 * variance
    return variances


def _pushed_through(evaluate, latents, covariances, shift) -> torch.Tensor:
    """Return (b, m) variances (A^2) of displacements under Gaussian latents, to first order."""
    spread = torch.linalg.cholesky(covariances)
    variance = torch.zeros(shift.shape[:2], device=shift.device)
    for axis in range(latents.shape[1]):
        # One standard deviation along each column of the factor; their squares add up to the variance.
        variance += (evaluate(latents + spread[:, :, axis]) - shift).square().sum(-1)
    return variance
