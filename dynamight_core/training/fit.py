"""Fit the initial model of each half-set to its map and to the grey scale of the images."""

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.groups import current_group
from dynamight_core.imaging.fourier import lowpass_volume, resample_volume
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import fill_region, fit_to_map
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.read import Prepared


def fit_gaussians(prepared: Prepared, half: int) -> GaussianModel:
    """Return the Gaussians of a half-set, fitted to its initial map.

    A grid of a quarter of the initial resolution has all detail of the filtered map.
    """
    particles, options = prepared.particles, prepared.options
    generator = torch.Generator().manual_seed(options.seed * 10 + half)
    extent = particles.box * particles.pixel_size
    coarse = min(particles.box, 2 * round(extent / max(particles.pixel_size, options.initial_resolution / 4) / 2))
    pixel_size = extent / coarse
    region = resample_volume(torch.from_numpy(prepared.region.mask).float(), coarse)
    soft = lowpass_volume(region, pixel_size, 20.0).clamp(0, 1)
    volume = resample_volume(prepared.volumes[half - 1], coarse)
    if options.initial_resolution:
        volume = lowpass_volume(volume, pixel_size, options.initial_resolution)
    if prepared.atomic is not None:
        return prepared.atomic.gaussians(volume * soft, pixel_size, generator)
    positions = fill_region(prepared.region.mask, options.n_gaussians, particles.pixel_size, generator)
    return fit_to_map(positions, volume * soft, pixel_size, options.width_classes, generator=generator)


@torch.no_grad()
def match_grey_scale(model: HalfModel, data: TrainingImages, rows: torch.Tensor) -> float:
    """Scale the Gaussians to the images; return the correlation of model and images, in units of a chance correlation.

    Raises
    ------
    InputError
        as `grey_scale`.
    """
    correlation, factor = grey_scale(model, data, rows)
    if correlation > 5:
        model.gaussians.log_amplitudes.add_(np.log(factor))
    return correlation


@torch.no_grad()
def grey_scale(model: HalfModel, data: TrainingImages, rows: torch.Tensor) -> tuple[float, float]:
    """Return how images compare with a model at rest.

    Returns
    -------
    tuple
        their correlation in units of a chance correlation, and the factor on the model that fits the images best.

    Raises
    ------
    InputError
        if the images correlate negatively with the model.
    """
    weights = model.frequency_weights()
    group, powers = current_group(), torch.zeros(3, dtype=torch.float64)
    chosen = rows[: data.at_once(512)]
    for part in group.split(chosen, data.at_once(128)):
        batch = data.batch(part)
        image = model.project(batch.matrices, batch.transfer)
        products = (image.conj() * batch.transforms).real, image.abs().square(), batch.transforms.abs().square()
        powers += torch.stack([(weights * product).sum() for product in products]).double().cpu()
    group.sum_(powers)
    cross, model_power, image_power = powers.tolist()
    correlation = cross / np.sqrt(model_power * image_power)
    # Standard deviation of a chance correlation.
    chance = 1 / np.sqrt(len(data.images_of(chosen)) * float((weights > 0).sum()))
    if correlation < -5 * chance:
        raise InputError(
            "the particles correlate negatively with the map; set --invert-contrast if they are dark, omit it if they "
            "are white, or check the map"
        )
    return float(correlation / chance), cross / model_power
