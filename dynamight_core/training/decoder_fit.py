"""Bring a half's decoder to known displacements of its training particles."""

from collections.abc import Callable

import torch

from dynamight_core.model.decoders.base import Decoder
from dynamight_core.parallel import check_stopped
from dynamight_core.training.half import HalfTrainer

# Steps of Adam, its step size, and the particles and Gaussians of a step.
_STEPS, _RATE, _PARTICLES, _GAUSSIANS = 300, 5e-3, 48, 3000
# Weight of a decoder's prior against the relative error of a fit.
_PRIOR = 0.01


def fit_prior(decoder: Decoder, latents: torch.Tensor) -> torch.Tensor:
    """Return the term of a fit by which, of nearly equal motions of (b, d) latents, the more probable one is found.

    Bodies that could rotate about another pivot do not slide.
    """
    return _PRIOR * decoder.prior_energy(latents) if decoder.has_prior else torch.zeros(())


def fit_decoder(trainer: HalfTrainer, wanted: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Fit the decoder to displacements of the Gaussians in their present positions, at the present latents.

    Parameters
    ----------
    wanted
        returns the (b, g, 3) displacements (A) of (g,) Gaussians in (b,) particles, as indices into the trainer's rows.
    """
    decoder, positions = trainer.model.decoder, trainer.model.gaussians.positions.detach()
    generator = trainer.generator()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=_RATE)
    for step in range(_STEPS):
        check_stopped()
        particles = torch.randint(len(trainer.rows), (_PARTICLES,), generator=generator).to(positions.device)
        chosen = torch.randperm(len(positions), generator=generator)[:_GAUSSIANS].to(positions.device)
        with torch.no_grad():
            target = wanted(particles, chosen)
        latents = trainer.current_latents(trainer.rows[particles.cpu()])
        found = decoder.displacements(latents, positions[chosen])
        loss = (found - target).square().mean() / target.square().mean().clamp(min=1e-6) + fit_prior(decoder, latents)
        # Falls to nothing over the second half.
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 2.02 - 2 * step / _STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer.restart_optimizers()
