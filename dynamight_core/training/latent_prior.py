"""The most likely normal prior of inferred parameters: latents of particles, or changes of their poses."""

from dataclasses import dataclass

import torch

from dynamight_core.training.inference import LatentPosterior

# Steps of expectation maximisation for the prior, and particles that they use.
_PRIOR_STEPS, _PRIOR_SAMPLE = 100, 5000


@dataclass
class LatentPrior:
    """A normal prior, and the latents of n particles under it; all float64.

    Parameters
    ----------
    mean, covariance
        (d,) and (d, d).
    latents, covariances
        (n, d) and (n, d, d).
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    latents: torch.Tensor
    covariances: torch.Tensor


def most_likely_prior(posterior: LatentPosterior, mean: torch.Tensor, covariance: torch.Tensor) -> LatentPrior:
    """Return the most likely normal prior of n particles.

    What an image says about its latent is its posterior without the prior. Given that of all images, expectation
    maximisation finds mean and covariance of the prior. One step per inference would take dozens of inferences to
    remove a latent that images say nothing about. No direction becomes wider than after the first step, because far
    from where a latent is, what its image says is not known.

    Parameters
    ----------
    posterior
        of the particles under a prior.
    mean, covariance
        (d,) and (d, d) of that prior.
    """
    mean, prior = mean.double(), torch.linalg.inv(covariance.double())
    precisions = torch.linalg.inv(posterior.covariances.double())
    seen = precisions - prior
    pulls = (precisions @ posterior.latents.double()[..., None])[..., 0] - prior @ mean

    def under_prior(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        covariances = torch.linalg.inv(seen[::step] + prior)
        return (covariances @ (pulls[::step] + prior @ mean)[..., None])[..., 0], covariances

    root = None
    for _ in range(_PRIOR_STEPS):
        latents, covariances = under_prior(-(-len(pulls) // _PRIOR_SAMPLE))
        mean, covariance = latents.mean(0), torch.cov(latents.T).reshape(prior.shape) + covariances.mean(0)
        if root is None:
            root = torch.linalg.cholesky(covariance)
        relative = torch.linalg.solve_triangular(root, covariance, upper=False)
        relative = torch.linalg.solve_triangular(root, relative.T, upper=False)
        widths, axes = torch.linalg.eigh((relative + relative.T) / 2)
        axes = root @ axes
        covariance = (axes * widths.clamp(max=1)) @ axes.T
        prior = torch.linalg.inv(covariance)
    return LatentPrior(mean, covariance, *under_prior(1))
