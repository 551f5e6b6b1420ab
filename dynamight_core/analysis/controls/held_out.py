"""The map of particles that trained neither decoder, with and without their deformations.

Every validation particle is given a latent under the frozen decoders of both halves, from a random half of its Fourier
pixels; the map is made of the other half of its pixels, and the same with the two halves exchanged: no pixel of the map
had a say in how it was moved. The reference is the other half's rigid map, which no deformation ever touched: density
that deformation puts where it belongs raises the overlap with it, density that is moved about lowers it.
"""

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.controls.maps import (
    ControlImages,
    HalfDeformations,
    frequencies,
    maps_of,
    moving_mask,
    overlaps,
    per_image,
    permuted,
    pixel_shares,
    plain,
    reconstruct,
    split_coordinates,
    wiener,
)
from dynamight_core.analysis.controls.result import Control
from dynamight_core.imaging.backprojection import denominator_floor, filter_volume
from dynamight_core.imaging.fourier import expand_shells
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.fsc import fourier_shell_correlation
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reporter import Reporter

_SIGMAS = 3.0


@torch.no_grad()
def held_out(
    images: ControlImages, options: ControlOptions, reporter: Reporter
) -> tuple[Control, dict[str, torch.Tensor]] | None:
    """Make maps of the validation particles and compare them with the other half's; None if nothing moves.

    Parameters
    ----------
    images
        of both halves, the validation particles among them.
    options
        of the control.
    reporter
        takes progress.

    Returns
    -------
    tuple
        the control, and the (box, box, box) maps "deformed" and "rigid" of the validation particles.
    """
    halves = [HalfDeformations.of(images, half, options) for half in (1, 2)]
    if not any(len(deformations.modes) for deformations in halves):
        return None
    places = torch.where(images.validation)[0]
    references = []
    for half, deformations in enumerate(halves, 1):
        # Its own validation particles are in the map that it is compared with.
        trained = images.chosen(half, len(images), options.seed, validation=False)
        summed = reconstruct(
            images.data(half),
            trained,
            deformations.modes,
            deformations.region,
            progress=reporter.step(f"map of half {half}"),
        )
        references.append(dict(zip(("deformed", "rigid"), maps_of(summed), strict=True)))
    mask = moving_mask(images.run, images.box, images.pixel_size).to(images.device)
    between = fourier_shell_correlation(*(reference["rigid"] for reference in references), mask)
    share = pixel_shares(images, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    gains, nulls = 0.0, 0.0
    volumes, curves = {"deformed": 0.0, "rigid": 0.0}, {"deformed": 0.0, "rigid": 0.0, "deformed_to_rigid": 0.0}
    for half, deformations in enumerate(halves, 1):
        reference = references[2 - half]
        parts = [
            (
                images.data(half, ~used),
                deformations.with_coordinates(
                    split_coordinates(
                        images,
                        deformations,
                        places,
                        used,
                        reporter.step(f"latents under half {half}"),
                    )
                ),
            )
            for used in (share, ~share)
        ]
        summed = _added([reconstruct(data, places, modes, deformations.region) for data, modes in parts])
        wanted = _wanted(summed, wiener(reference["rigid"], between) * mask.square())
        region = deformations.region
        rigid = sum(overlaps(data, places, wanted, region, None) for data, _ in parts)
        own = sum(overlaps(data, places, wanted, region, modes) for data, modes in parts)
        mixed = 0.0
        for _ in range(options.permutations):
            for data, modes in parts:
                others = deformations.with_coordinates(permuted(modes.coordinates, places, generator))
                mixed = mixed + overlaps(data, places, wanted, region, others) / options.permutations
        scale = 2 * rigid.mean()
        gains, nulls = gains + (own - rigid) / scale, nulls + (mixed - rigid) / scale
        for name, volume in zip(volumes, maps_of(summed), strict=True):
            volumes[name] = volumes[name] + volume / 2
            curves[name] = curves[name] + fourier_shell_correlation(volume, reference[name], mask) / 2
            if name == "deformed":
                across = fourier_shell_correlation(volume, reference["rigid"], mask)
                curves["deformed_to_rigid"] = curves["deformed_to_rigid"] + across / 2
    return _judged(gains.double().numpy(), nulls.double().numpy(), curves, places, images), volumes


def _added(parts: list[HalfReconstruction]) -> HalfReconstruction:
    """Return the sums of the same particles over disjoint Fourier pixels."""
    first, second = parts
    return HalfReconstruction(
        first.data,
        first.indices,
        first.modes,
        first.region,
        first.sums + second.sums,
        first.denominator + second.denominator,
    )


def _wanted(summed: HalfReconstruction, density: torch.Tensor) -> torch.Tensor:
    """Return what to multiply backprojections by for the product of their map with a density: filters are symmetric."""
    box, shares = len(density), torch.full((density.shape[0] // 2 + 1,), MIN_REGULARISATION, device=density.device)
    floor = expand_shells(denominator_floor(summed.denominator, shares), box, 3)
    return filter_volume(density, (1 + MIN_REGULARISATION) / (summed.denominator + floor))


def _judged(gains, nulls, curves, places, images) -> Control:
    table = pd.DataFrame({"particle": images.rows[places].numpy() + 1, "gain": gains, "permuted_gain": nulls})
    gains, nulls = per_image(np.stack([gains, nulls]), images, places)
    root = len(gains) ** 0.5
    gain, error = gains.mean(), gains.std(ddof=1) / root
    null, null_error = nulls.mean(), nulls.std(ddof=1) / root
    above, above_error = (gains - nulls).mean(), (gains - nulls).std(ddof=1) / root
    numbers = (
        f"with it, {len(gains)} particles show {100 * gain:+.1f} +- {100 * error:.1f} % of the moving part's density "
        f"against without, and with permuted deformations {100 * null:+.1f} +- {100 * null_error:.1f} % (overlap with "
        "the rigid map of the other half)"
    )
    if gain > _SIGMAS * error and above > _SIGMAS * above_error:
        verdict = "improves the map"
        text = f"Deformation improves the map of particles that trained nothing: {numbers}."
    elif gain < -_SIGMAS * error:
        verdict = "harms the map"
        text = f"Deformation harms the map of particles that trained nothing: {numbers}. Use the rigid map."
    elif gain < error:
        verdict = "does not improve the map"
        text = f"Deformation does not improve the map of particles that trained nothing: {numbers}. Use the rigid map."
    else:
        verdict = "undecided"
        text = (
            f"These particles do not decide whether deformation improves their map: {numbers}. Keep more from training "
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
        "resolution": frequencies(images),
        "curves": {name: curve.tolist() for name, curve in curves.items()},
    }
    return Control("held-out", verdict, text, plain(figures), table)
