"""More epochs for a run: `train --resume --epochs N` with more of them than before."""

import sys
from pathlib import Path

from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.reporter import QUIET
from dynamight_core.run import STAGE_FILES, stage_files
from dynamight_core.training.progress import read_metrics

# Results of earlier models, which the run's new models replace.
_LATER = tuple(stage for stage in STAGE_FILES if stage != "train")


def earlier_epochs(run: Path) -> list[int]:
    """Return the numbers of epochs that a run was trained for before it was given more."""
    return list(RunConfig.read(run).provenance.get("earlier_epochs", []))


def refuse_stopped(run: Path) -> None:
    """Refuse more epochs for a run that the stop rule has ended.

    Raises
    ------
    InputError
        if it has.
    """
    if any(entry.get("stopped") for entry in read_metrics(run / "metrics.jsonl", sys.maxsize, QUIET)[-2:]):
        raise InputError(
            f"{run} was stopped because its data loss had risen, not for want of epochs; train into a new folder with "
            "a larger --stop-after-rises"
        )


def record_more_epochs(run: Path, epochs: int) -> None:
    """Note in config.yaml that a run goes on to more epochs than it was given."""
    config = RunConfig.read(run)
    config.provenance["earlier_epochs"] = [*config.provenance.get("earlier_epochs", []), config.train.epochs]
    config.train.epochs = epochs
    config.write(run)


def remove_later_results(run: Path) -> None:
    """Remove what later stages made of a run's earlier models."""
    for stage in _LATER:
        for path in stage_files(run, stage):
            path.unlink()
