"""Pure noise through the trained model: whatever map or motion comes out is the method's own.

Noise with the poses, transfer functions and noise spectrum of the particles is given latents under the frozen
decoders, and reconstructed with the deformations that follow. Deformations are chosen to fit the noise, so that a
model that bends freely enough makes a map of nothing ("Einstein from noise"; Shatsky et al., J. Struct. Biol. 2009).
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
from dynamight_core.model.half import ConsensusField
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.fsc import fourier_shell_correlation
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.inference import infer_latents

# Pairs of maps with random phases that say how far the FSC of nothing strays, and how far is too far.
_RANDOM, _SIGMAS = 50, 3.0
# Shells that may stray farther: among 30, one does in every twelfth run by chance alone, two in every 300th.
_ALLOWED = 1
# Share of the moving part's density below which what appears is called a trace.
_TRACE = 0.1
_STEPS = 6


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


@torch.no_grad()
def noise_particles(images: ControlImages, options: ControlOptions, tell) -> Control:
    """Give noise latents, reconstruct it, and see whether the halves' maps of it correlate.

    Parameters
    ----------
    images
        of both halves; their poses and transfer functions are used.
    options
        of the control.
    tell
        takes a stage's name, what is done and what there is to do.
    """
    run, box = images.run, images.box
    pairs = {"deformed": [], "rigid": []}
    invented, real, shown = [], [], []
    for half in (1, 2):
        model = run.models[half - 1]
        deformations = HalfDeformations.of(images, half, options)
        noise = NoiseImages(model.noise_power, len(images), box, options.seed * 100 + half)
        training = TrainingImages(
            noise, images.particles.ctf, images.matrices, box, images.pixel_size, images.device
        )  # fmt: skip
        places = torch.where(images.halves == half)[0]
        latents = infer_latents(
            model, training, places, model.latent_starts(len(places)), _STEPS, integrate=True,
            progress=lambda d, n, half=half: tell(f"latents of noise, half {half}", d, n),
        ).latents  # fmt: skip
        invented.append(_motion(model, latents))
        real.append(_motion(model, run.latents[half - 1][images.rows[places]].to(latents)))
        coordinates = deformations.modes.coordinates.clone()
        coordinates[places.to(coordinates.device)] = deformations.coordinates(model, latents)
        summed = reconstruct(
            images.data(half, images=lambda rows, noise=noise: noise.images(rows).to(images.device)), places,
            deformations.with_coordinates(coordinates), deformations.region,
            progress=lambda d, n, half=half: tell(f"map of noise, half {half}", d, n),
        )  # fmt: skip
        for name, volume in zip(pairs, maps_of(summed), strict=True):
            pairs[name].append(volume)
        density = model.gaussians.render(box, images.pixel_size, model.consensus_positions)
        shown.append(density)
    mask = molecule_mask(run, box, images.pixel_size).to(images.device)
    curves = {name: fourier_shell_correlation(*pair, mask).cpu() for name, pair in pairs.items()}
    scatter = _scatter_of_nothing(pairs["deformed"], mask, options.seed)
    share = _share_of_model(pairs["deformed"], shown, moving_mask(run, box, images.pixel_size).to(mask), options.seed)
    return _judged(curves, scatter, share, invented, real, images)


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
        fourier_shell_correlation(*(_random_phases(volume, generator) for volume in pair), mask)
        for _ in range(_RANDOM)
    ]
    return torch.stack(curves).square().mean(0).sqrt().cpu()


def _share_of_model(pair, shown, mask, seed: int) -> tuple[float, float]:
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


def _judged(curves, scatter, share, invented, real, images) -> Control:
    curve, allowed = curves["deformed"][1:].numpy(), _SIGMAS * scatter[1:].numpy()
    outside = int((np.abs(curve) > allowed).sum())
    motion, own = float(np.sqrt(np.mean(np.square(invented)))), float(np.sqrt(np.mean(np.square(real))))
    numbers = (
        f"{len(images)} noise images with the particles' poses and CTFs give half-maps whose FSC in the molecule is "
        f"beyond three standard deviations of none in {outside} of {len(curve)} shells, and which hold "
        f"{100 * share[0]:.1f} +- {100 * share[1]:.1f} % of the moving part's density"
    )
    if outside <= _ALLOWED:
        verdict, text = "nothing appears from noise", f"The model makes no map of noise: {numbers}."
    elif share[0] < _TRACE:
        verdict = "a trace appears from noise"
        text = (
            f"The model makes a trace of itself of noise: {numbers}. So much of the map's density may be the model's "
            "own: details as weak as that are not to be trusted."
        )
    else:
        verdict = "a map appears from noise"
        text = (
            f"The model makes a map of noise: {numbers}. Do not trust what the map with motion corrected shows beyond "
            "the rigid one; train with fewer latents or stiffer."
        )
    text += (
        f" A noise image is given {motion:.2f} A rms of motion, a particle {own:.2f} A: the motion of one image "
        "shows nothing by itself, only what many have in common does."
    )
    beyond_rigid = int((np.abs(curves["rigid"][1:].numpy()) > allowed).sum())
    figures = {
        "shells_outside": outside, "shells_outside_rigid": beyond_rigid, "shells": len(curve),
        "share_of_model": share[0], "share_of_model_error": share[1],
        "invented_motion_rms": motion, "real_motion_rms": own, "particles": len(images),
        "resolution": frequencies(images), "curves": {name: values.tolist() for name, values in curves.items()},
        "three_deviations": (_SIGMAS * scatter).tolist(),
    }  # fmt: skip
    table = pd.DataFrame({
        "shell": range(len(scatter)), "frequency_per_A": frequencies(images), "fsc_deformed": curves["deformed"],
        "fsc_rigid": curves["rigid"], "deviation": scatter,
    })  # fmt: skip
    return Control("noise-particles", verdict, text, plain(figures), table)
