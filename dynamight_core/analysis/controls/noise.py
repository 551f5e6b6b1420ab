"""Control noise-particles: the map and the motion that the trained model makes from noise.

Noise images have the poses, transfer functions and noise spectrum of the particles. Their latents are inferred with the
frozen decoders, and the images are reconstructed with the resulting deformations. Latents are chosen to fit the noise,
so the model can appear in the maps ("Einstein from noise"; Shatsky et al., J. Struct. Biol. 2009).

This is done twice with the same noise. Beside a signal, the model's projection of each particle is added to determine
the latent, but not to the map. The noise then only shifts each latent by its error, as the noise of the run's particles
does. Alone, the latent that fits the noise best lies anywhere in the prior, which aligns the noise as much as possible.
"""

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.controls.maps import ControlImages, maps_of
from dynamight_core.analysis.controls.result import Control
from dynamight_core.image_series import per_image
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.fourier import expand_shells, fourier_to_image, image_to_fourier, volume_to_fourier
from dynamight_core.model.half import ConsensusField, HalfModel
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.fsc import randomise_phases
from dynamight_core.reporter import Reporter
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents

# Pairs of maps with random phases that determine the scatter of their FSC, and the limit in standard deviations.
_DRAWS, _SIGMAS = 50, 3.0
# Shells allowed beyond the limit: of 30 shells, one exceeds it by chance in a twelfth of all runs, two in a 300th.
_ALLOWED = 1
# Below this fraction of the moving part's density, what appears is a trace: it raises the signal-to-noise ratio of the
# half-maps by a fifth at most, which changes their resolution by less than a shell.
_TRACE = 0.1
_STEPS = 6
_NAMES = {"beside": "beside a signal", "alone": "alone"}


class NoiseImages:
    """Noise images with the noise spectrum of a half-set's model, in half precision.

    Parameters
    ----------
    noise_power
        (box//2+1,) power of the noise in each shell.
    n, box
        number of images; pixels.
    seed
        random seed.
    """

    def __init__(self, noise_power: torch.Tensor, n: int, box: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        amplitude = expand_shells((noise_power.cpu() / box**2).sqrt(), box)
        self._images = torch.empty(n, box, box, dtype=torch.half)
        for part in torch.arange(n).split(512):
            white = torch.randn(len(part), box, box, generator=generator)
            self._images[part] = fourier_to_image(image_to_fourier(white) * amplitude, box).half()

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box) images of (b,) indices."""
        return self._images[indices].float()


class SignalBesideNoise:
    """Noise images plus the model's projections of the particles.

    Parameters
    ----------
    noise
        for each image.
    model
        of a half-set.
    latents
        (n, d) of each image's particle.
    data
        with the transfer functions of the particles.
    matrices
        (n, 3, 3) of their poses.
    """

    def __init__(self, noise: NoiseImages, model: HalfModel, latents, data: TrainingImages, matrices: torch.Tensor):
        self._noise, self._model, self._latents, self._data, self._matrices = noise, model, latents, data, matrices

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the (b, box, box) images of (b,) indices."""
        model = self._model
        positions = model.gaussians.positions + model.displacements(self._latents[indices].to(model.latent_mean))
        matrices = self._matrices[indices].to(positions.device)
        signal = fourier_to_image(model.project(matrices, self._data.transfer(indices), positions), model.box)
        return self._noise.images(indices).to(signal.device) + signal


@torch.no_grad()
def noise_particles(images: ControlImages, options: ControlOptions, reporter: Reporter) -> Control | None:
    """Reconstruct noise with latents inferred from it, beside a signal and alone, and look for the model in the maps.

    Return None if no mode of motion is supported: noise is not aligned then.

    Parameters
    ----------
    images
        of both half-sets, for their poses and transfer functions.
    options
        of the control.
    reporter
        takes progress.
    """
    run, box = images.run, images.box
    halves = images.deformations(options)
    if halves is None:
        return None
    pairs: dict[str, list[torch.Tensor]] = {"beside": [], "alone": [], "rigid": []}
    noise_motion, particle_motion, densities = [], [], []
    for half, deformations in enumerate(halves, 1):
        model = run.models[half - 1]
        noise = NoiseImages(model.noise_power, images.particles.n_images, box, options.seed * 100 + half)
        indices = torch.where(images.halves == half)[0]
        latents = run.latents[half - 1][images.rows]
        of_images = per_image(images.series, latents)
        signal = SignalBesideNoise(noise, model, of_images, images.training, images.matrices)
        inferred = {}
        for name, source in (("beside", signal), ("alone", noise)):
            progress = reporter.step(f"latents of noise, {_NAMES[name]}, half-set {half}")
            inferred[name] = _latents(model, source, images, indices, progress)
        noise_motion.append(_motion(model, inferred["alone"]))
        particle_motion.append(_motion(model, latents[indices].to(inferred["alone"])))
        data = images.data(half, images=lambda rows, noise=noise: noise.images(rows).to(images.device))
        summed = None
        for name, each in inferred.items():
            coordinates = deformations.modes.coordinates.clone()
            coordinates[indices.to(coordinates.device)] = deformations.coordinates(model, each)
            modes = deformations.with_coordinates(coordinates)
            progress = reporter.step(f"map of noise, {_NAMES[name]}, half-set {half}")
            summed = deformations.reconstruct(data, indices, progress, modes, summed)
            deformed, rigid = maps_of(summed)
            pairs[name].append(deformed)
        pairs["rigid"].append(rigid)
        densities.append(model.gaussians.render(box, images.pixel_size, model.consensus_positions))
    mask, moving = images.molecule_mask(), images.moving_mask()
    curves = {name: fourier_shell_correlation(pair[0], pair[1], mask).cpu() for name, pair in pairs.items()}
    scatters = {name: _random_scatter(pair, mask, options.seed) for name, pair in pairs.items()}
    fractions = {name: model_fraction(pairs[name], densities, moving, options.seed) for name in _NAMES}
    return _verdict(curves, scatters, fractions, _rms(noise_motion), _rms(particle_motion), images)


def _latents(model: HalfModel, source, images: ControlImages, indices: torch.Tensor, progress) -> torch.Tensor:
    """Return the (b, d) latents of the images of `source` at `indices`."""
    training = images.with_images(source)
    starts = model.latent_starts(len(indices))
    return infer_latents(model, training, indices, starts, _STEPS, integrate=True, progress=progress).latents


def _motion(model, latents: torch.Tensor) -> float:
    """Return the motion about the mean of particles with (n, d) latents, A rms over particles and Gaussians."""
    points = model.consensus_positions[:: max(1, len(model.gaussians) // 500)]
    evaluate = ConsensusField(model).evaluator(points)
    shifts = torch.cat([evaluate(part) for part in latents.split(64)])
    return float((shifts - shifts.mean(0)).square().sum(-1).mean().sqrt())


def _rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _random_phases(volume: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return randomise_phases(volume_to_fourier(volume), 0, generator)


def _random_scatter(pair: list[torch.Tensor], mask: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the (box//2+1,) rms masked FSC of maps with the amplitudes of this pair and random phases."""
    generator = torch.Generator().manual_seed(seed)
    draws = ([_random_phases(volume, generator) for volume in pair] for _ in range(_DRAWS))
    curves = [fourier_shell_correlation(first, second, mask) for first, second in draws]
    return torch.stack(curves).square().mean(0).sqrt().cpu()


def model_fraction(pair, densities, mask, seed: int) -> tuple[float, float]:
    """Return the fraction of the models' density in the noise maps, by regression in the mask, and its error."""
    generator = torch.Generator().manual_seed(seed + 1)

    def fraction(volumes):
        slopes = [
            float(((v * mask) * (d * mask)).sum() / (d * mask).square().sum())
            for v, d in zip(volumes, densities, strict=True)
        ]
        return sum(slopes) / len(slopes)

    random = [fraction([_random_phases(volume, generator) for volume in pair]) for _ in range(_DRAWS)]
    return fraction(pair), _rms(random)


def _verdict(curves, scatters, fractions, noise_motion, particle_motion, images) -> Control:
    outside = {name: int((curve.abs() > _SIGMAS * scatters[name])[1:].sum()) for name, curve in curves.items()}
    (fraction, error), (alone, alone_error) = fractions["beside"], fractions["alone"]
    n_shells = len(curves["beside"]) - 1
    numbers = (
        f"Beside a signal, {100 * fraction:.1f} +- {100 * error:.1f} % of the moving part's density appears in maps of "
        f"{len(images)} noise images. The FSC of these half-maps exceeds three standard deviations of noise in "
        f"{outside['beside']} of {n_shells} shells."
    )
    if outside["beside"] <= _ALLOWED and abs(fraction) < _SIGMAS * error:
        verdict, text = "nothing appears from noise", f"The model makes no map from noise. {numbers}"
    elif fraction < _TRACE:
        verdict = "a trace appears from noise"
        text = (
            f"A trace of the model appears in maps of noise. {numbers} The motion-corrected map contains as much "
            "aligned noise: do not interpret details that weak."
        )
    else:
        verdict = "a map appears from noise"
        text = (
            f"The model makes a map from noise. {numbers} Do not interpret details of the motion-corrected map that "
            "the rigid map lacks. Train with fewer latents or a higher stiffness."
        )
    text += (
        f" From noise alone, {100 * alone:.1f} +- {100 * alone_error:.1f} % appears ({outside['alone']} shells), an "
        f"upper bound. Such an image is assigned {noise_motion:.2f} A rms of motion, a particle {particle_motion:.2f} "
        "A: the motion of a single particle proves nothing."
    )
    figures = {
        "share_of_model": fraction,
        "share_of_model_error": error,
        "share_of_model_alone": alone,
        "share_of_model_alone_error": alone_error,
        "shells_outside": outside["beside"],
        "shells_outside_alone": outside["alone"],
        "shells_outside_rigid": outside["rigid"],
        "shells": n_shells,
        "invented_motion_rms": noise_motion,
        "real_motion_rms": particle_motion,
        "particles": len(images),
        "resolution": images.frequencies,
        "curves": {name: values.tolist() for name, values in curves.items()},
        "three_deviations": (_SIGMAS * scatters["beside"]).tolist(),
    }
    table = pd.DataFrame({"shell": range(n_shells + 1), "frequency_per_A": images.frequencies})
    for name, curve in curves.items():
        table[f"fsc_{name}"], table[f"deviation_{name}"] = curve, scatters[name]
    return Control("noise-particles", verdict, text, figures, table)
