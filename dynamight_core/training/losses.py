"""The terms of the loss: training minimises the sum over terms of weight times value.

`TERMS` lists those of the engine. Another package adds one as an entry point of the group ``dynamight_core.loss_terms``
that names a `LossTerm`. It counts, in epochs that train the decoder, where the user gives it a weight: ``dynamight
train --loss-weights NAME=VALUE``.

Every line of a run's metrics.jsonl is an epoch of a half. In it, ``losses`` has the mean value of each term that the
epoch had, by name, and ``weights`` its weight. `dynamight_core.training.curves` draws every name that occurs. `data`,
`kl`, `regularity` and `repulsion` are also in the line itself, 0 where an epoch does not have them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from dynamight_core.groups import current_group
from dynamight_core.model.graph import deformation_regularity, edge_lengths, repulsion, rigidity
from dynamight_core.registry import LOSS_TERMS
from dynamight_core.training.data import Batch
from dynamight_core.training.half import LOG_VARIANCES, HalfTrainer
from dynamight_core.training.inference import encoded
from dynamight_core.training.schedule import Epoch

# The magnitude of displacement is rounded off below this, A.
_MAGNITUDE_EDGE = 0.1
# Motion below this (A) is shrunk by restraints.
_SMALLEST_MOTION = 0.01


class DeformedBatch:
    """A batch of b particles under sampled latents: what values of loss terms are computed from.

    Each part is computed when it is first asked for. Where several processes share a batch, this one has every k-th of
    its particles.

    Parameters
    ----------
    trainer
        of the half: its model, neighbour graph, long edges and options.
    batch
        images, CTFs and poses.
    frequency_weights
        (size, size//2+1), as of `HalfModel.seen_weights`; the batch is within them.
    noise
        (b, d) standard normal numbers.
    sample
        returns the (b, d) latents of this batch, by its noise.
    share
        of the whole batch that these particles are; 0 where they only stand for none.
    whole
        number of particles in the whole batch; b if None.
    """

    def __init__(
        self,
        trainer: HalfTrainer,
        batch: Batch,
        frequency_weights: torch.Tensor,
        noise: torch.Tensor,
        sample: Callable[["DeformedBatch"], torch.Tensor],
        share: float = 1.0,
        whole: int | None = None,
    ):
        self.trainer, self.batch, self.frequency_weights = trainer, batch, frequency_weights
        self.noise, self._sample, self.share = noise, sample, share
        # Restraints are computed on the first of the whole batch.
        group, first = current_group(), min(trainer.restrained, len(batch) if whole is None else whole)
        mine, self.restrained_share = group.deal(first)
        self._n_restrained = len(mine)

    @cached_property
    def encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the latents by the encoder, (b, d) each."""
        mean, log_variance = encoded(self.trainer.model, self.batch.images, self.batch.series)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    @cached_property
    def latents(self) -> torch.Tensor:
        """(b, d) latents."""
        return self._sample(self)

    @cached_property
    def displacement(self) -> torch.Tensor:
        """(b, n, 3) displacements of the Gaussians, A."""
        return self.trainer.model.displacements(self.latents)

    @cached_property
    def positions(self) -> torch.Tensor:
        """(b, n, 3) displaced Gaussians, A."""
        return self.trainer.model.gaussians.positions + self.displacement

    @cached_property
    def restrained(self) -> torch.Tensor:
        """(b', n, 3) displaced Gaussians of the particles that restraints are computed on, A."""
        return self.positions[: self._n_restrained]

    @cached_property
    def unshrinking(self) -> torch.Tensor:
        """Scalar of value 1, by which a restraint that grows with the square of the motion does not shrink weak motion.

        The weaker the signal (the smaller the share of regularisation), the more the product is the restraint relative
        to the mean-square displacement: its gradient changes the shape of the fields, not their size. The paper's
        weight, which balances gradients, is of the restraint itself.
        """
        if self.trainer.options.regularisation != "fixed":
            return torch.ones((), device=self.displacement.device)
        own = self.restrained_share * self.displacement[: self._n_restrained].square().mean()
        size = current_group().total(own) + _SMALLEST_MOTION**2
        return (size.detach() / size) ** (1 - self.trainer.model.regularisation_share)

    @cached_property
    def edge_lengths(self) -> torch.Tensor:
        """(b', e) lengths of the neighbour graph's edges in the restrained particles, A."""
        return edge_lengths(self.trainer.graph.edges, self.restrained)


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss.

    Parameters
    ----------
    value
        of a batch: a scalar tensor, the mean over particles, differentiable.
    weight
        in an epoch of a half; None where the term has no part in it. If omitted, the term is for the user to weight:
        ``--loss-weights NAME=VALUE``.
    restrains
        whether the mean is over the `restrained` particles.
    """

    value: Callable[[DeformedBatch], torch.Tensor]
    weight: Callable[[HalfTrainer, Epoch], float | None] | None = None
    restrains: bool = False

    def part(self, deformed: DeformedBatch) -> torch.Tensor:
        """Return this process's part of the value of a batch: the parts of all processes add up to it."""
        return self.value(deformed) * (deformed.restrained_share if self.restrains else deformed.share)


def data_loss(
    trainer: HalfTrainer, batch: Batch, positions: torch.Tensor | None, frequency_weights: torch.Tensor
) -> torch.Tensor:
    """Return the mean over particles of minus the log-likelihood, 1/2 sum |g - y|^2 / Sigma (paper, Eq. 11).

    The sum is over all images of a particle.

    Parameters
    ----------
    positions
        (b, n, 3) A; the reference if None.
    frequency_weights
        (box, box//2+1) 1 / Sigma, at the frequencies of the batch.
    """
    residual = trainer.project(batch, positions) - batch.transforms
    of_images = ((residual.real.square() + residual.imag.square()) * frequency_weights).sum((-2, -1))
    return 0.5 * batch.per_particle(of_images).mean()


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return the mean divergence of (b, d) normal distributions from the standard normal one, nats (paper, Eq. 11)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()


def _encoder_error(deformed: DeformedBatch) -> torch.Tensor:
    """Return the mean square by which the encoder misses the inferred latents, so that it keeps giving good starts."""
    trainer = deformed.trainer
    return (deformed.encoded[0] - trainer.latents[trainer.slot[deformed.batch.rows]]).square().mean()


def _rigidity(deformed: DeformedBatch) -> torch.Tensor:
    """Return R_l, A^2; it has a weight only where there are long edges."""
    long_edges = deformed.trainer.long_edges
    assert long_edges is not None
    return deformed.unshrinking * rigidity(long_edges, deformed.restrained)


def _magnitude(deformed: DeformedBatch) -> torch.Tensor:
    """Return the mean magnitude of displacement, A, rounded off near zero."""
    return (deformed.displacement.square().sum(-1) + _MAGNITUDE_EDGE**2).sqrt().mean()


# In the order of their computation: the last bits of gradients depend on it.
TERMS = {
    "kl": LossTerm(
        lambda deformed: kl_divergence(*deformed.encoded),
        lambda trainer, epoch: trainer.options.kl_weight if epoch.kind == "encoder" else None,
    ),
    "data": LossTerm(
        lambda deformed: data_loss(deformed.trainer, deformed.batch, deformed.positions, deformed.frequency_weights),
        lambda trainer, epoch: 1.0,
    ),
    # R_d and R_r, with the paper's lambda.
    "regularity": LossTerm(
        lambda deformed: deformed.unshrinking * deformation_regularity(deformed.trainer.graph, deformed.edge_lengths),
        lambda trainer, epoch: trainer.stiffness if trainer.model.decoder.restrains_distances else None,
        restrains=True,
    ),
    "repulsion": LossTerm(
        lambda deformed: repulsion(deformed.trainer.graph, deformed.edge_lengths),
        # Gaussians of an atomic model are where atoms are (paper, Methods).
        lambda trainer, epoch: None if trainer.model.gaussians.fixed else trainer.stiffness,
        restrains=True,
    ),
    "decoder_prior": LossTerm(
        lambda deformed: deformed.trainer.model.decoder.prior_energy(deformed.latents),
        lambda trainer, epoch: 1.0 if trainer.model.decoder.has_prior else None,
    ),
    "rigidity": LossTerm(
        _rigidity, lambda trainer, epoch: None if trainer.long_edges is None else trainer.rigidity, restrains=True
    ),
    "sparse_motion": LossTerm(_magnitude, lambda trainer, epoch: epoch.sparse or None),
    "encoder_error": LossTerm(_encoder_error, lambda trainer, epoch: 1.0 if epoch.kind == "refinement" else None),
}


def active_terms(trainer: HalfTrainer, epoch: Epoch) -> dict[str, tuple[LossTerm, float]]:
    """Return the terms of an epoch of a half, with their weights, by name."""
    added = {name: LOSS_TERMS.load(name) for name in trainer.options.added_losses()}
    found = {}
    for name, term in (TERMS | added).items():
        weight = term.weight(trainer, epoch) if term.weight else trainer.options.added_losses()[name]
        if weight is not None:
            found[name] = term, weight
    return found
