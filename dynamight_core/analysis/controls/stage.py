"""The stage ``dynamight control``: run a control for model bias and write its verdict."""

import torch

from dynamight_core.analysis.controls.held_out import held_out
from dynamight_core.analysis.controls.maps import ControlImages, reason_for_no_motion
from dynamight_core.analysis.controls.noise import noise_particles
from dynamight_core.analysis.controls.result import Control, write_control
from dynamight_core.analysis.controls.shuffled import shuffled_latents
from dynamight_core.analysis.controls.wrong_model import wrong_model_control
from dynamight_core.devices import choose_device
from dynamight_core.errors import InputError
from dynamight_core.files import header_origin, write_map
from dynamight_core.groups import world
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.judging.bias import is_joint, record_model_bias
from dynamight_core.judging.conclusion import record_conclusion
from dynamight_core.judging.evidence import controls_folder
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.checks import check_run
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, record_stage, whole_set

# Particles of a half-set needed for a map, and validation particles needed for statistics.
_MIN_PARTICLES, _MIN_VALIDATION = 100, 40


@whole_set("control")
def control_run(
    run: Run, options: ControlOptions, reporter: Reporter = PRINT, images: ControlImages | None = None
) -> Control:
    """Run a control and write its verdict to RUN/analysis/controls.

    Parameters
    ----------
    run
        finished and summarised.
    options
        of the control.
    reporter
        takes lines for the user, and progress.
    images
        of `control_images` with the same options, if they are read already.

    Raises
    ------
    InputError
        if an option cannot be used, or the run has too few particles for the control.
    """
    check_run(run)
    reason = reason_against(run, options)
    if reason is not None:
        raise InputError(reason)
    control: Control | None
    volumes: dict[str, torch.Tensor] = {}
    if options.kind == "wrong-model":
        device = choose_device(options.device)
        rows = _rows(run, options)
        control, volumes = world().once(lambda: wrong_model_control(run, options, rows, device, reporter))
    else:
        images = control_images(run, options, reporter) if images is None else images
        if options.kind == "shuffled-latents":
            control = shuffled_latents(images, options, reporter)
        elif options.kind == "noise-particles":
            control = noise_particles(images, options, reporter)
        else:
            control, volumes = held_out(images, options, reporter) or (None, {})
    if control is None:
        control = _no_motion(run, options)
    control.options = vars(options).copy()
    world().once(lambda: _write(run, options, control, volumes, reporter))
    return control


def _write(
    run: Run, options: ControlOptions, control: Control, volumes: dict[str, torch.Tensor], reporter: Reporter
) -> None:
    """Write a control and its maps, and say what was found."""
    written = write_control(run, control)
    _write_maps(run, control.kind, volumes)
    record_stage(run, f"control {options.kind}", options)
    record_model_bias(run)
    reporter.say(control.sentence)
    files = " and ".join(map(str, written))
    reporter.say(f"Written: {files}. Run dynamight analyse {run.path} to see the control in the report.")
    record_conclusion(run, reporter)


def control_images(run: Run, options: ControlOptions, reporter: Reporter) -> ControlImages:
    """Return the particles of a control with their images, which controls of the same options can share."""
    device = choose_device(options.device)
    return ControlImages(run, _rows(run, options), device, reporter.step("reading images"))


def reason_against(run: Run, options: ControlOptions) -> str | None:
    """Return why a control cannot be run, a sentence without its full stop; None if it can."""
    smallest = min(int((run.halves == half).sum()) for half in (1, 2))
    if smallest < _MIN_PARTICLES:
        return f"{run.path} has {smallest} particles in a half-set; a control needs at least {_MIN_PARTICLES}"
    if options.kind == "shuffled-latents" and is_joint(run):
        return (
            f"{run.path} has one model of both half-sets, which no particles of the other half-set can judge; train "
            "with --halves independent"
        )
    held_out_particles = int(run.validation.sum())
    if options.kind == "held-out" and held_out_particles < _MIN_VALIDATION:
        return (
            f"{run.path} has {held_out_particles} held-out particles, too few for a map; train with a larger "
            f"--validation-fraction (at least {_MIN_VALIDATION} particles)"
        )
    if options.kind == "held-out" and run.config.train.validation_trains_encoders:
        return (
            f"the validation particles of {run.path} trained its encoders; train without --validation-trains-encoders"
        )
    return None


def _rows(run: Run, options: ControlOptions) -> torch.Tensor:
    """Return rows for a control: up to --particles of each half-set, and as many validation particles."""
    generator = torch.Generator().manual_seed(options.seed)
    chosen = []
    for half in (1, 2):
        for validation in (False, True):
            rows = torch.where((run.halves == half) & (run.validation == validation))[0]
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[: options.particles]])
    return torch.cat(chosen).sort().values


def _no_motion(run: Run, options: ControlOptions) -> Control:
    text = f"{reason_for_no_motion(run, options)}. The map is the rigid one: there is no improvement to explain."
    if options.shrink:
        text += " Use --no-shrink to judge the motion as it was learned."
    return Control(options.kind, "no motion", text)


def _write_maps(run: Run, kind: str, volumes: dict[str, torch.Tensor]) -> None:
    """Write the maps of a control, in the box of the particles, to RUN/analysis/controls/KIND."""
    folder = controls_folder(run) / kind
    origin = header_origin(run.config.inputs.map)
    for name, volume in volumes.items():
        resampled = resample_volume(volume.cpu(), run.particles.box)
        write_map(folder / f"{name}.mrc", resampled.numpy(), run.particles.pixel_size, origin)
