"""The program made of the commands and of the options that they declare, with its help."""

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CoercionError, CycloptsError, Group, Parameter, Token, UnusedCliTokensError

from dynamight_core.errors import InputError, option_name
from dynamight_core.options import STAGES
from dynamight_core.options.completed import completed
from dynamight_core.options.declare import HEADING, Option, declared, refusal
from dynamight_core.options.presets import FOLLOW, PRESETS, SOURCES
from dynamight_core.options.schema import default_of, plain_type
from dynamight_core.version import __version__

GLOBAL = Group("Global options", sort_key=100)
_COMMANDS: dict[str, Callable[..., None]] = {}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as the command of its name.

    Its parameters before the star are arguments, those after it options, each Annotated with an `Option`; parameters
    that are options dataclasses stand for all their fields.
    """
    _COMMANDS[function.__name__] = function
    return function


@dataclass(frozen=True)
class Word:
    """A parameter of a command as the command line has it.

    Parameters
    ----------
    name
        of the parameter of the function, or of the field of a dataclass.
    kind
        type of its value.
    default
        MISSING where there is none.
    option
        its declaration.
    positional
        whether it is an argument, known by its place.
    owner
        parameter of the function whose dataclass it belongs to, if any.
    """

    name: str
    kind: Any
    default: Any
    option: Option
    positional: bool = False
    owner: str = ""


def words_of(name: str) -> list[Word]:
    """Return all arguments and options of a command, in the order of its help."""
    function = _COMMANDS[name]
    annotations = typing.get_type_hints(function, include_extras=True)
    own, fields = [], []
    for parameter in inspect.signature(function).parameters.values():
        annotation = annotations[parameter.name]
        if is_dataclass(annotation):
            kinds, owner = typing.get_type_hints(annotation), parameter.name
            fields += [Word(f.name, kinds[f.name], default_of(f), o, owner=owner) for f, o in declared(annotation)]
            continue
        kind, option = typing.get_args(annotation)
        default = MISSING if parameter.default is parameter.empty else parameter.default
        positional = parameter.kind is not parameter.KEYWORD_ONLY
        own.append(Word(parameter.name, kind, default, option, positional))
    return own + [word for word in fields if word.name not in {each.name for each in own}]


def make_app(everything: bool = False) -> App:
    """Return the program; its help shows basic options, or everything."""
    app = App(
        name="dynamight",
        help="Molecular motions from cryo-EM particle images, and the sharper maps that result from them.",
        version=f"dynamight {__version__}",
        version_flags=["--version"],
        help_flags=["--help", "-h", "--help-all"],
        help_format="plaintext",
        help_epilogue="Options of a command: dynamight COMMAND --help",
    )
    app["--help"].help, app["--version"].help = "Show the main options, or all of them.", "Print the version."
    for number, (name, function) in enumerate(_COMMANDS.items()):
        words = words_of(name)
        hidden = sum(not _is_shown(word) for word in words)
        more = f"{hidden} more options: dynamight {name} --help-all" if hidden and not everything else ""
        app.command(_accepting(function, words, everything), name=name, help_epilogue=more, sort_key=number)
        if any(word.name == "preset" for word in words):
            app[name].command(_show_preset, name="--show-preset", group=GLOBAL)
    app.register_install_completion_command(help="Install tab completion for the shell in use.")
    for flag in ("--help", "--version", "--install-completion"):
        app[flag].group, app[flag].sort_key = GLOBAL, 100
    return app


def _show_preset(preset: Annotated[str, Parameter(help="Name of the preset.")] = "paper", /) -> None:
    """Print the options of a preset, each with its source and the default."""
    print(describe_preset(preset))


def describe_preset(preset: str) -> str:
    """Return the options of a preset in lines: a command of the program, and under it its options.

    Raises
    ------
    InputError
        if there is no such preset.
    """
    if preset not in PRESETS:
        raise InputError(f"there is no preset '{preset}'; choose one of {', '.join(PRESETS)}")
    lines: list[str] = []
    for stage, settings in PRESETS[preset].items():
        heading = f"dynamight {'train' if stage == 'input' else stage}"
        lines += [] if heading in lines else [heading]
        for field, option in declared(STAGES[stage]):
            if field.name in settings:
                setting = settings[field.name]
                value, default = (describe_value(each, option.unit) for each in (setting.value, default_of(field)))
                text = f"  {option_name(field.name) + ' ' + value:42}default: {default:16}{SOURCES[setting.source]}"
                lines.append(f"{text}; {setting.remark}" if setting.remark else text)
    return "\n".join(lines) or f"The preset {preset} changes nothing: all options have their defaults."


def describe_value(value: Any, unit: str) -> str:
    """Return a value of an option in words, with its unit if it is a number."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "automatic"
    return str(value) if isinstance(value, str) else f"{value:.10g} {unit}".strip()


def current_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line with former names of options replaced, and a note for each of these."""
    now, notes = list(words), []
    known = words_of(now[0]) if now and now[0] in _COMMANDS else []
    former = {f"--{old}": word for word in known for old in word.option.was}
    for number, text in enumerate(now):
        old, equals, value = text.partition("=")
        if old in former:
            new = option_name(former[old].name)
            now[number] = f"{new}{equals}{value}"
            notes.append(f"Note: {old} is now called {new}; the old name will go.")
    return now, notes


def describe_error(error: CycloptsError) -> str:
    """Return one sentence on a command line that cannot be understood."""
    argument = error.argument
    if isinstance(error, CoercionError) and argument and error.token and error.command_chain:
        word = next(word for word in words_of(error.command_chain[0]) if option_name(word.name) == argument.name)
        if word.option.choices is not None:
            return str(refusal(argument.name, error.token.value, word.option))
        kind = "a whole number" if plain_type(word.kind) is int else "a number"
        wanted = ", ".join(filter(None, (kind, word.option.limits)))
        return f"{argument.name} is '{error.token.value}'; give {wanted}"
    if isinstance(error, UnusedCliTokensError):
        return f"'{' '.join(error.unused_tokens or ())}' is more than the command takes; see {_help(error)}"
    text = " ".join(str(error).partition("Available commands")[0].split()).rstrip(".")
    text = re.sub(r".*parameter (--\S+) requires an argument", r"\1 needs a value", text)
    text = re.sub(r".*parameter (\S+) requires an argument", r"\1 is missing", text)
    return f"{text}; see {_help(error)}"


def _help(error: CycloptsError) -> str:
    return " ".join(("dynamight", *(error.command_chain or ()), "--help"))


def _is_shown(word: Word) -> bool:
    return word.positional or word.default is MISSING or word.option.level == "basic"


def _accepting(function: Callable[..., None], words: Sequence[Word], everything: bool) -> Callable[..., None]:
    """Return `function` taking each of the words by its name, as the library for command lines reads it."""
    takes: dict[str, Any] = {p.name: p.annotation for p in inspect.signature(function).parameters.values()}

    def call(*arguments: Any, **values: Any) -> None:
        values |= dict(zip((word.name for word in words if word.positional), arguments, strict=False))
        given = {name: _plain(value) for name, value in values.items()}
        for name, option_class in takes.items():
            if is_dataclass(option_class):
                values[name] = completed(takes[name], given, _preset_to_follow(takes[name], given))
        function(**{name: value for name, value in values.items() if name in takes})

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    groups: dict[str, Group] = {}
    parameters = [_parameter(word, groups, everything) for word in words]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _preset_to_follow(option_class: type, given: Mapping[str, Any]) -> str | None:
    """Return the preset of the run that a command is about, None if its options do not follow that of a run."""
    follows = any(field.name == "preset" and field.default == FOLLOW for field, _ in declared(option_class))
    if not follows or given.get("preset", FOLLOW) != FOLLOW:
        return None
    from dynamight_core.config import RunConfig

    return RunConfig.read(Path(given["run"])).train.preset


def _plain(value: Any) -> Any:
    """Return a list for a tuple, and text for a path: config.yaml and JSON have neither."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _parameter(word: Word, groups: dict[str, Group], everything: bool) -> inspect.Parameter:
    option, kind = word.option, plain_type(word.kind)
    if option.words is not None and option.words[0] == option.words[1]:
        # So many words, and what follows them is something else.
        kind = tuple[(str,) * option.words[0]]  # type: ignore[misc]
    told: dict[str, Any] = {"help": help_of(word), "show_default": False, "negative_iterable": ()}
    if typing.get_origin(kind) is not list:
        # The last counts, so that a script's options can be changed at the end of its line.
        told["allow_repeating"] = True
    if kind is not bool and not word.positional:
        told["metavar"] = metavar_of(word)
    if not word.positional:
        heading = option.group or HEADING
        group = groups.setdefault(heading, Group(heading, sort_key=len(groups) + 2))
        told |= {"group": group, "show": everything or _is_shown(word)}
        told["name"] = option_name(word.name)
    if option.choices is not None:
        told |= {"choices": list(option.choices), "show_choices": False}
    if int in (kind, *typing.get_args(kind)):
        told["converter"] = whole_numbers
    if kind is bool:
        told["negative"] = () if word.default is False else f"--no-{word.name.replace('_', '-')}"
    elif option.words is not None and option.words[1] is None:
        told["consume_multiple"] = True
    elif kind is str or typing.get_origin(kind) is list:
        # Coordinates may begin with a minus sign.
        told["allow_leading_hyphen"] = True
    place = inspect.Parameter.POSITIONAL_ONLY if word.positional else inspect.Parameter.KEYWORD_ONLY
    default = inspect.Parameter.empty if word.default is MISSING else word.default
    return inspect.Parameter(word.name, place, default=default, annotation=Annotated[kind | None, Parameter(**told)])


def whole_numbers(kind: Any, tokens: Sequence[Token]) -> int | list[int]:
    """Return whole numbers, and refuse others, which the library would round."""
    numbers = [int(token.value) for token in tokens]
    return numbers[0] if kind is int else numbers


def metavar_of(word: Word) -> str:
    """Return what stands for the value of an option in help and documents."""
    kinds = {int: "N", float: "X", str: "TEXT", Path: "FILE"}
    return word.option.metavar or ("NAME" if word.option.choices else kinds[plain_type(word.kind)])


def help_of(word: Word) -> str:
    """Return what help says of a word: its sentence, then its default, or its unit where there is none."""
    default = describe_default(word.default)
    if default:
        return f"{word.option.help} [default: {default} {word.option.unit}".rstrip() + "]"
    return word.option.help + (f" [{word.option.unit}]" if word.option.unit else "")


def describe_default(value: Any) -> str:
    """Return a default in the words of help and documents, nothing where there is none or it is off."""
    if value is MISSING or value is None or value is False or value == []:
        return ""
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return " ".join(map(describe_default, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)
