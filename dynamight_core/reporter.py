"""What a stage tells its user while it works: lines, notes, warnings, and how far it is."""

from collections.abc import Callable


class Reporter:
    """Passes on what a stage reports.

    Parameters
    ----------
    say
        takes a line for the user.
    progress
        takes a step's name, what is done and what there is to do; called from the threads of both halves. None
        reports no progress.
    """

    def __init__(
        self, say: Callable[[str], None] = print, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self._say, self._progress = say, progress

    def say(self, line: str) -> None:
        """Report a line."""
        self._say(line)

    def note(self, text: str) -> None:
        """Report what a user should know."""
        self._say(f"Note: {text}.")

    def warn(self, text: str) -> None:
        """Report what a user should look into."""
        self._say(f"Warning: {text}.")

    def progress(self, step: str, done: int, total: int) -> None:
        """Report that `done` of `total` of a step are done."""
        if self._progress is not None:
            self._progress(step, done, total)

    def step(self, name: str) -> Callable[[int, int], None]:
        """Return the (done, total) progress of a step, for functions that know nothing of what they are part of."""
        return lambda done, total: self.progress(name, done, total)


PRINT = Reporter()
QUIET = Reporter(lambda line: None)
