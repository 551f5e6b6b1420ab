"""A `dynamight` command as a person would type it."""

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any


def command_line(command: str, places: Sequence[str | Path], *options: Any, **more: Any) -> str:
    """Return a `dynamight` command with the options that differ from their defaults, ready to paste.

    Parameters
    ----------
    command
        its name.
    places
        its arguments.
    options
        dataclasses of the command.
    more
        further options.
    """
    words = ["dynamight", command, *map(str, places)]
    for each in options:
        for item in fields(each):
            value = getattr(each, item.name)
            default = item.default if item.default_factory is MISSING else item.default_factory()
            value = list(value) if isinstance(value, tuple) else value
            if value != (list(default) if isinstance(default, tuple) else default):
                words += _words(item.name, value, repeated=isinstance(default, list))
    for name, value in more.items():
        words += _words(name, value)
    return shlex.join(words)


def _words(name: str, value: Any, repeated: bool = False) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list) and not repeated:
        return [flag, *map(str, value)]
    # With an equals sign, because coordinates may begin with a minus.
    return [f"{flag}={part}" for part in (value if isinstance(value, list) else [value])]
