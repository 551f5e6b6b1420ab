"""What Python's arguments mean to functions that are written for the command line's."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np

from dynamight_core.errors import InputError
from dynamight_core.options.completed import completed

PathLike: TypeAlias = str | os.PathLike[str]
# Options in messages are spelled as on the command line; commands stay as they are.
_SPELLED = re.compile(r"(dynamight [\w ]*)?--(no-)?([a-z][a-z-]*)")


def dataclasses_of(values: dict[str, Any], *kinds: type, preset: str | None = None) -> tuple[Any, ...]:
    """Return one dataclass of each kind, with the values of its fields, or those of a preset if none is given.

    Raises
    ------
    InputError
        if a value belongs to none of them.
    """
    names = {field.name: kind for kind in kinds for field in fields(kind)}
    for name in values:
        check_known("option", name, list(names))
    given = {name: _plain(value) for name, value in values.items()}
    return tuple(completed(kind, given, preset) for kind in kinds)


def check_known(noun: str, name: str, names: list[str]) -> None:
    """Refuse a name that is not among `names`, with those that are close to it."""
    if name not in names:
        close = difflib.get_close_matches(name, names, cutoff=0.7)
        cure = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(sorted(names))}"
        raise InputError(f"there is no {noun} '{name}'; {cure}")


def _plain(value: Any) -> Any:
    """Return an option's value as config.yaml can hold it: paths as text, NumPy's numbers as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def spelled(condition: Any) -> Any:
    """Return a condition of a selection as the command line spells it: ``1:-3:3`` for (1, -3, 3)."""
    if isinstance(condition, list):
        return [spelled(item) for item in condition]
    return ":".join(map(_part, condition)) if isinstance(condition, tuple) else condition


def _part(value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


@contextmanager
def python_words() -> Iterator[None]:
    """Let errors name options as Python does: ``n_gaussians`` for ``--n-gaussians``."""
    try:
        yield
    except InputError as error:
        raise InputError(_SPELLED.sub(_python_word, str(error))) from error


def _python_word(match: re.Match[str]) -> str:
    command, negation, name = match.groups()
    if command:
        return match[0]
    return name.replace("-", "_") + ("=False" if negation else "")
