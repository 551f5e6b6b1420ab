"""How much weight each mode of motion gets: as much as held-out images support.

A decoder trained on few or noisy particles moves parts that do not move, and this blurs the map. The latents of
held-out particles are inferred from a random half of their Fourier pixels. On the other half, the misfit is regressed
on the change in the image when each mode is removed. The slope is 1 if the mode is right, and 0 if it explains nothing.
Each mode is multiplied by a Wiener factor, and by its slope plus two errors if that is below 1. The worst case is the
map without deformation.
"""

from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.imaging.geometry import Field
from dynamight_core.imaging.modes import Modes
from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import Batch, TrainingImages
from dynamight_core.training.inference import infer_latents, on_pixels, random_pixels

_STEPS = 4
_BATCH = 32
# Modes are not down-weighted with fewer held-out particles.
MIN_PARTICLES = 20


@dataclass(frozen=True)
class Support:
    """Support of K modes by held-out particles.

    Parameters
    ----------
    factors
        (K,) weights of the modes, 0 to 1.
    slopes, errors
        (K,) regression slopes and their standard errors.
    """

    factors: torch.Tensor
    slopes: torch.Tensor
    errors: torch.Tensor

    def sentence(self, half: int) -> str:
        """Return the support of the first modes in words."""
        rows = list(zip(self.slopes.tolist(), self.errors.tolist(), self.factors.tolist(), strict=True))
        parts = [
            f"mode {k}: held-out support {slope:.2f} +- {error:.2f}, applied weight {factor:.2f}"
            for k, (slope, error, factor) in enumerate(rows[:4], 1)
        ]
        more = f"; and {len(rows) - 4} more" if len(rows) > 4 else ""
        return f"Half-set {half}, {'; '.join(parts)}{more}."


@torch.no_grad()
def mode_support(
    model: HalfModel, field: Field, modes: Modes, data: TrainingImages, rows: torch.Tensor, seed: int = 0
) -> Support:
    """Measure the support of a half-set's modes on its held-out particles.

    Parameters
    ----------
    model
        of the half-set.
    field
        its deformation in the consensus frame.
    modes
        of that field.
    data
        images by row, at the model's box.
    rows
        (v,) held-out particles of the half-set.
    seed
        of the choice of Fourier pixels.
    """
    n_modes = len(modes)
    generator = torch.Generator().manual_seed(seed)
    pixels = random_pixels(len(rows), model.box, generator)
    starts = model.latent_starts(len(rows))
    latents = infer_latents(model, data, rows, starts, steps=_STEPS, pixels=pixels, integrate=True).latents
    points = model.consensus_positions
    fields = modes.field.fields(points)
    evaluate = field.evaluator(points)
    solver = torch.linalg.pinv(fields.flatten(1))
    weights, group = model.seen_weights(), current_group()
    normal_parts, score_parts = [latents.new_empty(0, n_modes, n_modes)], [latents.new_empty(0, n_modes)]
    for part in group.split(torch.arange(len(rows)), data.at_once(_BATCH)):
        batch = data.batch(rows[part]).within(weights)
        shift = evaluate(latents[part])
        coordinates = shift.flatten(1) @ solver
        used = on_pixels(weights, batch.per_image(~pixels[part])).sqrt()

        def view(displacement: torch.Tensor, batch: Batch = batch, used: torch.Tensor = used) -> torch.Tensor:
            image = model.project(batch.matrices, batch.transfer, batch.per_image(points + displacement))
            return batch.joined(torch.view_as_real(image * used).flatten(1))

        whole = view(shift)
        misfit = batch.joined(torch.view_as_real(batch.transforms * used).flatten(1)) - whole
        changes = torch.stack(
            [whole - view(shift - coordinates[:, k, None, None] * fields[k]) for k in range(n_modes)], 1
        )
        normal_parts.append(changes @ changes.transpose(1, 2))
        score_parts.append((changes @ misfit[..., None])[..., 0])
    normals, scores = (group.gather(torch.cat(parts)).double() for parts in (normal_parts, score_parts))
    normal = normals.sum(0)
    # Keep the matrix invertible: a mode that changes no image has no slope, and a large error.
    inverse = torch.linalg.inv(normal + 1e-3 * torch.eye(n_modes, dtype=normal.dtype, device=normal.device))
    excess = inverse @ scores.sum(0)
    spread = scores - normals @ excess
    # From the scatter over particles, so that errors of the model widen it as noise does.
    covariance = inverse @ (spread.T @ spread) @ inverse + inverse * (len(rows) < 2)
    slopes, errors = 1 + excess, covariance.diagonal().clamp(min=1e-12).sqrt()
    wiener = (1 - (errors / slopes.clamp(min=1e-6)).square()).clamp(min=0)
    factors = ((slopes + 2 * errors).clamp(0, 1) * wiener).float().cpu()
    return Support(factors, slopes.float().cpu(), errors.float().cpu())
