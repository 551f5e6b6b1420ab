"""The latent of one particle under a fixed decoder: posterior mode by Gauss-Newton, and its width."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.image_series import ImageSeries, at_once, per_particle
from dynamight_core.imaging.fourier import crop_fourier
from dynamight_core.model.half import HalfModel, LatentProjection
from dynamight_core.sampling import evenly
from dynamight_core.training.data import Batch, Batches, TrainingImages, joined

# Finite-difference step, in standard deviations of the latents' prior.
_STEP = 0.15
# A particle is done when a step gains less than the first, or fails with an expected gain below the second, nats.
_CONVERGED, _HOPELESS = 0.01, 0.05
# A direction of the latents that images say little about stays at its prior: one whose signal-to-noise ratio (variance
# of the prior over that of one image) is below the first number over the square root of the number of particles, which
# could not tell it from noise (Baik, Ben Arous & Peche, Annals of Probability 2005), or of the second, if they are few.
# The ratio is measured on so many particles.
_SEEN, _FEW, _MEASURED = 0.5, 900, 64
# Numbers in a tensor of a batch whose parameters are inferred, and particles that are encoded at a time.
_NUMBERS, _ENCODED = 2**21, 512
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
    data: Batches,
    rows: torch.Tensor,
    starts: list[torch.Tensor],
    steps: int = 5,
    pixels: torch.Tensor | None = None,
    integrate: bool = False,
    progress=None,
    every: bool = False,
) -> LatentPosterior:
    """Find each particle's most probable latent, the decoder fixed. The `current_group` shares the particles.

    Minimises 1/2 sum_k |CTF P(z) - y|^2 / Sigma + 1/2 (z - m)' C^-1 (z - m), the first sum over all images of the
    particle, with the latents' own mean m and covariance C as prior, by damped Gauss-Newton steps. The derivative of an
    image by a latent is a forward difference: one more projection a step for each direction that images show; the
    others stay at the prior.

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
    pixels
        (n, box, box//2+1) bool, Fourier pixels that are used, in each image of a particle; all if None.
    integrate
        whether to integrate the posterior along the direction in which the displacement is least certain. Its mean and
        width there replace the mode and the curvature at the mode: displacements larger than the map's details make
        the posterior wider than that curvature.
    every
        whether to infer all directions, where the prior is not yet that of the particles.
    """
    starts = [start.to(model.latent_mean) for start in starts]
    projection, amplitude = model.deformed_projection(), model.seen_weights().sqrt()
    group, dim = current_group(), model.n_latents
    seen = (
        _uncorrelated(model) if every else _seen_directions(model, projection, amplitude, data, rows, starts[0], pixels)
    )
    seen = group.agreed(seen, seen.device)
    metric = seen.T @ _displacement_metric(model, starts[0]) @ seen if integrate else None
    starts = [_along(start - model.latent_mean, seen, model.latent_covariance) for start in starts]
    own = group.shard(torch.arange(len(rows)))
    n, first = len(own), int(own[0]) if len(own) else 0
    found, covariances, energies = seen.new_empty(n, dim), seen.new_empty(n, dim, dim), seen.new_empty(n)
    unit = torch.eye(seen.shape[1]).to(seen)
    for chosen in group.split(torch.arange(len(rows)), _batch_size(model, seen.shape[1], data.series)):
        used = None if pixels is None else pixels[chosen]
        fit = _latent_fit(model, projection, amplitude, data.batch(rows[chosen]), used, seen)
        values, image, energy = fit.best([start[chosen] for start in starts])
        covariance = climb(fit, values, image, energy, steps)
        if integrate:
            values, covariance = _integrate(fit, values, covariance, metric)
        here = chosen - first
        found[here], energies[here] = model.latent_mean + values @ seen.T, energy
        covariances[here] = model.latent_covariance + seen @ (covariance - unit) @ seen.T
        if progress is not None:
            progress(int(here[-1]) + 1, n)
    return LatentPosterior(group.gather(found), group.gather(covariances), group.gather(energies))


def _batch_size(model: HalfModel, number: int, series: ImageSeries | None) -> int:
    """Return how many particles with a number of parameters, and images of a series, to infer at a time.

    Positions and images of a batch, of each of which there are several, take some 10 MB: more is no faster.
    """
    numbers = max(3 * len(model.gaussians), (number + 2) * model.box**2)
    return at_once(series, max(8, min(128, _NUMBERS // numbers)))


def _seen_directions(
    model: HalfModel,
    projection: LatentProjection,
    amplitude: torch.Tensor,
    data: Batches,
    rows: torch.Tensor,
    start: torch.Tensor,
    pixels: torch.Tensor | None,
) -> torch.Tensor:
    """Return (d, k) directions of the latents that images show, at least one, a standard deviation of the prior each.

    In these directions the prior has a variance of 1 and no correlation.
    """
    root = _uncorrelated(model)
    curvatures = []
    for sample in evenly(torch.arange(len(rows)), _MEASURED).split(at_once(data.series, _MEASURED)):
        used = None if pixels is None else pixels[sample]
        fit = _latent_fit(model, projection, amplitude, data.batch(rows[sample]), used, root)
        values = _along(start[sample] - model.latent_mean, root, model.latent_covariance)
        _, curvature = fit.derivatives(values, fit.image(values, fit.all), fit.all)
        curvatures.append((curvature - fit.precision).double())
    ratios, axes = torch.linalg.eigh(torch.cat(curvatures).mean(0))
    seen = ratios >= min(_SEEN / max(len(rows), _FEW) ** 0.5, float(ratios[-1]))
    return root @ axes[:, seen].float()


def _uncorrelated(model: HalfModel) -> torch.Tensor:
    """Return (d, d) directions of the latents that are uncorrelated under their prior, a standard deviation each."""
    return torch.linalg.cholesky(model.latent_covariance.double()).float()


def _along(offsets: torch.Tensor, directions: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Return the (n, k) components of (n, d) offsets along directions that are uncorrelated under a covariance."""
    return torch.linalg.solve(covariance.double(), offsets.double().T).T.float() @ directions


Projection = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def infer_parameters(
    model: HalfModel,
    projection: Callable[[Batch, torch.Tensor], Projection],
    prior: tuple[torch.Tensor, torch.Tensor],
    data: Batches,
    rows: torch.Tensor,
    starts: list[torch.Tensor],
    pixels: torch.Tensor | None = None,
    steps: int = 3,
) -> LatentPosterior:
    """Infer parameters of n particles other than latents, by Gauss-Newton steps. The `current_group` shares them.

    Parameters
    ----------
    model
        of the half-set.
    projection
        returns the `Fit.project` of a batch; its second argument is which of the n particles are in it, by image.
    prior
        (d,) mean and (d, d) covariance.
    data, rows
        images, and (n,) particles.
    starts
        (n, d) each; the best one is used.
    pixels
        (n, box, box//2+1) bool, Fourier pixels that are used; all if None.
    steps
        of the search.
    """
    group, mean = current_group(), prior[0]
    modes, covariances, energies = [mean.new_empty(0, len(mean))], [mean.new_empty(0, *prior[1].shape)], [mean[:0]]
    amplitude = model.seen_weights().sqrt()
    for chosen in group.split(torch.arange(len(rows)), _batch_size(model, len(mean), data.series)):
        batch = data.batch(rows[chosen]).within(amplitude)
        whitening = amplitude if pixels is None else on_pixels(amplitude, batch.per_image(pixels[chosen]))
        fit = Fit(projection(batch, batch.per_image(chosen)), *prior, batch, whitening)
        mode, image, energy = fit.best([start[chosen] for start in starts])
        covariances.append(climb(fit, mode, image, energy, steps))
        modes.append(mode)
        energies.append(energy)
    return LatentPosterior(*(group.gather(torch.cat(parts)) for parts in (modes, covariances, energies)))


def encode(model: HalfModel, data: TrainingImages, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoder's (n, d) means and log-variances of (n,) particles, all computed by this process."""
    found = []
    for part in rows.split(data.at_once(_ENCODED)):
        numbers, index = (part, None) if data.series is None else data.series.images(part)
        found.append(encoded(model, data.images(numbers), None if index is None else ImageSeries(index)))
    means, log_variances = zip(*found, strict=True)
    return torch.cat(means), torch.cat(log_variances)


def encoded(model: HalfModel, images: torch.Tensor, series: ImageSeries | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoder's (p, d) means and log-variances of p particles with these (b, box, box) images.

    Those of a particle of several images are the means over its images.
    """
    mean, log_variance = model.encoder(images)
    if series is None:
        return mean, log_variance
    counts = series.counts[:, None].to(mean.device)
    return per_particle(series, mean) / counts, per_particle(series, log_variance) / counts


def random_pixels(n: int, box: int, generator: torch.Generator) -> torch.Tensor:
    """Return (n, box, box//2+1) masks of a random half of the Fourier pixels of real images.

    The first column holds every frequency k beside -k, which is the same number: both are in or both out, or what is
    held out would have been seen.
    """
    chosen = torch.rand(n, box, box // 2 + 1, generator=generator) < 0.5
    negative = torch.arange(box // 2 + 1, box)
    chosen[:, negative, 0] = chosen[:, box - negative, 0]
    return chosen


@torch.no_grad()
def data_terms(
    model: HalfModel,
    data: Batches,
    rows: torch.Tensor,
    latents: torch.Tensor | None,
    pixels: torch.Tensor,
    resolution: float | None = None,
) -> torch.Tensor:
    """Return (n,) minus log-likelihoods of images on some of their Fourier pixels. The `current_group` shares them.

    Parameters
    ----------
    model
        of one half-set.
    data, rows
        (n,) the particles.
    latents
        (n, d) of their deformations, or (s, n, d) of s draws of each, whose mean image is compared, as it would be of
        all draws; of the consensus, without deformation, if None.
    pixels
        (n, box, box//2+1) bool, Fourier pixels that count, in each image of a particle.
    resolution
        of the low-pass filter, A; the model's own if None, none if 0.
    """
    weights = model.seen_weights(resolution)
    projection = None if latents is None else model.deformed_projection()
    draws = latents[None] if latents is not None and latents.ndim == 2 else latents
    group, terms = current_group(), [weights.new_empty(0)]
    for part in group.split(torch.arange(len(rows)), at_once(data.series, 128)):
        batch, excess = data.batch(rows[part]).within(weights), torch.zeros(())
        if projection is None or draws is None:
            rest = model.consensus_positions.expand(len(batch.transforms), -1, -1)
            image = model.project(batch.matrices, batch.transfer, rest)
        else:
            images = [projection(batch.per_image(draw[part]), batch.matrices, batch.transfer) for draw in draws]
            image = sum(images, torch.zeros(())) / len(draws)
            # The square of a mean of s draws is too large by their variance over s.
            for drawn in images if len(draws) > 1 else ():
                excess = excess + (drawn - image).abs().square() / (len(draws) * (len(draws) - 1))
        squares = (image - batch.transforms).abs().square() - excess
        used = on_pixels(weights, batch.per_image(pixels[part]))
        terms.append(batch.per_particle(0.5 * (squares * used).sum((-2, -1))))
    return group.gather(torch.cat(terms)).cpu()


def on_pixels(weights: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return (b, size, size//2+1) weights where (b, box, box//2+1) pixels are chosen, 0 elsewhere."""
    return weights * crop_fourier(pixels, len(weights)).to(weights)


class Fit:
    """How well parameters explain the images of b particles, with a normal prior.

    Images are whitened, real and flat: (b, values), the squared norm of a residual being minus twice its
    log-likelihood. Those of a particle are one after the other. `which` picks some of the b particles.

    Parameters
    ----------
    project
        from (m, d) parameters, (m,) indices of images of the batch and their (m, box, box//2+1) transfer functions to
        model images.
    mean, covariance
        (d,) and (d, d) of the prior.
    batch
        of b particles.
    whitening
        (box, box//2+1), or for each image of the batch: one over the amplitude of the noise, 0 where pixels do not
        count.
    """

    def __init__(
        self,
        project: Projection,
        mean: torch.Tensor,
        covariance: torch.Tensor,
        batch: Batch,
        whitening: torch.Tensor,
    ):
        self._project, self._mean, self.precision = project, mean, torch.linalg.inv(covariance)
        self._difference = _finite_difference(covariance)
        self._transfer, self._series = batch.transfer * whitening, batch.series
        self._target = batch.joined(torch.view_as_real(batch.transforms * whitening).flatten(1))
        self.all = torch.arange(len(batch), device=mean.device)

    def image(self, latents: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Return the (b, values) model images under (b, d) latents."""
        if self._series is None:
            return torch.view_as_real(self._project(latents, which, self._transfer[which])).flatten(1)
        at, index = (each.to(which.device) for each in self._series.images(which))
        images = torch.view_as_real(self._project(latents[index], at, self._transfer[at])).flatten(1)
        return self._widened(joined(ImageSeries(index), images))

    def _widened(self, images: torch.Tensor) -> torch.Tensor:
        """Return (m, values) images, with zeros for those that other particles have in addition."""
        return torch.nn.functional.pad(images, (0, self._target.shape[1] - images.shape[1]))

    def energy(self, latents: torch.Tensor, image: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Return (b,) minus log posteriors."""
        offset = latents - self._mean
        prior = ((offset @ self.precision) * offset).sum(1)
        return 0.5 * (self._target[which] - image).square().sum(1) + 0.5 * prior

    def derivatives(self, latents: torch.Tensor, image: torch.Tensor, which: torch.Tensor):
        """Return minus the gradient (b, d) of the energy, and its curvature (b, d, d) by Gauss-Newton."""
        jacobian = torch.empty(*latents.shape, image.shape[1]).to(image)
        # One direction after another: the positions of all at once take too much memory.
        for number, step in enumerate(torch.diag(self._difference)):
            torch.sub(self.image(latents + step, which), image, out=jacobian[:, number])
        jacobian /= self._difference[:, None]
        misfit = self._target[which] - image
        downhill = (jacobian @ misfit[..., None])[..., 0] - (latents - self._mean) @ self.precision
        return downhill, jacobian @ jacobian.transpose(1, 2) + self.precision

    def longest(self, move: torch.Tensor) -> torch.Tensor:
        """Return the (b, 1) largest component of a move in standard deviations of the prior."""
        return (move.abs() * _STEP / self._difference).amax(1, keepdim=True)

    def best(self, starts: list[torch.Tensor]):
        """Return each particle's best start, its image and its energy."""
        latents = starts[0].to(self._mean, copy=True)
        image = self.image(latents, self.all)
        energy = self.energy(latents, image, self.all)
        for start in starts[1:]:
            candidate = start.to(self._mean)
            candidate_image = self.image(candidate, self.all)
            candidate_energy = self.energy(candidate, candidate_image, self.all)
            better = candidate_energy < energy
            latents[better], image[better] = candidate[better], candidate_image[better]
            energy[better] = candidate_energy[better]
        return latents, image, energy


def _latent_fit(
    model: HalfModel,
    projection: LatentProjection,
    amplitude: torch.Tensor,
    batch: Batch,
    pixels: torch.Tensor | None,
    directions: torch.Tensor,
) -> Fit:
    """Return the fit of latents along (d, k) directions to the images of b particles, on some of their pixels or all.

    The prior has unit variances in these directions.
    """
    whitening = amplitude if pixels is None else on_pixels(amplitude, batch.per_image(pixels))
    batch = batch.within(amplitude)
    matrices = batch.matrices

    def project(values: torch.Tensor, which: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
        return projection(model.latent_mean + values @ directions.T, matrices[which], transfer)

    number = directions.shape[1]
    return Fit(project, directions.new_zeros(number), torch.eye(number).to(directions), batch, whitening)


def climb(fit: Fit, latents, image, energy, steps: int) -> torch.Tensor:
    """Move latents, with their images and energies, in place to the mode; return (b, d, d) covariances there."""
    damping = torch.full_like(energy, 1e-2)
    curvatures = latents.new_empty(*latents.shape, latents.shape[1])
    # Particles that still move; the others are done.
    moving = fit.all
    for step in range(max(steps, 1)):
        # The width is that of the last step's start: one step less costs d projections less.
        downhill, curvature = fit.derivatives(latents[moving], image[moving], moving)
        curvatures[moving] = curvature
        if step == steps:
            break
        damped = curvature + torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[moving][:, None])
        move = torch.linalg.solve(damped, downhill)
        # At most two prior standard deviations a step: the model is linear no farther.
        candidate = latents[moving] + move * (2 / fit.longest(move).clamp(min=2))
        new_image = fit.image(candidate, moving)
        new_energy = fit.energy(candidate, new_image, moving)
        gain = energy[moving] - new_energy
        better = gain > 0
        accepted = moving[better]
        latents[accepted], image[accepted], energy[accepted] = candidate[better], new_image[better], new_energy[better]
        damping[moving] *= torch.where(better, 0.3, 10.0)
        expected = 0.5 * (downhill * move).sum(1)
        moving = moving[torch.where(better, gain > _CONVERGED, expected > _HOPELESS)]
        if not len(moving):
            break
    return torch.linalg.inv(curvatures)


def _integrate(fit: Fit, latents, covariance, metric):
    """Return mean and covariance of the posterior, integrated along the direction that matters most."""
    direction = _least_certain(covariance, metric)
    nodes = latents.new_tensor(_NODES)
    points = [latents + node * direction for node in nodes]
    energies = torch.stack([fit.energy(point, fit.image(point, fit.all), fit.all) for point in points], 1)
    probabilities = torch.softmax(-energies, 1)
    offset = probabilities @ nodes
    # The direction is one standard deviation long: its variance was 1.
    excess = probabilities @ nodes.square() - offset.square() - 1
    outer = direction[:, :, None] * direction[:, None]
    return latents + offset[:, None] * direction, covariance + excess[:, None, None] * outer


def _least_certain(covariance: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Return (b, d): one standard deviation along the direction that contributes most to the displacement's variance.

    With C the covariance and M the metric: the first principal axis of M^1/2 z, as its regression on the latents.
    """
    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.clamp(min=0).sqrt()
    variances, axes = torch.linalg.eigh(root.T @ covariance @ root)
    first = root @ axes[:, :, -1:]
    return (covariance @ first)[..., 0] / variances[:, -1:].clamp(min=1e-12).sqrt()


def _displacement_metric(model: HalfModel, latents: torch.Tensor) -> torch.Tensor:
    """Return the (d, d) mean product of the displacement's derivatives by the latents, A^2, over some of (n, d)."""
    subset = latents[:: max(1, len(latents) // 32)]
    difference = _finite_difference(model.latent_covariance)
    moved = (subset[:, None] + torch.diag(difference)).flatten(0, 1)
    change = model.displacements(moved).reshape(*subset.shape, -1)
    change = change - model.displacements(subset).reshape(len(subset), 1, -1)
    change = change / difference[:, None]
    return (change @ change.transpose(1, 2)).mean(0) / len(model.gaussians)


def _finite_difference(covariance: torch.Tensor) -> torch.Tensor:
    """Return the (d,) steps of finite differences by parameters with a (d, d) prior covariance."""
    return _STEP * covariance.diagonal().sqrt()
