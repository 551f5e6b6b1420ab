"""Draw docs/pictures/overview.png from the run of `make demo` (or of another run with maps).

python docs/make_pictures.py [RUN]        RUN is demo/run if omitted
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from dynamight_core.files import atomic_path, read_map
from dynamight_core.run import Run

OUT = Path(__file__).parent / "pictures" / "overview.png"
INK, SOFT = "#22282e", "#5d6873"


def draw_motion(axes, run):
    """Points in the mean conformation, with arrows to either side along the first motion."""
    motions = run.motions
    rest = (motions.points + motions.mean).numpy()
    reach = 1.5 * float(motions.coordinates[:, 0].std())
    field = motions.components[0].numpy() * reach
    # Look along the axis that the motion uses least, so that arrows lie in the page.
    _, directions = np.linalg.eigh(field.T @ field)
    view = directions[:, 0]
    spread = np.linalg.svd(rest - rest.mean(0), full_matrices=False)[2]
    across = spread[0] - view * (spread[0] @ view)
    across /= np.linalg.norm(across)
    # What moves is on the right.
    size = np.asarray(run.summary["point_motion"])
    across *= np.sign((size - size.mean()) @ (rest @ across))
    plane = np.stack([across, np.cross(view, across)], 1)
    rest, depth, field = rest @ plane, rest @ view, field @ plane
    order = np.argsort(depth)
    axes.scatter(*rest[order].T, c=size[order], cmap="viridis", s=11, alpha=0.55, linewidth=0)
    chosen = np.random.default_rng(0).permutation(len(rest))[:260]
    chosen = chosen[size[chosen] > 0.25 * size.max()]
    for sign in (-1, 1):
        axes.quiver(
            *rest[chosen].T,
            *(sign * field[chosen]).T,
            angles="xy",
            scale_units="xy",
            scale=1,
            color=INK,
            width=0.0035,
            alpha=0.75,
        )
    axes.set_aspect("equal")
    axes.margins(0.06)
    axes.axis("off")
    axes.set_title("first principal motion", color=INK)


def draw_distribution(axes, run):
    """Draw how the particles of each half are distributed along the first motion."""
    coordinates, halves = run.motions.coordinates[:, 0].numpy(), run.halves.numpy()
    edges = np.linspace(*np.quantile(coordinates, [0.001, 0.999]), 31)
    for half, colour in ((1, "#1f6f8b"), (2, "#c8643c")):
        counts, _ = np.histogram(coordinates[halves == half], edges)
        axes.stairs(counts, edges, color=colour, linewidth=1.8, label=f"half {half}")
        axes.stairs(counts, edges, color=colour, fill=True, alpha=0.15)
    axes.set_xlabel("coordinate (Å rms)", color=SOFT)
    axes.set_ylabel("particles", color=SOFT)
    axes.legend(frameon=False, labelcolor=SOFT)
    axes.set_title("particles along it", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=SOFT, labelcolor=SOFT)
    axes.set_box_aspect(0.9)


def draw_map(axes, run, path, title):
    """Draw the central slice of a map, cropped to the molecule."""
    volume, _ = read_map(path)
    edge = len(volume) // 6
    # Across the axis that the motion uses least, so that the slice shows what it blurs; axes of maps are z, y, x.
    across = 2 - int(run.motions.components[0].square().sum(0).argmin())
    image = volume.take(len(volume) // 2, across)[edge:-edge, edge:-edge]
    low, high = np.quantile(image, [0.01, 0.998])
    axes.imshow(image, cmap=colormaps["gray"], vmin=low, vmax=high, origin="lower", interpolation="bicubic")
    axes.axis("off")
    axes.set_title(title, color=INK)


def main():
    run = Run(sys.argv[1] if len(sys.argv) > 1 else "demo/run")
    maps = run.path / "reconstruction"
    figure = Figure(figsize=(15, 4.1), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[1.25, 1.1, 1, 1])
    draw_motion(panels[0], run)
    draw_distribution(panels[1], run)
    draw_map(panels[2], run, maps / "rigid" / "map.mrc", "map without deformation")
    draw_map(panels[3], run, maps / "map.mrc", "map with motion corrected")
    with atomic_path(OUT) as path:
        figure.savefig(path, dpi=100)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
