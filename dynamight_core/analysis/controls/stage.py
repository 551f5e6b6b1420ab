"""From a finished run to the verdict of a control experiment."""

import torch

from dynamight_core.analysis.controls.held_out import held_out
from dynamight_core.analysis.controls.maps import ControlImages, why_nothing_moves
from dynamight_core.analysis.controls.noise import noise_particles
from dynamight_core.analysis.controls.result import Control, controls_folder, write_control
from dynamight_core.analysis.controls.shuffled import shuffled_latents
from dynamight_core.analysis.controls.wrong_model import wrong_model_control
from dynamight_core.devices import choose_device
from dynamight_core.errors import InputError
from dynamight_core.files import header_origin, write_map
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.judging.bias import record_model_bias
from dynamight_core.options import ControlOptions
from dynamight_core.reconstruction.checks import check_run
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, record_stage

# Fewer particles of a half make no map, fewer validation particles no statistics.
_LEAST_PARTICLES, _LEAST_VALIDATION = 100, 40


def control_run(run: Run, options: ControlOptions, reporter: Reporter = PRINT) -> Control:
    """Make a control experiment of a run and write it to RUN/analysis/controls.

    Parameters
    ----------
    run
        finished and summarised.
    options
        of the control.
    reporter
        takes lines for the user, and progress.

    Raises
    ------
    InputError
        if an option cannot be used, or the run has too few particles for the control.
    """
    _check(run, options)
    rows, device, volumes = _rows(run, options), choose_device(options.device), {}
    if options.kind == "wrong-model":
        control, volumes = wrong_model_control(run, options, rows, device, reporter)
    else:
        images = ControlImages(run, rows, device, reporter.step("reading images"))
        if options.kind == "shuffled-latents":
            control = shuffled_latents(images, options, reporter)
        elif options.kind == "noise-particles":
            control = noise_particles(images, options, reporter)
        else:
            control, volumes = held_out(images, options, reporter) or (None, {})
    if control is None:
        control = _nothing_moves(run, options)
    control.options = vars(options).copy()
    written = write_control(run, control)
    _write_maps(run, control.kind, volumes)
    record_stage(run, f"control {options.kind}", options)
    record_model_bias(run)
    reporter.say(control.sentence)
    reporter.say(
        f"Written: {' and '.join(map(str, written))}; dynamight analyse {run.path} shows what the control found."
    )
    return control


def _check(run: Run, options: ControlOptions) -> None:
    check_run(run)
    smallest = min(int((run.halves == half).sum()) for half in (1, 2))
    if smallest < _LEAST_PARTICLES:
        raise InputError(
            f"{run.path} has {smallest} particles in a half; a control needs at least {_LEAST_PARTICLES} for a map"
        )
    kept = int(run.validation.sum())
    if options.kind == "held-out" and kept < _LEAST_VALIDATION:
        raise InputError(
            f"{run.path} kept {kept} particles from training, too few to make a map of; train with a larger "
            f"--validation-fraction, to keep at least {_LEAST_VALIDATION}"
        )
    if options.kind == "held-out" and run.config.train.validation_trains_encoders:
        raise InputError(
            f"the validation particles of {run.path} trained its encoders; train without --validation-trains-encoders"
        )


def _rows(run: Run, options: ControlOptions) -> torch.Tensor:
    """Return the rows of a control: at most so many of each half, and of validation particles as many beside."""
    generator = torch.Generator().manual_seed(options.seed)
    chosen = []
    for half in (1, 2):
        for kept in (False, True):
            rows = torch.where((run.halves == half) & (run.validation == kept))[0]
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[: options.particles]])
    return torch.cat(chosen).sort().values


def _nothing_moves(run: Run, options: ControlOptions) -> Control:
    why = why_nothing_moves(run, options)
    text = f"{why}, and the map is the rigid one: there is no improvement to explain, and nothing that lines up noise."
    if options.shrink:
        text += " --no-shrink judges the motion as it was learned."
    return Control(options.kind, "no motion", text)


def _write_maps(run: Run, kind: str, volumes: dict[str, torch.Tensor]) -> None:
    """Write the maps of a control on the grid of the particles to RUN/analysis/controls/KIND."""
    folder = controls_folder(run) / kind
    origin = header_origin(run.config.inputs.map)
    for name, volume in volumes.items():
        grown = resample_volume(volume.cpu(), run.particles.box)
        write_map(folder / f"{name}.mrc", grown.numpy(), run.particles.pixel_size, origin)
