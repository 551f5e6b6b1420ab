"""Control shuffled-latents: whether deformations permuted among particles improve the map as much.

The FSC of half-maps cannot decide this: both half-sets share poses, a mask and a rough idea of the motion. A map is
therefore judged by images of the other half-set, which trained neither its decoder nor the map. The deformation of each
image is inferred from a random half of its Fourier pixels. On the other half, the likelihood of the map moved by this
deformation is compared with that of the rigid map. If deformations were unrelated to their particles, a map with
permuted deformations would be as good. If the deformations of the judging images are permuted too, no gain should
remain: one that does is an offset shared by all particles.
"""

import numpy as np
import pandas as pd
import scipy.stats
import torch

from dynamight_core.analysis.controls.maps import ControlImages, maps_of, misfits, permuted, wiener
from dynamight_core.analysis.controls.result import Control
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.fsc import soft_mask
from dynamight_core.reporter import Reporter

# Images of the other half-set that judge a map, and standard errors required for a verdict.
_JUDGES, _SIGMAS = 500, 3.0
# The gain is not from the motion if the loss by permuting, error included, is below this fraction of the gain. With few
# noisy particles, even true motion can lose less than half of it, with an error as large.
_MAX_LOSS = 0.25


@torch.no_grad()
def shuffled_latents(images: ControlImages, options: ControlOptions, reporter: Reporter) -> Control | None:
    """Compare maps with own, permuted and no deformations; return None if no mode of motion is supported.

    Parameters
    ----------
    images
        of both half-sets.
    options
        of the control.
    reporter
        takes progress.
    """
    pixels = images.random_halves(options.seed)
    names = [f"permuted {draw + 1}" for draw in range(options.permutations)]
    volumes: dict[str, list[torch.Tensor]] = {name: [] for name in ("own", "rigid", *names)}
    parts: dict[str, list[torch.Tensor]] = {"own": []}
    parts |= {f"{kind} {name}": [] for kind in ("map", "all") for name in names}
    halves = images.deformations(options)
    if halves is None:
        return None
    summed, indices = [], [images.chosen(half, len(images), options.seed) for half in (1, 2)]
    for half, deformations in enumerate(halves, 1):
        progress = reporter.step(f"map of half-set {half}")
        summed.append(deformations.reconstruct(images.data(half), indices[half - 1], progress))
        for name, volume in zip(("own", "rigid"), maps_of(summed[-1]), strict=True):
            volumes[name].append(volume)
    first, second = volumes["rigid"]
    fsc = fourier_shell_correlation(first, second, soft_mask((first + second) / 2, images.pixel_size))
    generator = torch.Generator().manual_seed(options.seed)
    judged = []
    for half, deformations in enumerate(halves, 1):
        judges = images.chosen(3 - half, _JUDGES, options.seed + half)
        judged.append(judges)
        progress = reporter.step(f"latents with the decoder of half-set {half}")
        split = deformations.split(images, judges, pixels, progress)
        # Pixels that determined the deformation must not judge it.
        data = images.data(half, ~pixels)
        region = deformations.region
        rigid = misfits(data, judges, wiener(volumes["rigid"][half - 1], fsc), region, None)
        moved = deformations.with_coordinates(split)
        parts["own"].append(rigid - misfits(data, judges, wiener(volumes["own"][half - 1], fsc), region, moved))
        for name in names:
            others = permuted(deformations.modes.coordinates, indices[half - 1], generator)
            modes, progress = deformations.with_coordinates(others), reporter.step(f"map of half-set {half}, {name}")
            own = summed[half - 1]
            mixed = deformations.reconstruct(images.data(half), indices[half - 1], progress, modes, own)
            volumes[name].append(maps_of(mixed)[0])
            volume = wiener(volumes[name][-1], fsc)
            parts[f"map {name}"].append(rigid - misfits(data, judges, volume, region, moved))
            wrong = deformations.with_coordinates(permuted(split, judges, generator))
            parts[f"all {name}"].append(rigid - misfits(data, judges, volume, region, wrong))
    gains = {name: torch.cat(values).double().numpy() for name, values in parts.items()}
    region = images.moving_mask()
    curves = {n: fourier_shell_correlation(pair[0], pair[1], region) for n, pair in volumes.items()}
    return judge_shuffled(gains, curves, torch.cat(judged), images, options)


def judge_shuffled(gains: dict, curves: dict, judged: torch.Tensor, images: ControlImages, options) -> Control:
    """Return the verdict from gains over the rigid map, in nats per image, of n judging particles.

    Parameters
    ----------
    gains
        (n,) each: "own"; for every draw "map ..." (map permuted) and "all ..." (judging images permuted too).
    curves
        FSC of the half-maps in the moving part, by map.
    judged
        (n,) indices of the judging particles.
    images, options
        of the control.
    """
    own, of_map, of_all = (
        images.per_image(np.stack([v for name, v in gains.items() if name.startswith(kind)]), judged)
        for kind in ("own", "map", "all")
    )
    own, halves = own[0], images.per_image(images.halves[judged].numpy().astype(float), judged)
    root = len(own) ** 0.5
    gain, error = own.mean(), own.std(ddof=1) / root
    # If deformations were unrelated to particles, the map would be one more draw. The scatter between draws, this one
    # included, therefore adds to the scatter between judging particles.
    above, above_error = mean_over_draws(own - of_map, halves, 1 + 1 / len(of_map))
    null, null_error = mean_over_draws(of_all, halves, 1 / len(of_all))
    numbers = (
        f"The motion-corrected map explains {gain:.2f} +- {error:.2f} nats more per image than the rigid map "
        f"({len(own)} images of the other half-set). Permuting the deformations of the map loses {above:.2f} +- "
        f"{above_error:.2f} of these, and permuting those of the images too loses {gain - null:.2f}."
    )
    improves, better = gain > _SIGMAS * error, above > _SIGMAS * above_error
    if improves and better and null <= _SIGMAS * null_error:
        verdict, text = "from the motion", f"The improvement comes from the motion of the particles. {numbers}"
    elif improves and better:
        verdict = "partly from the motion"
        text = (
            f"Only part of the improvement comes from the motion of the particles. {numbers} Permuted deformations "
            "improve the map too: look for an offset of the field or for differences in composition."
        )
    elif improves and above + _SIGMAS * above_error < _MAX_LOSS * gain:
        verdict = "not from the motion"
        text = f"The improvement does not come from the motion of the particles. {numbers}"
    elif gain < -_SIGMAS * error:
        verdict, text = "harms the map", f"The deformations make the map worse. {numbers}"
    elif gain < error:
        verdict, text = "no difference", f"The deformations do not change the map beyond the error. {numbers}"
    else:
        verdict = "undecided"
        text = f"These particles do not decide whether the improvement comes from their motion. {numbers}"
    resolved = (curves["rigid"][1:] > 0.143).int().cumprod(0).bool()
    means = {name: float(curve[1:][resolved].mean()) for name, curve in curves.items()}
    mixed = [value for name, value in means.items() if name.startswith("permuted")]
    text += (
        f" Mean FSC of the half-maps in the moving part (resolved shells): {means['own']:.3f} with own, "
        f"{np.mean(mixed):.3f} with permuted and {means['rigid']:.3f} without deformations."
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
        "resolution": images.frequencies,
        "curves": {name: curve.tolist() for name, curve in curves.items()},
    }
    rows = images.rows[judged].numpy() + 1
    table = pd.DataFrame({"particle": rows} | {f"gain_{name.replace(' ', '_')}": v for name, v in gains.items()})
    return Control("shuffled-latents", verdict, text, figures, table)


def mean_over_draws(values: np.ndarray, halves: np.ndarray, weight: float) -> tuple[float, float]:
    """Return mean and standard error of values of particles, where the draws of the half-sets are independent.

    Parameters
    ----------
    values
        (draws, particles).
    halves
        (particles,) half-set of each.
    weight
        of the variance between draws in the variance of the mean.
    """
    n = len(values)
    between = 0.0
    for half in np.unique(halves):
        mine = halves == half
        between += mine.mean() ** 2 * values[:, mine].mean(1).var(ddof=1) * weight
    # A variance from few draws is often too small: by Student's t, widen it to the same rarity as `_SIGMAS`.
    degrees = len(np.unique(halves)) * (n - 1)
    widening = scipy.stats.t.isf(scipy.stats.norm.sf(_SIGMAS), degrees) / _SIGMAS
    within = values.mean(0).var(ddof=1) / values.shape[1]
    return float(values.mean()), float(np.sqrt(within + widening**2 * between))
