"""How the program starts and ends: global options, exit codes, one sentence for every failure."""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators

from dynamight_core import processes
from dynamight_core.cli.app import GLOBAL, current_names, describe_error, make_app, whole_numbers
from dynamight_core.cli.launch import cure, in_processes, is_launched
from dynamight_core.errors import InputError
from dynamight_core.version import __version__

# Words that are answered with every option of every command.
_EVERYTHING = {"--help-all", "--install-completion", "__complete"}


def main() -> None:
    """Run the program on the words of the command line and exit."""
    with contextlib.suppress(AttributeError):
        # Messages hold Greek letters and units; a terminal that cannot show them should not end a run.
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        sys.stderr.reconfigure(errors="replace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # Its reader is gone; Python would complain of it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if processes.count() > 1:
        # Threads of torch.distributed that still wait for another process would abort this one as Python ends.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run the program on the words of a command line.

    Returns
    -------
    int
        0 if all is well, 2 for input that cannot be used, 1 for a failure, 130 if the user stopped it.
    """
    app = make_app(everything=not _EVERYTHING.isdisjoint(words))

    @app.meta.default
    def launch(
        *command: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        debug: Annotated[
            bool, Parameter(help="Print the traceback of a failure.", negative=(), show_default=False, group=GLOBAL)
        ] = False,
        status_file: Annotated[
            Path | None,
            Parameter(help="Write exit code and message to this file (JSON), for other programs.", group=GLOBAL),
        ] = None,
        number: Annotated[
            int | None,
            Parameter(
                name="--processes",
                help="Number of processes on this machine that share the work. [default: one for each GPU in --device]",
                converter=whole_numbers,
                validator=validators.Number(gte=1),
                group=GLOBAL,
            ),
        ] = None,
        require_version: Annotated[
            str | None, Parameter(help="Refuse to run in any other version, for other programs.", group=GLOBAL)
        ] = None,
    ) -> int:
        code, message = _outcome(app, command, debug, require_version, partial(in_processes, words, number))
        if code and not (message and _speaks()):
            # Another process has told it.
            return code
        if code:
            with contextlib.suppress(OSError):
                print(message, file=sys.stderr)
        if status_file is not None:
            from dynamight_core.files import atomic_path

            with atomic_path(status_file) as path:
                path.write_text(json.dumps({"exit_code": code, "message": message.removeprefix("Error: ")}))
        return code

    try:
        return app.meta(words, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except CycloptsError as error:
        print(f"Error: {describe_error(error)}", file=sys.stderr)
        return 2


def _speaks() -> bool:
    """Return whether this process tells the user of a failure: of several processes that share a stage, one does."""
    if processes.count() == 1:
        return True
    from dynamight_core.groups import fails_first

    return fails_first()


def _outcome(
    app: App,
    words: Sequence[str],
    debug: bool,
    version: str | None,
    in_several: Callable[[str, Mapping[str, Any]], tuple[int, str] | None],
) -> tuple[int, str]:
    """Run a command and return its exit code and, if that is not 0, the sentence for the user.

    The sentence is empty if another process tells it. `in_several` runs it in several processes if that is asked for.
    """
    folder = None
    try:
        if processes.count() > 1:
            from dynamight_core.groups import world

            # First of all: of processes that fail, one tells the user, and they agree on which.
            world()
        _check_version(version)
        words, notes = current_names(words)
        print(*notes, sep="\n", end="\n" * bool(notes), file=sys.stderr)
        function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        folder = bound.arguments.get("run") or bound.arguments.get("out")
        outcome = in_several(words[0], bound.arguments)
        if outcome is not None:
            return outcome
        function(*bound.args, **bound.kwargs)
        if processes.count() > 1:
            world().wait()
    except CycloptsError as error:
        return 2, f"Error: {describe_error(error)}"
    except InputError as error:
        if debug:
            traceback.print_exc()
        return 2, f"Error: {error}"
    except KeyboardInterrupt:
        # torchrun stops the others where one process ends.
        lost = _lost_process()
        if is_launched():
            return (1 if lost else 130), ""
        return (1, _describe_loss(lost, words[0])) if lost else (130, f"Stopped; {cure(words[0])}.")
    except Exception as error:
        if debug:
            traceback.print_exc()
        if processes.count() > 1:
            from dynamight_core.groups import LostProcessError

            if isinstance(error, LostProcessError):
                return 1, "" if is_launched() else _describe_loss(_lost_process(), words[0])
        from dynamight_core.limits import limit_of_system

        reason = limit_of_system(error)
        if reason is not None:
            return 2, f"Error: {reason}"
        where = "above" if debug else f"in {_write_log(folder)}"
        lines = str(error).strip().splitlines()
        sentence = f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
        return 1, f"Error: dynamight {words[0]} failed ({sentence}); the traceback is {where}."
    return 0, ""


def _lost_process() -> str | None:
    """Return which other process that shared the stage has ended, None if none is known to have."""
    if processes.count() == 1:
        return None
    from dynamight_core.groups import lost_process

    return lost_process()


def _describe_loss(which: str | None, command: str) -> str:
    who = which or f"one of {processes.count()} processes"
    return f"Error: {who} ended without a message (killed, or memory ran out?); {cure(command)}."


def _check_version(wanted: str | None) -> None:
    if wanted not in (None, __version__):
        raise InputError(
            f"dynamight-core {wanted} is needed, but the environment {sys.prefix} has {__version__}; install that "
            "version, or activate an environment which has it"
        )


def _write_log(folder: Path | None) -> Path:
    """Write the traceback to ``error.log`` in a run's folder, or in the temporary one if there is none."""
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}\n{traceback.format_exc()}"
    if folder is not None and Path(folder).is_dir():
        with contextlib.suppress(OSError):
            path = Path(folder) / "error.log"
            path.write_text(text)
            return path
    with tempfile.NamedTemporaryFile("w", prefix="dynamight-", suffix=".log", delete=False) as file:
        file.write(text)
    return Path(file.name)
