"""Messages and progress of a stage."""

from collections.abc import Callable

from dynamight_core import processes


def _to_nobody(line: str) -> None:
    pass


class Reporter:
    """Passes on the messages and progress of a stage; of several processes, those of the first one.

    Parameters
    ----------
    say
        receives a line for the user.
    progress
        receives the name of a step, the amount done and the total, from the threads of both half-sets; None for no
        progress.
    """

    def __init__(
        self, say: Callable[[str], None] = print, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self._say, self._progress = say, progress
        if not processes.is_first():
            self._say, self._progress = _to_nobody, None

    def say(self, line: str) -> None:
        """Report a line."""
        self._say(line)

    def note(self, text: str) -> None:
        """Report a note; `text` is a sentence without its full stop."""
        self._say(f"Note: {text}.")

    def warn(self, text: str) -> None:
        """Report a warning; `text` is a sentence without its full stop."""
        self._say(f"Warning: {text}.")

    def progress(self, step: str, done: int, total: int) -> None:
        """Report that `done` of `total` of a step is done."""
        if self._progress is not None:
            self._progress(step, done, total)

    def step(self, name: str) -> Callable[[int, int], None]:
        """Return the (done, total) progress function of a step."""
        return lambda done, total: self.progress(name, done, total)


PRINT = Reporter()
QUIET = Reporter(_to_nobody)
