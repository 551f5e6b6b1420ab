"""The stage ``dynamight check``: whether a run can start, and its time and memory."""

import numpy as np
import torch

from dynamight_core.devices import choose_device, describe_device
from dynamight_core.errors import InputError
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.memory import available_memory
from dynamight_core.particles.metadata import describe
from dynamight_core.particles.preprocess import batch_size, read_prepared
from dynamight_core.registry import DECODERS
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.training.read import Prepared, hold_out, open_particles, read_inputs
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


def check_inputs(inputs: InputOptions, options: TrainOptions, images: bool = True, reporter: Reporter = PRINT) -> None:
    """Read all input of a run, and report how it is interpreted.

    Parameters
    ----------
    inputs, options
        of the training; without a map, only the particles are checked.
    images
        whether to read and prepare every image, or only the headers of the stacks.
    reporter
        receives messages and progress.

    Raises
    ------
    InputError
        with the reason why a run cannot start.
    """
    device = choose_device(options.device)
    reporter.say(describe_device(options.device, device))
    if inputs.map:
        try:
            prepared = read_inputs(inputs, options)
        except InputError:
            # It may be the first of many images.
            if images:
                _refuse_bad_images(inputs, options, reporter)
            raise
        particles, relatives, halves = prepared.particles, prepared.relatives, prepared.halves
    else:
        prepared = None
        complete_options(inputs, options)
        particles, relatives, halves, _ = open_particles(inputs, options.seed)
    for line in describe(particles):
        reporter.say(line)
    validation = hold_out(particles, relatives, halves, options) if prepared is None else prepared.validation
    with ImageReader(particles) as reader:
        if images:
            try:
                _read_all(reader, prepared, device, reporter)
            except InputError:
                _refuse_bad_images(inputs, options, reporter)
                raise
    reporter.say(
        f"Half-sets of {int((halves == 1).sum())} and {int((halves == 2).sum())} particles; "
        f"{int(validation.sum())} of them are held out for validation."
    )
    if prepared is None:
        reporter.say("Only the particles were checked; set --map to check the rest.")
        return
    reporter.say(
        f"Map: threshold {prepared.region.threshold:.4g}; molecule of {int(prepared.region.mask.sum())} voxels "
        f"({prepared.region.mask.mean():.1%} of the box)."
    )
    prepared.report(reporter)
    _report_estimates(prepared, device, reporter)
    reporter.say("The input is ready for training.")


def estimate_memory(n: int, working_box: int, options: TrainOptions, halves_at_once: int = 1) -> float:
    """Return an estimate of the memory of a training, bytes.

    Images and transfer functions in half precision, 2 n w^2 + 2 n w (w/2 + 1); for a batch of b particles and
    N Gaussians the decoder's `bytes_per_gaussian` times b N, which its gradients need; images and transforms of
    the batch, oversampled, 100 b w^2; both twice if the half-sets train in parallel; latents and covariances of all
    particles; and 0.6 GB for the program.
    """
    w, d, b = working_box, options.n_latents, min(options.batch_size, n)
    kept = 2 * n * w**2 + 2 * n * w * (w // 2 + 1) + 16 * n * (d + d**2)
    step = DECODERS.load(options.decoder).bytes_per_gaussian * b * options.n_gaussians + 100 * b * w**2
    return kept + halves_at_once * step + _PROGRAM_BYTES


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


def _refuse_bad_images(inputs: InputOptions, options: TrainOptions, reporter: Reporter) -> None:
    """Refuse all images that cannot be used, with their number and the first ones."""
    particles = open_particles(inputs, options.seed)[0]
    bad: list[int] = []
    with ImageReader(particles) as reader:
        n = len(particles)
        for rows in np.array_split(np.arange(n), -(-n // batch_size(particles.box))):
            bad += rows[~reader.usable(rows)].tolist()
            reporter.progress("reading images", int(rows[-1]) + 1, n)
    if bad:
        names = ", ".join(particles.image_name(row) for row in bad[:_EXAMPLES])
        more = f", and {len(bad) - _EXAMPLES} more" if len(bad) > _EXAMPLES else ""
        raise InputError(
            f"{len(bad)} images are constant or hold NaN or infinite values ({names}{more}); remove these particles, "
            "or extract them again"
        )


def _read_all(reader: ImageReader, prepared: Prepared | None, device: torch.device, reporter: Reporter) -> None:
    """Read every image once, and prepare it if there is a map."""
    n = len(reader.particles)
    preprocessing = None
    if prepared is not None:
        preprocessing = prepared.preprocessing().with_set_noise(reader, prepared.halves, 0)
    for rows in np.array_split(np.arange(n), -(-n // batch_size(reader.particles.box))):
        if preprocessing is None:
            reader.read(rows)
        else:
            read_prepared(reader, rows, preprocessing, device)
        reporter.progress("reading images", int(rows[-1]) + 1, n)


def _report_estimates(prepared: Prepared, device: torch.device, reporter: Reporter) -> None:
    options, n, box = prepared.options, len(prepared.particles), prepared.working_box
    threads = options.threads or torch.get_num_threads()
    needed = estimate_memory(n, box, options, 2 if device.type == "cpu" and threads > 1 else 1)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        reporter.say(f"Memory: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB of the GPU free.")
        reporter.say("Time: not estimated on a GPU; see the first epochs of a run.")
        return
    free = available_memory()
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
