"""Options and names that the page sends."""

import re
from dataclasses import fields

from dynamight_core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
