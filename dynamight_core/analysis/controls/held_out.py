"""Control held-out: the map of the held-out particles, with and without deformation.

The latents of validation particles are inferred with the frozen decoders of both half-sets, from a random half of their
Fourier pixels. The map is made from the other half. The halves are then exchanged: no pixel influences how it is moved.
The reference is the rigid map of the other half-set, which no deformation touched. Density that deformation moves to
its correct position raises the overlap with it; density that is moved wrongly lowers it.
"""

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.controls.maps import ControlImages, maps_of, overlaps, permuted, wiener
from dynamight_core.analysis.controls.result import Control
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reporter import Reporter

_SIGMAS = 3.0


@torch.no_grad()
def held_out(
    images: ControlImages, options: ControlOptions, reporter: Reporter
) -> tuple[Control, dict[str, torch.Tensor]] | None:
    """Compare maps of the validation particles with the other half-set's rigid map; None without supported motion.

    Parameters
    ----------
    images
        of both half-sets, with their validation particles.
    options
        of the control.
    reporter
        takes progress.

    Returns
    -------
    tuple
        the control, and the (box, box, box) maps "deformed" and "rigid" of the validation particles.
    """
    halves = images.deformations(options)
    if halves is None:
        return None
    indices = torch.where(images.validation)[0]
    references = []
    for half, deformations in enumerate(halves, 1):
        # Without its validation particles, which are in the map to compare.
        trained = images.chosen(half, len(images), options.seed, validation=False)
        summed = deformations.reconstruct(images.data(half), trained, reporter.step(f"map of half-set {half}"))
        references.append(dict(zip(("deformed", "rigid"), maps_of(summed), strict=True)))
    mask = images.moving_mask()
    between = fourier_shell_correlation(references[0]["rigid"], references[1]["rigid"], mask)
    pixels = images.random_halves(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    zero = torch.zeros((), device=images.device)
    gains = nulls = torch.zeros(())
    volumes = {"deformed": zero, "rigid": zero}
    curves = volumes | {"deformed_to_rigid": zero}
    for half, deformations in enumerate(halves, 1):
        reference = references[2 - half]
        parts = []
        for used in (pixels, ~pixels):
            progress = reporter.step(f"latents with the decoder of half-set {half}")
            coordinates = deformations.split(images, indices, used, progress)
            parts.append((images.data(half, ~used), deformations.with_coordinates(coordinates)))
        first, second = (deformations.reconstruct(data, indices, modes=modes) for data, modes in parts)
        summed = first + second
        target = _overlap_target(summed, wiener(reference["rigid"], between) * mask.square())
        region = deformations.region
        rigid = torch.stack([overlaps(data, indices, target, region, None) for data, _ in parts]).sum(0)
        own = torch.stack([overlaps(data, indices, target, region, modes) for data, modes in parts]).sum(0)
        mixed = torch.zeros(())
        for _ in range(options.permutations):
            for data, modes in parts:
                others = deformations.with_coordinates(permuted(modes.coordinates, indices, generator))
                mixed = mixed + overlaps(data, indices, target, region, others) / options.permutations
        scale = 2 * rigid.mean()
        gains, nulls = gains + (own - rigid) / scale, nulls + (mixed - rigid) / scale
        for name, volume in zip(volumes, maps_of(summed), strict=True):
            volumes[name] = volumes[name] + volume / 2
            curves[name] = curves[name] + fourier_shell_correlation(volume, reference[name], mask) / 2
            if name == "deformed":
                to_rigid = fourier_shell_correlation(volume, reference["rigid"], mask)
                curves["deformed_to_rigid"] = curves["deformed_to_rigid"] + to_rigid / 2
    return _verdict(gains.double().numpy(), nulls.double().numpy(), curves, indices, images), volumes


def _overlap_target(summed: HalfReconstruction, density: torch.Tensor) -> torch.Tensor:
    """Return the volume whose product with backprojections is the product of their map with a density.

    The filter that makes a map from backprojections is symmetric, so it can be applied to the density instead.
    """
    return summed.filtered(density, MIN_REGULARISATION)


def _verdict(gains, nulls, curves, indices, images) -> Control:
    table = pd.DataFrame({"particle": images.rows[indices].numpy() + 1, "gain": gains, "permuted_gain": nulls})
    gains, nulls = images.per_image(np.stack([gains, nulls]), indices)
    root = len(gains) ** 0.5
    gain, error = gains.mean(), gains.std(ddof=1) / root
    null, null_error = nulls.mean(), nulls.std(ddof=1) / root
    above, above_error = (gains - nulls).mean(), (gains - nulls).std(ddof=1) / root
    numbers = (
        f"In the moving part, overlap with the rigid map of the other half-set changes by {100 * gain:+.1f} +- "
        f"{100 * error:.1f} % with deformation. With permuted deformations it changes by {100 * null:+.1f} +- "
        f"{100 * null_error:.1f} % ({len(gains)} particles)."
    )
    if gain > _SIGMAS * error and above > _SIGMAS * above_error:
        verdict = "improves the map"
        text = f"Deformation improves the map of held-out particles. {numbers}"
    elif gain < -_SIGMAS * error:
        verdict, text = "harms the map", f"Deformation harms the map of held-out particles. {numbers}"
    elif gain < error:
        verdict = "no difference"
        text = f"Deformation does not change the map of held-out particles beyond the error. {numbers}"
    else:
        verdict = "undecided"
        text = (
            f"These particles do not decide whether deformation improves their map. {numbers} Hold out more particles "
            "(--validation-fraction)."
        )
    curves = {name: curve.cpu() for name, curve in curves.items()}
    figures = {
        "gain": gain,
        "gain_error": error,
        "permuted_gain": null,
        "permuted_gain_error": null_error,
        "own_above_permuted": above,
        "own_above_permuted_error": above_error,
        "particles": len(gains),
        "fsc_deformed": float(curves["deformed"][1:].mean()),
        "fsc_rigid": float(curves["rigid"][1:].mean()),
        "resolution": images.frequencies,
        "curves": {name: curve.tolist() for name, curve in curves.items()},
    }
    return Control("held-out", verdict, text, figures, table)
