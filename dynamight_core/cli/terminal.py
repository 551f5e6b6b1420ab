"""What the user sees while a command runs: lines, and bars or tenths of what is done."""

import os
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dynamight_core import processes
from dynamight_core.reporter import Reporter


class _Console(Console):
    """A console whose reader may leave: a closed pipe does not end a run."""

    def on_broken_pipe(self) -> None:
        """Print the rest to nowhere."""
        self.file = open(os.devnull, "w")


class Terminal:
    """Says lines and shows progress: bars on a terminal, a line for every tenth in a log."""

    # Seconds between two lines of one stage in a log.
    quiet = 3.0

    def __init__(self) -> None:
        self.console = _Console(highlight=False, soft_wrap=True)
        self._bars = None
        if self.console.is_terminal and processes.is_first():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[int, float]] = {}

    def say(self, line: str) -> None:
        """Print a line for the user."""
        try:
            self.console.print(line, markup=False)
        except OSError:
            # The terminal is gone, or the log has no room.
            self.console.on_broken_pipe()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of a stage are done."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(stage))
            return
        now = time.monotonic()
        tenth = 10 * done // max(1, total)
        said, when = self._said.setdefault(stage, (0, now))
        if tenth > said and now - when >= self.quiet:
            self.say(f"{stage}: {done} of {total}")
            self._said[stage] = (tenth, now)
        if done >= total:
            self._said.pop(stage, None)

    def __enter__(self) -> Reporter:
        return Reporter(self.say, self.progress)

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
