"""Options of a stage from what the user sets and a preset."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from dynamight_core.options import STAGES
from dynamight_core.options.declare import declared, refusal
from dynamight_core.options.presets import FOLLOW, PRESETS, preset_values

Options = TypeVar("Options")


def completed(kind: type[Options], given: Mapping[str, Any], preset: str | None = None) -> Options:
    """Return the options of a stage: those that are given, then those of the preset, then the defaults.

    Parameters
    ----------
    kind
        dataclass of the stage.
    given
        values by name; those of other stages only decide which of the preset's values they replace.
    preset
        of the run, used where no other is given.

    Raises
    ------
    InputError
        if a value is not allowed.
    """
    chosen = given.get("preset", FOLLOW)
    chosen = (preset or "default") if chosen == FOLLOW else chosen
    if chosen not in PRESETS:
        _, declaration = next(each for each in declared(STAGES["train"]) if each[0].name == "preset")
        raise refusal("--preset", chosen, declaration)
    stage = next((name for name, option_class in STAGES.items() if option_class is kind), "")
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    values = preset_values(chosen, stage, given) | {name: value for name, value in given.items() if name in names}
    if "preset" in names:
        values["preset"] = chosen
    return kind(**values)
