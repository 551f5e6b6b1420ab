"""The kinds of epoch: what one pass over a half's training particles fits."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dynamight_core.groups import current_group
from dynamight_core.model.graph import deformation_regularity, edge_lengths, repulsion
from dynamight_core.training.half import LOG_VARIANCES, HalfTrainer
from dynamight_core.training.inference import encoded
from dynamight_core.training.losses import DeformedBatch, active_terms, data_loss, kl_divergence
from dynamight_core.training.schedule import Epoch


@dataclass
class EpochMeans:
    """Means over an epoch, for metrics.jsonl.

    Parameters
    ----------
    losses, weights
        of the terms of the loss by name.
    motion
        rms displacement, A.
    """

    losses: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    motion: float = 0.0

    def line(self) -> dict[str, object]:
        """Return what a line of metrics.jsonl says, see `dynamight_core.training.losses`."""
        always = {name: self.losses.get(name, 0.0) for name in ("data", "kl", "regularity", "repulsion")}
        return {**always, "motion": self.motion, "losses": self.losses, "weights": self.weights}


def run_epoch(trainer: HalfTrainer, epoch: Epoch, number: int) -> EpochMeans:
    """Run one epoch of a half; its number decides the order of particles and what is drawn at random.

    The `current_group` shares each batch.
    """
    return _KINDS[epoch.kind](trainer, epoch, number)


def _warm_up(trainer: HalfTrainer, epoch: Epoch, number: int) -> EpochMeans:
    """Fit the Gaussians to the images without deformation."""
    return _fit_gaussians(trainer, number, lambda rows: None)


def _reference(trainer: HalfTrainer, epoch: Epoch, number: int) -> EpochMeans:
    """Move only the Gaussians, encoder and decoder fixed (paper, Methods: reference update), unfiltered.

    Latents that were inferred are drawn from their posteriors: with their means alone, the reference would be blurred
    by what images do not tell about them.
    """
    model = trainer.model
    latents = trainer.current_latents(trainer.rows)
    if trainer.options.latent_refinement:
        noise = _noise(len(trainer.rows), trainer, trainer.batches(number)[1])
        latents = latents + (torch.linalg.cholesky(trainer.covariances) @ noise[..., None])[..., 0]

    def displacement(rows: torch.Tensor) -> torch.Tensor:
        # With its derivative by the position: where a part rotates, so does a move of its reference in the images.
        return model.displacements(latents[trainer.slot[rows]])

    model.decoder.requires_grad_(False)
    means = _fit_gaussians(trainer, number, displacement)
    model.decoder.requires_grad_(True)
    return means


def _fit_gaussians(
    trainer: HalfTrainer, number: int, displacement: Callable[[torch.Tensor], torch.Tensor | None]
) -> EpochMeans:
    gaussians, weights = trainer.model.gaussians, trainer.model.frequency_weights(resolution=0)
    group, losses = current_group(), []
    for rows in trainer.batches(number)[0]:
        mine, share = group.deal(len(rows))
        own = rows[mine]
        batch = trainer.data.batch(own)
        shift = displacement(own)
        loss = share * data_loss(trainer, batch, None if shift is None else gaussians.positions + shift, weights)
        trainer.step(loss, "gaussians")
        losses.append(loss.detach().double() * (len(rows) / len(trainer.rows)))
    mean = torch.stack(losses).sum()
    group.sum_(mean)
    return EpochMeans({"data": float(mean)}, {"data": 1.0})


def _encoder(trainer: HalfTrainer, epoch: Epoch, number: int) -> EpochMeans:
    """Train encoder, decoder and Gaussians together (paper, Eq. 11 and Methods)."""

    def sample(deformed: DeformedBatch) -> torch.Tensor:
        mean, log_variance = deformed.encoded
        return mean + deformed.noise * (0.5 * log_variance).exp()

    return _fit_motion(trainer, epoch, number, sample)


def _refinement(trainer: HalfTrainer, epoch: Epoch, number: int) -> EpochMeans:
    """Train decoder and Gaussians with latents drawn from each particle's posterior; the encoder follows those."""
    spread = torch.linalg.cholesky(trainer.covariances)

    def sample(deformed: DeformedBatch) -> torch.Tensor:
        slot = trainer.slot[deformed.batch.rows]
        return trainer.latents[slot] + (spread[slot] @ deformed.noise[..., None])[..., 0]

    return _fit_motion(trainer, epoch, number, sample)


def _fit_motion(
    trainer: HalfTrainer, epoch: Epoch, number: int, sample: Callable[[DeformedBatch], torch.Tensor]
) -> EpochMeans:
    frequency_weights = trainer.model.seen_weights()
    batches, generator = trainer.batches(number)
    terms, group = active_terms(trainer, epoch), current_group()
    weights = {name: weight for name, (_, weight) in terms.items()}
    # (batches, terms + 1): values of the terms, and the mean square displacement.
    told = []
    for rows in batches:
        mine, share = group.deal(len(rows))
        noise = _noise(len(rows), trainer, generator)[mine]
        batch = trainer.data.batch(rows[mine]).within(frequency_weights)
        deformed = DeformedBatch(trainer, batch, frequency_weights, noise, sample, share, len(rows))
        values = {name: term.part(deformed) for name, (term, _) in terms.items()}
        loss = sum((weights[name] * value for name, value in values.items()), torch.zeros(()))
        trainer.step(loss, "encoder", "decoder", "gaussians")
        motion = share * deformed.displacement.detach().square().sum(-1).mean()
        told.append(torch.stack([*(value.detach() for value in values.values()), motion]))
    table = torch.stack(told).double()
    group.sum_(table)
    table[:, -1] = table[:, -1].sqrt()
    fractions = torch.tensor([len(rows) for rows in batches]).to(table) / len(trainer.rows)
    *losses, motion_rms = (fractions @ table).tolist()
    _train_encoder_only(trainer, generator, frequency_weights)
    return EpochMeans(dict(zip(terms, losses, strict=True)), weights, motion_rms)


def _train_encoder_only(trainer: HalfTrainer, generator: torch.Generator, frequency_weights: torch.Tensor) -> None:
    """Let validation particles of both half-sets train the encoder through the fixed decoder (the paper's way)."""
    model, rows = trainer.model, trainer.encoded
    if not len(rows):
        return
    order, group = torch.randperm(len(rows), generator=generator), current_group()
    for part in rows[order].split(trainer.batch_size):
        mine, share = group.deal(len(part))
        batch = trainer.data.batch(part[mine]).within(frequency_weights)
        mean, log_variance = encoded(model, batch.images, batch.series)
        kl = kl_divergence(mean, log_variance)
        latents = mean + _noise(len(part), trainer, generator)[mine] * (0.5 * log_variance.clamp(*LOG_VARIANCES)).exp()
        positions = batch.per_image(model.gaussians.positions + model.displacements(latents))
        # Their poses stay as they are given.
        residual = model.project(batch.matrices, batch.transfer, positions) - batch.transforms
        data = 0.5 * batch.per_particle((residual.abs().square() * frequency_weights).sum((-2, -1))).mean()
        trainer.step(share * (data + trainer.options.kl_weight * kl), "encoder")


def balance_regularisation(trainer: HalfTrainer, number: int) -> None:
    """Set the paper's lambda: the ratio of gradient norms of data and regularisation times `regularisation_ratio`.

    Norms are with respect to the decoder, over two batches. Nothing changes where the terms have no gradient.
    """
    model, graph = trainer.model, trainer.graph
    weights = model.seen_weights()
    parameters = list(model.decoder.parameters())
    group, norms = current_group(), torch.zeros(2)
    for rows in trainer.batches(number)[0][:2]:
        mine, share = group.deal(len(rows))
        own = rows[mine]
        batch = trainer.data.batch(own).within(weights)
        positions = model.gaussians.positions + model.displacements(trainer.current_latents(own))
        lengths = edge_lengths(graph.edges, positions)
        restraint = deformation_regularity(graph, lengths)
        if not model.gaussians.fixed:
            restraint = restraint + repulsion(graph, lengths)
        for i, loss in enumerate((data_loss(trainer, batch, positions, weights), restraint)):
            found = torch.autograd.grad(share * loss, parameters, retain_graph=True, allow_unused=True)
            gradients = [gradient for gradient in found if gradient is not None]
            group.sum_(*gradients)
            norms[i] += math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    if norms[1] > 0:
        trainer.stiffness = trainer.options.regularisation_ratio * float(norms[0] / norms[1])


def _noise(n: int, trainer: HalfTrainer, generator: torch.Generator) -> torch.Tensor:
    """Return (n, d) standard normal numbers."""
    return torch.randn(n, trainer.options.n_latents, generator=generator).to(trainer.data.device)


_KINDS = {"warm-up": _warm_up, "encoder": _encoder, "refinement": _refinement, "reference": _reference}
