"""Figures of results. Every function draws on an empty matplotlib figure that it is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

INK, SOFT, FAINT = "#22282e", "#5d6873", "#c3ccd2"
HALF_COLOURS = {1: "#1f6f8b", 2: "#c8643c"}
# Epochs of these kinds, as the engine's metrics name them.
KIND_COLOURS = {"warm-up": "#f1ead9", "encoder": "#e8f1f4", "refinement": "#eef4e8", "reference": "#f3e6ea"}
CATEGORY_COLOURS = (
    "#1f6f8b",
    "#c8643c",
    "#6a8f3f",
    "#8a6bb1",
    "#b08d2f",
    "#3b9c9c",
    "#a8456b",
    "#5d6873",
    "#7a5c3e",
    "#2f4b7c",
)
AXES = "xyz"


@dataclass(frozen=True)
class Colouring:
    """What the colour of a particle stands for.

    Parameters
    ----------
    label
        of the colour bar or legend.
    values
        (n,) numbers; of categories their index, negative where a particle is in none. None until they are computed.
    categories
        names of the categories, or None where the values are a scale.
    palette
        colours of the categories, or name of the scale's colour map.
    """

    label: str
    values: np.ndarray | None
    categories: tuple | None = None
    palette: object = "viridis"


def describeShare(share):
    """Return a fraction in percent, with a decimal where it is small."""
    if share < 0.0005:
        return "below 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


# ---------------------------------------------------------------------- training


def trainingSize(curves):
    """Return the rows and columns of panels that `drawTraining` draws, one for each curve."""
    count = len(set(curves["curve"]))
    rows = 1 if count <= 3 else 2
    return rows, -(-count // rows)


def drawTraining(figure, curves):
    """Draw how the training went: each curve of both halves by epoch.

    Parameters
    ----------
    figure
        to draw on.
    curves
        dict of (n,) arrays curve (title), half, epoch, kind (of the epoch) and value, as the engine writes them.
    """
    grid = figure.subplots(*trainingSize(curves), sharex=True, squeeze=False)
    kinds = dict(zip(curves["epoch"], curves["kind"]))
    titles = list(dict.fromkeys(curves["curve"]))
    for axes in grid.flat[len(titles) :]:
        axes.axis("off")
    for axes, title in zip(grid.flat, titles):
        for half, colour in HALF_COLOURS.items():
            mine = (curves["curve"] == title) & (curves["half"] == half)
            style = {"color": colour, "marker": "o", "markersize": 2.5, "linewidth": 1.4}
            axes.plot(curves["epoch"][mine], curves["value"][mine], **style)
        for epoch, kind in kinds.items():
            axes.axvspan(epoch - 0.5, epoch + 0.5, color=KIND_COLOURS.get(kind, "#eeeeee"), zorder=-1, linewidth=0)
        axes.set_title(title, fontsize=10, color=INK, wrap=True)
        axes.margins(x=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    handles: list = [Line2D([], [], color=colour, label=f"half {half}") for half, colour in HALF_COLOURS.items()]
    seen = set(kinds.values())
    handles += [Patch(color=colour, label=f"{kind} epochs") for kind, colour in KIND_COLOURS.items() if kind in seen]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


# ---------------------------------------------------------------------- particles


def localDensity(places):
    """Return how densely particles lie around each, as a share of the densest place.

    Parameters
    ----------
    places
        (n, 2) in a plane.
    """
    low, high = places.min(0), places.max(0)
    bins = np.clip(np.sqrt(len(places)).astype(int), 20, 200)
    indices = ((places - low) / np.maximum(high - low, 1e-12) * (bins - 1)).round().astype(int)
    counts = np.zeros((bins, bins))
    np.add.at(counts, tuple(indices.T), 1)
    smooth = ndimage.gaussian_filter(counts, bins / 40)
    return smooth[tuple(indices.T)] / smooth.max()


def drawParticles(figure, panels, colouring):
    """Draw particles in one plane or several, side by side.

    Parameters
    ----------
    figure
        to draw on.
    panels
        of each a title, the names of its axes, (m, 2) places, and the (m,) indices of its particles.
    colouring
        `Colouring` of all particles; its values may be None for their density in each plane.
    """
    axesOf = figure.subplots(1, len(panels), squeeze=False)[0]
    drawn = None
    for axes, (title, names, places, indices) in zip(axesOf, panels):
        values = localDensity(places) if colouring.values is None else colouring.values[indices]
        # Drawn in random order, no value lies on top of all others.
        order = np.random.default_rng(0).permutation(len(places))
        places, values = places[order], values[order]
        size = float(np.clip(9000 / max(len(places), 1), 1.5, 22))
        style = {"s": size, "linewidths": 0, "rasterized": len(places) > 5000}
        if colouring.categories is None:
            low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (0, 1)
            drawn = axes.scatter(*places.T, c=values, cmap=colouring.palette, vmin=low, vmax=high, alpha=0.8, **style)
        else:
            axes.scatter(*places[values < 0].T, c=FAINT, alpha=0.5, **style)
            colours = np.array([colouring.palette[number] for number in values[values >= 0]])
            if len(colours):
                axes.scatter(*places[values >= 0].T, c=colours, alpha=0.8, **style)
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
    if colouring.categories is None:
        bar = figure.colorbar(drawn, ax=axesOf, shrink=0.85, aspect=30, pad=0.02)
        bar.set_label(colouring.label)
        bar.outline.set_visible(False)
        return
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colouring.palette[number], label=name)
        for number, name in enumerate(colouring.categories)
    ]
    if (colouring.values < 0).any():
        handles.append(Line2D([], [], linestyle="", marker="o", color=FAINT, label="others"))
    columns = min(len(handles), 6)
    figure.legend(
        handles=handles, title=colouring.label, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )


def drawDistributions(figure, histograms, density, above):
    """Draw histograms of the particles' motion and its uncertainty, and one against the other.

    Parameters
    ----------
    figure
        to draw on.
    histograms, density
        the engine's tables motion_and_error and error_against_motion, dicts of (n,) arrays.
    above
        per cent of the particles that move by more than their uncertainty.
    """
    grid = figure.subplots(1, 3)
    for axes, quantity, title in ((grid[0], "motion", "Motion"), (grid[1], "error", "Uncertainty")):
        for kind, colour in (("training", "#5d7f92"), ("validation", "#b3412c")):
            chosen = (histograms["quantity"] == quantity) & (histograms["particles"] == kind)
            edges = np.append(histograms["from"][chosen], histograms["to"][chosen][-1:])
            _drawSteps(axes, histograms["percent"][chosen], edges, colour, f"{kind} particles")
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("Å rms over the molecule")
        axes.margins(x=0)
    grid[0].set_ylabel("% of particles")
    grid[0].legend(fontsize=8, frameon=False)
    motion, error = np.unique(density["motion"]), np.unique(density["error"])
    counts = density["particles"].reshape(len(motion), len(error))
    grid[2].pcolormesh(motion, error, np.ma.masked_equal(counts.T, 0), cmap="cividis", shading="nearest")
    reach = min(motion[-1], error[-1])
    grid[2].plot([0, reach], [0, reach], color=SOFT, linestyle=":", linewidth=1)
    grid[2].set_title(f"{above:.0f} % move by more than their uncertainty", fontsize=10, color=INK)
    grid[2].set_xlabel("motion (Å rms)")
    grid[2].set_ylabel("uncertainty (Å rms)")


def drawCoordinates(figure, histograms, shares):
    """Draw how the particles of each half are distributed along principal motions; return the axes of each.

    Parameters
    ----------
    figure
        to draw on.
    histograms
        the engine's table coordinates, a dict of (n,) arrays.
    shares
        of the variance that each of the motions to draw explains.
    """
    count = len(shares)
    columns = min(3, count)
    grid = figure.subplots(-(-count // columns), columns, squeeze=False).flat
    for axes in grid[count:]:
        axes.axis("off")
    for number, axes in enumerate(grid[:count], 1):
        for half, colour in HALF_COLOURS.items():
            chosen = (histograms["motion"] == number) & (histograms["half"] == half)
            edges = np.append(histograms["from"][chosen], histograms["to"][chosen][-1:])
            _drawSteps(axes, histograms["particles"][chosen], edges, colour, f"half {half}")
        axes.set_xlabel("coordinate (Å rms)")
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0)
        axes.set_title(f"Motion {number}: {describeShare(shares[number - 1])}", fontsize=10, color=INK)
    grid[0].legend(fontsize=8, frameon=False)
    return grid[:count]


def _drawSteps(axes, heights, edges, colour, label):
    axes.stairs(heights, edges, color=colour, fill=True, alpha=0.18)
    axes.stairs(heights, edges, color=colour, label=label)


# ---------------------------------------------------------------------- molecule


def drawMolecule(figure, points):
    """Draw where the molecule moves, and how sure that is: its points seen along z, y and x.

    Parameters
    ----------
    figure
        to draw on.
    points
        dict of (m,) arrays x, y, z, rms_motion and error, Å.
    """
    places = np.stack([points[axis] for axis in AXES], -1)
    low, high = places.min(0) - 5, places.max(0) + 5
    extent = high - low
    # One scale for all views.
    grid = figure.subplots(2, 3, width_ratios=[extent[0], extent[0], extent[1]])
    size = float(np.clip(20000 / len(places), 4, 40))
    # One scale: an error as large as the motion has its colour.
    limit = max(points["rms_motion"].max(), points["error"].max())
    for row, (name, label) in zip(grid, (("rms_motion", "motion"), ("error", "uncertainty"))):
        for axes, depth in zip(row, (2, 1, 0)):
            across, up = (axis for axis in range(3) if axis != depth)
            order = np.argsort(places[:, depth])
            drawn = axes.scatter(
                places[order, across],
                places[order, up],
                c=points[name][order],
                s=size,
                linewidths=0,
                cmap="viridis",
                vmin=0,
                vmax=limit,
                alpha=0.8,
            )
            frameView(axes, (across, up, depth), low, high, label)
    bar = figure.colorbar(drawn, ax=grid, shrink=0.7, aspect=35, pad=0.02)
    bar.set_label("Å rms over the particles")
    bar.outline.set_visible(False)


def frameView(axes, order, low, high, label):
    """Frame a view of points by their (3,) lowest and highest coordinates, Å; `order` is axes across, up and depth."""
    across, up, depth = order
    axes.set_xlim(low[across], high[across])
    axes.set_ylim(low[up], high[up])
    axes.set_aspect("equal")
    axes.set_xlabel(f"{AXES[across]} (Å)", fontsize=8)
    axes.set_ylabel(f"{AXES[up]} (Å)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_title(f"{label}, along {AXES[depth]}", fontsize=10, color=INK)


# ---------------------------------------------------------------------- maps


def drawFsc(figure, curves, threshold=0.143):
    """Draw Fourier shell correlations.

    Parameters
    ----------
    figure
        to draw on.
    curves
        of each its name, frequencies (1/Å), correlations, and matplotlib's style as a dict.
    threshold
        a line is drawn at it.
    """
    axes = figure.subplots()
    for name, frequency, correlation, style in curves:
        axes.plot(frequency, correlation, label=name, **style)
    axes.axhline(threshold, color=SOFT, linestyle="--", linewidth=0.8)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.text(0.002, threshold + 0.012, f"{threshold:g}", color=SOFT, fontsize=8, transform=axes.get_yaxis_transform())
    # Curves of noise go far below zero.
    axes.set_ylim(min(-0.08, *(min(correlation) - 0.04 for _, _, correlation, _ in curves)), 1.04)
    axes.set_xlim(0, max(frequency[-1] for _, frequency, *_ in curves))
    axes.set_xlabel("resolution (Å)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{1 / value:.1f}" if value > 1e-9 else "∞")
    axes.set_ylabel("Fourier shell correlation")
    axes.legend(frameon=False, fontsize=9)


def sliceOf(volume, axis, index):
    """Return a slice [vertical, horizontal] of a [z, y, x] volume across "x", "y" or "z"."""
    return np.take(volume, index, axis="zyx".index(axis))


def greyLimits(volumes):
    """Return the grey values of black and white that suit volumes shown beside each other."""
    values = np.concatenate([volume.ravel()[:: max(1, volume.size // 200_000)] for volume in volumes])
    return tuple(np.quantile(values, [0.02, 0.999]))


@dataclass(frozen=True)
class Layer:
    """A volume to be shown in slices.

    Parameters
    ----------
    name
        shown above it.
    volume
        [z, y, x].
    palette
        name of a colour map.
    limits
        values at its ends; what suits the volume if None.
    unit
        of the values, for a colour bar; there is none without.
    """

    name: str
    volume: np.ndarray
    palette: str = "gray"
    limits: tuple | None = None
    unit: str | None = None


def greyLayers(volumes):
    """Return `Layer` for a dict of names and volumes, all in the same grey scale."""
    limits = greyLimits(list(volumes.values()))
    return [Layer(name, volume, limits=limits) for name, volume in volumes.items()]


def drawSlices(figure, layers, axis="z", index=None):
    """Draw the same slice of several volumes side by side.

    Parameters
    ----------
    figure
        to draw on.
    layers
        list of `Layer`, of volumes of one shape.
    axis
        that the slice is across.
    index
        of the slice, the middle one if None.

    Returns
    -------
    list
        the images, in the order of the layers.
    """
    index = layers[0].volume.shape["zyx".index(axis)] // 2 if index is None else index
    images = []
    for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers):
        low, high = layer.limits or greyLimits([layer.volume])
        part = sliceOf(layer.volume, axis, index)
        image = axes.imshow(part, cmap=layer.palette, vmin=low, vmax=high, origin="lower")
        axes.set_title(layer.name, fontsize=10, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        if layer.unit:
            figure.colorbar(image, ax=axes, shrink=0.8, label=layer.unit).outline.set_visible(False)
        images.append(image)
    return images


def paletteOf(names):
    """Return the colours of categories, one for each name."""
    return tuple(CATEGORY_COLOURS[number % len(CATEGORY_COLOURS)] for number in range(len(names)))


def projections(volume):
    """Return the projections of a [z, y, x] volume along z, y and x."""
    return [volume.sum(axis) for axis in range(3)]


# ---------------------------------------------------------------------- atomic models


def drawDisplacements(figure, distances, names):
    """Draw how far the atoms of a model are moved in each state.

    Parameters
    ----------
    figure
        to draw on.
    distances
        (states, atoms) Å.
    names
        of the states.
    """
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.95, len(distances)))
    for name, row, colour in zip(names, distances, colours):
        axes.plot(np.arange(1, len(row) + 1), row, color=colour, linewidth=0.9, label=name)
    axes.set_xlabel("atom, in the order of the file")
    axes.set_ylabel("displacement (Å)")
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    if len(names) <= 12:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)


def drawDeviations(figure, table):
    """Draw the rms deviation between states as a matrix for each region, on one scale.

    Parameters
    ----------
    figure
        to draw on.
    table
        dict of columns first, second (names of states), region, deviation_A and error_A.
    """
    states = list(dict.fromkeys([*table["first"], *table["second"]]))
    regions = list(dict.fromkeys(table["region"]))
    limit = max(float(table["deviation_A"].max()), 1e-6)
    for axes, region in zip(figure.subplots(1, len(regions), squeeze=False)[0], regions):
        matrix = np.zeros((len(states), len(states)))
        inside = table["region"] == region
        for first, second, value in zip(*(table[n][inside] for n in ("first", "second", "deviation_A"))):
            row, column = states.index(first), states.index(second)
            matrix[row, column] = matrix[column, row] = value
        image = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=limit)
        axes.set_title(f"{region}, uncertainty {table['error_A'][inside][0]:.1f} Å", fontsize=9, color=INK)
        axes.set_xticks(range(len(states)), range(1, len(states) + 1), fontsize=7)
        axes.set_yticks(range(len(states)), range(1, len(states) + 1), fontsize=7)
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="deviation (Å rms)").outline.set_visible(False)
