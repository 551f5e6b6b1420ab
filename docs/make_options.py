"""Write what follows from the declared options: tables in the documentation, and the schema in the Scipion plugin.

python docs/make_options.py            write them
python docs/make_options.py --check    write nothing; exit with 1 where a file is not what it would be
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

import dynamight_core.cli  # noqa: F401 importing registers the commands
from dynamight_core.cli.app import describe_default, describe_value, metavar_of, words_of
from dynamight_core.errors import option_name
from dynamight_core.options import STAGES
from dynamight_core.options.declare import Option, declared
from dynamight_core.options.presets import PRESETS, SOURCES
from dynamight_core.options.schema import default_of, make_schema, pretty_unit

ROOT = Path(__file__).resolve().parents[1]


def meaning(option: Option) -> str:
    """Return all sentences on an option."""
    return f"{option.help} {option.more}".strip().replace("|", r"\|")


def command_table(command: str) -> str:
    """Return the table of a command's options; `check` takes those of `train`, which are not repeated."""
    lines = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    for word in words_of(command):
        if word.positional or (command == "check" and word.owner):
            continue
        option, name = word.option, option_name(word.name)
        if word.kind in (bool, bool | None):
            named = f"`{name}`" + (f", `--no-{name[2:]}`" if word.default is not False else "")
        else:
            named = f"`{name} {metavar_of(word)}`"
        default = "off" if word.default is False else describe_default(word.default)
        unit = pretty_unit(option.unit)
        default = (
            "required" if word.default is MISSING else f"{default} {unit}".strip() if default else unit and f"({unit})"
        )
        allowed = ", ".join(option.choices or ()) or option.limits + (", even" if option.even else "")
        lines.append(f"| {named} | {default} | {allowed} | {meaning(option)} |")
    return "\n".join(lines)


def form_table(stages: str) -> str:
    """Return the table of the options that Scipion's form of some stages has, as the form calls them."""
    lines = ["| in the form | option | meaning |", "|---|---|---|"]
    for stage in stages.split():
        for field, option in declared(STAGES[stage]):
            if option.label:
                label = option.label + (f" ({pretty_unit(option.unit)})" if option.unit else "")
                lines.append(f"| {label} | `{option_name(field.name)}` | {meaning(option)} |")
    return "\n".join(lines)


def preset_table(names: str) -> str:
    """Return the table of a preset's options of a stage, beside the defaults; `names` are preset and stage."""
    preset, stage = names.split()
    lines = ["| option | preset | default | from | remark |", "|---|---|---|---|---|"]
    for field, option in declared(STAGES[stage]):
        setting = PRESETS[preset][stage].get(field.name)
        if setting is not None:
            value, default = (
                describe_value(each, pretty_unit(option.unit)) for each in (setting.value, default_of(field))
            )
            lines.append(
                f"| `{option_name(field.name)}` | {value} | {default} | {SOURCES[setting.source]} | {setting.remark} |"
            )
    return "\n".join(lines)


def filled(text: str, make_table, kind: str = "options") -> str:
    """Return a document with the table of each pair of markers, such as `<!-- options NAMES -->` and `<!-- end -->`."""
    pattern = rf"(<!-- {kind} ([\w ]+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{make_table(m[2])}\n\n{m[3]}", text, flags=re.DOTALL)


def made() -> Iterator[tuple[Path, str]]:
    """Yield every file that follows from the options, with what it should hold."""
    for name, make_table in (("command-line.md", command_table), ("scipion.md", form_table)):
        path = ROOT / "docs" / name
        yield path, filled(path.read_text(encoding="utf-8"), make_table)
    path = ROOT / "docs" / "paper.md"
    yield path, filled(path.read_text(encoding="utf-8"), preset_table, "preset")
    # As `dynamight options` prints it.
    schema = json.dumps(make_schema(), indent=1, ensure_ascii=False)
    yield ROOT / "dynamight_scipion" / "options.json", f"{schema}\n"


def main() -> None:
    stale = [(p, text) for p, text in made() if not p.exists() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        sys.exit("\n".join(f"{path} is stale: run python docs/make_options.py" for path, _ in stale) or 0)
    for path, text in stale:
        path.write_text(text, encoding="utf-8")
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
