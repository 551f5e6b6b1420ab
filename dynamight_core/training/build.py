"""Build the images in memory, and the model and trainer of each half-set."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from dynamight_core.groups import own_halves, within
from dynamight_core.imaging.fourier import shell_means
from dynamight_core.model.decoders.base import Networks
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.parallel import side_by_side
from dynamight_core.particles.cache import ImageCache
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.preprocess import restored_noise
from dynamight_core.reporter import Reporter
from dynamight_core.sampling import evenly
from dynamight_core.training.continuation import PreviousRun
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.fit import fit_gaussians, match_grey_scale
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.read import Prepared

# Correlation of images and map that could be chance, standard deviations.
_CHANCE = 5
# Images in which the noise that a premultiplication left is measured, and its smallest fraction.
_NOISE_IMAGES, _MIN_NOISE = 500, 0.02


def load_images(prepared: Prepared, device: torch.device, folder: Path, reporter: Reporter) -> TrainingImages:
    """Read all images once, and keep them prepared at the working box."""
    reader = ImageReader(prepared.particles)
    preprocessing = prepared.preprocessing().with_set_noise(reader, prepared.halves, prepared.options.seed)
    progress = reporter.step("reading images")
    cache = ImageCache(reader, preprocessing, device, prepared.inputs.storage, folder, progress)
    p, box, pixel_size = prepared.particles, prepared.working_box, prepared.working_pixel_size
    noise = None
    if p.premultiplied and p.ctf.exposure.any():
        some = p.ctf[evenly(torch.arange(p.n_images), _NOISE_IMAGES)]
        noise = shell_means(restored_noise(some, box, pixel_size), box).mean(0).clamp(min=_MIN_NOISE)
    return TrainingImages(cache, p.ctf, p.matrices, box, pixel_size, device, p.series, noise)


def build_model(prepared: Prepared, gaussians: GaussianModel, half: int, device: torch.device) -> HalfModel:
    """Return the untrained model of a half-set with these Gaussians."""
    options = prepared.options
    diameter = prepared.inputs.particle_diameter or 0.9 * prepared.particles.box * prepared.particles.pixel_size
    # Networks initialise their weights with the global generator.
    torch.manual_seed(options.seed * 10 + half)
    return HalfModel(
        gaussians,
        prepared.working_box,
        prepared.working_pixel_size,
        options.n_latents,
        options.decoder,
        diameter,
        prepared.motion_mask,
        prepared.bodies,
        Networks(**{field.name: getattr(options, field.name) for field in fields(Networks)}),
    ).to(device)


def build_trainers(
    prepared: Prepared, data: TrainingImages, previous: PreviousRun | None, reporter: Reporter
) -> tuple[HalfTrainer, ...]:
    """Return the trainers of the half-sets that this process trains, initialised from the map or from a previous run.

    A joint model has one trainer, of the particles of both half-sets.
    """
    halves, group = own_halves(trained_halves(prepared.options))
    with within(group):
        return trainers_of(halves, prepared, data, previous, reporter)


def trained_halves(options: TrainOptions) -> tuple[int, ...]:
    """Return the half-sets that have a model of their own."""
    return (1,) if options.halves == "joint" else (1, 2)


def trainers_of(
    halves: Sequence[int], prepared: Prepared, data: TrainingImages, previous: PreviousRun | None, reporter: Reporter
) -> tuple[HalfTrainer, ...]:
    """Return the trainers of some half-sets; see `build_trainers`."""
    options, trainers, joint = prepared.options, [], prepared.options.halves == "joint"
    gaussians = {}
    if previous is None:
        fitted = side_by_side(partial(fit_gaussians, prepared), halves, torch.device("cpu"))
        gaussians = dict(zip(halves, fitted, strict=True))
    for half in halves:
        if previous is None:
            model = build_model(prepared, gaussians[half], half, data.device)
        else:
            model = previous.model(half, prepared, data.device)
        mine = (prepared.halves == half) | joint
        rows = torch.where(mine & ~prepared.validation)[0]
        held_out = torch.where(mine & prepared.validation)[0]
        encoded = torch.where(prepared.validation)[0] if options.validation_trains_encoders else rows[:0]
        # Trained models have the grey scale of the images.
        if previous is None and match_grey_scale(model, data, rows) <= _CHANCE:
            reporter.warn("the images do not correlate with the map; check that they belong together")
        trainers.append(HalfTrainer(model, data, rows, options, half, held_out, encoded))
        if previous is not None:
            previous.start(trainers[-1])
    return tuple(trainers)
