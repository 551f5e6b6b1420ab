"""The images of a run for a reconstruction."""

import torch

from dynamight_core.groups import current_group
from dynamight_core.image_series import ImageSeries, per_image
from dynamight_core.imaging.backprojection import ParticleData
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import frequencies_2d, image_to_fourier, resample_image, shell_means
from dynamight_core.imaging.masks import soft_circle
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.preprocess import Preprocessing, read_prepared
from dynamight_core.run import Run
from dynamight_core.training.data import TrainingImages


class FullImages:
    """A run's particle images at full size, prepared as for training but not masked.

    Parameters
    ----------
    run
        finished.
    device
        of all results.
    """

    def __init__(self, run: Run, device: torch.device):
        self.run, self.device = run, device
        particles, config = run.particles, run.config
        self.particles = particles
        self.reader = ImageReader(particles)
        # Images of an odd box lose their last frequency; the map is padded again.
        self.box = particles.box - particles.box % 2
        self.pixel_size = particles.pixel_size * particles.box / self.box
        self.preprocessing = Preprocessing(
            self.box,
            config.inputs.particle_diameter,
            invert=config.inputs.invert_contrast,
            normalise=config.inputs.normalise,
        ).with_set_noise(self.reader, run.halves, config.train.seed)
        self.matrices = particles.matrices

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return (b, box, box) prepared images by their (b,) numbers."""
        return read_prepared(self.reader, indices.numpy(), self.preprocessing, self.device)

    def transfer(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box//2+1) transfer functions of (b,) images."""
        return evaluate_ctf(self.particles.ctf[indices], self.box, self.pixel_size)

    def data(self, weights: torch.Tensor | None = None, errors: torch.Tensor | None = None) -> ParticleData:
        """Return the data of a reconstruction.

        Parameters
        ----------
        weights
            (box//2+1,) from `noise_weights`.
        errors
            (P,) A rms, uncertainty of each particle's displacement. It blurs the image; frequencies that are blurred
            more than in the best particle count less.
        """
        transfer = self.transfer
        if errors is not None:
            variance = per_image(self.particles.series, (errors.square() - errors.square().min()).float() / 3)
            squared = (frequencies_2d(self.box) / self.pixel_size).square().sum(-1)

            def transfer(indices: torch.Tensor) -> torch.Tensor:
                blur = torch.exp(-2 * torch.pi**2 * variance[indices, None, None] * squared)
                return self.transfer(indices) * blur

        series = self.particles.series
        return ParticleData(
            self.images, transfer, self.matrices, self.box, self.pixel_size, weights, self.device, series
        )

    def noise_weights(self, seed: int, n_images: int = 200) -> torch.Tensor:
        """Return (box//2+1,) one over the noise power around the particle, per shell, relative to white noise.

        Shell 0 has the weight of shell 1: normalised images have almost no noise there, so its own weight would be ten
        times as large, and interpolation would spread it over all shells.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.particles.n_images, generator=generator)[:n_images].sort().values
        diameter = self.preprocessing.circle_diameter(self.particles.box, self.particles.pixel_size)
        outside = 1 - soft_circle(self.box, self.pixel_size, diameter, device=self.device)
        power, group = torch.zeros(self.box // 2 + 1, device=self.device), current_group()
        for part in group.split(chosen, 32):
            transforms = image_to_fourier(self.images(part) * outside)
            power += shell_means(transforms.abs().square(), self.box).sum(0)
        group.sum_(power)
        power = power / (len(chosen) * outside.square().sum())
        power[0] = power[1]
        return 1 / power.clamp(min=1e-3 * float(power.mean()))

    def training_images(self, rows: torch.Tensor, box: int) -> TrainingImages:
        """Return the images of some particles at the working `box`, by their index in `rows`."""
        pixel_size, series = self.pixel_size * self.box / box, self.particles.series
        if series is not None:
            rows, index = series.images(rows)
            series = ImageSeries(index)
        images = _Resampled(self, rows, box)
        return TrainingImages(
            images, self.particles.ctf[rows], self.matrices[rows], box, pixel_size, self.device, series
        )


class _Resampled:
    def __init__(self, full: FullImages, rows: torch.Tensor, box: int):
        self.full, self.rows, self.box = full, rows, box

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        return resample_image(self.full.images(self.rows[indices]), self.box)
