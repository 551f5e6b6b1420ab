"""The size of the motion on held-out images, and the regularisation that follows from it.

Regularisation that is too strong makes the motion too small for its own shape; if it is too weak, the motion follows
noise and is too large. Both show on images that trained no decoder. Their latents are inferred from a random half of
the Fourier pixels. On the other half, the misfit is regressed on the change in the image when all displacements grow.
A slope of 1 means that the size is right.
"""

from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import infer_latents, on_pixels, random_pixels

# Gauss-Newton steps, and particles at a time.
_STEPS, _BATCH = 2, 64
# Relative change of the displacements for the derivative of an image.
_CHANGE = 0.1
# Regularisation changes if the slope differs from 1 by more than this, beyond its error, and by at most this factor.
_TOLERANCE, _MAX_FACTOR = 0.2, 3.0
# The size of the motion is not measured on fewer particles, nor on more.
_MIN_PARTICLES, _MAX_PARTICLES = 20, 2000


@dataclass(frozen=True)
class Amplitude:
    """Size of a half-set's motion on held-out images.

    Parameters
    ----------
    slope, error
        factor by which the motion should be multiplied, and its standard error.
    gain, gain_error
        log-likelihood (nats per particle) that the motion adds on pixels not used to infer it, and its standard error.
    """

    slope: float
    error: float
    gain: float
    gain_error: float

    @property
    def factor(self) -> float:
        """Factor on the weight of regularisation: below 1 if the motion is too small."""
        if self.slope - self.error > 1 + _TOLERANCE:
            return max((self.slope - self.error) ** -2, 1 / _MAX_FACTOR)
        if self.slope + self.error < 1 - _TOLERANCE:
            return min(max(self.slope + self.error, 0.1) ** -2, _MAX_FACTOR)
        return 1.0


def adjust_regularisation(trainer: HalfTrainer) -> Amplitude | None:
    """Weaken or strengthen regularisation by the size of the motion on held-out particles of the half-set.

    It is never stronger than the options say. Returns None, and changes nothing, if there are too few particles or
    there is no motion.
    """
    if len(trainer.held_out) < _MIN_PARTICLES or not trainer.latents.any():
        return None
    amplitude = motion_amplitude(trainer, trainer.held_out[:_MAX_PARTICLES])
    if amplitude is not None:
        trainer.scale_regularisation(min(1.0, float(trainer.model.regularisation_share) * amplitude.factor))
    return amplitude


@torch.no_grad()
def motion_amplitude(trainer: HalfTrainer, rows: torch.Tensor) -> Amplitude | None:
    """Measure the size of the motion on (v,) held-out particles of the half-set; None if nothing moves."""
    model, data = trainer.model, trainer.data
    pixels = random_pixels(len(rows), model.box, trainer.generator())
    starts = [model.latent_mean.expand(len(rows), -1), trainer.encode(rows)]
    latents = infer_latents(model, data, rows, starts, _STEPS, pixels).latents
    weights, positions = model.seen_weights(), model.gaussians.positions
    evaluate = model.evaluator(positions)
    mean = evaluate(trainer.latents[:: max(1, len(trainer.latents) // 256)]).mean(0)
    group, parts = current_group(), [torch.zeros(3, 0, device=data.device)]
    for part in group.split(torch.arange(len(rows)), data.at_once(_BATCH)):
        batch = data.batch(rows[part]).within(weights)
        used = on_pixels(weights, batch.per_image(~pixels[part])).sqrt()
        shift = evaluate(latents[part]) - mean
        moved = (batch.per_image(positions + mean + size * shift) for size in (0.0, 1 - _CHANGE, 1.0, 1 + _CHANGE))
        images = [torch.view_as_real(model.project(batch.matrices, batch.transfer, each) * used) for each in moved]
        rest, smaller, whole, larger = (batch.joined(image.flatten(1)) for image in images)
        derivative = (larger - smaller) / (2 * _CHANGE)
        target = batch.joined(torch.view_as_real(batch.transforms * used).flatten(1))
        misfit = target - whole
        gain = 0.5 * ((target - rest).square().sum(1) - misfit.square().sum(1))
        parts.append(torch.stack([derivative.square().sum(1), (derivative * misfit).sum(1), gain]))
    normal, score, gain = group.gather(torch.cat(parts, 1).T).T.double()
    total = float(normal.sum())
    if not total:
        return None
    excess = float(score.sum()) / total
    # From the scatter over particles, so that errors of the model widen it as noise does.
    error = float((score - normal * excess).square().sum().sqrt()) / total
    return Amplitude(1 + excess, error, float(gain.mean()), float(gain.std() / len(gain) ** 0.5))
