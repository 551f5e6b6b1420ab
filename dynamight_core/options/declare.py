"""How an option is declared: once, beside its field, with all that help, forms, documents and checks need."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, get_args, get_origin, get_type_hints

from dynamight_core.errors import InputError, option_name

LEVELS = ("basic", "advanced", "paper")
# Of options before the first heading.
HEADING = "Options"


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name, type and default.

    Parameters
    ----------
    help
        one sentence of at most 25 words.
    label
        in Scipion's form; an option without one is not in a form.
    more
        further sentences for forms and documents.
    unit
        of the value.
    group
        heading above the option and those after it, up to the next heading.
    level
        "basic" options are shown by ``--help``, all by ``--help-all``; "paper" marks what only reproduces the paper.
    choices
        allowed words; or, where an option stands in a form, a mapping from these to their labels there.
    at_least, above, at_most, below
        limits of a number; `at_least` and `at_most` are allowed themselves.
    even
        whether a number must be even.
    words
        least and largest number of words of a list that follow the option at once; None where each takes its own.
    metavar
        what stands for the value in help.
    was
        former names of the option, which are understood and answered by a note.
    """

    help: str
    label: str = ""
    more: str = ""
    unit: str = ""
    group: str = ""
    level: str = "advanced"
    choices: Collection[str] | None = None
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    even: bool = False
    words: tuple[int, int | None] | None = None
    metavar: str = ""
    was: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Return whether a value, or each in a list, is among the choices or within the limits."""
        if isinstance(value, list | tuple):
            fewest, most = self.words or (0, None)
            return fewest <= len(value) <= (most or len(value)) and all(map(self.allows, value))
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str | bool):
            return True
        within = self.at_least <= value <= self.at_most and self.above < value < self.below
        return within and not (self.even and value % 2)

    @property
    def limits(self) -> str:
        """What a number may be, in words: "more than 0 and less than 0.5"; nothing where all are allowed."""
        if math.isfinite(self.at_least) and math.isfinite(self.at_most):
            return f"from {self.at_least:.10g} to {self.at_most:.10g}"
        lowest = ("at least", self.at_least), ("more than", self.above)
        highest = ("at most", self.at_most), ("less than", self.below)
        return " and ".join(f"{word} {limit:.10g}" for word, limit in (*lowest, *highest) if math.isfinite(limit))

    @property
    def cure(self) -> str:
        """What to do about a value that is not allowed: "give at least 50"."""
        if self.choices is not None:
            return f"choose one of {', '.join(self.choices)}"
        if self.words is not None:
            return f"give {self.words[0]}{' or more' if self.words[1] is None else ''} files"
        number = "a value " if self.limits.startswith("from") else "" if self.limits else "a number"
        number = "an even number, " if self.even else number
        return " ".join(f"give {number}{self.limits} {self.unit}".split())


def option(default: Any = MISSING, help: str = "", **declared: Any) -> Any:
    """Return the field of an options dataclass: its default, its help, and the rest of `Option` by name."""
    metadata = {"option": Option(help, **declared)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


basic, paper = partial(option, level="basic"), partial(option, level="paper")


def declared(options: Any) -> Iterator[tuple[Field[Any], Option]]:
    """Yield fields and declarations of an options dataclass, or of an instance of one, each with its heading."""
    group = HEADING
    for each in fields(options):
        group = each.metadata["option"].group or group
        yield each, replace(each.metadata["option"], group=group)


class Checked:
    """An options dataclass that refuses values which the types and declarations of its fields do not allow."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        for each, declaration in declared(self):
            value = getattr(self, each.name)
            if not (value is None or declaration.allows(value)):
                raise refusal(option_name(each.name), value, declaration)


def check_types(options: type, values: Mapping[str, Any]) -> None:
    """Refuse values of other types than the fields of an options dataclass have; other names are ignored.

    Raises
    ------
    InputError
        naming the option.
    """
    for name, kind in _kinds(options).items():
        if name in values and not is_of(values[name], kind):
            raise InputError(f"{option_name(name)} is {_shown(values[name])}; give {described(kind)}")


# Annotations of a class never change.
_kinds = cache(get_type_hints)
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_NAMES |= {dict: "names with values", type(None): "nothing"}


def is_of(value: Any, kind: Any) -> bool:
    """Return whether a value is of the type of a field; whole numbers are numbers, truth values are not."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (list, tuple):
        # Lists of YAML and JSON become no tuples.
        return isinstance(value, list | tuple) and all(is_of(each, parts[0]) for each in value)
    if parts:
        return any(is_of(value, part) for part in parts)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def described(kind: Any) -> str:
    """Return a type in words: "a list of text or nothing"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (list, tuple):
        return f"a list of {described(parts[0]).removeprefix('a ')}{'s' if parts[0] in (int, float) else ''}"
    return " or ".join(map(described, parts)) if parts else _NAMES[kind]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"'{value}'" if isinstance(value, str) else f"{value:.10g}" if isinstance(value, float) else str(value)


def refusal(name: str, value: Any, declaration: Option) -> InputError:
    """Return the error for a value that an option does not allow; `name` is as the user writes it."""
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return InputError(f"{name} is {_shown(value)}; {declaration.cure}")
