"""The stage ``dynamight train``: from the input to trained models and latents."""

import copy
import hashlib
import json
import platform
import shlex
import sys
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch

from dynamight_core.belonging import arranged, check_files, forget_files, input_files, record_inputs
from dynamight_core.config import RunConfig, changed_options
from dynamight_core.devices import choose_device, describe_device, peak_memory, set_threads
from dynamight_core.errors import InputError, option_name
from dynamight_core.files import atomic_path, write_table
from dynamight_core.lock import writing
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.parallel import side_by_side
from dynamight_core.reporter import PRINT, QUIET, Reporter
from dynamight_core.run import holds_run, refuse_inputs_within, remove_run
from dynamight_core.training.amplitude import adjust_regularisation
from dynamight_core.training.build import build_trainers, load_images
from dynamight_core.training.checkpoint import checkpoint_epochs, load_checkpoint, save_checkpoint
from dynamight_core.training.continuation import PreviousRun
from dynamight_core.training.convergence import Rises, fixed_loss
from dynamight_core.training.curves import training_curves
from dynamight_core.training.data import TrainingImages
from dynamight_core.training.epochs import balance_regularisation, run_epoch
from dynamight_core.training.extension import (
    earlier_epochs,
    record_more_epochs,
    refuse_stopped,
    remove_later_results,
)
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import infer_latents
from dynamight_core.training.large_motion import FollowedMotion, follow_large_motion
from dynamight_core.training.linear import linear_starts
from dynamight_core.training.poses import held_out_poses, refine_before_motion, refine_poses
from dynamight_core.training.progress import (
    DivergedError,
    check_converging,
    read_metrics,
    record_slower,
    slower,
    was_slowed,
)
from dynamight_core.training.read import Prepared, read_inputs
from dynamight_core.training.reference import central_latents, update_references
from dynamight_core.training.refit import refit_gaussians, sharpen_reference
from dynamight_core.training.schedule import Epoch, schedule
from dynamight_core.version import __version__

# Interval of checkpoints, seconds.
_CHECKPOINT_SECONDS = 60.0
# Factor by which the low-pass filter of the images becomes finer, once.
_FINER = 0.7
# Options that may differ when a run is resumed: they change only the last digits.
_FREE_TO_CHANGE = {"device", "threads", "storage"}


def train(
    inputs: InputOptions,
    options: TrainOptions,
    run: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter = PRINT,
) -> "Trained":
    """Train both half-sets and write models, latents and metrics.

    Parameters
    ----------
    inputs, options
        of the training.
    run
        folder: new, of an interrupted run with `resume`, or replaced with `overwrite`.
    reporter
        receives messages and progress.

    Raises
    ------
    InputError
        if the input cannot be used, or the folder contains a run and neither `resume` nor `overwrite` is set.
    """
    inputs = inputs.absolute()
    refuse_inputs_within(Path(run), (path for _, path in [("STAR", inputs.star), *input_files(inputs)]))
    with writing(run):
        return _train(inputs, options, Path(run), resume, overwrite, reporter)


def _train(
    inputs: InputOptions, options: TrainOptions, run: Path, resume: bool, overwrite: bool, reporter: Reporter
) -> "Trained":
    device = choose_device(options.device)
    set_threads(options.threads)
    prepared = read_inputs(inputs, options)
    refuse_inputs_within(run, prepared.particles.stacks)
    previous = PreviousRun.open(prepared, run)
    contents = _input_contents(prepared)
    resumed = _check_folder(run, prepared, contents, resume, overwrite)
    prepared.report(reporter)
    reporter.say(describe_device(options.device, device))
    data = load_images(prepared, device, run, reporter)
    if resumed and was_slowed(run):
        prepared.options = slower(prepared.options)
    try:
        trainers = build_trainers(prepared, data, previous, reporter)
        # Only now: unusable images must not create a run or remove the existing one.
        if not resumed:
            _begin_run(run, prepared, contents)
        more = earlier_epochs(run)
        epochs = schedule(prepared.options, previous is not None, prepared.atomic is not None, more)
        try:
            _train_epochs(trainers, run, epochs, reporter)
        except DivergedError as error:
            if was_slowed(run):
                raise
            reporter.warn(f"{error}; training goes back to its last checkpoint, once, with smaller learning rates")
            record_slower(run, error)
            prepared.options = slower(prepared.options)
            trainers = build_trainers(prepared, data, previous, reporter)
            _train_epochs(trainers, run, epochs, reporter)
        trained = Trained(run, prepared, data, trainers)
        trained.infer_all(reporter)
        if more:
            remove_later_results(run)
        trained.save()
    except BaseException:
        data.close()
        raise
    return trained


class Trained:
    """A finished training with the latents of all particles under both half-sets' decoders.

    Parameters
    ----------
    run
        folder.
    prepared, data, trainers
        of the training.
    """

    def __init__(self, run: Path, prepared: Prepared, data: TrainingImages, trainers: tuple[HalfTrainer, ...]) -> None:
        self.run, self.prepared, self.data, self.options = run, prepared, data, prepared.options
        self.trainers = trainers
        # A joint model is that of both half-sets.
        self.models = trainers[0].model.eval(), trainers[-1].model.eval()
        n, d = len(data), self.options.n_latents
        self.latents = torch.zeros(2, n, d)
        self.covariances = torch.zeros(2, n, d, d)
        # (n, 5) rotation vectors (radians) and shifts (A), if poses are refined.
        self.pose_changes: torch.Tensor | None = None

    def infer_all(self, reporter: Reporter = QUIET) -> None:
        """Infer the latents of all particles with the frozen decoder of each half-set.

        The best of several starts is used: the last inference (for training particles) or the prediction of the encoder
        (for all others), the mean, and latents of other particles.
        """
        if self.options.refine_poses:
            self.pose_changes = torch.zeros(len(self.data), 5)
            for trainer in self.trainers:
                self.pose_changes[trainer.rows] = trainer.pose_changes.cpu()
                self.pose_changes[trainer.held_out] = held_out_poses(trainer).cpu()
            self.data = self.data.posed(self.pose_changes)
        data, trainers = self.data, self.trainers
        side_by_side(lambda index: self._infer_half(index, reporter), range(len(trainers)), data.device)
        latents = [self.latents[index, trainer.rows].to(data.device) for index, trainer in enumerate(trainers)]
        models = [trainer.model for trainer in trainers]
        for model, central in zip(models, central_latents(models, latents), strict=True):
            model.set_consensus_frame(central)
        if len(trainers) == 1:
            self.latents[1], self.covariances[1] = self.latents[0], self.covariances[0]
            self.models = self.models[0], copy.deepcopy(self.models[0])

    @property
    def training_rows(self) -> list[torch.Tensor]:
        """(n,) particles that trained the decoder of each half-set."""
        return [self.trainers[0].rows, self.trainers[-1].rows]

    def _infer_half(self, index: int, reporter: Reporter) -> None:
        trainer, model = self.trainers[index], self.models[index]
        own = trainer.rows
        if not self.options.latent_refinement:
            # After encoder epochs (paper), the latents of the encoder give the prior.
            trainer.infer(steps=0, restart=True)
        model.set_latent_centres(trainer.latents)
        others = torch.ones(len(self.data), dtype=torch.bool)
        others[own] = False
        rest = torch.where(others)[0]
        if self.options.final_latents == "encoder":
            self.latents[index], self.covariances[index] = (part.cpu() for part in trainer.encode_all())
            return
        progress = reporter.step(f"inferring latents, half {index + 1}")
        for rows, starts, steps in (
            (own, [trainer.latents, *model.latent_starts(len(own))], 3),
            (rest, [trainer.encode(rest), *model.latent_starts(len(rest))], 6),
        ):
            posterior = infer_latents(model, self.data, rows, starts, steps, integrate=True, progress=progress)
            self.latents[index, rows] = posterior.latents.cpu()
            self.covariances[index, rows] = posterior.covariances.cpu()

    def save(self) -> None:
        """Write the models and the latents."""
        forget_files(self.run)
        for number, model in enumerate(self.models, 1):
            model.save(self.run / f"half{number}" / "model.safetensors")
        tensors = {
            "latents": self.latents,
            "covariances": self.covariances,
            "halves": self.prepared.halves.to(torch.int64),
            "validation": self.prepared.validation,
        }
        if self.pose_changes is not None:
            tensors["pose_changes"] = self.pose_changes
        with atomic_path(self.run / "latents.safetensors") as path:
            safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def _input_contents(prepared: Prepared) -> dict:
    """Return the checksum of the STAR file and the record of the atomic model for config.yaml."""
    contents: dict = {"star_sha256": hashlib.sha256(Path(prepared.inputs.star).read_bytes()).hexdigest()}
    if prepared.atomic is not None:
        contents["atomic_model"] = prepared.atomic.record
    return contents


def _train_epochs(trainers: tuple[HalfTrainer, ...], run: Path, epochs: list[Epoch], reporter: Reporter) -> None:
    """Run the schedule on both half-sets from the last checkpoint on, and write metrics and checkpoints."""
    options, data = trainers[0].options, trainers[0].data
    folders = [run / f"half{trainer.half}" / "checkpoints" for trainer in trainers]
    metrics: list[dict] = []
    rises = [Rises() for _ in trainers]
    common = set.intersection(*(set(checkpoint_epochs(folder)) for folder in folders))
    done = max(common, default=0)
    if done:
        for trainer, folder, index in zip(trainers, folders, range(len(trainers)), strict=True):
            rises[index] = Rises(**load_checkpoint(folder, done, trainer))
        metrics = read_metrics(run / "metrics.jsonl", done, reporter)
        reporter.say(f"Resuming after epoch {done} of {len(epochs)}.")
    saved = time.monotonic()
    stopped = bool(metrics) and metrics[-1].get("stopped", False)
    for number in range(done + 1, len(epochs) + 1):
        if stopped:
            break
        epoch = epochs[number - 1]
        if epoch.update_reference:
            update_references(trainers)
        started = time.monotonic()
        if options.refine_poses and epoch.kind != "warm-up" and not trainers[0].started:
            side_by_side(partial(refine_before_motion, number=number), trainers, data.device)
        if epoch.infer == "linear":
            linear_starts(trainers)
        entries = side_by_side(partial(_run_epoch, epoch, number), trainers, data.device)
        check_converging(trainers, number, entries)
        pace = _pace(trainers, time.monotonic() - started)
        if epoch.infer == "linear":
            for trainer in trainers:
                reporter.say(_describe_start(trainer))
        for entry in entries:
            if "large_motion" in entry:
                reporter.say(f"{trainers[entry['half'] - 1].name}: {FollowedMotion(**entry['large_motion']).sentence}")
        for index, entry in enumerate(entries):
            rises[index].add(entry["fixed_loss"])
            metrics.append(entry | pace | {"rises": rises[index].number})
        most = max(each.number for each in rises)
        if most >= options.stop_after_rises:
            stopped = True
            for entry in metrics[-len(trainers) :]:
                entry["stopped"] = True
            reporter.say(f"Stopping after epoch {number}: the data loss has risen {most} times.")
        with atomic_path(run / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
        write_table(run / "training_curves.csv", training_curves(metrics))
        due = time.monotonic() - saved > _CHECKPOINT_SECONDS or number % 10 == 0
        if due or stopped or number == len(epochs):
            for index, (trainer, folder) in enumerate(zip(trainers, folders, strict=True)):
                save_checkpoint(folder, trainer, number, asdict(rises[index]))
            saved = time.monotonic()
        reporter.progress("training", number, len(epochs))


def _run_epoch(epoch: Epoch, number: int, trainer: HalfTrainer) -> dict:
    """Run one epoch on one half-set and return its line of metrics without its `_pace`."""
    if epoch.finer:
        trainer.model.resolution.mul_(_FINER)
    if epoch.infer != "no":
        trainer.infer(steps=1 if epoch.infer == "again" else 4, restart=epoch.infer == "encoder")
    if epoch.infer == "linear" and trainer.latents.any() and not trainer.model.gaussians.fixed:
        sharpen_reference(trainer)
    if trainer.options.refine_poses and trainer.started and epoch.prepare:
        refine_poses(trainer)
    amplitude = adjust_regularisation(trainer) if epoch.infer == "again" else None
    followed = follow_large_motion(trainer, number) if epoch.follow and not trainer.followed else None
    if epoch.refit:
        refit_gaussians(trainer, trainer.options.refit_resolution, trainer.options.seed * 1000 + number)
    if epoch.prepare:
        deformed = epoch.kind != "encoder" or trainer.started
        if number % 5 == 0 or not deformed or epoch.infer in ("linear", "encoder"):
            trainer.estimate_noise(deformed)
        trainer.rebuild_graph()
        if trainer.options.regularisation == "dynamic" and deformed:
            balance_regularisation(trainer, number)
    trainer.set_decoder_rate(epoch.decoder_rate)
    means = run_epoch(trainer, epoch, number)
    trainer.started = trainer.started or epoch.kind != "warm-up"
    # The same images in the same units in all epochs: what the stop rule compares.
    loss = fixed_loss(trainer) if trainer.started else None
    return {
        "epoch": number,
        "half": trainer.half,
        "kind": epoch.kind,
        **means.line(),
        "fixed_loss": loss,
        "lambda": trainer.stiffness,
        # Epochs that train only Gaussians use all frequencies.
        "resolution": 0.0 if epoch.kind in ("warm-up", "reference") else float(trainer.model.resolution),
        "sparse_weight": epoch.sparse,
        "gaussian_width": float(trainer.model.gaussians.widths.detach().mean()),
        "noise": float(trainer.model.noise_power.mean()) / trainer.model.box**2,
        **({} if followed is None else {"large_motion": asdict(followed)}),
        # On held-out particles, where latents have been inferred again.
        "held_out": None if amplitude is None else asdict(amplitude),
    }


def _describe_start(trainer: HalfTrainer) -> str:
    """Return the result of the linear motion estimate of a half-set in words."""
    if not trainer.latents.any():
        return f"{trainer.name}: no motion detected by the linear estimate."
    resolution, weight = float(trainer.model.resolution), float(trainer.model.regularisation_share)
    filtered = f"with a {resolution:.3g} A low-pass filter" if resolution else "without a low-pass filter"
    if trainer.options.motion_resolution is None:
        filtered = f"the signal is strongest {filtered}, which training uses"
    weak = "" if weight > 0.99 else f" Weak signal: regularisation reduced to {100 * weight:.0f} %."
    return f"{trainer.name}: motion detected; {filtered}.{weak}"


def _pace(trainers: tuple[HalfTrainer, ...], seconds: float) -> dict:
    """Return the metrics of speed and memory of an epoch of all trainers that took some seconds."""
    return {
        "seconds": seconds,
        "particles_per_second": sum(len(trainer.rows) for trainer in trainers) / seconds,
        "peak_memory_gb": peak_memory(trainers[0].data.device) / 2**30,
    }


def _check_folder(run: Path, prepared: Prepared, contents: dict, resume: bool, overwrite: bool) -> bool:
    """Refuse a folder that cannot be used for the run; return whether it contains one to resume."""
    inputs, options = prepared.inputs, prepared.options
    exists = holds_run(run)
    if exists and resume and not overwrite:
        old = RunConfig.read(run)
        changed = changed_options(old.inputs, inputs) + changed_options(old.train, options)
        changed = [name for name in changed if name not in _FREE_TO_CHANGE]
        more = changed == ["epochs"] and options.epochs > old.train.epochs
        if changed and not more:
            raise InputError(
                f"{run} was trained with other values of {', '.join(map(option_name, changed))}; resume with the "
                "same values, or use a new folder"
            )
        if old.provenance.get("star_sha256") != contents["star_sha256"]:
            raise InputError(f"{inputs.star} has changed since {run} was started; use a new folder")
        check_files(run, inputs)
        arranged(run, prepared.particles)
        if old.provenance.get("atomic_model") != contents.get("atomic_model"):
            raise InputError(f"{inputs.atomic_model} has changed since {run} was started; use a new folder")
        if more:
            refuse_stopped(run)
            record_more_epochs(run, options.epochs)
        return True
    if exists and not overwrite:
        raise InputError(f"{run} already contains a run; use --resume to continue it, or --overwrite to replace it")
    if run.is_file():
        raise InputError(f"{run} is a file; use a folder for the run")
    # Check that the folder is writable before the images are read.
    with atomic_path(run / ".writable") as path:
        path.touch()
    (run / ".writable").unlink()
    return False


def _begin_run(run: Path, prepared: Prepared, contents: dict) -> None:
    """Write config.yaml and the fitted atomic model; remove an existing run."""
    if holds_run(run):
        remove_run(run)
    config = RunConfig(prepared.inputs, prepared.options)
    config.provenance = {
        "dynamight_core": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "starfile", "mrcfile")},
        **contents,
        "commands": {"train": shlex.join(sys.argv)},
        "folder": str(Path.cwd()),
        "run": str(run.absolute()),
    }
    config.write(run)
    record_inputs(run, prepared.particles, prepared.inputs)
    if prepared.atomic is not None:
        prepared.atomic.write_fitted(run / "atomic_model.cif")
