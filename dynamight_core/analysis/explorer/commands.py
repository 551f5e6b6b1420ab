"""The `dynamight` commands that do what a person did on the page, and the options that the page sends."""

import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

from dynamight_core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def command_line(command: str, run: Path, options, **more) -> str:
    """Return a `dynamight` command with the options that differ from their defaults, ready to paste.

    Parameters
    ----------
    command
        its name.
    run
        folder.
    options
        dataclass of the command.
    more
        further options.
    """
    words = ["dynamight", command, str(run)]
    for item in fields(options):
        value = getattr(options, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = list(value) if isinstance(value, tuple) else value
        if value != (list(default) if isinstance(default, tuple) else default):
            words += _words(item.name, value, repeated=isinstance(default, list))
    for name, value in more.items():
        words += _words(name, value)
    return shlex.join(words)


def _words(name: str, value, repeated: bool = False) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list) and not repeated:
        return [flag, *map(str, value)]
    # With an equals sign, because coordinates may begin with a minus.
    return [f"{flag}={part}" for part in (value if isinstance(value, list) else [value])]


def options_from(kind: type, values: dict):
    """Return the options dataclass of a command from plain values.

    Raises
    ------
    InputError
        naming an option that the command does not have.
    """
    known = {item.name for item in fields(kind)}
    for name in values:
        if name not in known:
            raise InputError(f"there is no option {name}; the command has {', '.join(sorted(known))}")
    return kind(**values)


def check_name(name: str) -> str:
    """Return a name for a new file.

    Raises
    ------
    InputError
        if it has characters other than letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is not a valid file name; use letters, digits, dots, - and _")
    return name
