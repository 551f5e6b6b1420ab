"""The verdict: whether deformations explain held-out Fourier pixels of held-out particles."""

from dataclasses import dataclass

import torch

from dynamight_core.model.half import HalfModel
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import LatentPosterior, data_terms, infer_latents, random_pixels

# Standard errors required for a verdict.
SIGMAS = 3.0
# Smallest standard error of the gain when deciding that there is none, nats.
_MIN_ERROR = 0.01
# Permutations that give the null.
_PERMUTATIONS = 4
# Draws of each particle's latent.
_DRAWS = 8


@dataclass
class Verdict:
    """What validation particles show.

    Parameters
    ----------
    verdict
        "supported", "not supported" or "undecided".
    gain, gain_error
        log-likelihood (nats per particle) that the particle's own deformation adds on Fourier pixels not used to
        infer it: mean over validation particles, and its standard error.
    null, null_error
        the same with deformations permuted among particles.
    particles
        number of validation particles; relatives count once.
    sentence
        for the user.
    cause
        name of the cause that explains the images in the place of motion; empty if there is none.
    """

    verdict: str
    gain: float
    gain_error: float
    null: float
    null_error: float
    particles: int
    sentence: str
    cause: str = ""


@torch.no_grad()
def judge(
    models: tuple[HalfModel, HalfModel],
    statics: tuple[HalfModel, HalfModel],
    data: TrainingImages,
    halves: torch.Tensor,
    validation: torch.Tensor,
    relatives: torch.Tensor,
    seed: int,
) -> Verdict:
    """Judge the deformations on validation particles.

    The latent of each validation particle is inferred with the frozen decoder of its own half-set, from a random half
    of the Fourier pixels. On the other half, the data term is compared with and without the deformation. The null gives
    each particle the latent of another one.

    Parameters
    ----------
    models
        of both half-sets.
    statics
        models that explain the images best without motion, see `static_model`.
    data
        images by row.
    halves, validation, relatives
        (n,) half-set, whether held out, and group of relatives (`particles.relatives`), which count once.
    seed
        of the choice of Fourier pixels.
    """
    gains, nulls = [], []
    for number, (model, static) in enumerate(zip(models, statics, strict=True), 1):
        rows = torch.where(validation & (halves == number))[0]
        generator = torch.Generator().manual_seed(seed * 100 + number)
        pixels = random_pixels(len(rows), model.box, generator)
        found = infer_latents(model, data, rows, model.latent_starts(len(rows)), steps=6, pixels=pixels)
        latents = drawn(found, generator)
        plain = data_terms(static, data, rows, None, ~pixels)
        gains.append(plain - data_terms(model, data, rows, latents, ~pixels))
        gained = torch.zeros(len(rows))
        for shift in range(1, _PERMUTATIONS + 1):
            # Different cyclic shifts: no particle keeps its own latent, and none gets the same one twice.
            other = torch.roll(torch.arange(len(rows)), shift * max(1, len(rows) // (_PERMUTATIONS + 1)))
            gained += plain - data_terms(model, data, rows, latents[:, other.to(latents.device)], ~pixels)
        nulls.append(gained / _PERMUTATIONS)
    groups = torch.cat([relatives[validation & (halves == half)] for half in (1, 2)])
    own, others = per_group(torch.cat(gains), groups), per_group(torch.cat(nulls), groups)
    gain, gain_error = mean_and_error(own)
    null, null_error = mean_and_error(others)
    # Pair by pair: both have the same image and the same noise.
    above_null, spread = mean_and_error(own - others)
    numbers = (
        f"on held-out Fourier pixels of {len(own)} held-out particles, the gain in log-likelihood is {gain:.2f} +- "
        f"{gain_error:.2f} nats with a particle's own deformation, and {null:.2f} +- {null_error:.2f} with another's"
    )
    if gain > SIGMAS * gain_error and above_null > SIGMAS * spread:
        name, text = "supported", f"Motion is supported: {numbers}."
    elif is_nothing(gain, gain_error):
        name = "not supported"
        text = f"Motion is not supported: {numbers}."
    else:
        name = "undecided"
        text = f"Undecided whether the motion is real: {numbers}."
    return Verdict(name, gain, gain_error, null, null_error, len(own), text)


def drawn(posterior: LatentPosterior, generator: torch.Generator) -> torch.Tensor:
    """Return (s, n, d) draws of latents from their posterior.

    The mean of their images is what an image is expected to be. The image of the mean latent is sharper, and where
    latents are not well known, it explains less than a molecule at rest that is blurred by the motion.
    """
    roots = torch.linalg.cholesky(posterior.covariances.double()).float()
    noise = torch.randn(_DRAWS, *posterior.latents.shape, 1, generator=generator).to(roots)
    return posterior.latents + (roots @ noise)[..., 0]


def is_nothing(gain: float, error: float) -> bool:
    """Return whether a gain with a standard error is practically none, nats."""
    return gain < SIGMAS * error and gain < error + 0.5 * max(error, _MIN_ERROR)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean of (n,) values and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def per_group(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the (groups,) means of (n,) values over relatives."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(counts)).index_add_(0, index, values) / counts
