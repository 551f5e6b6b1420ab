"""The map before and after, as pictures."""

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dynamight_core.analysis.report.draw import INK, Array
from dynamight_core.analysis.report.page import Page, Part
from dynamight_core.files import read_map


def maps(page: Page) -> Part:
    """Return slices and projections of the map without deformation, or the consensus, and of the corrected one."""
    consensus = Path(page.run.config.inputs.map)
    candidates = [
        ("before: without deformation", page.folder / "reconstruction" / "rigid" / "map.mrc"),
        ("before: consensus map", consensus),
    ]
    found = [(name, path) for name, path in candidates if path.is_file()][:1]
    deformed = page.folder / "reconstruction" / "map.mrc"
    if deformed.is_file():
        found.append(("after: the map", deformed))
    values = {"reconstructed": deformed.is_file(), "consensus": consensus, "maps": found}
    if not found:
        return Part(values)
    volumes = [(name, *read_map(path)) for name, path in found]
    crop = _crop(volumes[-1][1])
    volumes = [(name, volume[crop, crop, crop], pixel_size) for name, volume, pixel_size in volumes]
    values["pictures"] = {"Central slices": _picture(volumes, _slice), "Projections": _picture(volumes, np.sum)}
    return Part(values)


def _crop(volume: Array) -> slice:
    """Return the central part of each axis that holds the density, and some margin."""
    strong = np.argwhere(volume > 0.15 * np.quantile(volume, 0.9995))
    middle = len(volume) // 2
    reach = int(np.quantile(np.abs(strong - middle).max(1), 0.98)) + 6 if len(strong) else middle
    return slice(max(0, middle - reach), middle + reach)


def _slice(volume: Array, axis: int) -> Array:
    return np.asarray(np.take(volume, volume.shape[axis] // 2, axis))


def _picture(volumes: list[tuple[str, Array, float]], reduce: Callable[[Array, int], Array]) -> str:
    """Return a PNG of maps as rows and views along z, y, x as columns, in base64."""
    figure = Figure(figsize=(11.6, 4.0 * len(volumes)), facecolor="white")
    axes = figure.subplots(len(volumes), 3, squeeze=False)
    figure.subplots_adjust(0.004, 0.004, 0.996, 1 - 0.08 / len(volumes), 0.02, 0.09)
    for row, (name, volume, pixel_size) in zip(axes, volumes, strict=True):
        for axis, (panel, view) in enumerate(zip(row, "zyx", strict=True)):
            image = reduce(volume, axis)
            low, high = np.quantile(image, [0.01, 0.998])
            panel.imshow(
                image, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), origin="lower", interpolation="bicubic"
            )
            panel.set_title(f"{name}, along {view}", fontsize=10, color=INK)
            panel.axis("off")
        bar, start = _round_length(0.3 * len(volume) * pixel_size), 0.05 * len(volume)
        row[0].plot([start, start + bar / pixel_size], [start, start], color="white", linewidth=3)
        row[0].text(start, 1.5 * start, f"{bar:g} Å", color="white", fontsize=9, va="bottom")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=105)
    return base64.b64encode(stream.getvalue()).decode()


def _round_length(length: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)
