"""The stage ``dynamight reconstruct`` with what judges it: the maps, the controls that cost little, the conclusion."""

from dynamight_core.analysis.controls.stage import control_images, control_run, reason_against
from dynamight_core.groups import world
from dynamight_core.judging.conclusion import record_conclusion
from dynamight_core.lock import writes_run
from dynamight_core.options import ControlOptions, ReconstructOptions
from dynamight_core.reconstruction.deformation import supported
from dynamight_core.reconstruction.stage import Reconstruction, reconstruct_run
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

_KINDS = ("shuffled-latents", "held-out")
# Particles of each half-set, which bounds the time of the controls.
_PARTICLES = 5000


@writes_run
def reconstruct_judged(run: Run, options: ReconstructOptions, reporter: Reporter = PRINT) -> Reconstruction:
    """Reconstruct as `reconstruct_run` does, run the controls of `options.controls`, and tell the conclusion.

    Parameters
    ----------
    run
        finished and summarised.
    options
        of the reconstruction.
    reporter
        receives messages and progress.

    Raises
    ------
    InputError
        if an option, a mask or the images cannot be used.
    """
    result = reconstruct_run(run, options, reporter)
    # Without motion, there is nothing to control.
    if options.controls and (supported(run) or not options.shrink):
        _controls(run, options, reporter)
    world().once(lambda: record_conclusion(run, reporter))
    return result


def _controls(run: Run, options: ReconstructOptions, reporter: Reporter) -> None:
    images = None
    for kind in _KINDS:
        chosen = ControlOptions(
            kind, _PARTICLES, shrink=options.shrink, seed=options.seed, device=options.device, threads=options.threads
        )
        reason = reason_against(run, chosen)
        if reason is not None:
            reporter.note(f"the control {kind} was not run: {reason}")
            continue
        if images is None:
            images = control_images(run, chosen, reporter)
        # The conclusion tells what they found, once.
        control = control_run(run, chosen, Reporter(lambda line: None, reporter.progress), images)
        reporter.say(f"Control {kind}: {control.verdict} (details: {run.path}/analysis/controls/{kind}.json).")
