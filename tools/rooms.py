"""The rooms of the engine from the ground up, and what imports what."""

import ast
from pathlib import Path

import dynamight_core

ENGINE = Path(dynamight_core.__file__).parent
# Modules and packages directly below dynamight_core, by floor, from the ground up. A room imports from lower ones.
FLOORS = {
    "foundations": (
        "version",
        "errors",
        "processes",
        "registry",
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
    ),
    "options": ("options", "config"),
    "imaging": ("imaging",),
    "structures": ("structures",),
    "particles": ("particles",),
    "model": ("model",),
    "simulate": ("simulate",),
    "run": ("belonging", "run"),
    "training": ("training",),
    "judging": ("judging",),
    "reconstruction": ("reconstruction",),
    "analysis": ("analysis",),
    "api": ("api",),
    "demo": ("demo",),
    "cli": ("cli", "__main__"),
}
ROOMS = tuple(room for rooms in FLOORS.values() for room in rooms)


def imports() -> dict[str, set[str]]:
    """Return the modules of the engine, each with those that it imports, imports inside functions included.

    Raises
    ------
    ValueError
        if a module imports relatively.
    """
    paths = {".".join((ENGINE.name, *p.relative_to(ENGINE).with_suffix("").parts)): p for p in ENGINE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    raise ValueError(f"{path} imports relatively")
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else node.module for target in below]
            else:
                continue
            found[name] |= {target for target in targets if target in modules} - {name}
    return found


def room(module: str) -> str:
    """Return the room of a module; nothing for the package itself, the front door."""
    return module.split(".")[1] if "." in module else ""


def missing_rooms() -> set[str]:
    """Return the rooms in which `ROOMS` and the engine differ."""
    return ({room(module) for module in imports()} - {""}) ^ set(ROOMS)


def upward_imports() -> set[tuple[str, str]]:
    """Return the modules that import from a higher room, each with what it imports."""
    # The front door looks at the whole house, and no room looks at it.
    height = {name: number for number, name in enumerate((*ROOMS, ""))}
    return {
        (module, target)
        for module, targets in imports().items()
        for target in targets
        if height[room(target)] > height[room(module)]
    }
