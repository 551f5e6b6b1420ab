"""The stage ``dynamight check``: whether a run can start, and its time and memory."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.devices import choose_device, describe_device
from dynamight_core.earlier import check_outputs
from dynamight_core.errors import InputError, Problems
from dynamight_core.image_series import per_particle
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.metadata import Particles, describe, write_particles
from dynamight_core.particles.preprocess import batch_size, read_prepared
from dynamight_core.registry import DECODERS
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.training.linear import scores_memory
from dynamight_core.training.read import Prepared, gather_inputs, open_particles
from dynamight_core.training.schedule import schedule
from dynamight_core.training.validate import complete_options

# Measured on two cores of a server processor at box 64: seconds per particle, epoch and pixel, whatever the decoder.
_SECONDS_PER_PIXEL = 1.8e-8
# One round of latent inference takes as long as this many epochs.
_INFERENCE_EPOCHS = 6.0
_CORES = 2
_PROGRAM_BYTES = 6e8
# Bad images that are named.
_EXAMPLES = 5


def check_inputs(
    inputs: InputOptions,
    options: TrainOptions,
    images: bool = True,
    reporter: Reporter = PRINT,
    cleaned: Path | None = None,
) -> None:
    """Read all input of a run, and report how it is interpreted.

    Parameters
    ----------
    inputs, options
        of the training; without a map, only the particles are checked.
    images
        whether to read and prepare every image, or only the headers of the stacks and a sample.
    reporter
        receives messages and progress.
    cleaned
        STAR file for the particles whose images are usable, if some are not.

    Raises
    ------
    InputError
        with all reasons why a run cannot start.
    """
    problems = Problems()
    device = problems.step(choose_device, options.device)
    problems.step(lambda found: reporter.say(describe_device(options.device, found)), device)
    look = partial(_look_at_images, inputs=inputs, cleaned=cleaned, reporter=reporter) if images else ImageReader
    prepared = gather_inputs(inputs, options, problems, look) if inputs.map else None
    if not inputs.map:
        problems.step(complete_options, inputs, options)
        opened = open_particles(inputs, options, problems)
        problems.step(look, opened.particles)
        problems.step(_describe, opened.particles, opened.halves, opened.validation, reporter)
        problems.refuse()
        reporter.say("Only the particles were checked; set --map to check the rest.")
        return
    if prepared is not None:
        _describe(prepared.particles, prepared.halves, prepared.validation, reporter)
        reporter.say(
            f"Map: threshold {prepared.region.threshold:.4g}; molecule of {int(prepared.region.mask.sum())} voxels "
            f"({prepared.region.mask.mean():.1%} of the box)."
        )
        prepared.report(reporter)
        if images:
            problems.step(_prepare_all, prepared, reporter, device)
        problems.step(_report_estimates, prepared, device, reporter)
    problems.refuse()
    reporter.say("The input is ready for training.")


def _describe(particles: Particles, halves: torch.Tensor, validation: torch.Tensor, reporter: Reporter) -> None:
    for line in describe(particles):
        reporter.say(line)
    reporter.say(
        f"Half-sets of {int((halves == 1).sum())} and {int((halves == 2).sum())} particles; "
        f"{int(validation.sum())} of them are held out for validation."
    )


def estimate_memory(n: int, working_box: int, options: TrainOptions, halves_at_once: int = 1) -> float:
    """Return an estimate of the memory of a training, bytes.

    Images and transfer functions in half precision, 2 n w^2 + 2 n w (w/2 + 1); for a batch of b particles and
    N Gaussians the decoder's `bytes_per_gaussian` times b N, which its gradients need; images and transforms of
    the batch, oversampled, 100 b w^2; the scores of a scan for parts that move (`scores_memory`); all three twice if
    the half-sets train in parallel; latents and covariances of all particles; and 0.6 GB for the program.
    """
    w, d, b = working_box, options.n_latents, min(options.batch_size, n)
    kept = estimate_images(n, w) + 16 * n * (d + d**2)
    step = DECODERS.load(options.decoder).bytes_per_gaussian * b * options.n_gaussians + 100 * b * w**2
    return kept + halves_at_once * (step + scores_memory(n // 2)) + _PROGRAM_BYTES


def estimate_images(n: int, working_box: int) -> float:
    """Return the memory of n images and transfer functions in half precision, bytes; they may be kept in a file."""
    return 2.0 * n * working_box**2 + 2.0 * n * working_box * (working_box // 2 + 1)


def estimate_seconds(n: int, working_box: int, options: TrainOptions, threads: int, fixed: bool = False) -> float:
    """Return an estimate of the time of a training on a number of CPU threads, seconds.

    Particles times epochs times (a N + c w^2), N Gaussians and w working pixels a side, with a (the decoder's
    `seconds_per_gaussian`) and c as measured on two cores; a round of latent inference counts as six epochs; threads
    beyond two are counted by their square root, since memory is shared. `fixed`: whether the Gaussians are those of an
    atomic model.
    """
    epochs = schedule(options, fixed=fixed)
    effort = len(epochs) + _INFERENCE_EPOCHS * (sum(epoch.infer != "no" for epoch in epochs) + 2)
    decoder = DECODERS.load(options.decoder)
    per_particle = decoder.seconds_per_gaussian * options.n_gaussians + _SECONDS_PER_PIXEL * working_box**2
    speed = threads / _CORES if threads <= _CORES else (threads / _CORES) ** 0.5
    return n * effort * per_particle / speed


def _look_at_images(
    particles: Particles, inputs: InputOptions, cleaned: Path | None, reporter: Reporter
) -> ImageReader:
    """Return the reader of images that can all be used; refuse the others, with their number and the first ones."""
    reader = ImageReader(particles)
    rows, usable = np.arange(particles.n_images), np.ones(particles.n_images, dtype=bool)
    for part in np.array_split(rows, -(-len(rows) // batch_size(particles.box))):
        usable[part] = reader.usable(part)
        reporter.progress("reading images", int(part[-1]) + 1, len(rows))
    bad = np.flatnonzero(~usable)
    if not len(bad):
        return reader
    names = ", ".join(particles.image_name(row) for row in bad[:_EXAMPLES])
    more = f", and {len(bad) - _EXAMPLES} more" if len(bad) > _EXAMPLES else ""
    cure = "extract them again, or write the others to a STAR file with check --cleaned FILE"
    if cleaned is not None:
        whole = per_particle(particles.series, torch.from_numpy(~usable).int()).numpy() == 0
        _write_cleaned(inputs, particles, whole, cleaned)
        cure = f"{cleaned} has the other {int(whole.sum())} particles"
    raise InputError(f"{len(bad)} images are constant or hold NaN or infinite values ({names}{more}); {cure}")


def _write_cleaned(inputs: InputOptions, particles: Particles, usable: NDArray[np.bool_], path: Path) -> None:
    """Write the particles of the input file whose images are all usable."""
    check_outputs([path], [inputs.star, inputs.map, *particles.stacks], "--cleaned")
    given = read_input_particles(replace(inputs, symmetry=None))
    # Copies by symmetry have the image of their particle, and stand in the order of the file.
    kept = usable if len(given) == len(particles) else usable.reshape(len(given), -1).all(1)
    write_particles(path, given.subset(np.flatnonzero(kept)), {})


def _prepare_all(prepared: Prepared, reporter: Reporter, device: torch.device) -> None:
    """Prepare every image as training does; refuse those that have no noise to normalise by."""
    with ImageReader(prepared.particles) as reader:
        n, options = prepared.particles.n_images, prepared.options
        preprocessing = prepared.preprocessing().with_set_noise(reader, prepared.halves, options.seed)
        for rows in np.array_split(np.arange(n), -(-n // batch_size(reader.particles.box))):
            read_prepared(reader, rows, preprocessing, device)
            reporter.progress("preparing images", int(rows[-1]) + 1, n)


def _report_estimates(prepared: Prepared, device: torch.device, reporter: Reporter) -> None:
    options, n, box = prepared.options, prepared.particles.n_images, prepared.working_box
    threads = options.threads or torch.get_num_threads()
    needed = estimate_memory(n, box, options, 2 if device.type == "cpu" and threads > 1 else 1)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if needed - estimate_images(n, box) > free:
            raise InputError(
                f"training needs about {(needed - estimate_images(n, box)) / 1e9:.1f} GB of the GPU without images; "
                f"{free / 1e9:.1f} GB are free; use a smaller --batch-size, fewer --n-gaussians, or another GPU"
            )
        reporter.say(f"Memory: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB of the GPU free.")
        reporter.say("Time: not estimated on a GPU; see the first epochs of a run.")
        return
    free, least = available_memory(), needed - estimate_images(n, box)
    if least > free:
        raise InputError(
            f"training needs about {least / 1e9:.1f} GB of memory even with the images in a file; {free / 1e9:.1f} GB "
            "are free; use a smaller --batch-size, fewer --n-gaussians, or a machine with more memory"
        )
    reporter.say(
        f"Memory: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        + ("." if needed < free else ". Images will be kept in a file; a smaller --batch-size saves more memory.")
    )
    fixed = prepared.atomic is not None
    seconds = estimate_seconds(n, box, options, threads, fixed)
    reporter.say(
        f"Time: about {_duration(seconds)} on {threads} CPU threads, for {len(schedule(options, fixed=fixed))} epochs "
        "of both half-sets; half or twice that on another processor."
    )


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} seconds"
