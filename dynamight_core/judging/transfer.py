"""Whether images fit the transfer functions that their STAR file states, or others better."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import plane_multiplicity, shell_sums
from dynamight_core.judging.verdict import mean_and_error
from dynamight_core.model.half import HalfModel
from dynamight_core.parallel import side_by_side
from dynamight_core.sampling import evenly
from dynamight_core.training.data import Batch, TrainingImages
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import data_terms
from dynamight_core.training.schedule import Epoch

# What may have been done to images unsaid, besides the stated transfer function.
OTHERS = ("flipped", "premultiplied")
# Factors on the stated function, of its real part: odd aberrations and shifts stay.
_FACTORS_OF: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "stated": torch.ones_like,
    "flipped": torch.sign,
    "premultiplied": lambda even: even,
}
# Factors on the defocus that are tried.
_FACTORS = (0.88, 0.92, 0.96, 1.0, 1.04, 1.08, 1.12)
# Particles of each half-set, and blocks of them, whose scatter gives the error of the defocus.
_PARTICLES, _BLOCKS = 300, 10
# Particles and epochs that a molecule at rest is fitted with.
_FITTED, _EPOCHS = 600, 6
_BATCH = 64


@dataclass
class Transfer:
    """How well images fit other transfer functions than the stated ones.

    Parameters
    ----------
    gains, errors
        by name ("flipped": phases were flipped; "premultiplied"): log-likelihood of an image gained over the stated
        transfer function, nats, and its standard error.
    defocus, defocus_error
        factor on the defocus that images fit best, and its standard error.
    """

    gains: dict[str, float]
    errors: dict[str, float]
    defocus: float
    defocus_error: float


def check_transfer(
    trainers: tuple[HalfTrainer, HalfTrainer], statics: tuple[HalfModel, HalfModel], ctf: CtfParameters
) -> Transfer:
    """Compare transfer functions on images of both half-sets.

    Models of the molecule at rest are fitted to training images with the stated function and with others, and compared
    on held-out images: the map was made with the stated one. For the defocus, the molecule at rest is scaled to the
    images shell by shell, so that an envelope does not count.

    Parameters
    ----------
    trainers
        of both half-sets; their data, training particles and held-out particles are used.
    statics
        models at rest.
    ctf
        of all particles.
    """

    def misfits_of(half: int) -> dict[str, torch.Tensor]:
        trainer = trainers[half]
        return {
            name: _refitted_misfits(trainer, statics[half], _Transferred(trainer.data, ctf, factor))
            for name, factor in _FACTORS_OF.items()
        }

    misfits = side_by_side(misfits_of, (0, 1), trainers[0].data.device)
    gains = {name: torch.cat([half["stated"] - half[name] for half in misfits]) for name in OTHERS}
    means, errors = {}, {}
    for name, gain in gains.items():
        means[name], errors[name] = mean_and_error(gain)
    rows = [torch.cat([trainer.rows, trainer.held_out]) for trainer in trainers]
    return Transfer(means, errors, *_defocus(statics, trainers[0].data, ctf, rows))


class _Transferred:
    """Training images with other transfer functions."""

    def __init__(self, data: TrainingImages, ctf: CtfParameters, factor: Callable[[torch.Tensor], torch.Tensor]):
        self._data, self._factor = data, factor
        zeros = torch.zeros_like(ctf.odd_zernike)
        self._even = replace(ctf, beam_tilt=torch.zeros_like(ctf.beam_tilt), odd_zernike=zeros)
        self.box, self.pixel_size, self.device, self.noise = data.box, data.pixel_size, data.device, data.noise
        self.series, self.at_once, self.images_of = data.series, data.at_once, data.images_of

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, rows: torch.Tensor) -> Batch:
        batch = self._data.batch(rows)
        even = evaluate_ctf(self._even[batch.numbers.cpu()], self.box, self.pixel_size).to(self.device)
        return replace(batch, transfer=batch.transfer * self._factor(even))


def _refitted_misfits(trainer: HalfTrainer, static: HalfModel, data: Any) -> torch.Tensor:
    """Return (v,) misfits of held-out images to a molecule at rest that is fitted with other transfer functions."""
    rows, held_out = evenly(trainer.rows, data.at_once(_FITTED)), evenly(trainer.held_out, _PARTICLES)
    model = copy.deepcopy(static)
    with torch.no_grad():
        model.gaussians.positions.copy_(model.consensus_positions)
        model.reference_shift.zero_()
    # Images are as they are given: poses are not refined.
    options = replace(trainer.options, refine_poses=False)
    fitted = HalfTrainer(model, data, rows, options, trainer.half, held_out)
    for number in range(1, _EPOCHS + 1):
        run_epoch(fitted, Epoch("warm-up"), number)
    everything = torch.ones(len(held_out), model.box, model.box // 2 + 1, dtype=torch.bool)
    return data_terms(model, data, held_out, None, everything, resolution=0)


@torch.no_grad()
def _defocus(
    models: tuple[HalfModel, HalfModel], data: TrainingImages, ctf: CtfParameters, rows: list[torch.Tensor]
) -> tuple[float, float]:
    """Return the factor on the defocus that images fit best, and its standard error by a jackknife."""
    cross = torch.zeros(_BLOCKS, len(_FACTORS), data.box // 2 + 1, dtype=torch.float64)
    power = torch.zeros_like(cross)
    sampled = max(3 * _BLOCKS, data.at_once(_PARTICLES))
    for model, mine in zip(models, rows, strict=True):
        for block, part in enumerate(evenly(mine, sampled).chunk(_BLOCKS)):
            for few in data.images_of(part).split(_BATCH):
                for number, values in enumerate(_products(model, data, ctf, few)):
                    cross[block, number] += values[0].double().cpu()
                    power[block, number] += values[1].double().cpu()
    best = _best_factor(_gains(cross.sum(0), power.sum(0)))
    without = [_best_factor(_gains(cross.sum(0) - c, power.sum(0) - p)) for c, p in zip(cross, power, strict=True)]
    return best, float((_BLOCKS - 1) ** 0.5 * torch.tensor(without).std(unbiased=False))


def _products(
    model: HalfModel, data: TrainingImages, ctf: CtfParameters, rows: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each factor the (shells,) products of (b,) images and projections, and the latter's power."""
    batch = data.image_batch(rows)
    weights = model.frequency_weights(resolution=0) / plane_multiplicity(data.box, batch.transforms.device)
    at_rest = model.consensus_positions.expand(len(rows), -1, -1)
    projection = model.project(batch.matrices, torch.ones_like(batch.transfer), at_rest)
    mine, found = ctf[rows.cpu()], []
    for factor in _FACTORS:
        other = replace(mine, defocus_u=mine.defocus_u * factor, defocus_v=mine.defocus_v * factor)
        image = projection * data.shifted(evaluate_ctf(other, data.box, data.pixel_size).to(projection.device), rows)
        product, power = (image.conj() * batch.transforms).real, image.abs().square()
        found.append((shell_sums(product * weights, data.box).sum(0), shell_sums(power * weights, data.box).sum(0)))
    return found


def _gains(cross: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Return the (factors,) log-likelihood that projections gain over nothing, each shell scaled by itself.

    Scales may be negative: a map from wrong transfer functions has shells of inverted contrast.
    """
    return (cross.square() / (2 * power.clamp(min=1e-12))).sum(-1)


def _best_factor(gains: torch.Tensor) -> float:
    """Return the factor on the defocus at the top of the parabola through the best of (factors,) gains."""
    best = int(gains.argmax().clamp(1, len(_FACTORS) - 2))
    left, middle, right = (float(gains[best + step]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    step = _FACTORS[1] - _FACTORS[0]
    return _FACTORS[best] + (0.0 if bend >= 0 else max(-1.0, min(1.0, 0.5 * (left - right) / bend)) * step)
