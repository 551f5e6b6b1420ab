"""Tests, benchmarks and docs share code through the packages and `tools`, and never import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests", "benchmarks", "docs")


def modules(folder):
    """Return the names by which the files of a folder could be imported from anywhere."""
    return {folder} | {path.stem for path in (ROOT / folder).rglob("*.py")}


def imported(path):
    """Return the first names of all modules that a file imports absolutely, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def foreign(importer, own):
    """Return "FILE imports MODULE" for what the files of a folder import from `FOLDERS` other than their own."""
    others = set().union(*(modules(folder) for folder in FOLDERS if folder != own))
    own_names = modules(own) if own in FOLDERS else set()
    files = sorted(importer.rglob("*.py"))
    assert files
    return [f"{path.name} imports {name}" for path in files for name in sorted(imported(path) & (others - own_names))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_none_of_them_imports_another(folder):
    assert foreign(ROOT / folder, folder) == []


@pytest.mark.parametrize("folder", ["tools", "dynamight_core", "dynamight_scipion"])
def test_what_they_share_imports_none_of_them(folder):
    names = {name for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    assert not names & set(FOLDERS)


def test_an_import_by_any_name_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text(
        "import numpy\ndef later():\n    import benchmarks.engine\n    from reconstruction import half_maps\n"
    )
    assert foreign(tmp_path, "tests") == ["new.py imports benchmarks", "new.py imports reconstruction"]


def test_benchmarks_share_only_their_common_modules():
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py")]
    found = {}
    for path in scripts:
        tree = ast.walk(ast.parse(path.read_text()))
        sources = [n.module for n in tree if isinstance(n, ast.ImportFrom) and n.module.startswith("benchmarks")]
        found[path.stem] = [name for name in sources if not name.startswith("benchmarks.common.")]
    assert found and not any(found.values()), found
