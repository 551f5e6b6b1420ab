"""Draw docs/pictures/how-good.svg from the table of the delivered maps in docs/benchmarks.md.

python docs/make_how_good.py [FILE]
"""

import re
import sys
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RIGID, DELIVERED, INK = "#9aa5ad", "#1f6f8b", "#22282e"


def delivered_maps() -> list[tuple[str, float, float]]:
    """Return name, and FSC of the moving parts in the rigid and in the delivered map, of each case of the table.

    Values are means over the parts of a case and over its seeds.
    """
    text = (HERE / "benchmarks.md").read_text()
    section = text[text.index("## 12. The delivered map") : text.index("## 13.")]
    found: dict[str, list[tuple[float, float]]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and re.match(r"[0-9.]", cells[1]):
            name = re.sub(r",? \d+(, in two peaks| \(.*\))?$", "", cells[0])
            rigid, best = (float(np.mean([float(value) for value in cells[i].split(",")])) for i in (1, 3))
            found.setdefault(name, []).append((rigid, best))
    return [(name, *map(float, np.mean(values, 0))) for name, values in found.items()]


def draw(path: Path) -> None:
    cases = delivered_maps()
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    place = np.arange(len(cases))[::-1]
    for values, colour, label, shift in (
        ([case[1] for case in cases], RIGID, "without motion", 0.18),
        ([case[2] for case in cases], DELIVERED, "map that the program delivers", -0.18),
    ):
        axis.barh(place + shift, values, 0.34, color=colour, label=label)
    axis.set_yticks(place, [case[0] for case in cases])
    axis.set(xlim=(0, 1), xlabel="agreement of the moving part with the truth (mean FSC)")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.16), ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, length=0, axis="y")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    rcParams["svg.hashsalt"] = "how-good"
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "pictures" / "how-good.svg")
