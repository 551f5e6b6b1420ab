"""Particles that trained nothing: their latents, motions and errors under the models of a finished run.

They become a run of their own, with the models, motions and verdict of the first one, so that every later command takes
it. A file that holds the training particles as well makes a run of all of them.
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch

from dynamight_core.belonging import input_files, record_files, record_inputs
from dynamight_core.config import RunConfig
from dynamight_core.devices import choose_device, describe_device, set_threads
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.groups import current_group, world
from dynamight_core.judging.errors import motion_errors, undetected_motion
from dynamight_core.judging.summary import statistics, write_results
from dynamight_core.lock import writing
from dynamight_core.model.half import HalfModel
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.options import InferOptions
from dynamight_core.parallel import side_by_side
from dynamight_core.particles.cache import ImageCache
from dynamight_core.particles.halves import torn
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.metadata import Particles
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.particles.relatives import default_distance, find_relatives
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, holds_run, refuse_inputs_within, remove_run
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.fit import grey_scale
from dynamight_core.training.inference import encode, infer_latents
from dynamight_core.training.validate import check_model_box
from dynamight_core.version import __version__

# Gauss-Newton steps for a latent of which nothing is known.
_STEPS = 6
# Files of the training that later commands read beside the models.
_KEPT = ("metrics.jsonl", "training_curves.csv", "atomic_model.cif")


@dataclass(frozen=True)
class Membership:
    """What n particles have to do with the training.

    Parameters
    ----------
    rows
        (n,) the row of the training set with the same image, -1 for new particles.
    halves
        (n,) 1 or 2.
    validation
        (n,) bool, whether a particle trained no decoder, nor did any of its relatives.
    """

    rows: torch.Tensor
    halves: torch.Tensor
    validation: torch.Tensor


def infer_particles(
    run: Run,
    star: str | Path,
    out: str | Path,
    options: InferOptions,
    overwrite: bool = False,
    reporter: Reporter = PRINT,
) -> Run:
    """Infer latents, motions and errors of the particles of a file, and write them as a run.

    Latents are inferred under the decoders of both half-sets. A particle that trained one of them keeps its half-set; a
    new one has that of rlnRandomSubset, else that of its relatives in the training, else a random one.

    Parameters
    ----------
    run
        finished and summarised.
    star
        STAR or .cs file of the particles.
    out
        folder of the new run.
    options
        of the inference.
    overwrite
        whether to replace a run in `out`.
    reporter
        receives messages and progress.

    Raises
    ------
    InputError
        if the particles cannot be used with this run, or `out` holds a run.
    """
    out, device = Path(out), choose_device(options.device)
    set_threads(options.threads)
    _ = run.summary  # raises here if it is missing
    if out.resolve() == run.path.resolve():
        raise InputError(f"{out} is the trained run itself; give another folder for the new particles")
    if holds_run(out) and not overwrite:
        raise InputError(f"{out} already contains a run; use --overwrite to replace it, or another folder")
    contrast = options.invert_contrast
    inputs = replace(
        run.config.inputs,
        star=str(star),
        project=options.project,
        passthrough=options.passthrough,
        tomograms=options.tomograms,
        premultiplied=options.premultiplied,
        invert_contrast=run.config.inputs.invert_contrast if contrast is None else contrast,
    ).absolute()
    config = RunConfig(inputs, run.config.train)
    particles = read_input_particles(inputs)
    for half, model in enumerate(run.models, 1):
        check_model_box(model, half, particles)
    member = _membership(run, particles, options.seed, reporter)
    changes = None
    if run.pose_changes is not None:
        changes = torch.where((member.rows < 0)[:, None], 0.0, run.pose_changes[member.rows])
        if (member.rows < 0).any():
            reporter.note("poses of new particles are used as given; those of the training were refined")
    reporter.say(describe_device(options.device, device))
    refuse_inputs_within(out, [inputs.star, *particles.stacks, *(path for _, path in input_files(inputs))])
    with writing(out):
        with _load(config, particles, member.halves, changes, run.models[0], device, out, reporter) as data:
            latents, covariances = _infer(run.models, data, reporter)
        tensors = {"latents": latents, "covariances": covariances}
        tensors |= {"halves": member.halves.to(torch.int64), "validation": member.validation}
        if changes is not None:
            tensors["pose_changes"] = changes

        def finish() -> None:
            _begin(run, out, config)
            record_inputs(out, particles, inputs)
            with atomic_path(out / "latents.safetensors") as path:
                safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)
            _summarise(run, out, member, reporter)
            record_files(out)

        world().once(finish)
    return Run(out)


def _membership(run: Run, particles: Particles, seed: int, reporter: Reporter) -> Membership:
    """Decide the half-sets of particles, and say by which rule."""
    rows, inputs = _rows_in_training(run.particles, particles), run.config.inputs
    known, given = rows >= 0, particles.halves.long()
    trained = torch.where(known, run.halves[rows].long(), 0)
    distance = inputs.relative_distance
    if distance is None:
        distance = default_distance(particles, inputs.particle_diameter)
    relatives = find_relatives(particles, distance)
    if given.any():
        wrong = known & (trained != given)
        if wrong.any():
            row = int(wrong.int().argmax())
            raise InputError(
                f"{particles.star_path} has image {particles.name(row)} (row {row + 1}) in half-set "
                f"{given[row]}, but it belongs to half-set {trained[row]} of {run.path}; take rlnRandomSubset from "
                f"{run.path / 'particles.star'}"
            )
        halves, rule = given, "those of the file"
    else:
        halves = _completed(trained, relatives, seed)
        rule = "those of their relatives in the training, else random"
    in_training = torch.zeros(int(relatives.max()) + 1, dtype=torch.bool)
    in_training[relatives[known & ~run.validation[rows]]] = True
    validation = torch.where(known, run.validation[rows], ~in_training[relatives])
    new = int((~known).sum())
    reporter.say(
        f"{len(particles)} particles: {len(particles) - new} belong to the run and keep their half-sets, {new} are "
        f"new. Half-sets of new particles are {rule} ({int((halves == 1).sum())} and {int((halves == 2).sum())} in "
        "all). A new particle trained neither decoder; maps use it with the decoder of its own half-set alone."
    )
    separated = int(torn(halves, relatives).sum())
    if separated:
        reporter.warn(
            f"{separated} particles have relatives (the same original image, helical tube or place) in the "
            "other half-set, so that the FSC may show more than there is"
        )
    return Membership(rows, halves, validation)


def _rows_in_training(training: Particles, particles: Particles) -> torch.Tensor:
    """Return (n,) the particle of the training set with the same image, and copy of it, -1 where there is none.

    Particles of several images are recognised by any of them.
    """

    def keys(given: Particles) -> pd.DataFrame:
        stacks = np.array([os.path.realpath(stack) for stack in given.stacks])[given.stack_index]
        table = pd.DataFrame({"stack": stacks, "frame": given.frame})
        return table.assign(copy=table.groupby(["stack", "frame"]).cumcount())

    before = keys(training)
    before["row"] = np.arange(len(before))
    images = keys(particles).merge(before, how="left", on=["stack", "frame", "copy"])["row"]
    found = torch.tensor(images.fillna(-1).to_numpy(dtype=np.int64))
    if training.series is not None:
        found = torch.where(found < 0, -1, training.series.owner[found])
    if particles.series is None:
        return found
    return torch.full((len(particles),), -1).scatter_reduce_(0, particles.series.owner, found, "amax")


def _completed(trained: torch.Tensor, relatives: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (n,) half-sets from those known (0 where not): whole groups of relatives, the others at random."""
    of_group = torch.zeros(int(relatives.max()) + 1, dtype=torch.int64).scatter_reduce_(0, relatives, trained, "amax")
    unknown = torch.where(of_group == 0)[0]
    generator = torch.Generator().manual_seed(seed)
    of_group[unknown[torch.randperm(len(unknown), generator=generator)]] = torch.arange(len(unknown)) % 2 + 1
    return torch.where(trained > 0, trained, of_group[relatives])


@contextmanager
def _load(
    config: RunConfig,
    particles: Particles,
    halves: torch.Tensor,
    changes: torch.Tensor | None,
    model: HalfModel,
    device: torch.device,
    folder: Path,
    reporter: Reporter,
) -> Iterator[TrainingImages]:
    """Yield the images of the particles, prepared as in the training; refuse those that do not fit the model."""
    inputs = config.inputs
    if changes is not None:
        particles = particles.posed(changes)
    preprocessing = Preprocessing(model.box, inputs.particle_diameter, inputs.invert_contrast, inputs.normalise)
    with ImageReader(particles) as reader:
        preprocessing = preprocessing.with_set_noise(reader, halves, config.train.seed)
        cache = ImageCache(reader, preprocessing, device, inputs.storage, folder, reporter.step("reading images"))
    data = TrainingImages(
        cache, particles.ctf, particles.matrices, model.box, model.pixel_size, device, particles.series
    )
    try:
        yield data
    finally:
        data.close()


def _infer(
    models: tuple[HalfModel, HalfModel], data: TrainingImages, reporter: Reporter
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (2, n, d) latents and (2, n, d, d) covariances of all particles under both models."""
    rows = torch.arange(len(data))
    for model in models:
        model.to(data.device).eval()
    correlation, _ = grey_scale(models[0], data, rows)
    if correlation <= 5:
        reporter.warn("the images do not correlate with the model of the run; check that they show the same molecule")

    @torch.no_grad()
    def of_half(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        model = models[index]
        progress = reporter.step(f"inferring latents, half {index + 1}")
        group = current_group()
        starts = [group.gather(encode(model, data, group.shard(rows))[0]), *model.latent_starts(len(rows))]
        found = infer_latents(model, data, rows, starts, _STEPS, integrate=True, progress=progress)
        return found.latents.cpu(), found.covariances.cpu()

    latents, covariances = zip(*side_by_side(of_half, (0, 1), data.device), strict=True)
    return torch.stack(latents), torch.stack(covariances)


def _begin(run: Run, out: Path, config: RunConfig) -> None:
    """Write config.yaml and the models; remove an existing run."""
    if holds_run(out):
        remove_run(out)
    config.provenance = run.config.provenance | {
        "dynamight_core": __version__,
        "star_sha256": hashlib.sha256(Path(config.inputs.star).read_bytes()).hexdigest(),
        "inferred_from": str(run.path.absolute()),
        "commands": {"infer": shlex.join(sys.argv)},
        "folder": str(Path.cwd()),
        "run": str(out.absolute()),
    }
    config.write(out)
    for number, model in enumerate(run.models, 1):
        model.cpu().save(out / f"half{number}" / "model.safetensors")
    for name in _KEPT:
        if (run.path / name).exists():
            shutil.copyfile(run.path / name, out / name)


@torch.no_grad()
def _summarise(run: Run, out: Path, member: Membership, reporter: Reporter) -> Run:
    """Write motions, errors and the summary of the inferred particles; the verdict is that of the training."""
    made, motions = Run(out), run.motions
    n, device = len(made.halves), made.models[0].latent_mean.device
    evaluators = [model.consensus_evaluator(motions.points.to(device)) for model in made.models]
    coordinates, magnitude = torch.zeros(n, len(motions.components)), torch.zeros(n)
    for half in (1, 2):
        for rows in torch.where(made.halves == half)[0].split(256):
            shift = evaluators[half - 1](made.latents[half - 1][rows].to(device)).cpu()
            coordinates[rows] = motions.project(shift)
            magnitude[rows] = shift.square().sum(-1).mean(1).sqrt()
    motions = PrincipalMotions(motions.points, motions.mean, motions.components, coordinates, motions.shares)
    motions.save(out / "analysis" / "motions.safetensors")
    made = Run(out)
    summary = dict(run.summary)
    unseen = undetected_motion(summary)
    errors = motion_errors(evaluators, made.models, made.latents, made.covariances, made.halves, unseen)
    sizes = [int((made.halves == half).sum()) for half in (1, 2)]
    box = {"box": made.particles.box, "pixel_size": made.particles.pixel_size}
    summary |= {
        **statistics(motions, magnitude, errors),
        "particles": n,
        "validation_particles": int(made.validation.sum()),
        "new_particles": int((member.rows < 0).sum()),
        "model": summary["model"] | box | {"particles": sizes},
    }
    with atomic_path(out / "analysis" / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=1))
    write_results(made, motions, magnitude, errors)
    reporter.say(
        f"Motion {summary['motion_rms']:.2f} A rms, uncertainty {summary['error_rms']:.2f} A rms. The verdict on the "
        f"motion is that of the training: {summary['verdict']['verdict']}."
    )
    return made
