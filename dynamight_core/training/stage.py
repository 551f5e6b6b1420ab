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
from dynamight_core.groups import collect, exchange, own_halves, within, world
from dynamight_core.lock import writing
from dynamight_core.model.half import HalfModel
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.parallel import side_by_side
from dynamight_core.reporter import PRINT, QUIET, Reporter
from dynamight_core.run import holds_run, refuse_inputs_within, remove_run, replacing
from dynamight_core.training.amplitude import adjust_regularisation
from dynamight_core.training.build import build_trainers, load_images, trained_halves
from dynamight_core.training.checkpoint import checkpoint_epochs, checkpoint_of, load_checkpoint
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
from dynamight_core.training.rigid_parts import TriedParts, try_rigid_parts
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
    resumed = world().once(partial(_check_folder, run, prepared, contents, resume, overwrite))
    prepared.report(reporter)
    reporter.say(describe_device(options.device, device))
    data = load_images(prepared, device, run, reporter)
    if resumed and was_slowed(run):
        prepared.options = slower(prepared.options)
    try:
        trainers = build_trainers(prepared, data, previous, reporter)
        # Only now: unusable images must not create a run or remove the existing one.
        if not resumed:
            world().once(partial(_begin_run, run, prepared, contents))
        more = earlier_epochs(run)
        epochs = schedule(prepared.options, previous is not None, prepared.atomic is not None, more)
        with within(own_halves(trained_halves(prepared.options))[1]):
            try:
                _train_epochs(trainers, run, epochs, reporter)
            except DivergedError as error:
                if world().once(partial(was_slowed, run)):
                    raise
                reporter.warn(f"{error}; training goes back to its last checkpoint, once, with smaller learning rates")
                world().once(partial(record_slower, run, error))
                prepared.options = slower(prepared.options)
                trainers = build_trainers(prepared, data, previous, reporter)
                _train_epochs(trainers, run, epochs, reporter)
            trained = Trained(run, prepared, data, trainers)
            trained.infer_all(reporter)
        world().once(partial(trained.save, bool(more)))
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
        of the training; the trainers are those of this process.
    """

    # Of both half-sets, once latents are inferred. A joint model is that of both.
    models: tuple[HalfModel, HalfModel]

    def __init__(self, run: Path, prepared: Prepared, data: TrainingImages, trainers: tuple[HalfTrainer, ...]) -> None:
        self.run, self.prepared, self.data, self.options = run, prepared, data, prepared.options
        self.trainers = trainers
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
        own = {trainer.half: trainer for trainer in self.trainers}
        device = self.data.device
        if self.options.refine_poses:
            self.pose_changes = torch.zeros(len(self.data), 5)
            refined = {half: (each.pose_changes.cpu(), held_out_poses(each).cpu()) for half, each in own.items()}
            for half, (trained, held_out) in exchange(refined).items():
                self.pose_changes[self._rows(half, False)] = trained
                self.pose_changes[self._rows(half, True)] = held_out
            self.data = self.data.posed(self.pose_changes)
        side_by_side(lambda trainer: self._infer_half(trainer, reporter), self.trainers, device)
        models = {half: trainer.model.eval() for half, trainer in own.items()}
        latents = {half: self.latents[half - 1, trainer.rows].to(device) for half, trainer in own.items()}
        for half, central in central_latents(models, latents).items():
            models[half].set_consensus_frame(central)
        inferred = {half: (self.latents[half - 1], self.covariances[half - 1]) for half in own}
        for half, (means, covariances) in exchange(inferred).items():
            self.latents[half - 1], self.covariances[half - 1] = means, covariances
        found = exchange(models, device)
        if len(found) == 1:
            self.latents[1], self.covariances[1] = self.latents[0], self.covariances[0]
        self.models = found[1], found[2] if 2 in found else copy.deepcopy(found[1])

    @property
    def training_rows(self) -> list[torch.Tensor]:
        """(n,) particles that trained the decoder of each half-set."""
        return [self._rows(half, False) for half in (1, 2)]

    def _rows(self, half: int, validation: bool) -> torch.Tensor:
        """Return the (n,) particles of a half-set that trained its decoder, or that were held out."""
        mine = (self.prepared.halves == half) | (self.options.halves == "joint")
        return torch.where(mine & (self.prepared.validation == validation))[0]

    def _infer_half(self, trainer: HalfTrainer, reporter: Reporter) -> None:
        model, index = trainer.model.eval(), trainer.half - 1
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

    def save(self, longer: bool = False) -> None:
        """Write the models and the latents; remove what came from earlier ones, if the training was made `longer`."""
        with replacing(self.run, "results"):
            forget_files(self.run)
            # Found from the earlier models: without it, a run is refused until it is summarised again.
            (self.run / "analysis" / "summary.json").unlink(missing_ok=True)
            if longer:
                remove_later_results(self.run)
            self._write()

    def _write(self) -> None:
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
    """Run the schedule from the last checkpoint of both half-sets on, and write metrics and checkpoints."""
    options, data = trainers[0].options, trainers[0].data
    sizes = exchange({trainer.half: len(trainer.rows) for trainer in trainers})
    folders = {half: run / f"half{half}" / "checkpoints" for half in sizes}
    metrics: list[dict] = []
    rises = {half: Rises() for half in sizes}
    common = set.intersection(*(set(checkpoint_epochs(folder)) for folder in folders.values()))
    done = world().agreed(max(common, default=0))
    if done:
        rises = exchange({t.half: Rises(**load_checkpoint(folders[t.half], done, t)) for t in trainers})
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
        _check_converging(trainers, number, entries)
        pace = _pace(sum(sizes.values()), data.device, time.monotonic() - started)
        said = {
            trainer.half: _describe(epoch, trainer, entry) for trainer, entry in zip(trainers, entries, strict=True)
        }
        for line in [line for lines in exchange(said).values() for line in lines]:
            reporter.say(line)
        for half, entry in exchange({entry["half"]: entry for entry in entries}).items():
            rises[half].add(entry["fixed_loss"])
            metrics.append(entry | pace | {"rises": rises[half].number})
        most = max(each.number for each in rises.values())
        if most >= options.stop_after_rises:
            stopped = True
            for entry in metrics[-len(sizes) :]:
                entry["stopped"] = True
            reporter.say(f"Stopping after epoch {number}: the data loss has risen {most} times.")
        with atomic_path(run / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
        write_table(run / "training_curves.csv", training_curves(metrics))
        due = world().agreed(time.monotonic() - saved > _CHECKPOINT_SECONDS) or number % 10 == 0
        if due or stopped or number == len(epochs):
            own = {t.half: checkpoint_of(t, number, asdict(rises[t.half])) for t in trainers}
            for half, checkpoint in collect(own).items():
                checkpoint.save(folders[half])
            saved = time.monotonic()
        reporter.progress("training", number, len(epochs))


def _check_converging(trainers: tuple[HalfTrainer, ...], number: int, entries: list[dict]) -> None:
    """Raise in all processes what `check_converging` raises in one."""
    found = None
    try:
        check_converging(trainers, number, entries)
    except DivergedError as error:
        found = error
    for each in exchange({trainers[0].half: found}).values():
        if each is not None:
            raise each


def _run_epoch(epoch: Epoch, number: int, trainer: HalfTrainer) -> dict:
    """Run one epoch on one half-set and return its line of metrics without its `_pace`."""
    trainer.agree()
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
    tried = None if epoch.parts is None else try_rigid_parts(trainer, number, epoch.parts == "last")
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
        **({} if tried is None else {"rigid_parts": asdict(tried)}),
        # On held-out particles, where latents have been inferred again.
        "held_out": None if amplitude is None else asdict(amplitude),
    }


def _describe(epoch: Epoch, trainer: HalfTrainer, entry: dict) -> list[str]:
    """Return what an epoch of a half-set, with this line of metrics, says to the user."""
    lines = [_describe_start(trainer)] if epoch.infer == "linear" else []
    if "large_motion" in entry:
        lines.append(f"{trainer.name}: {FollowedMotion(**entry['large_motion']).sentence}")
    if "rigid_parts" in entry:
        lines.append(f"{trainer.name}: {TriedParts(**entry['rigid_parts']).sentence}")
    return lines


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


def _pace(particles: int, device: torch.device, seconds: float) -> dict:
    """Return the metrics of speed and memory of an epoch of all half-sets that took some seconds."""
    return {
        "seconds": seconds,
        "particles_per_second": particles / seconds,
        "peak_memory_gb": peak_memory(device) / 2**30,
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
