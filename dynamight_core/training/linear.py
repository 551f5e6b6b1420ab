"""Motions that the images show to first order: where training starts.

Move the reference by a field sum_m c_m B_m(x) of some smooth functions. To first order an image's score, the gradient
of its log-likelihood by c, is H c + noise of covariance H, H being the mean information of an image. Over particles
the scores then have the covariance H + H C H, with C that of the coefficients: the principal components of the
whitened scores H^-1/2 g whose variance exceeds that of noise are motions, and a particle's projections say where it
is along them. How far noise alone reaches is seen on scores of simulated noise. The size of a motion is
corrected for the noise that added to it (Baik, Ben Arous & Peche, Annals of Probability 2005).
"""

from dataclasses import dataclass

import torch
from scipy.cluster.vq import kmeans2

from dynamight_core.imaging.fourier import expand_shells, image_to_fourier
from dynamight_core.parallel import check_stopped
from dynamight_core.training.half import HalfTrainer

# Regions of the molecule that move each by itself; three functions each.
_REGIONS = 30
_INFORMATION_PARTICLES = 48
# Variance of a motion over the largest that simulated noise has, which itself fluctuates by some per cent.
_MARGIN = 1.1
# Finite-difference step of the information, A.
_STEP = 0.5
# Adam's steps and step size that bring a decoder to the motions.
_FIT_STEPS, _FIT_RATE = 300, 5e-3


@dataclass
class LinearMotions:
    """K motions to first order.

    Parameters
    ----------
    fields
        (K, n, 3) displacement of the Gaussians per unit of a latent, A.
    latents
        (particles, K) posterior means; their prior is a standard normal distribution.
    """

    fields: torch.Tensor
    latents: torch.Tensor


def linear_motions(trainer: HalfTrainer, most: int) -> LinearMotions:
    """Find the motions of a half's training particles to first order, at most `most`."""
    options = trainer.options
    positions = trainer.model.gaussians.positions.detach()
    if options.decoder == "bodies":
        # What bodies can do is known.
        basis = trainer.model.decoder.generators(positions)
    else:
        basis = _smooth_basis(positions, options.seed)
    scores, noise = _scores(trainer, basis, torch.Generator().manual_seed(options.seed * 10 + trainer.half))
    values, vectors = torch.linalg.eigh(_information(trainer, basis).double())
    seen = values > 1e-6 * values[-1]
    whiten = vectors[:, seen] / values[seen].sqrt()
    white, null = (part.double() @ whiten for part in (scores - scores.mean(0), noise))
    n, p = white.shape
    variances, axes = torch.linalg.eigh(white.T @ white / n)
    edge = _MARGIN * torch.linalg.eigvalsh(null.T @ null / n)[-1]
    kept = torch.arange(p, device=axes.device).flip(0)[:most]
    kept = kept[variances[kept] > edge]
    above = variances[kept] - 1 - p / n
    # Ratio of signal to noise in variance.
    strengths = (above + (above**2 - 4 * p / n).clamp(min=0).sqrt()) / 2
    fields = torch.einsum("pk,pnc->knc", whiten @ axes[:, kept] * strengths.sqrt(), basis.double())
    latents = white @ axes[:, kept] * strengths.sqrt() / (1 + strengths)
    return LinearMotions(fields.float(), latents.float())


def start_from(trainer: HalfTrainer, motions: LinearMotions) -> None:
    """Let decoder and latents of a half start from linear motions."""
    model, options = trainer.model, trainer.options
    n_motions = len(motions.fields)
    trainer.latents = torch.zeros(len(trainer.rows), options.n_latents, device=trainer.data.device)
    trainer.latents[:, :n_motions] = motions.latents
    model.latent_mean.zero_()
    model.latent_covariance.copy_(torch.eye(options.n_latents))
    trainer.started = True
    if not n_motions:
        return
    generator = torch.Generator().manual_seed(options.seed * 10 + trainer.half)
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


def _smooth_basis(positions: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (3 * regions, n, 3) fields: each moves one region along one axis, its neighbours in part."""
    regions = max(1, min(_REGIONS, len(positions) // 5))
    centres = torch.from_numpy(kmeans2(positions.cpu().numpy(), regions, minit="++", seed=seed)[0]).to(positions)
    spacing = torch.cdist(centres, centres).topk(2, largest=False).values[:, 1].mean()
    share = torch.softmax(-torch.cdist(positions, centres).square() / (2 * (0.7 * spacing) ** 2), 1)
    axes = torch.eye(3).to(positions)
    return torch.einsum("nr,ac->ranc", share, axes).reshape(-1, len(positions), 3)


def _scores(trainer: HalfTrainer, basis: torch.Tensor, generator: torch.Generator):
    """Return two (particles, p) tensors: the scores of the images, and those of noise in their place."""
    model, data = trainer.model, trainer.posed_data()
    weights = model.frequency_weights()
    amplitude = expand_shells(model.noise_power.sqrt(), model.box) / model.box
    scores, noise = [], []
    for rows in trainer.rows.split(128):
        batch = data.batch(rows)
        positions = model.gaussians.positions.detach().repeat(len(rows), 1, 1).requires_grad_()
        image = model.project(batch.matrices, batch.transfer, positions)
        white = torch.randn(len(rows), model.box, model.box, generator=generator).to(weights)
        for residual, out in (
            (batch.transforms - image.detach(), scores),
            (image_to_fourier(white) * amplitude, noise),
        ):
            # Its gradient is that of the log-likelihood of an image with this residual.
            fit = ((image.real * residual.real + image.imag * residual.imag) * weights).sum()
            (gradient,) = torch.autograd.grad(fit, positions, retain_graph=True)
            out.append(gradient.flatten(1) @ basis.flatten(1).T)
    return torch.cat(scores), torch.cat(noise)


@torch.no_grad()
def _information(trainer: HalfTrainer, basis: torch.Tensor) -> torch.Tensor:
    """Return the (p, p) mean information of an image about the coefficients, 1/A^2."""
    model, data = trainer.model, trainer.posed_data()
    amplitude = model.frequency_weights().sqrt()
    chosen = trainer.rows[:: max(1, len(trainer.rows) // _INFORMATION_PARTICLES)]
    total = 0.0
    for row in chosen:
        batch = data.batch(row[None])
        matrices = batch.matrices.expand(len(basis), -1, -1)
        transfer = (batch.transfer * amplitude).expand(len(basis), -1, -1)
        ends = [model.project(matrices, transfer, model.gaussians.positions + step * basis) for step in (_STEP, -_STEP)]
        change = torch.view_as_real(ends[0] - ends[1]).flatten(1) / (2 * _STEP)
        total = total + change @ change.T
    return total / len(chosen)
