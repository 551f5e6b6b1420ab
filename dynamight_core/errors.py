"""Errors that a user can act on."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """Input that cannot be used. The message names the file, column or option, what is wrong, and what to do.

    The command line prints only the message and exits with code 2.
    """


# The result of a step that failed, or that could not be done because another one failed.
FAILED: Any = type("Failed", (), {"__slots__": (), "__doc__": "A result that there is not."})()


class Problems:
    """What is wrong with input: all of it is found before any of it is refused."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def step(self, function: Callable[..., Any], *arguments: Any, after: Sequence[Any] = ()) -> Any:
        """Return ``function(*arguments)``; `FAILED` if it refuses its input.

        Parameters
        ----------
        function, arguments
            a step; it is not done if an argument is `FAILED`.
        after
            results of other steps that must not have failed.
        """
        if any(value is FAILED for value in (*arguments, *after)):
            return FAILED
        try:
            return function(*arguments)
        except InputError as error:
            self.sentences.append(str(error))
            return FAILED

    def refuse(self) -> None:
        """Raise an `InputError` with all that was found, if anything was."""
        found = list(dict.fromkeys(self.sentences))
        if len(found) == 1:
            raise InputError(found[0])
        if found:
            lines = "".join(f"\n  {number}. {sentence}" for number, sentence in enumerate(found, 1))
            raise InputError(f"{len(found)} things must be corrected:{lines}")


@contextmanager
def understood(path: str | os.PathLike[str], cure: str) -> Iterator[None]:
    """Turn whatever a parser says of a damaged file into an `InputError`.

    Files may hold anything, and the libraries that read them have many exceptions, not all of which they document.

    Parameters
    ----------
    path
        of the file.
    cure
        what to do.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError(
            f"{error.filename or path} cannot be read (permission denied); ask its owner, or copy what you can read"
        ) from error
    except Exception as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} is damaged ({told}); {cure}") from error


def option_name(field: str) -> str:
    """Return the command-line option of a field of an options dataclass: ``--n-gaussians``."""
    return f"--{field.replace('_', '-')}"
