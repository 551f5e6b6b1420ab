"""A run on disk: the files of each stage, and a finished run as one object."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd
import safetensors.torch
import torch

from dynamight_core.belonging import arranged, check_files, input_files
from dynamight_core.config import RunConfig
from dynamight_core.earlier import all_or_nothing, forget, places, restore, unfinished
from dynamight_core.errors import InputError, understood
from dynamight_core.lock import is_writing, writing
from dynamight_core.model.half import HalfModel
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.metadata import Particles
from dynamight_core.particles.star import read_blocks, with_numbers

# The files of each stage, as patterns relative to the run's folder. Every file of a run belongs to exactly one stage.
STAGE_FILES = {
    "train": (
        "config.yaml",
        "metrics.jsonl",
        "training_curves.csv",
        "latents.safetensors",
        "identity.safetensors",
        "files.json",
        "particles.star",
        "particles.cs",
        "particles.csg",
        "atomic_model.cif",
        "error.log",
        "half?/model.safetensors",
        "half?/checkpoints/*",
        "analysis/summary.json",
        "analysis/motions.safetensors",
        "analysis/composition/*",
    ),
    "invert": ("half?/inverse.*",),
    "reconstruct": ("reconstruction/**/*",),
    "analyse": (
        "analysis/report.html",
        "analysis/tables/*",
        "analysis/domains/*",
        "analysis/*.csv",
        "analysis/*.mrc",
        "analysis/*.cif",
        "analysis/*.bild",
        "analysis/relion_data.star",
    ),
    "states": ("analysis/states/**/*", "analysis/paths/**/*"),
    "fields": ("analysis/fields/**/*",),
    "select": ("analysis/selections/**/*",),
    "control": ("analysis/controls/**/*",),
    "explore": ("analysis/explored.sh", "analysis/views/*.json"),
}
# What a finished training consists of: models and latents, and what was found from them.
_RESULTS = (
    "half?/model.safetensors",
    "latents.safetensors",
    "files.json",
    "particles.*",
    "analysis/summary.json",
    "analysis/motions.safetensors",
)
# Folders of a run, and files that several stages bring up to date.
_FOLDERS = ("half1", "half2", "reconstruction", "analysis")
_RECORDS = ("config.yaml", "analysis/summary.json")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def stage_files(folder: str | Path, stage: str) -> Iterator[Path]:
    """Yield the files of a stage in a run's folder."""
    for pattern in STAGE_FILES[stage]:
        yield from (path for path in sorted(Path(folder).glob(pattern)) if path.is_file())


def holds_run(folder: Path) -> bool:
    """Return whether a folder contains a run, finished or not."""
    return any((folder / name).exists() for name in ("config.yaml", "half1/checkpoints", "half2/checkpoints"))


def remove_run(folder: Path) -> None:
    """Remove the run in a folder, with all contents of its subfolders."""
    for path in stage_files(folder, "train"):
        path.unlink()
    forget(folder)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def refuse_inputs_within(folder: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse inputs that a run in this folder would replace, whatever path or link leads there.

    Raises
    ------
    InputError
        naming the first of them.
    """
    root = os.path.realpath(folder)
    for path in inputs:
        for place in places(path):
            name = os.path.relpath(place, root)
            owned = any(fnmatch(name, pattern) for patterns in STAGE_FILES.values() for pattern in patterns)
            if owned or name.split(os.sep)[0] in _FOLDERS:
                raise InputError(f"a run in {folder} would replace its input {path}; use another folder for the run")


@contextmanager
def replacing(folder: Path, stage: str) -> Iterator[None]:
    """Hold the lock on a run's folder, and leave either all that a stage writes or what was there before.

    The models of a training replace those that a run had, and all that came from these: the stage "results".
    """

    def files() -> Iterator[Path]:
        yield from _set_files(folder, stage)

    with writing(folder), all_or_nothing(folder, stage, files):
        yield


def whole_set(stage: str) -> Callable[[_Function], _Function]:
    """Make a function, whose first argument is a run, write all files of a stage or none; see `replacing`."""

    def decorate(function: _Function) -> _Function:
        @wraps(function)
        def whole(run: "Run", *arguments: Any, **options: Any) -> Any:
            with replacing(Path(run.path), stage):
                return function(run, *arguments, **options)

        return cast(_Function, whole)

    return decorate


def restore_unfinished(folder: Path) -> None:
    """Put back earlier results that a killed program began to replace, unless one is replacing them now.

    Raises
    ------
    InputError
        if that is needed, and the folder cannot be written.
    """
    # The first look costs readers no lock.
    if not unfinished(folder) or is_writing(folder):
        return
    with writing(folder):
        for stage in unfinished(folder):
            restore(folder, stage, partial(_set_files, folder, stage))


def _set_files(folder: Path, stage: str) -> Iterator[Path]:
    """Yield the files that a stage changes together."""
    if stage == "results":
        for pattern in _RESULTS:
            yield from folder.glob(pattern)
        for later in STAGE_FILES:
            if later != "train":
                yield from stage_files(folder, later)
        return
    yield from stage_files(folder, stage)
    for name in _RECORDS:
        if (folder / name).exists():
            yield folder / name


def record_stage(run: "Run", stage: str, options: Any, **more: Any) -> None:
    """Add the options of a stage, and the command that ran it, to the run's config.yaml.

    Parameters
    ----------
    run
        to update.
    stage
        its name.
    options
        its dataclass.
    more
        further options.
    """
    with writing(run.path):
        # Another command may have added to it since the run was opened.
        stored = RunConfig.read(run.path)
        run.config.stages, run.config.provenance = stored.stages, stored.provenance
        run.config.stages[stage] = asdict(options) | more
        run.config.provenance.setdefault("commands", {})[stage] = shlex.join(sys.argv)
        run.config.write(run.path)


class Run:
    """A run whose training is finished.

    Parameters
    ----------
    path
        of its folder.

    Raises
    ------
    InputError
        if it contains no finished training.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        restore_unfinished(self.path)
        self.config = RunConfig.read(self.path)
        check_files(self.path, self.config.inputs)
        file = self.path / "latents.safetensors"
        if not file.exists():
            raise InputError(f"training of {path} has not finished; resume it with dynamight train --resume")
        with understood(file, "make it again with dynamight train --resume"):
            tensors = safetensors.torch.load_file(file)
            self.latents, self.covariances = tensors["latents"], tensors["covariances"]
            self.halves, self.validation = tensors["halves"], tensors["validation"].bool()
            self.pose_changes = tensors.get("pose_changes")
            n, d = self.latents.shape[1:]
            expected = [(2, n, d), (2, n, d, d), (n,), (n,)]
            found = (self.latents, self.covariances, self.halves, self.validation)
            if [tuple(part.shape) for part in found] != expected or not ((self.halves == 1) | (self.halves == 2)).all():
                raise ValueError("its tensors do not belong together")
        first, second = (HalfModel.load(self.path / f"half{half}" / "model.safetensors") for half in (1, 2))
        self.models = first, second

    @cached_property
    def particles(self) -> Particles:
        """The particles of the input STAR in the order of the training, with refined poses if they were refined.

        Raises
        ------
        InputError
            if the file has other particles than the training had, or a stack has changed.
        """
        inputs = self.config.inputs
        particles = read_input_particles(inputs)
        if len(particles) != len(self.halves):
            raise InputError(
                f"{inputs.star} has {len(particles)} particles, but {self.path} was trained on {len(self.halves)}; "
                "restore the original file"
            )
        particles = arranged(self.path, particles, self.config.provenance.get("star_sha256"))
        if self.pose_changes is not None:
            particles = particles.posed(self.pose_changes)
        return particles

    @cached_property
    def motions(self) -> PrincipalMotions:
        """The principal motions."""
        return PrincipalMotions.load(self._summarised("analysis/motions.safetensors"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Verdict, statistics and warnings."""
        path = self._summarised("analysis/summary.json")
        with understood(path, "make it again with dynamight train --resume"):
            summary: dict[str, Any] = json.loads(path.read_text())
            if not isinstance(summary["model"], dict):
                raise ValueError("it lacks the model")
        return summary

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of RUN/particles.star: of images, the first of each particle."""
        blocks = read_blocks(self._summarised("particles.star"))
        rows = blocks.get("particles", list(blocks.values())[-1])
        if "dynParticle" in rows:
            rows = rows.drop_duplicates("dynParticle", ignore_index=True)
        return with_numbers(rows)

    @property
    def box(self) -> int:
        """Box of the particle images, pixels; read from the summary."""
        return int(self.summary["model"]["box"])

    @property
    def pixel_size(self) -> float:
        """Pixel size of the particle images, A; read from the summary."""
        return float(self.summary["model"]["pixel_size"])

    def files(self) -> list[Path]:
        """Return the files that no later stage may replace: the inputs, and what the training made."""
        inputs = [self.config.inputs.star, *(path for _, path in input_files(self.config.inputs))]
        return [*map(Path, inputs), *stage_files(self.path, "train")]

    def own_latents(self) -> torch.Tensor:
        """Return the (n, d) latents of all particles, each with its own half-set's decoder."""
        return self.latents[self.halves - 1, torch.arange(len(self.halves))]

    def consensus_to_reference(self, half: int, points: torch.Tensor) -> torch.Tensor:
        """Return (p, 3) points (A) of the consensus frame in the reference frame of a half-set (1 or 2).

        See `HalfModel.consensus_to_reference`.
        """
        return self.models[half - 1].consensus_to_reference(points)

    def _summarised(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise InputError(f"{path} is missing; make it with dynamight train --resume")
        return path
