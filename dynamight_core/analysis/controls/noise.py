"""Noise through the trained model: whatever map or motion comes out of it is the method's own.

Noise with the poses, transfer functions and noise spectrum of the particles is given latents under the frozen
decoders, and reconstructed with the deformations that follow. Deformations are chosen to fit the noise, so that a
model that bends freely enough makes a map of nothing ("Einstein from noise"; Shatsky et al., J. Struct. Biol. 2009).

This is done twice with the same noise: alone, and beside a signal, the model's own projection of each particle, which
chooses the latent as well but is left out of the map. Alone, noise chooses among all that the model can do, and is
lined up as much as it may ever be. Beside a signal it can only shift each latent by its error, which is what the
noise of the run's particles does in the run's maps.
"""

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.controls.maps import (
    ControlImages,
    HalfDeformations,
    frequencies,
    maps_of,
    molecule_mask,
    moving_mask,
    plain,
    reconstruct,
)
from dynamight_core.analysis.controls.result import Control
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_image,
    fourier_to_volume,
    image_to_fourier,
    volume_to_fourier,
)
from dynamight_core.model.half import ConsensusField, HalfModel
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.fsc import fourier_shell_correlation
from dynamight_core.reporter import Reporter
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents

# Pairs of maps with random phases that say how far the FSC of nothing strays, and how far is too far.
_RANDOM, _SIGMAS = 50, 3.0
# Shells that may stray farther: among 30, one does in every twelfth run by chance alone, two in every 300th.
_ALLOWED = 1
# Share of the moving part's density below which what appears is called a trace: the half-maps' signal-to-noise ratio
# is then too high by a fifth at most, which moves their resolution by less than a shell.
_TRACE = 0.1
_STEPS = 6
_WORDS = {"beside": "beside a signal", "alone": "alone"}


class NoiseImages:
    """Noise images of the power spectrum that a half's model found, kept in half precision.

    Parameters
    ----------
    noise_power
        (box//2+1,) of the noise's transforms, per shell.
    n, box
        how many, and pixels.
    seed
        of the noise.
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
    """Noise images with a model's projections of particles added.

    Parameters
    ----------
    noise
        of the same particles.
    model
        of a half.
    latents
        (n, d) of the particles.
    data
        knows their transfer functions.
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
    """Give noise latents, alone and beside a signal, reconstruct it, and see how much of the model it shows.

    None if no mode of motion is supported: nothing lines noise up then.

    Parameters
    ----------
    images
        of both halves; their poses and transfer functions are used.
    options
        of the control.
    reporter
        takes progress.
    """
    run, box = images.run, images.box
    halves = [HalfDeformations.of(images, half, options) for half in (1, 2)]
    if not any(len(deformations.modes) for deformations in halves):
        return None
    pairs = {"beside": [], "alone": [], "rigid": []}
    invented, real, shown = [], [], []
    for half, deformations in enumerate(halves, 1):
        model = run.models[half - 1]
        noise = NoiseImages(model.noise_power, len(images), box, options.seed * 100 + half)
        places = torch.where(images.halves == half)[0]
        latents = run.latents[half - 1][images.rows]
        signal = SignalBesideNoise(noise, model, latents, images.training, images.matrices)
        found = {
            name: _latents(
                model,
                given,
                images,
                places,
                reporter.step(f"latents of noise, {_WORDS[name]}, half {half}"),
            )
            for name, given in (("beside", signal), ("alone", noise))
        }
        invented.append(_motion(model, found["alone"]))
        real.append(_motion(model, latents[places].to(found["alone"])))
        data = images.data(half, images=lambda rows, noise=noise: noise.images(rows).to(images.device))
        denominator = None
        for name, each in found.items():
            coordinates = deformations.modes.coordinates.clone()
            coordinates[places.to(coordinates.device)] = deformations.coordinates(model, each)
            summed = reconstruct(
                data,
                places,
                deformations.with_coordinates(coordinates),
                deformations.region,
                denominator,
                reporter.step(f"map of noise, {_WORDS[name]}, half {half}"),
            )
            denominator = summed.denominator
            deformed, rigid = maps_of(summed)
            pairs[name].append(deformed)
        pairs["rigid"].append(rigid)
        shown.append(model.gaussians.render(box, images.pixel_size, model.consensus_positions))
    mask = molecule_mask(run, box, images.pixel_size).to(images.device)
    moving = moving_mask(run, box, images.pixel_size).to(mask)
    curves = {name: fourier_shell_correlation(*pair, mask).cpu() for name, pair in pairs.items()}
    scatters = {name: _scatter_of_nothing(pair, mask, options.seed) for name, pair in pairs.items()}
    shares = {name: share_of_model(pairs[name], shown, moving, options.seed) for name in ("beside", "alone")}
    return _judged(curves, scatters, shares, invented, real, images)


def _latents(model: HalfModel, given, images: ControlImages, places: torch.Tensor, progress) -> torch.Tensor:
    """Return the (b, d) latents of the images that `given` has of the particles at `places`."""
    training = TrainingImages(
        given, images.particles.ctf, images.matrices, images.box, images.pixel_size, images.device
    )
    starts = model.latent_starts(len(places))
    return infer_latents(model, training, places, starts, _STEPS, integrate=True, progress=progress).latents


def _motion(model, latents: torch.Tensor) -> float:
    """Return the rms motion (A) about the mean of particles with (n, d) latents, over the Gaussians."""
    points = model.consensus_positions[:: max(1, len(model.gaussians) // 500)]
    evaluate = ConsensusField(model).evaluator(points)
    shifts = torch.cat([evaluate(part) for part in latents.split(64)])
    return float((shifts - shifts.mean(0)).square().sum(-1).mean().sqrt())


def _random_phases(volume: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    phases = volume_to_fourier(torch.randn(volume.shape, generator=generator).to(volume.device))
    transform = volume_to_fourier(volume).abs() * phases / phases.abs().clamp(min=1e-12)
    return fourier_to_volume(transform, len(volume))


def _scatter_of_nothing(pair: list[torch.Tensor], mask: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the (box//2+1,) standard deviation of the FSC in a mask of maps with this pair's amplitudes."""
    generator = torch.Generator().manual_seed(seed)
    curves = [
        fourier_shell_correlation(*(_random_phases(volume, generator) for volume in pair), mask) for _ in range(_RANDOM)
    ]
    return torch.stack(curves).square().mean(0).sqrt().cpu()


def share_of_model(pair, shown, mask, seed: int) -> tuple[float, float]:
    """Return how much of the models' density the noise maps hold in the mask (regression), and its error."""
    generator = torch.Generator().manual_seed(seed + 1)

    def share(volumes):
        slopes = [
            float(((v * mask) * (d * mask)).sum() / (d * mask).square().sum())
            for v, d in zip(volumes, shown, strict=True)
        ]
        return sum(slopes) / len(slopes)

    nothing = [share([_random_phases(volume, generator) for volume in pair]) for _ in range(_RANDOM)]
    return share(pair), float(np.sqrt(np.mean(np.square(nothing))))


def _judged(curves, scatters, shares, invented, real, images) -> Control:
    outside = {name: int((curve.abs() > _SIGMAS * scatters[name])[1:].sum()) for name, curve in curves.items()}
    motion, own = float(np.sqrt(np.mean(np.square(invented)))), float(np.sqrt(np.mean(np.square(real))))
    (share, error), (alone, alone_error) = shares["beside"], shares["alone"]
    n_shells = len(curves["beside"]) - 1
    numbers = (
        f"beside the model's own projections, {len(images)} noise images with the particles' poses and CTFs give maps "
        f"that hold {100 * share:.1f} +- {100 * error:.1f} % of the moving part's density, and half-maps whose FSC in "
        f"the molecule is beyond three standard deviations of none in {outside['beside']} of {n_shells} shells"
    )
    if outside["beside"] <= _ALLOWED and abs(share) < _SIGMAS * error:
        verdict, text = "nothing appears from noise", f"The model makes no map of noise: {numbers}."
    elif share < _TRACE:
        verdict = "a trace appears from noise"
        text = (
            f"The model makes a trace of itself of noise: {numbers}. So much of what the moving part shows is noise "
            "that latents lined up with the model: details as weak as that are not to be trusted."
        )
    else:
        verdict = "a map appears from noise"
        text = (
            f"The model makes a map of noise: {numbers}. Do not trust what the map with motion corrected shows beyond "
            "the rigid one; train with fewer latents or stiffer."
        )
    text += (
        f" Noise with nothing beside it gives {100 * alone:.1f} +- {100 * alone_error:.1f} % ({outside['alone']} "
        f"shells), more than any particle's noise can. Such an image is given {motion:.2f} A rms of motion, a particle "
        f"{own:.2f} A: the motion of one image shows nothing by itself, only what many have in common does."
    )
    figures = {
        "share_of_model": share,
        "share_of_model_error": error,
        "share_of_model_alone": alone,
        "share_of_model_alone_error": alone_error,
        "shells_outside": outside["beside"],
        "shells_outside_alone": outside["alone"],
        "shells_outside_rigid": outside["rigid"],
        "shells": n_shells,
        "invented_motion_rms": motion,
        "real_motion_rms": own,
        "particles": len(images),
        "resolution": frequencies(images),
        "curves": {name: values.tolist() for name, values in curves.items()},
        "three_deviations": (_SIGMAS * scatters["beside"]).tolist(),
    }
    table = pd.DataFrame({"shell": range(n_shells + 1), "frequency_per_A": frequencies(images)})
    for name, curve in curves.items():
        table[f"fsc_{name}"], table[f"deviation_{name}"] = curve, scatters[name]
    return Control("noise-particles", verdict, text, plain(figures), table)
