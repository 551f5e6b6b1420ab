"""The engine is a house of floors: a module imports from its own room or from rooms below, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import dynamight_core

ROOT = Path(dynamight_core.__file__).parent
# From the ground up: modules and packages directly below dynamight_core.
ROOMS = (
    "version",
    "errors",
    "processes",
    "registry",
    "options",
    "reporter",
    "files",
    "limits",
    "lock",
    "earlier",
    "parallel",
    "groups",
    "sampling",
    "image_series",
    "devices",
    "config",
    "imaging",
    "structures",
    "particles",
    "model",
    "simulate",
    "belonging",
    "run",
    "training",
    "judging",
    "reconstruction",
    "analysis",
    "api",
    "demo",
    "cli",
    "__main__",
)


def imports() -> dict[str, set[str]]:
    """Return the modules of the engine, each with those that it imports, imports inside functions included."""
    paths = {".".join(("dynamight_core", *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found = {}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} imports relatively"
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else node.module for target in below]
            else:
                continue
            found[name] |= {target for target in targets if target in modules} - {name}
    return found


def room(module: str) -> str:
    """Return the room of a module; nothing for the package itself, the front door."""
    return module.split(".")[1] if "." in module else ""


def test_every_module_lies_in_a_room():
    assert {room(module) for module in imports()} - {""} == set(ROOMS)


def test_nothing_imports_upwards():
    # The front door looks at the whole house, and no room looks at it.
    floor = {name: number for number, name in enumerate((*ROOMS, ""))}
    upwards = {
        (module, target)
        for module, targets in imports().items()
        for target in targets
        if floor[room(target)] > floor[room(module)]
    }
    assert upwards == set()


def test_nothing_imports_in_a_circle():
    # Raises CycleError, which names the circle.
    TopologicalSorter(imports()).prepare()
