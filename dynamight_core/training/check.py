"""What ``dynamight check`` says: whether a run could start, and what it would take."""

import numpy as np
import torch

from dynamight_core.devices import choose_device
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


def check_inputs(
    inputs: InputOptions,
    options: TrainOptions,
    images: bool = True,
    reporter: Reporter = PRINT,
) -> None:
    """Read everything that a run would, and say what was understood.

    Parameters
    ----------
    inputs, options
        as for training; without a map only the particles are looked at.
    images
        whether every image is read and prepared, or only the headers of the stacks.
    reporter
        takes lines for the user, and progress.

    Raises
    ------
    InputError
        with the reason why a run could not start.
    """
    device = choose_device(options.device)
    if inputs.map:
        prepared = read_inputs(inputs, options)
        particles, halves = prepared.particles, prepared.halves
    else:
        prepared = None
        complete_options(inputs, options)
        particles, halves, _ = open_particles(inputs, options.seed)
    for line in describe(particles):
        reporter.say(line)
    validation = hold_out(particles, halves, options) if prepared is None else prepared.validation
    with ImageReader(particles) as reader:
        if images:
            _read_all(reader, prepared, device, reporter)
    reporter.say(
        f"Half-sets of {int((halves == 1).sum())} and {int((halves == 2).sum())} particles, of which "
        f"{int(validation.sum())} are kept for validation."
    )
    if prepared is None:
        reporter.say("No --map was given: only the particles were checked.")
        return
    for line in prepared.notes:
        reporter.note(line)
    for line in prepared.warnings:
        reporter.warn(line)
    reporter.say(
        f"Map: threshold {prepared.region.threshold:.4g}, {int(prepared.region.mask.sum())} voxels "
        f"({prepared.region.mask.mean():.1%} of the box) hold the molecule; images are cropped to "
        f"{prepared.working_box} pixels of {prepared.working_pixel_size:.3g} A."
    )
    _say_estimates(prepared, device, reporter)
    reporter.say("A run could start.")


def estimate_memory(n: int, working_box: int, options: TrainOptions, halves_at_once: int = 1) -> float:
    """Return about how many bytes a training takes.

    Images and transfer functions in half precision, 2 n w^2 + 2 n w (w/2 + 1); for a batch of b particles and
    N Gaussians the decoder's `bytes_per_gaussian` times b N, which its gradients need; images and transforms of
    the batch, oversampled, 100 b w^2; both twice where the halves train side by side; latents and covariances of all
    particles; and 0.6 GB for the program.
    """
    w, d, b = working_box, options.n_latents, min(options.batch_size, n)
    kept = 2 * n * w**2 + 2 * n * w * (w // 2 + 1) + 16 * n * (d + d**2)
    step = DECODERS.load(options.decoder).bytes_per_gaussian * b * options.n_gaussians + 100 * b * w**2
    return kept + halves_at_once * step + _PROGRAM_BYTES


def estimate_seconds(n: int, working_box: int, options: TrainOptions, threads: int, fixed: bool = False) -> float:
    """Return about how many seconds a training takes on so many CPU threads.

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


def _read_all(reader: ImageReader, prepared: Prepared | None, device, reporter: Reporter) -> None:
    """Read every image once, and prepare it where the map says how; refuses those with values not finite."""
    n = len(reader.particles)
    preprocessing = None
    if prepared is not None:
        preprocessing = prepared.preprocessing(mask=False).with_set_noise(reader, 0)
    for rows in np.array_split(np.arange(n), -(-n // batch_size(reader.particles.box))):
        if preprocessing is None:
            reader.read(rows)
        else:
            read_prepared(reader, rows, preprocessing, device)
        reporter.progress("reading images", int(rows[-1]) + 1, n)


def _say_estimates(prepared: Prepared, device: torch.device, reporter: Reporter) -> None:
    options, n, box = prepared.options, len(prepared.particles), prepared.working_box
    threads = options.threads or torch.get_num_threads()
    needed = estimate_memory(n, box, options, 2 if device.type == "cpu" and threads > 1 else 1)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        reporter.say(f"Memory: about {needed / 1e9:.1f} GB where {free / 1e9:.1f} GB of the GPU are free.")
        reporter.say("Time: not estimated for GPUs; the first epochs of a run show it.")
        return
    free = available_memory()
    reporter.say(
        f"Memory: about {needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free"
        + ("." if needed < free else "; images will be kept in a file, and a smaller --batch-size saves more.")
    )
    fixed = prepared.atomic is not None
    seconds = estimate_seconds(n, box, options, threads, fixed)
    reporter.say(
        f"Time: about {_duration(seconds)} on {threads} CPU threads, for {len(schedule(options, fixed=fixed))} epochs "
        "of both halves; it may be half or twice that on another processor."
    )


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} seconds"
