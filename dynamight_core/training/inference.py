"""The latent of one particle under a fixed decoder: posterior mode by Gauss-Newton, and its width."""

from dataclasses import dataclass

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import TrainingImages

# Finite-difference step, in standard deviations of the latents' prior.
_STEP = 0.15
# A particle is done when a step gains less than this, or fails and promised less than that, nats.
_CONVERGED, _HOPELESS = 0.01, 0.05
# Where the posterior is integrated, in standard deviations.
_NODES = (-3.6, -2.4, -1.2, 0.0, 1.2, 2.4, 3.6)


@dataclass
class LatentPosterior:
    """Gaussian posterior of the latents of n particles.

    Parameters
    ----------
    latents
        (n, d) modes, or means where the posterior was integrated.
    covariances
        (n, d, d) by Laplace's approximation at the mode, or of what was integrated.
    energies
        (n,) minus log posterior at the mode, up to a constant of the noise.
    """

    latents: torch.Tensor
    covariances: torch.Tensor
    energies: torch.Tensor


@torch.no_grad()
def infer_latents(
    model: HalfModel,
    data: TrainingImages,
    rows: torch.Tensor,
    starts: list[torch.Tensor],
    steps: int = 5,
    pixel_share: torch.Tensor | None = None,
    integrate: bool = False,
    progress=None,
) -> LatentPosterior:
    """Find each particle's most probable latent, the decoder fixed.

    Minimises 1/2 sum_k |CTF P(z) - y|^2 / Sigma + 1/2 (z - m)' C^-1 (z - m) with the latents' own mean m and
    covariance C as prior, by damped Gauss-Newton steps. The derivative of an image by a latent is a forward
    difference: d more projections a step, which serves every decoder.

    Parameters
    ----------
    model
        of one half-set.
    data, rows
        (n,) the particles to infer.
    starts
        one or several (n, d) starting points; the better one of each particle is taken.
    steps
        Gauss-Newton steps at most.
    pixel_share
        (n, box, box//2+1) bool or None: which Fourier pixels are looked at.
    integrate
        whether to integrate the posterior along the direction in which the displacement is least certain, which
        gives its mean and width there instead of the mode and the curvature at the mode: displacements larger than
        the map's details make the posterior wider than that.
    """
    amplitude = model.frequency_weights().sqrt()
    dim = model.n_latents
    mean, precision = model.latent_mean, torch.linalg.inv(model.latent_covariance)
    difference = _STEP * model.latent_covariance.diagonal().sqrt()
    displacement = model.evaluator(model.gaussians.positions)
    reference = model.gaussians.positions

    def project(latents, matrices, transfer):
        repeat = len(latents) // len(matrices)
        matrices, transfer = matrices.repeat_interleave(repeat, 0), transfer.repeat_interleave(repeat, 0)
        image = model.project(matrices, transfer, reference + displacement(latents))
        return torch.view_as_real(image).flatten(1)

    def energy(residual, latents):
        offset = latents - mean
        return 0.5 * residual.square().sum(1) + 0.5 * ((offset @ precision) * offset).sum(1)

    metric = _displacement_metric(model, starts[0].to(reference), difference) if integrate else None
    found = torch.empty(len(rows), dim, device=reference.device)
    covariances = torch.empty(len(rows), dim, dim, device=reference.device)
    energies = torch.empty(len(rows), device=reference.device)
    # A handful of tensors of d images each: bounded to some 100 MB.
    size = max(1, min(128, int(2**25 // (dim * model.box**2))))
    for chosen in torch.arange(len(rows)).split(size):
        batch = data.batch(rows[chosen])
        whitening = amplitude if pixel_share is None else amplitude * pixel_share[chosen].to(amplitude)
        view = batch.matrices, batch.transfer * whitening
        target = torch.view_as_real(batch.transforms * whitening).flatten(1)
        latents, image, value = None, None, None
        for start in starts:
            candidate = start[chosen].to(reference, copy=True)
            candidate_image = project(candidate, *view)
            candidate_value = energy(target - candidate_image, candidate)
            if latents is None:
                latents, image, value = candidate, candidate_image, candidate_value
                continue
            better = candidate_value < value
            latents = torch.where(better[:, None], candidate, latents)
            image = torch.where(better[:, None], candidate_image, image)
            value = torch.where(better, candidate_value, value)
        damping = torch.full_like(value, 1e-2)
        hessian = torch.empty(len(chosen), dim, dim, device=reference.device)
        # Particles that still move; the others are done.
        moving = torch.arange(len(chosen), device=reference.device)
        for step in range(max(steps, 1)):
            here, seen = latents[moving], tuple(factor[moving] for factor in view)
            misfit = target[moving] - image[moving]
            normal, jacobian = _curvature(here, image[moving], seen, difference, project)
            # The width is that of the last step's start: one step less costs d projections less.
            curvature = normal + precision
            hessian[moving] = curvature
            if step == steps:
                break
            gradient = (jacobian @ misfit[..., None])[..., 0] - (here - mean) @ precision
            damped = curvature + torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[moving][:, None])
            move = torch.linalg.solve(damped, gradient)
            # At most two prior standard deviations a step: the model is linear no farther.
            longest = (move.abs() * _STEP / difference).amax(1, keepdim=True)
            there = here + move * (2 / longest.clamp(min=2))
            new_image = project(there, *seen)
            new_value = energy(target[moving] - new_image, there)
            gain = value[moving] - new_value
            better = gain > 0
            accepted = moving[better]
            latents[accepted], image[accepted], value[accepted] = there[better], new_image[better], new_value[better]
            damping[moving] *= torch.where(better, 0.3, 10.0)
            expected = 0.5 * (gradient * move).sum(1)
            moving = moving[torch.where(better, gain > _CONVERGED, expected > _HOPELESS)]
            if not len(moving):
                break
        covariance = torch.linalg.inv(hessian)
        if integrate:
            direction = _least_certain(covariance, metric)
            nodes = latents.new_tensor(_NODES)
            places = [latents + node * direction for node in nodes]
            along = torch.stack([energy(target - project(place, *view), place) for place in places], 1)
            share = torch.softmax(-along, 1)
            offset = share @ nodes
            # The direction is one standard deviation long: its variance was 1.
            excess = share @ nodes.square() - offset.square() - 1
            latents = latents + offset[:, None] * direction
            covariance = covariance + excess[:, None, None] * direction[:, :, None] * direction[:, None]
        found[chosen], energies[chosen], covariances[chosen] = latents, value, covariance
        if progress is not None:
            progress(int(chosen[-1]) + 1, len(rows))
    return LatentPosterior(found, covariances, energies)


def _displacement_metric(model: HalfModel, latents: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """Return the (d, d) mean product of the displacement's derivatives by the latents, A^2, over some of (n, d)."""
    few = latents[:: max(1, len(latents) // 32)]
    moved = (few[:, None] + torch.diag(difference)).flatten(0, 1)
    change = model.displacements(moved).reshape(*few.shape, -1) - model.displacements(few).reshape(len(few), 1, -1)
    change = change / difference[:, None]
    return (change @ change.transpose(1, 2)).mean(0) / len(model.gaussians)


def _least_certain(covariance: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Return (b, d): one standard deviation along the direction that contributes most to the displacement's variance.

    With C the covariance and M the metric: the first principal axis of M^1/2 z, as its regression on the latents.
    """
    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.clamp(min=0).sqrt()
    variances, axes = torch.linalg.eigh(root.T @ covariance @ root)
    first = root @ axes[:, :, -1:]
    return (covariance @ first)[..., 0] / variances[:, -1:].clamp(min=1e-12).sqrt()


def _curvature(latents, image, view, difference, project):
    """Return the normal matrix (b, d, d) and the Jacobian (b, d, values) of the whitened images."""
    dim = latents.shape[1]
    moved = (latents[:, None] + torch.diag(difference)).flatten(0, 1)
    jacobian = project(moved, *view).reshape(len(latents), dim, -1) - image[:, None]
    jacobian = jacobian / difference[:, None]
    return jacobian @ jacobian.transpose(1, 2), jacobian
