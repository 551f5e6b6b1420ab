"""The declarations for other programs: a JSON schema of every stage's options."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field
from typing import Any

from dynamight_core.options import STAGES
from dynamight_core.options.declare import Option, declared
from dynamight_core.options.presets import PRESETS, preset_values

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def make_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) with an object for each stage, whose properties are options by name.

    Under ``presets``, which is not a word of the schema, are the values of each preset by stage and option.

    Beside the schema's own words each option has ``label`` and ``choice_labels`` of a form, ``more`` to its help,
    ``unit``, ``group`` and ``level``. Lists and options without a type of JSON's are left to those who know them.
    """
    stages = {name: _stage(option_class) for name, option_class in STAGES.items()}
    presets = {
        preset: {
            stage: {name.replace("_", "-"): value for name, value in preset_values(preset, stage).items()}
            for stage in settings
        }
        for preset, settings in PRESETS.items()
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": stages, "presets": presets}


def pretty_unit(unit: str) -> str:
    """Return a unit with its signs: 1/A^2 is 1/Å²."""
    return unit.replace("A", "Å").replace("^2", "²")


def plain_type(annotation: Any) -> Any:
    """Return X of X | None."""
    if not isinstance(annotation, types.UnionType):
        return annotation
    return next(part for part in typing.get_args(annotation) if part is not type(None))


def default_of(field: Field[Any]) -> Any:
    """Return the default of an option, MISSING if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _stage(option_class: type) -> dict[str, Any]:
    types_of = typing.get_type_hints(option_class)
    options = {
        field.name.replace("_", "-"): _property(field, types_of[field.name], declaration)
        for field, declaration in declared(option_class)
    }
    return {"type": "object", "description": option_class.__doc__, "properties": options}


def _property(field: Field[Any], annotation: Any, declaration: Option) -> dict[str, Any]:
    kind = plain_type(annotation)
    item: dict[str, Any] = {"description": declaration.help}
    default = default_of(field)
    if default is not MISSING:
        item["default"] = default
    of_json = _TYPES.get(kind, "array")
    item["type"] = of_json if kind is annotation else [of_json, "null"]
    if declaration.choices is not None:
        item["enum"] = list(declaration.choices)
    limits = {
        "minimum": declaration.at_least,
        "exclusiveMinimum": declaration.above,
        "maximum": declaration.at_most,
        "exclusiveMaximum": declaration.below,
    }
    limits = {word: limit for word, limit in limits.items() if math.isfinite(limit)}
    limits |= {"multipleOf": 2} if declaration.even else {}
    if of_json == "array":
        item["items"] = limits
    else:
        item |= limits
    if isinstance(declaration.choices, Mapping):
        item["choice_labels"] = list(declaration.choices.values())
    for name in ("label", "more", "group", "level"):
        if getattr(declaration, name):
            item[name] = getattr(declaration, name)
    if declaration.unit:
        item["unit"] = pretty_unit(declaration.unit)
    return item
