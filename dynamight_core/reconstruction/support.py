"""How much of each mode of motion the images support, judged on particles and Fourier pixels that trained nothing.

A decoder that was trained on few or noisy particles moves things that do not move, and the map pays for it. Held-out
particles tell: their latents are inferred from half of their Fourier pixels, and on the other half the images are
regressed on what each mode changes in them. A slope of 1 says that the mode is right, 0 that it explains nothing, and
its error how sure that is. Each mode is multiplied by a Wiener factor, and by its slope where that is below 1 by more
than two errors, so that what the data do not support moves nothing: the worst case is the map without deformation.
"""

from dataclasses import dataclass

import torch

from dynamight_core.imaging.voxels import Field
from dynamight_core.model.half import HalfModel
from dynamight_core.reconstruction.modes import Modes
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents, random_pixels

_STEPS = 4
_BATCH = 32
# Fewer held-out particles have no say.
LEAST_PARTICLES = 20


@dataclass(frozen=True)
class Support:
    """What held-out particles say of K modes.

    Parameters
    ----------
    factors
        (K,) from 0 to 1, to multiply the modes' coordinates by.
    slopes, errors
        (K,) regression slopes and their standard errors.
    """

    factors: torch.Tensor
    slopes: torch.Tensor
    errors: torch.Tensor

    def sentence(self, half: int) -> str:
        """Return it in words, for the first modes."""
        rows = list(zip(self.slopes.tolist(), self.errors.tolist(), self.factors.tolist(), strict=True))
        parts = [f"{slope:.2f} +- {error:.2f}, used {factor:.2f}" for slope, error, factor in rows[:4]]
        more = f"; and {len(rows) - 4} more" if len(rows) > 4 else ""
        return f"Half {half}, share of each mode of motion that held-out images show: {'; '.join(parts)}{more}."


@torch.no_grad()
def mode_support(
    model: HalfModel, field: Field, modes: Modes, data: TrainingImages, rows: torch.Tensor, seed: int = 0
) -> Support:
    """Measure the support of a half's modes on its held-out particles.

    Parameters
    ----------
    model
        of the half.
    field
        its deformation on the consensus frame.
    modes
        of that field.
    data
        images by row, at the model's box.
    rows
        (v,) held-out particles of the half.
    seed
        of the choice of Fourier pixels.
    """
    n_modes = len(modes)
    generator = torch.Generator().manual_seed(seed)
    share = random_pixels(len(rows), model.box, generator)
    starts = model.latent_starts(len(rows))
    latents = infer_latents(model, data, rows, starts, steps=_STEPS, pixels=share, integrate=True).latents
    points = model.consensus_positions
    fields = modes.field.fields(points)
    evaluate = field.evaluator(points)
    solver = torch.linalg.pinv(fields.flatten(1))
    weights = model.frequency_weights()
    normals, scores = [], []
    for part in torch.arange(len(rows)).split(_BATCH):
        batch = data.batch(rows[part])
        shift = evaluate(latents[part])
        coordinates = shift.flatten(1) @ solver
        used = (weights * ~share[part].to(weights.device)).sqrt()

        def view(displacement, batch=batch, used=used):
            image = model.project(batch.matrices, batch.transfer, points + displacement)
            return torch.view_as_real(image * used).flatten(1)

        whole = view(shift)
        misfit = torch.view_as_real(batch.transforms * used).flatten(1) - whole
        changes = torch.stack(
            [whole - view(shift - coordinates[:, k, None, None] * fields[k]) for k in range(n_modes)], 1
        )
        normals.append(changes @ changes.transpose(1, 2))
        scores.append((changes @ misfit[..., None])[..., 0])
    normals, scores = torch.cat(normals).double(), torch.cat(scores).double()
    normal = normals.sum(0)
    # A mode that no particle shows has no slope; its error is then large.
    inverse = torch.linalg.inv(normal + 1e-3 * torch.eye(n_modes, dtype=normal.dtype, device=normal.device))
    excess = inverse @ scores.sum(0)
    spread = scores - normals @ excess
    # Particle by particle, so that errors of the model widen it as noise does.
    covariance = inverse @ (spread.T @ spread) @ inverse + inverse * (len(rows) < 2)
    slopes, errors = 1 + excess, covariance.diagonal().clamp(min=1e-12).sqrt()
    wiener = (1 - (errors / slopes.clamp(min=1e-6)).square()).clamp(min=0)
    factors = ((slopes + 2 * errors).clamp(0, 1) * wiener).float().cpu()
    return Support(factors, slopes.float().cpu(), errors.float().cpu())
