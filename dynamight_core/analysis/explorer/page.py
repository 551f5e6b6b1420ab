"""The explorer's page: one file that loads nothing else, with its style and its modules inside."""

import re
from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"
_IMPORT = re.compile(r'^import [^;]*? from "(\.[^"]+)";\n', re.M)


def page() -> str:
    """Return the page as HTML."""
    text = (_ASSETS / "explorer.html").read_text(encoding="utf-8")
    style = (_ASSETS / "explorer.css").read_text(encoding="utf-8") + first_style()
    return text.replace("/* style */", style).replace("/* script */", script())


def first_style() -> str:
    """Return the style of the first screen, which the report has as well."""
    return (_ASSETS / "first.css").read_text(encoding="utf-8")


def script(entry: Path = _ASSETS / "explorer.js") -> str:
    """Return the modules that one imports, and it, as a single module: each after those that it imports.

    Names at the top level of modules must differ, which the browser and the tests check.
    """
    modules: dict[Path, str] = {}

    def add(path: Path) -> None:
        if path not in modules:
            text = path.read_text(encoding="utf-8")
            for imported in _IMPORT.findall(text):
                add((path.parent / imported).resolve())
            modules[path] = re.sub(r"^export ", "", _IMPORT.sub("", text), flags=re.M)

    add(entry.resolve())
    return "\n".join(modules.values())
