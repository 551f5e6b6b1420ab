"""Linear motions: a first-order estimate from the images, which training is initialised with.

Move the reference by a field sum_m c_m B_m(x) of some smooth functions. To first order an image's score, the gradient
of its log-likelihood by c, is H c + noise of covariance H, H being the mean information of an image. Over particles
the scores then have the covariance H + H C H, with C that of the coefficients: the principal components of the
whitened scores H^-1/2 g whose variance exceeds that of noise are motions, and a particle's projections are its
coordinates along them. How far noise alone reaches is measured on scores of simulated noise. The size of a motion is
corrected for the noise that added to it (Baik, Ben Arous & Peche, Annals of Probability 2005).

First order holds as far as a motion is smaller than the details that are looked at. So the images are filtered, at the
resolution at which they show most: too fine, and large motions look like noise; too coarse, and there is little to see.
Likelihood and information are then those with filtered weights, which training climbs. Their noise is less than H, and
a motion's strength understated, the more the filter takes: whitening by the noise as it is would find motions as well
in the coarsest images, where they are blurred, and where training would not find them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.cluster.vq import kmeans2

from dynamight_core.imaging.fourier import expand_shells, image_to_fourier
from dynamight_core.model.graph import LongEdges, NeighbourGraph, deformation_regularity, edge_lengths, rigidity
from dynamight_core.options import TrainOptions
from dynamight_core.parallel import check_stopped
from dynamight_core.training.half import RESTRAINED, HalfTrainer

# Regions of the molecule that move each by itself; three functions each.
_REGIONS = 30
_INFORMATION_PARTICLES = 48
# Low-pass filters that are tried, A; 0 is none. The best is chosen on this many particles at most.
_RESOLUTIONS = (0.0, 10.0, 14.0, 20.0, 28.0, 40.0)
_MAX_CHOOSING = 10_000
# Variance of a motion over the largest that simulated noise has, which itself fluctuates by some per cent.
_MARGIN = 1.1
# Finite-difference step of the information, A.
_STEP = 0.5
# Adam's steps and step size that bring a decoder to the motions.
_FIT_STEPS, _FIT_RATE = 300, 5e-3
# Regularisation may cost these motions, which are ragged, at most this many times what they gain; in training it
# freezes them where it costs more (chosen on simulated molecules, seeds 10 and 11 of benchmarks/engine.py).
_BEARABLE = 3.0


@dataclass
class LinearMotions:
    """K motions to first order.

    Parameters
    ----------
    fields
        (K, n, 3) displacement of the Gaussians per unit of a latent, A.
    latents
        (particles, K) posterior means; their prior is a standard normal distribution.
    gain
        of the log-likelihood of an image by them, nats.
    resolution
        low-pass filter at which they were found, A; 0 is none.
    """

    fields: torch.Tensor
    latents: torch.Tensor
    gain: float
    resolution: float


def linear_motions(trainer: HalfTrainer, max_motions: int) -> LinearMotions:
    """Find the motions of a half's training particles to first order.

    At the resolution of the options, or where they gain most; unfiltered where no motion is found.
    """
    options, model = trainer.options, trainer.model
    positions = model.gaussians.positions.detach()
    basis = model.decoder.linear_basis(positions)
    if basis is None:
        basis = _smooth_basis(positions, options.seed)
    resolution, rows = options.motion_resolution, trainer.rows
    if resolution is not None:
        return _strongest(trainer, rows, basis, [resolution], max_motions)
    subset = rows[:: -(-len(rows) // _MAX_CHOOSING)]
    motions = _strongest(trainer, subset, basis, _RESOLUTIONS, max_motions)
    if len(subset) == len(rows):
        return motions
    # What is not found in some may be found in all.
    resolutions = [motions.resolution] if len(motions.fields) else _RESOLUTIONS
    return _strongest(trainer, rows, basis, resolutions, max_motions)


def _strongest(
    trainer: HalfTrainer, rows: torch.Tensor, basis: torch.Tensor, resolutions: Sequence[float], max_motions: int
) -> LinearMotions:
    """Return the motions of (n,) particles at the resolution at which they gain most."""
    weights = [trainer.model.frequency_weights(resolution) for resolution in resolutions]
    scores = _scores(trainer, rows, basis, weights)
    information = _information(trainer, rows, basis, weights)
    tried = [
        LinearMotions(*_principal_components(*pair, seen, basis, max_motions), resolution)
        for pair, seen, resolution in zip(scores, information, resolutions, strict=True)
    ]
    return max(tried, key=lambda motions: motions.gain)


def _principal_components(
    scores: torch.Tensor, noise: torch.Tensor, information: torch.Tensor, basis: torch.Tensor, max_motions: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return fields, latents and gain of the motions in (particles, p) scores, beside those of noise.

    Parameters
    ----------
    scores, noise
        (n, p) of images, and of noise in their place.
    information
        (p, p) H.
    basis
        (p, n, 3).
    """
    values, vectors = torch.linalg.eigh(information.double())
    seen = values > 1e-6 * values[-1]
    whiten = vectors[:, seen] / values[seen].sqrt()
    white, null = (part.double() @ whiten for part in (scores - scores.mean(0), noise))
    n, p = white.shape
    variances, axes = torch.linalg.eigh(white.T @ white / n)
    edge = _MARGIN * torch.linalg.eigvalsh(null.T @ null / n)[-1]
    kept = torch.arange(p, device=axes.device).flip(0)[:max_motions]
    # Below the second bound a motion cannot be distinguished from noise, whatever the noise happened to be.
    kept = kept[variances[kept] > max(edge, (1 + (p / n) ** 0.5) ** 2)]
    above = variances[kept] - 1 - p / n
    # Ratio of signal to noise in variance.
    strengths = (above + (above**2 - 4 * p / n).clamp(min=0).sqrt()) / 2
    fields = torch.einsum("pk,pnc->knc", whiten @ axes[:, kept] * strengths.sqrt(), basis.double())
    latents = white @ axes[:, kept] * strengths.sqrt() / (1 + strengths)
    # The divergence of normal distributions of variance 1 + strength and 1.
    gain = float(0.5 * (strengths - strengths.log1p()).sum())
    return fields.float(), latents.float(), gain


def initialise(trainer: HalfTrainer, motions: LinearMotions) -> None:
    """Initialise decoder, latents, low-pass filter and weight of regularisation of a half from linear motions."""
    model, options = trainer.model, trainer.options
    n_motions = len(motions.fields)
    trainer.latents = torch.zeros(len(trainer.rows), options.n_latents, device=trainer.data.device)
    trainer.latents[:, :n_motions] = motions.latents
    model.latent_mean.zero_()
    model.latent_covariance.copy_(torch.eye(options.n_latents))
    model.resolution.fill_(motions.resolution)
    trainer.started = True
    if not n_motions:
        return
    trainer.scale_regularisation(_bearable_fraction(trainer, motions))
    generator = trainer.generator()
    positions = model.gaussians.positions.detach()
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=_FIT_RATE)
    power = motions.fields.square().mean()
    for _ in range(_FIT_STEPS):
        check_stopped()
        latents = torch.randn(32, options.n_latents, generator=generator).to(positions)
        wanted = torch.einsum("bk,knc->bnc", latents[:, :n_motions], motions.fields)
        loss = (model.decoder.displacements(latents, positions) - wanted).square().mean() / power
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _bearable_fraction(trainer: HalfTrainer, motions: LinearMotions) -> float:
    """Return the fraction of the options' regularisation that does not freeze motions.

    Where the signal is weak, a motion's gain in likelihood grows with the square of the signal, but its cost in
    regularisation is the same for all images: with fixed weights, noise would decide what may move. The cost is taken
    with the default weights, since others express how much regularisation the user wants.
    """
    options, default = trainer.options, TrainOptions()
    if not trainer.model.decoder.restrains_distances or options.regularisation != "fixed":
        return 1.0
    positions = trainer.model.gaussians.positions.detach()
    subset = motions.latents[:: max(1, len(motions.latents) // RESTRAINED)]
    displaced = positions + torch.einsum("bk,knc->bnc", subset, motions.fields)
    # Not the trainer's graph, which was built before the warm-up moved the Gaussians.
    graph = NeighbourGraph.of(trainer.model.gaussians)
    long_edges = LongEdges.build(positions, displaced, trainer.generator())
    cost = default.stiffness * deformation_regularity(graph, edge_lengths(graph.edges, displaced))
    cost = cost + default.rigidity * rigidity(long_edges, displaced)
    return min(1.0, _BEARABLE * motions.gain / max(float(cost), 1e-12))


def _smooth_basis(positions: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (3 * regions, n, 3) fields: each moves one region along one axis, its neighbours in part."""
    regions = max(1, min(_REGIONS, len(positions) // 5))
    centres = torch.from_numpy(kmeans2(positions.cpu().numpy(), regions, minit="++", seed=seed)[0]).to(positions)
    spacing = torch.cdist(centres, centres).topk(2, largest=False).values[:, 1].mean()
    weight = torch.softmax(-torch.cdist(positions, centres).square() / (2 * (0.7 * spacing) ** 2), 1)
    axes = torch.eye(3).to(positions)
    return torch.einsum("nr,ac->ranc", weight, axes).reshape(-1, len(positions), 3)


def _scores(
    trainer: HalfTrainer, rows: torch.Tensor, basis: torch.Tensor, weights: list[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each of the weights two (n, p) tensors: scores of (n,) images, and those of noise in their place."""
    model, data = trainer.model, trainer.posed_data()
    generator = trainer.generator()
    amplitude = expand_shells(model.noise_power.sqrt(), model.box) / model.box
    found: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in weights]
    for part in rows.split(128):
        batch = data.batch(part)
        positions = model.gaussians.positions.detach().repeat(len(part), 1, 1).requires_grad_()
        image = model.project(batch.matrices, batch.transfer, positions)
        white = torch.randn(len(part), model.box, model.box, generator=generator).to(amplitude)
        for kind, residual in enumerate((batch.transforms - image.detach(), image_to_fourier(white) * amplitude)):
            products = image.real * residual.real + image.imag * residual.imag
            for pair, weight in zip(found, weights, strict=True):
                # Its gradient is that of the log-likelihood of an image with this residual.
                (gradient,) = torch.autograd.grad((products * weight).sum(), positions, retain_graph=True)
                pair[kind].append(gradient.flatten(1) @ basis.flatten(1).T)
    return [(torch.cat(scores), torch.cat(noise)) for scores, noise in found]


@torch.no_grad()
def _information(trainer: HalfTrainer, rows: torch.Tensor, basis: torch.Tensor, weights: list[torch.Tensor]):
    """Return for each of the weights the (p, p) mean information of an image about the coefficients, 1/A^2."""
    model, data = trainer.model, trainer.posed_data()
    chosen = rows[:: max(1, len(rows) // _INFORMATION_PARTICLES)]
    total = basis.new_zeros(len(weights), len(basis), len(basis))
    for row in chosen:
        batch = data.batch(row[None])
        matrices, transfer = (part.expand(len(basis), -1, -1) for part in (batch.matrices, batch.transfer))
        ends = [model.project(matrices, transfer, model.gaussians.positions + step * basis) for step in (_STEP, -_STEP)]
        change = (ends[0] - ends[1]) / (2 * _STEP)
        for each, weight in zip(total, weights, strict=True):
            seen = torch.view_as_real(change * weight.sqrt()).flatten(1)
            each += seen @ seen.T
    return total / len(chosen)
