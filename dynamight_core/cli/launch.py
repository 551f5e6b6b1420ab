"""A stage in several processes of this machine: started, watched and ended together by torchrun's engine."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dynamight_core import processes
from dynamight_core.errors import InputError

# Commands whose work several processes share.
SHARED = ("train", "infer", "reconstruct", "control")
_LAUNCHED = "DYNAMIGHT_LAUNCHED"


def number_of_processes(command: str, arguments: Mapping[str, Any], wanted: int | None) -> int:
    """Return how many processes a command should run in.

    Parameters
    ----------
    command
        its name.
    arguments
        of the command; ``device`` may name several GPUs.
    wanted
        number that the user has asked for, if any.

    Raises
    ------
    InputError
        if the command runs in one process only, or the number of GPUs is another one.
    """
    device = arguments.get("device") or ""
    listed = _processes_for(device) if "," in device else 1
    number = listed if wanted is None else wanted
    if number == 1 and listed == 1:
        return 1
    if command not in SHARED:
        option = "--processes" if wanted is not None and wanted > 1 else "--device"
        given = f"{wanted}" if option == "--processes" else f"'{device}'"
        raise InputError(
            f"{option} is {given}, but {command} runs in one process; several processes can run {', '.join(SHARED)}"
        )
    if listed not in (1, number):
        raise InputError(f"--processes is {number}, but --device names {listed} GPUs; use as many, or omit --processes")
    return number


def in_processes(
    line: Sequence[str], wanted: int | None, command: str, arguments: Mapping[str, Any]
) -> tuple[int, str] | None:
    """Run a command line in several processes, if that is asked for; return None if it is not.

    Parameters
    ----------
    line
        words of the command line.
    wanted
        number of processes that the user has asked for, if any.
    command, arguments
        name of the command, and its arguments.

    Returns
    -------
    tuple
        the exit code, and a sentence for the user if it is not 0; empty where the process that failed has told it.
    """
    if processes.count() > 1:
        if command not in SHARED:
            raise InputError(f"{command} runs in one process; start it without torchrun")
        return None
    number = number_of_processes(command, arguments, wanted)
    return None if number == 1 else _launch(number, line, command)


def is_launched() -> bool:
    """Return whether this process was started by another process of this program, which tells the user how it ended."""
    return _LAUNCHED in os.environ


def cure(command: str) -> str:
    """Return what to do after a command was stopped."""
    return "resume with --resume" if command == "train" else "run the command again"


def _launch(number: int, line: Sequence[str], command: str) -> tuple[int, str]:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id="dynamight",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    # As torchrun does; `devices.set_threads` divides them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[_LAUNCHED] = "1"
    # What it says of a process that failed, in a table, is said in a sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "dynamight_core", *line)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode, ""
        name = signal.Signals(-failure.exitcode).name
        return 1, f"Error: process {rank + 1} of {number} was killed ({name}; has memory run out?); {cure(command)}."
    except (SignalException, KeyboardInterrupt):
        return 130, f"Stopped; {cure(command)}."
    finally:
        del os.environ[_LAUNCHED]
    return 0, ""


def _processes_for(device: str) -> int:
    from dynamight_core.devices import processes_for

    return processes_for(device)
