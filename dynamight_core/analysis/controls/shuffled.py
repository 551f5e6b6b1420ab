"""Deformations permuted among particles: a map that still improves was not improved by motion.

The half-maps' FSC cannot decide this. Both halves share poses, a mask and an idea of how the molecule moves, and may
agree better for reasons that have nothing to do with the motion of each particle. So maps are judged on images of the
other half, that trained neither the decoder nor the map: each image's deformation is inferred from a random half of
its Fourier pixels, and what the map moved by it explains of the other half is compared with what the rigid map at rest
does. If the deformations say nothing of the particles that the map was made of, a map of permuted ones is as good. And
where the judges' deformations are permuted, too, nothing should be left but harm: what is gained even then is an offset
that all particles share.
"""

import numpy as np
import pandas as pd
import scipy.stats
import torch

from dynamight_core.analysis.controls.maps import (
    ControlImages,
    HalfDeformations,
    frequencies,
    maps_of,
    misfits,
    moving_mask,
    per_image,
    permuted,
    pixel_shares,
    plain,
    reconstruct,
    split_coordinates,
    wiener,
)
from dynamight_core.analysis.controls.result import Control
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.fsc import fourier_shell_correlation, soft_mask
from dynamight_core.reporter import Reporter

# Particles of the other half that a map is judged on, and standard errors that a verdict asks for.
_JUDGES, _SIGMAS = 500, 3.0
# Share of the gain: only if what is lost by permuting is below this, its error included, does the gain not come from
# the motion. Where particles are few and noisy, real motion may lose less than half of it, with an error as large.
_LITTLE = 0.25


@torch.no_grad()
def shuffled_latents(images: ControlImages, options: ControlOptions, reporter: Reporter) -> Control | None:
    """Compare maps with own, permuted and no deformations; None if no mode of motion is supported.

    Parameters
    ----------
    images
        of both halves.
    options
        of the control.
    reporter
        takes progress.
    """
    share = pixel_shares(images, options.seed)
    names = [f"permuted {turn + 1}" for turn in range(options.permutations)]
    volumes = {name: [] for name in ("own", "rigid", *names)}
    gains = {name: [] for name in ("own", *(f"map {name}" for name in names), *(f"all {name}" for name in names))}
    halves = [HalfDeformations.of(images, half, options) for half in (1, 2)]
    if not any(len(deformations.modes) for deformations in halves):
        return None
    summed, places = [], [images.chosen(half, len(images), options.seed) for half in (1, 2)]
    for half, deformations in enumerate(halves, 1):
        own = deformations.modes
        summed.append(
            reconstruct(
                images.data(half),
                places[half - 1],
                own,
                deformations.region,
                progress=reporter.step(f"map of half {half}"),
            )
        )
        for name, volume in zip(("own", "rigid"), maps_of(summed[-1]), strict=True):
            volumes[name].append(volume)
    whole = soft_mask(sum(volumes["rigid"]) / 2, images.pixel_size)
    fsc = fourier_shell_correlation(*volumes["rigid"], whole)
    generator = torch.Generator().manual_seed(options.seed)
    judged = []
    for half, deformations in enumerate(halves, 1):
        judges = images.chosen(3 - half, _JUDGES, options.seed + half)
        judged.append(judges)
        split = split_coordinates(images, deformations, judges, share, reporter.step(f"latents under half {half}"))
        # Pixels that chose the deformation do not judge it.
        data = images.data(half, ~share)
        region = deformations.region
        rigid = misfits(data, judges, wiener(volumes["rigid"][half - 1], fsc), region, None)
        moved = deformations.with_coordinates(split)
        gains["own"].append(rigid - misfits(data, judges, wiener(volumes["own"][half - 1], fsc), region, moved))
        for name in names:
            mixed = permuted(deformations.modes.coordinates, places[half - 1], generator)
            others = reconstruct(
                images.data(half),
                places[half - 1],
                deformations.with_coordinates(mixed),
                region,
                summed[half - 1].denominator,
                reporter.step(f"map of half {half}, {name}"),
            )
            volumes[name].append(maps_of(others)[0])
            volume = wiener(volumes[name][-1], fsc)
            gains[f"map {name}"].append(rigid - misfits(data, judges, volume, region, moved))
            mixed = deformations.with_coordinates(permuted(split, judges, generator))
            gains[f"all {name}"].append(rigid - misfits(data, judges, volume, region, mixed))
    gains = {name: torch.cat(parts).double().numpy() for name, parts in gains.items()}
    region = moving_mask(images.run, images.box, images.pixel_size)
    curves = {name: fourier_shell_correlation(*pair, region.to(pair[0])) for name, pair in volumes.items()}
    return judge_shuffled(gains, curves, torch.cat(judged), images, options)


def judge_shuffled(gains: dict, curves: dict, judged: torch.Tensor, images: ControlImages, options) -> Control:
    """Return the verdict on the gains over the rigid map, nats an image, of (n,) judging particles.

    Parameters
    ----------
    gains
        (n,) each: "own", and for every draw "map ...", the map alone permuted, and "all ...", judges as well.
    curves
        FSC of the half-maps in the moving part, by map.
    judged
        (n,) which of the images' particles.
    images, options
        of the control.
    """
    own, of_map, of_all = (
        per_image(np.stack([v for name, v in gains.items() if name.startswith(kind)]), images, judged)
        for kind in ("own", "map", "all")
    )
    own, halves = own[0], per_image(images.halves[judged].numpy().astype(float), images, judged)
    root = len(own) ** 0.5
    gain, error = own.mean(), own.std(ddof=1) / root
    # Were the deformations anybody's, the map would be one more draw: what differs between draws, its own included,
    # adds to what differs between the particles that judge.
    above, above_error = mean_over_draws(own - of_map, halves, 1 + 1 / len(of_map))
    null, null_error = mean_over_draws(of_all, halves, 1 / len(of_all))
    numbers = (
        f"on {len(own)} images of the other halves, the map with motion corrected explains {gain:.2f} +- "
        f"{error:.2f} nats more of an image than the rigid map; {above:.2f} +- {above_error:.2f} of them are lost if "
        f"the map is made with permuted deformations, and {gain - null:.2f} if images are also moved by those of others"
    )
    improves, better = gain > _SIGMAS * error, above > _SIGMAS * above_error
    if improves and better and null <= _SIGMAS * null_error:
        verdict, text = "from the motion", f"The improvement comes from the motion: {numbers}."
    elif improves and better:
        verdict = "partly from the motion"
        text = (
            f"Only a part of the improvement comes from the motion: {numbers}. What permuted deformations improve is "
            "not motion: look for an offset of the field or for differences in composition."
        )
    elif improves and above + _SIGMAS * above_error < _LITTLE * gain:
        verdict = "not from the motion"
        text = f"The improvement does not come from the motion of the particles: {numbers}. Use the rigid map."
    elif gain < error:
        verdict, text = "no improvement", f"The deformations do not improve the map: {numbers}. Use the rigid map."
    else:
        verdict = "undecided"
        text = f"These particles do not decide whether it is their motion that improves the map: {numbers}."
    resolved = (curves["rigid"][1:] > 0.143).int().cumprod(0).bool()
    means = {name: float(curve[1:][resolved].mean()) for name, curve in curves.items()}
    mixed = [value for name, value in means.items() if name.startswith("permuted")]
    text += (
        f" In the moving part the half-maps correlate by {means['own']:.3f} with own, {np.mean(mixed):.3f} with "
        f"permuted and {means['rigid']:.3f} without deformations (mean FSC over resolved shells)."
    )
    figures = {
        "gain": gain,
        "gain_error": error,
        "permuted_map_gain": gain - above,
        "permuted_map_gain_error": above_error,
        "permuted_gain": null,
        "permuted_gain_error": null_error,
        "particles": len(own),
        "fsc_own": means["own"],
        "fsc_permuted": float(np.mean(mixed)),
        "fsc_rigid": means["rigid"],
        "resolution": frequencies(images),
        "curves": {name: curve.tolist() for name, curve in curves.items()},
    }
    rows = images.rows[judged].numpy() + 1
    table = pd.DataFrame({"particle": rows} | {f"gain_{name.replace(' ', '_')}": v for name, v in gains.items()})
    return Control("shuffled-latents", verdict, text, plain(figures), table)


def mean_over_draws(values: np.ndarray, halves: np.ndarray, share: float) -> tuple[float, float]:
    """Return mean and standard error of values of particles of two halves, whose draws are independent.

    Parameters
    ----------
    values
        (draws, particles).
    halves
        (particles,) of each.
    share
        of the variance between draws that the mean has.
    """
    n = len(values)
    between = 0.0
    for half in np.unique(halves):
        mine = halves == half
        between += mine.mean() ** 2 * values[:, mine].mean(1).var(ddof=1) * share
    # A variance from few draws is often too small: so many of its errors are as rare as three of a known one's.
    degrees = len(np.unique(halves)) * (n - 1)
    widening = scipy.stats.t.isf(scipy.stats.norm.sf(_SIGMAS), degrees) / _SIGMAS
    within = values.mean(0).var(ddof=1) / values.shape[1]
    return float(values.mean()), float(np.sqrt(within + widening**2 * between))
