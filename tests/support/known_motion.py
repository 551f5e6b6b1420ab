"""Images of particles whose latents are known, for a model with a known decoder."""

import copy

import torch

from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.fourier import fourier_to_image
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.half import HalfTrainer


class HeldImages:
    """Images in memory."""

    def __init__(self, images):
        self._images = images

    def images(self, rows):
        return self._images[rows]

    def close(self):
        pass


def known_motion(n=40, box=32, pixel_size=4.0, noise=0.05, field=None, within=180.0):
    """Return a model with a known decoder, its images of n particles, and their latents.

    With `field`, which takes (g, 3) positions and gives (2, g, 3) displacements per latent, that moves the particles.
    Nine of ten views are within an angle (degrees) of one axis.
    """
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    gaussians = GaussianModel(torch.randn(150, 3, generator=generator) * 15, 6.0, 1.0)
    model = HalfModel(gaussians, box, pixel_size, 2, "basis", 100.0)
    torch.nn.init.normal_(model.decoder.fields[-1].weight, std=0.5)
    latents = torch.randn(n, 2, generator=generator)
    angles = random_rotations(n, generator)
    angles[n // 10 :, 1] *= within / 180
    matrices = rotation_matrices(angles)
    ctf = CtfParameters.create(torch.full((n,), 15000.0))
    data = TrainingImages(HeldImages(None), ctf, matrices, box, pixel_size)
    with torch.no_grad():
        shifts = model.displacements(latents)
        if field is not None:
            shifts = torch.einsum("bk,kgc->bgc", latents, field(gaussians.positions))
        positions = gaussians.positions + shifts
        image = fourier_to_image(model.project(matrices, data.transfer(torch.arange(n)), positions), box)
    sigma = noise * float(image.std())
    data._images = HeldImages(image + sigma * torch.randn(image.shape, generator=generator))
    model.noise_power.fill_(sigma**2 * box**2)
    return model, data, latents


def untrained(model, data, rows):
    """Return a trainer of a model with the same Gaussians and noise that knows no motion."""
    fresh = HalfModel(copy.deepcopy(model.gaussians), model.box, model.pixel_size, 2, "basis", 100.0)
    fresh.noise_power.copy_(model.noise_power)
    return HalfTrainer(fresh, data, rows, TrainOptions(n_latents=2), half=1)
