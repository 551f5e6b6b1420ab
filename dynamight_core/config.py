"""What ``config.yaml`` of a run holds, written and read."""

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.options import STAGES, InputOptions, TrainOptions
from dynamight_core.options.declare import check_types, described, is_of

# Types of what commands read again.
_PROVENANCE = {
    "run": str,
    "star_sha256": str,
    "commands": dict,
    "slower": dict,
    "earlier_epochs": list[int],
    "atomic_model": dict,
}


@dataclass
class RunConfig:
    """Everything that config.yaml holds: the options of each stage, and where they came from.

    Parameters
    ----------
    inputs, train
        options as used.
    provenance
        versions, command lines by stage, checksum of the input STAR.
    stages
        options of later stages by name, as used.
    """

    inputs: InputOptions = field(default_factory=InputOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    provenance: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)

    def write(self, run: Path) -> None:
        """Write ``run/config.yaml``."""
        with atomic_path(Path(run) / "config.yaml") as path:
            path.write_text(yaml.safe_dump(asdict(self), sort_keys=False))

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        """Read ``run/config.yaml``.

        Raises
        ------
        InputError
            if the folder contains no run, or a file of other options.
        """
        path = Path(run) / "config.yaml"
        if not path.exists():
            raise InputError(f"{run} contains no run (no config.yaml); use a folder written by dynamight train")
        try:
            values = yaml.safe_load(path.read_text())
            _check_records(values)
            _relocate(values["inputs"], values["provenance"].get("run"), Path(run))
            return cls(
                InputOptions(**values["inputs"]),
                TrainOptions(**values["train"]),
                values["provenance"],
                values["stages"],
            )
        except InputError as error:
            raise InputError(f"in {path}, {error}") from error
        except Exception as error:  # Libraries have many exceptions for damaged files.
            raise InputError(f"{path} cannot be understood ({error}); train again into a new folder") from error


def _check_records(values: dict[str, Any]) -> None:
    """Refuse records of config.yaml that are not of the types which commands expect."""
    check_types(InputOptions, values["inputs"])
    records = {f"provenance.{name}": kind for name, kind in _PROVENANCE.items() if name in values["provenance"]}
    records |= {f"stages.{stage}": dict for stage in values["stages"]}
    for name, kind in records.items():
        part, key = name.split(".", 1)
        if not is_of(values[part][key], kind):
            raise InputError(f"{name} is {values[part][key]!r} instead of {described(kind)}; restore the file")
    for stage, options in values["stages"].items():
        if stage in STAGES:
            check_types(STAGES[stage], options)


def _relocate(inputs: dict[str, Any], before: str | None, run: Path) -> None:
    """Follow a run that was moved with its inputs: replace missing paths by those beside it.

    Parameters
    ----------
    inputs
        values of `InputOptions`, changed in place.
    before
        folder of the run at the training.
    run
        its folder now, or a folder of links to its files.
    """
    if before is None:
        return
    folders = [run.absolute(), Path(os.path.realpath(run / "latents.safetensors")).parent]

    def found(path: str | None) -> str | None:
        if not path or os.path.exists(path):
            return path
        moved = [os.path.normpath(folder / os.path.relpath(path, before)) for folder in folders]
        return next(filter(os.path.exists, moved), path)

    # Older runs lack newer options.
    for name in inputs.keys() & {"star", "map", "mask", "atomic_model", "project"}:
        inputs[name] = found(inputs[name])
    for name in ("half_maps", "bodies"):
        inputs[name] = inputs.get(name) and [found(path) for path in inputs[name]]
    inputs["passthrough"] = [found(path) for path in inputs.get("passthrough", [])]


def changed_options(old: Any, new: Any) -> list[str]:
    """Return the names of the fields in which two option dataclasses differ."""
    return [f.name for f in fields(old) if getattr(old, f.name) != getattr(new, f.name)]
