"""Draw docs/pictures/architecture.svg from the imports of the engine.

python -m docs.make_architecture [OUT]

Fails if a room is missing from tools/rooms.py, or if a room imports from a higher one.
"""

import sys
from collections import Counter
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from tools.rooms import FLOORS, imports, missing_rooms, room, upward_imports

OUT = Path(__file__).parent / "pictures" / "architecture.svg"
INK, SOFT, LINE = "#22282e", "#5d6873", "#9fb0bd"
HALF, CTF, APART, FILE = "#b4552d", "#2b6ca3", "#7a4aa0", "#f4efe2"

# What a floor does, and what it hands up.
TEXTS = {
    "cli": ("parses options, calls one function a command", ""),
    "demo": ("simulates, runs every stage, compares with the truth", ""),
    "api": ("import dynamight_core as dm", "Run · arrays · tables"),
    "analysis": ("states, domains, controls, report, explorer", "maps of states · selections · report"),
    "reconstruction": ("undoes the motion of each particle", "half-maps · FSC"),
    "judging": ("how far is the motion to be trusted?", "motions · errors · verdict · conclusion"),
    "training": ("learns the model of each half-set", "two models · latents"),
    "run": ("the run on disk: its files and who wrote them", "Run"),
    "simulate": ("images of a molecule whose motion is known", "data set · truth"),
    "model": ("Gaussians, encoder, decoder, principal motions", "model images · displacements"),
    "particles": ("reads and prepares particles", "half-sets · images · poses"),
    "structures": ("atomic models", "atoms"),
    "imaging": ("physics: CTF, poses, projection, back-projection", "CTFs · projections · sums"),
    "options": ("every option, once", "one dataclass a stage"),
    "foundations": ("", ""),
}
# From the top, as they are drawn.
NAMES = list(reversed(FLOORS))
# Files of a run, at the floor that writes them.
FILES = {
    "analysis": "analysis/\nreport.html · tables · states\nselections · controls",
    "reconstruction": "reconstruction/\nhalf1_unfil.mrc · half2_unfil.mrc\nmap.mrc · fsc.star · rigid/",
    "judging": "particles.star\nanalysis/summary.json\nanalysis/motions.safetensors",
    "training": "config.yaml · metrics.jsonl\nhalf1/ · half2/\nlatents.safetensors",
}
# Questions with their colour, and the floors where the answer is.
PINS = {
    "half-sets are decided": (HALF, ["particles"]),
    "the CTF is computed (imaging) and applied": (CTF, ["imaging", "model", "reconstruction"]),
    "half-sets must not mix": (APART, ["model", "training", "reconstruction"]),
}
LEFT, RIGHT, HEIGHT, STEP = 0.0, 7.7, 0.68, 0.92
PANEL = (9.35, 12.55)


def floor_imports() -> Counter:
    """Return how many modules of a floor import from another one, by the numbers of both floors from the top."""
    if missing_rooms() or upward_imports():
        raise SystemExit(f"not in tools/rooms.py: {missing_rooms()}; these import upwards: {upward_imports()}")
    number = {room: NAMES.index(floor) for floor, rooms in FLOORS.items() for room in rooms}
    found = Counter()
    for module, targets in imports().items():
        if room(module):
            own = number[room(module)]
            found.update({(own, number[room(target)]) for target in targets} - {(own, own)})
    return found


def middle(name: str) -> float:
    """Return the height of the middle of a floor."""
    return -STEP * NAMES.index(name)


def draw_floor(axes, name) -> None:
    does, gives = TEXTS[name]
    y, ground = middle(name), name in ("foundations", "options")
    box = FancyBboxPatch(
        (LEFT, y - HEIGHT / 2),
        RIGHT - LEFT,
        HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor="#eef2f5" if ground else "#dfe9f0",
        edgecolor=LINE,
        linewidth=1,
    )
    axes.add_patch(box)
    if name == "foundations":
        axes.text(RIGHT / 2, y, "   ".join(FLOORS[name]), ha="center", va="center", color=INK, size=11)
        return
    axes.text(LEFT + 0.2, y + 0.11, name, va="center", weight="bold", color=INK, size=12.5)
    axes.text(LEFT + 0.2, y - 0.17, does, va="center", color=SOFT, size=9.5)
    if gives:
        axes.text(RIGHT - 0.2, y + 0.13, f"↑ {gives}", va="center", ha="right", color=INK, size=9.5, style="italic")


def draw_arcs(axes, imports) -> None:
    """Draw an arc to the left from each floor to those that it imports from, all downwards."""
    ground = len(NAMES) - 1
    for (upper, lower), count in sorted(imports.items()):
        if lower == ground:
            continue
        top, bottom = -STEP * upper - 0.12, -STEP * lower + 0.12
        reach = LEFT - 0.35 - 0.16 * (lower - upper)
        curve = Curve(
            [(LEFT, top), (reach, top), (reach, bottom), (LEFT, bottom)],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        width = 0.6 + 0.45 * min(count, 12) ** 0.7
        axes.add_patch(PathPatch(curve, fill=False, edgecolor=LINE, linewidth=width, alpha=0.75, capstyle="round"))
        axes.add_patch(Circle((LEFT, bottom), 0.045, color=SOFT, zorder=3))


def arrow(axes, start, end, colour=SOFT) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, linewidth=1.4))


def draw_run(axes) -> None:
    """Draw the run's folder, with its files beside the floors that write them."""
    top, bottom = middle("analysis") + 0.62, middle("run") - 0.42
    axes.add_patch(
        FancyBboxPatch(
            (PANEL[0], bottom),
            PANEL[1] - PANEL[0],
            top - bottom,
            boxstyle="round,pad=0,rounding_size=0.15",
            facecolor=FILE,
            edgecolor="#cfc3a4",
        )
    )
    axes.text(PANEL[1] - 0.2, top - 0.2, "RUN, a folder", ha="right", va="center", weight="bold", color=INK, size=11.5)
    for name, text in FILES.items():
        y = middle(name)
        head, _, rest = text.partition("\n")
        axes.text(PANEL[0] + 0.2, y + 0.24, head, va="center", color=INK, size=9.5, weight="bold")
        axes.text(PANEL[0] + 0.2, y - 0.13, rest, va="center", color=SOFT, size=9, linespacing=1.25)
        arrow(axes, (RIGHT + 0.06, y), (PANEL[0] - 0.06, y), INK)
    axes.text((RIGHT + PANEL[0]) / 2, middle("analysis") + 0.17, "writes", ha="center", color=SOFT, size=9)
    y = middle("run")
    arrow(axes, (PANEL[0] - 0.06, y), (RIGHT + 0.06, y), INK)
    axes.text((RIGHT + PANEL[0]) / 2, y + 0.17, "reads", ha="center", color=SOFT, size=9)
    axes.text(PANEL[0] + 0.2, y, "what later stages ask for", va="center", color=SOFT, size=9)


def draw_outside(axes) -> None:
    """Draw who uses the engine, and its input."""
    for name, text in (
        ("cli", "terminal · Scipion plugin,\nwhich starts the engine as a program"),
        ("api", "your Python · notebooks"),
        ("particles", "STAR file · image stacks\nconsensus map · half-maps"),
        ("structures", "PDB · mmCIF"),
    ):
        axes.text(PANEL[0] + 0.2, middle(name), text, va="center", color=INK, size=9.5, linespacing=1.3)
        arrow(axes, (PANEL[0] - 0.1, middle(name)), (RIGHT + 0.06, middle(name)))


def draw_pins(axes) -> None:
    seen = Counter()
    for _, (colour, floors) in PINS.items():
        for name in floors:
            axes.add_patch(
                Circle((RIGHT - 0.32 - 0.26 * seen[name], middle(name) - 0.17), 0.09, color=colour, zorder=4)
            )
            seen[name] += 1
    y = middle("foundations") - 0.75
    for x, (text, (colour, _)) in zip((0.1, 2.95, 7.15), PINS.items(), strict=True):
        axes.add_patch(Circle((x, y), 0.09, color=colour))
        axes.text(x + 0.2, y, text, va="center", color=INK, size=9.5)
    axes.text(LEFT - 0.2, y, "Lines: imports,\nall downwards", va="center", ha="right", color=SOFT, size=9.5)


def main() -> None:
    mpl.rcParams |= {
        "svg.hashsalt": "architecture",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", "sans-serif"],
    }
    imports = floor_imports()
    x_range, y_range = (-2.6, 12.75), (middle("foundations") - 1.05, 0.55)
    figure = Figure(figsize=[0.82 * (high - low) for low, high in (x_range, y_range)])
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set(xlim=x_range, ylim=y_range, aspect="equal")
    axes.axis("off")
    draw_arcs(axes, imports)
    for name in NAMES:
        draw_floor(axes, name)
    draw_run(axes)
    draw_outside(axes)
    draw_pins(axes)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, facecolor="white")


if __name__ == "__main__":
    main()
