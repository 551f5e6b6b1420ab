"""The order of epochs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamight_core.options import TrainOptions

# Learning rate of the decoder in the last refinement epoch, over that in the first.
_LAST_RATE = 0.3
# Refinement epochs over which refits and the following of large motions are spread, at most: what they change needs
# epochs afterwards, and a field that is followed late has already learned to do without turning.
_EARLY = 18


@dataclass(frozen=True)
class Epoch:
    """One epoch of the schedule.

    Parameters
    ----------
    kind
        "warm-up", "encoder", "refinement" or "reference".
    sparse
        weight of the sparse-motion prior, 1/A.
    infer
        whether latents are inferred before it, and how they are initialised: "no", "linear" (by the linear motion
        estimate), "encoder" or "again" (by the previous inference).
    update_reference
        whether the reference is moved before it.
    follow
        whether large motions are followed before it, unless they have been.
    parts
        "early" or "last" if rigid parts are tried before it, else None.
    refit
        whether the Gaussians are refitted before it.
    finer
        whether the low-pass filter of the images becomes finer before it.
    decoder_rate
        factor on the learning rate of the decoder.
    prepare
        whether noise and dynamic lambda are estimated again and the graph is rebuilt before it.
    """

    kind: str
    sparse: float = 0.0
    infer: str = "no"
    update_reference: bool = False
    follow: bool = False
    parts: str | None = None
    refit: bool = False
    finer: bool = False
    decoder_rate: float = 1.0
    prepare: bool = True


def schedule(
    options: TrainOptions, continued: bool = False, fixed: bool = False, before: Sequence[int] = ()
) -> list[Epoch]:
    """Return the epochs of a training.

    After the warm-up come refinement epochs, initialised by the linear motion estimate or by encoder epochs (paper).
    After every `reference_interval` epochs, only the Gaussians move for `reference_epochs`, and at every third of the
    interval the reference is moved (paper, Methods: 30, 5 and 10). The sparse-motion prior increases to its full value
    over the second third of the epochs, because from the first step it would suppress all motion. Refits of the
    Gaussians are spread over the first 18 refinement epochs, or over all if there are fewer. After a third of these,
    latents are good enough to follow large motions by; after half of them it is tried again where it failed. Rigid
    parts are tried after a fifth of them, and again after 0.6 of them, when large motions have been followed. In the
    last third of the training, the low-pass filter of the images is finer. Reference epochs use all frequencies; they
    are also the last epochs.

    Parameters
    ----------
    options
        of the training.
    continued
        whether it starts from trained models: there is no warm-up, and latents are known.
    fixed
        whether an atomic model defines the Gaussians: there are no reference updates and refits.
    before
        numbers of epochs that the run was trained for before it was given more: these come first, unchanged.
    """
    if before:
        earlier = replace(options, epochs=before[-1])
        return [*schedule(earlier, continued, fixed, before[:-1]), *_more(options, options.epochs - before[-1], fixed)]
    epochs = [] if continued else [Epoch("warm-up", prepare=False) for _ in range(options.warm_up_epochs)]
    alone = [Epoch("reference", prepare=step == 0) for step in range(options.reference_epochs)]
    encoder_epochs = 0 if continued else options.encoder_epochs
    first = min(encoder_epochs, options.epochs) if options.latent_refinement else options.epochs
    for number in range(options.epochs):
        if not fixed and number and number % options.reference_interval == 0:
            epochs += alone
        ramp = min(1.0, max(0.0, 3 * number / options.epochs - 1))
        refined = number - first
        infer = "no"
        if refined >= 0 and refined % options.inference_interval == 0:
            infer = "again" if refined or continued else "encoder" if first else "linear"
        kind = "refinement" if refined >= 0 else "encoder"
        update = not fixed and number > 0 and number % max(1, options.reference_interval // 3) == 0
        rounds = options.epochs - first
        early = min(rounds, _EARLY)
        refit = (
            refined > 0
            and not fixed
            and any(refined == round(early * (k + 1) / (options.refits + 2)) for k in range(options.refits))
        )
        follow = options.large_motions and not fixed and refined > 0 and refined in (round(early / 3), round(early / 2))
        parts = None
        if options.rigid_parts and not fixed and refined > 0:
            parts = {round(0.2 * early): "early", round(0.6 * early): "last"}.get(refined)
        finer = not (continued or first) and options.motion_resolution is None and refined == round(2 * rounds / 3)
        # Large steps first; later, small ones average over the noise of the batches.
        rate = 1.0 if kind == "encoder" else _LAST_RATE ** (refined / max(1, rounds - 1))
        epochs.append(Epoch(kind, ramp * options.sparse_motion, infer, update, follow, parts, refit, finer, rate))
    if not fixed and (not first or options.motion_resolution):
        # Fit the detail that the filter removed, with the final motion.
        epochs += alone
    return epochs


def _more(options: TrainOptions, number: int, fixed: bool) -> list[Epoch]:
    """Return epochs after a whole training: steps stay as small as at its end, priors at their full weight."""
    refined = options.latent_refinement
    epochs = [
        Epoch(
            "refinement" if refined else "encoder",
            options.sparse_motion,
            "again" if refined and done % options.inference_interval == 0 else "no",
            decoder_rate=_LAST_RATE if refined else 1.0,
        )
        for done in range(number)
    ]
    if not fixed and (refined or options.motion_resolution):
        epochs += [Epoch("reference", prepare=step == 0) for step in range(options.reference_epochs)]
    return epochs
