"""Each distribution declares the packages that it imports, and no others."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "dynamight_core" / "pyproject.toml").read_text())["project"]
# Another Scipion plugin: its protocols are offered if it is installed.
OPTIONAL = {"hax"}
# Loaded by napari, which shows its window with it.
INDIRECT = {"pyqt5"}


def names(requirements):
    return {re.split("[;<=>]", requirement)[0].strip().lower().replace("_", "-") for requirement in requirements}


def engine_requirements():
    return names(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))


def plugin_requirements():
    setup = ast.parse((ROOT / "setup.py").read_text())
    (declared,) = [node.value for node in ast.walk(setup) if getattr(node, "arg", None) == "install_requires"]
    return names(ast.literal_eval(declared))


def imported(folder):
    """Return the third-party modules that the files of a package import anywhere."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"dynamight_core", "dynamight_scipion"} - OPTIONAL


@pytest.mark.parametrize(
    ("package", "requirements"),
    [("dynamight_core", engine_requirements), ("dynamight_scipion", plugin_requirements)],
)
def test_a_distribution_requires_exactly_what_it_imports(package, requirements):
    distributions = packages_distributions()
    used = {module: names(distributions.get(module, [module])) for module in imported(ROOT / package)}
    declared = requirements()
    assert {module for module, providers in used.items() if not providers & declared} == set()
    assert declared - set().union(*used.values()) - INDIRECT == set()
