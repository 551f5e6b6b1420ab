"""Whether deformation explains images, judged on particles and Fourier pixels that trained nothing."""

from dataclasses import asdict, dataclass

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents, random_pixels

# Standard errors that a verdict asks for.
_SIGMAS = 3.0
# Errors of the gain count as at least this where it is asked whether there is any, nats.
_NOTHING = 0.01
# Gains and their null are compared over so many permutations.
_PERMUTATIONS = 4


@dataclass
class Verdict:
    """What validation particles say.

    Parameters
    ----------
    verdict
        "supported", "not supported" or "undecided".
    gain, gain_error
        mean over validation particles of the log-likelihood (nats per particle) that the particle's own
        deformation adds on Fourier pixels that did not choose it, and its standard error.
    null, null_error
        the same with deformations permuted among particles.
    particles
        number of validation particles; rows that show one image count once.
    sentence
        in plain words.
    """

    verdict: str
    gain: float
    gain_error: float
    null: float
    null_error: float
    particles: int
    sentence: str

    def asdict(self) -> dict:
        """Return the fields as a dictionary."""
        return asdict(self)


@torch.no_grad()
def judge(
    models: tuple[HalfModel, HalfModel], data: TrainingImages, halves, validation, image_groups, seed: int
) -> Verdict:
    """Judge the deformations on validation particles.

    Each validation particle's latent is inferred, under its own half's frozen decoder, from a random half of
    the Fourier pixels; the data term on the other half is compared with and without its deformation. The null
    gives each particle the latent of another one.

    Parameters
    ----------
    models
        of both halves.
    data
        images by row.
    halves, validation, image_groups
        (n,) half-set, whether held out, and which image: rows that show the same one share its noise, and count once.
    seed
        of the choice of Fourier pixels.
    """
    gains, nulls = [], []
    for number, model in enumerate(models, 1):
        rows = torch.where(validation & (halves == number))[0]
        generator = torch.Generator().manual_seed(seed * 100 + number)
        share = random_pixels(len(rows), model.box, generator)
        latents = infer_latents(model, data, rows, model.latent_starts(len(rows)), steps=6, pixels=share).latents
        plain = _data_terms(model, data, rows, None, ~share)
        gains.append(plain - _data_terms(model, data, rows, latents, ~share))
        null = torch.zeros(len(rows))
        for turn in range(1, _PERMUTATIONS + 1):
            # Turned by different amounts, nobody keeps his own and nobody gets the same one twice.
            other = torch.roll(torch.arange(len(rows)), turn * max(1, len(rows) // (_PERMUTATIONS + 1)))
            null += plain - _data_terms(model, data, rows, latents[other.to(latents.device)], ~share)
        nulls.append(null / _PERMUTATIONS)
    groups = torch.cat([image_groups[validation & (halves == half)] for half in (1, 2)])
    gains, nulls = _per_image(torch.cat(gains), groups), _per_image(torch.cat(nulls), groups)
    gain, gain_error = float(gains.mean()), float(gains.std() / len(gains) ** 0.5)
    null, null_error = float(nulls.mean()), float(nulls.std() / len(gains) ** 0.5)
    # Pair by pair: both are of the same image with the same noise.
    above_null = float((gains - nulls).mean())
    spread = float((gains - nulls).std() / len(gains) ** 0.5)
    numbers = (
        f"on {len(gains)} held-out particles each one's own deformation adds {gain:.2f} +- {gain_error:.2f} nats of "
        f"log-likelihood on held-out Fourier pixels, another particle's {null:.2f} +- {null_error:.2f}"
    )
    if gain > _SIGMAS * gain_error and above_null > _SIGMAS * spread:
        name, text = "supported", f"The images support these motions: {numbers}."
    elif gain < _SIGMAS * gain_error and gain < gain_error + 0.5 * max(gain_error, _NOTHING):
        name = "not supported"
        text = f"The images do not support these motions: {numbers}. Use the rigid map."
    else:
        name = "undecided"
        text = f"These particles do not decide whether the motions are real: {numbers}. More particles would."
    return Verdict(name, gain, gain_error, null, null_error, len(gains), text)


def _per_image(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the (images,) means of (n,) values over rows of the same image."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(counts)).index_add_(0, index, values) / counts


def _data_terms(model, data, rows, latents, share) -> torch.Tensor:
    """Return (n,) minus log-likelihoods on the Fourier pixels of `share`; of the consensus if latents is None."""
    weights = model.frequency_weights()
    terms = []
    for part in torch.arange(len(rows)).split(128):
        batch = data.batch(rows[part])
        positions = model.consensus_positions.expand(len(part), -1, -1)
        if latents is not None:
            positions = model.gaussians.positions + model.displacements(latents[part])
        residual = model.project(batch.matrices, batch.transfer, positions) - batch.transforms
        terms.append(0.5 * (residual.abs().square() * weights * share[part].to(weights)).sum((-2, -1)))
    return torch.cat(terms).cpu()
