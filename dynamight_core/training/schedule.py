"""Which kind of epoch comes when."""

from dataclasses import dataclass

from dynamight_core.options import TrainOptions


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
        whether latents are inferred before it, and from what: "no", "linear" (motions to first order), "encoder" or
        "again".
    update_reference
        whether the reference is moved before it.
    refit
        whether the Gaussians are filled anew into the half's own deformed map before it.
    finer
        whether the filter of the images becomes finer before it.
    prepare
        whether noise and, where it is dynamic, lambda are estimated anew and the graph rebuilt before it.
    """

    kind: str
    sparse: float = 0.0
    infer: str = "no"
    update_reference: bool = False
    refit: bool = False
    finer: bool = False
    prepare: bool = True


def schedule(options: TrainOptions, continued: bool = False, fixed: bool = False) -> list[Epoch]:
    """Return the epochs of a training.

    Warm-up; then refinement epochs from linear motions, or from encoder epochs (the paper's way). After every
    `reference_interval` of those come `reference_epochs` in which only the Gaussians move, and every third of the
    interval the reference is moved (paper, Methods: 30, 5 and 10). The sparse-motion prior is ramped in over the
    second third of the epochs: from the first step on, it would freeze everything. Images are filtered more in the
    first two thirds than in the last: large motions are found by large details, and sharpened by small ones. Epochs
    in which only the Gaussians move see all frequencies; such are also the last ones.

    Parameters
    ----------
    options
        of the training.
    continued
        whether it starts from trained models: then nothing warms up, and latents are known.
    fixed
        whether the Gaussians are those of an atomic model: then the reference stays, and is not filled anew.
    """
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
        # Evenly over the refinement epochs; the last is followed by as many as two turns, to settle.
        rounds = options.epochs - first
        refit = (
            refined > 0
            and not fixed
            and any(refined == round(rounds * (k + 1) / (options.refits + 2)) for k in range(options.refits))
        )
        finer = not (continued or first) and options.motion_resolution is None and refined == round(2 * rounds / 3)
        epochs.append(Epoch(kind, ramp * options.sparse_motion, infer, update, refit, finer))
    if not fixed and (not first or options.motion_resolution):
        # What the filter hid while motion was learned is fitted with the motion as it is.
        epochs += alone
    return epochs
