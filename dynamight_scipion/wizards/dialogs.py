"""Dialogs of the wizards: a figure, controls under it, and a line that says what is chosen."""

import tkinter as tk
from dataclasses import dataclass, field

import numpy as np
from matplotlib.backends.backend_tkagg import FigureCanvasTkAgg
from matplotlib.figure import Figure
from matplotlib.widgets import RectangleSelector
from pyworkflow.gui import dialog
from pyworkflow.gui.widgets import ComboBox, LabelSlider

from dynamight_scipion.viewers.figures import (
    HALF_COLOURS,
    INK,
    SOFT,
    describeShare,
    drawCoordinate,
    greyLimits,
    sliceOf,
)

from .preview import gaussiansOfMass, massOfVolume, spacing

_ACCENT = HALF_COLOURS[2]


@dataclass(frozen=True)
class Overlay:
    """What is drawn over slices of a map.

    Parameters
    ----------
    sentence
        shown under the slices.
    outlines
        of each a volume [z, y, x], the value at which its line lies, and a colour.
    dots
        (n, 3) voxels [z, y, x] to mark.
    """

    sentence: str
    outlines: tuple = ()
    dots: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))


class FigureDialog(dialog.Dialog):
    """A dialog with a figure; when it was closed with Select, `value` is what was chosen.

    Parameters
    ----------
    parent
        Tk window.
    title
        of the dialog.
    explanation
        shown above the figure.
    size
        of the figure, width and height in inches.
    canSelect
        whether something is chosen, or only shown.
    """

    def __init__(self, parent, title, explanation, size, canSelect=True):
        self._explanation, self._size = explanation, size
        close = ("Cancel", dialog.RESULT_CANCEL) if canSelect else ("Close", dialog.RESULT_CLOSE)
        buttons = [("Select", dialog.RESULT_YES)] * canSelect + [close]
        dialog.Dialog.__init__(self, parent, title, buttons=buttons, default=buttons[0][0])

    def body(self, frame):
        """Put explanation, figure, controls and message one under the other."""
        width = int(self._size[0] * 100)
        tk.Label(frame, text=self._explanation, justify=tk.LEFT, wraplength=width).grid(sticky="w", padx=5, pady=5)
        self.figure = Figure(figsize=self._size, layout="constrained")
        self.canvas = FigureCanvasTkAgg(self.figure, master=frame)
        self.canvas.get_tk_widget().grid(sticky="news")
        controls = tk.Frame(frame)
        controls.grid(sticky="we", padx=5, pady=5)
        self._message = tk.Label(frame, justify=tk.LEFT, wraplength=width, fg=INK)
        self._message.grid(sticky="w", padx=5)
        self.createControls(controls)
        self.draw()

    def createControls(self, frame):
        """Create what is under the figure; for dialogs that have something there."""

    def draw(self):
        """Draw the figure for the first time."""
        raise NotImplementedError

    def getValue(self):
        """Return what is chosen now."""

    def apply(self):
        """Keep what was chosen, before the window goes."""
        self.value = self.getValue()

    def say(self, text):
        """Show a line under the figure."""
        self._message.config(text=text)


class SlicesDialog(FigureDialog):
    """Three slices through a map, with something drawn over them that a slider changes.

    Parameters
    ----------
    parent, title, explanation
        as for `FigureDialog`.
    volume
        [z, y, x].
    centre
        (z, y, x) voxel that the slices go through.
    overlay
        function of the slider's value (None without a slider) that returns an `Overlay`.
    slider
        its label, lowest, highest and first value, and step; None if there is nothing to choose.
    """

    def __init__(self, parent, title, explanation, volume, centre, overlay, slider=None):
        self._volume, self._centre, self._overlay, self._slider = volume, centre, overlay, slider
        FigureDialog.__init__(self, parent, title, explanation, (10.5, 3.9), canSelect=slider is not None)

    def createControls(self, frame):
        """Create the slider."""
        self._pending = None
        if self._slider is None:
            return
        label, low, high, first, step = self._slider
        self._scale = LabelSlider(
            frame,
            label,
            from_=low,
            to=high,
            value=first,
            step=step,
            length=420,
            showvalue=1,
            callback=lambda *_: self._schedule(),
        )
        self._scale.grid(row=0, column=0, sticky="w")

    def getValue(self):
        """Return the slider's value, None without a slider."""
        return None if self._slider is None else self._scale.get()

    def draw(self):
        """Draw the slices, and what lies over them."""
        low, high = greyLimits([self._volume])
        self._panels = []
        for axes, axis in zip(self.figure.subplots(1, 3), "zyx", strict=True):
            index = int(self._centre["zyx".index(axis)])
            axes.imshow(sliceOf(self._volume, axis, index), cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set_title(f"across {axis}", fontsize=10, color=SOFT)
            axes.set_xticks([])
            axes.set_yticks([])
            self._panels.append((axes, axis, index))
        self._drawn = []
        self._update()

    def _schedule(self):
        # The slider reports every pixel of its way.
        if self._pending:
            self.after_cancel(self._pending)
        self._pending = self.after(60, self._update)

    def _update(self):
        """Draw what belongs to the slider's value."""
        self._pending = None
        for artist in self._drawn:
            artist.remove()
        self._drawn = []
        overlay = self._overlay(self.getValue())
        for axes, axis, index in self._panels:
            for volume, level, colour in overlay.outlines:
                part = sliceOf(volume, axis, index).astype(float)
                if part.min() < level < part.max():
                    self._drawn.append(axes.contour(part, [level], colors=[colour], linewidths=1.2))
            depth = "zyx".index(axis)
            near = overlay.dots[np.abs(overlay.dots[:, depth] - index) < 1]
            vertical, horizontal = (k for k in range(3) if k != depth)
            self._drawn.append(axes.scatter(near[:, horizontal], near[:, vertical], s=5, color=_ACCENT, linewidths=0))
        self.say(overlay.sentence)
        self.canvas.draw_idle()


class GaussiansDialog(dialog.Dialog):
    """The number of Gaussians from a molecular mass, or from a volume; `value` when it was closed with Select.

    Parameters
    ----------
    parent
        Tk window.
    volumes
        dict of names and sizes (Å³); the first is that of the molecule in the map.
    """

    def __init__(self, parent, volumes):
        self._volumes = volumes
        buttons = [("Select", dialog.RESULT_YES), ("Cancel", dialog.RESULT_CANCEL)]
        dialog.Dialog.__init__(self, parent, "Number of Gaussians", buttons=buttons, default="Select")

    def body(self, frame):
        """Create the fields."""
        style = {"justify": tk.LEFT, "wraplength": 560}
        explanation = (
            "One or two Gaussians for each residue (of 110 Da) follow the density of a protein. More cost time and "
            "memory in proportion, fewer cannot follow the motion of small parts."
        )
        tk.Label(frame, text=explanation, **style).grid(columnspan=2, sticky="w", padx=5, pady=5)
        self._source = tk.StringVar(value="")
        first = next(iter(self._volumes.values()))
        self._mass = tk.StringVar(value=f"{massOfVolume(first):.0f}")
        tk.Radiobutton(frame, text="Molecular mass (kDa)", variable=self._source, value="").grid(
            row=1, column=0, sticky="w", padx=5
        )
        tk.Entry(frame, textvariable=self._mass, width=10).grid(row=1, column=1, sticky="w", pady=5)
        for name, size in self._volumes.items():
            text = f"Volume of {name}: {size:,.0f} Å³, which would be {massOfVolume(size):,.0f} kDa of protein"
            tk.Radiobutton(frame, text=text, variable=self._source, value=name).grid(columnspan=2, sticky="w", padx=5)
        note = "Volumes are rather too large: a map is smoothed to find the molecule in it, and masks have margins."
        tk.Label(frame, text=note, fg=SOFT, **style).grid(columnspan=2, sticky="w", padx=5, pady=5)
        self._perResidue = LabelSlider(
            frame,
            "Gaussians per residue",
            from_=0.5,
            to=3,
            value=2,
            step=0.1,
            length=260,
            showvalue=1,
            callback=lambda *_: self._update(),
        )
        self._perResidue.grid(columnspan=2, sticky="w")
        self._result = tk.Label(frame, fg=INK, **style)
        self._result.grid(columnspan=2, sticky="w", padx=5, pady=8)
        for variable in (self._mass, self._source):
            variable.trace_add("write", lambda *_: self._update())
        self._update()

    def getValue(self):
        """Return the number of Gaussians, or None if the mass is no number above 0."""
        source = self._source.get()
        try:
            mass = massOfVolume(self._volumes[source]) if source else float(self._mass.get())
        except ValueError:
            return None
        return gaussiansOfMass(mass, self._perResidue.get()) if mass > 0 else None

    def validate(self):
        """Refuse a mass that is no number."""
        return self.getValue() is not None

    def apply(self):
        """Keep what was chosen, before the window goes."""
        self.value = self.getValue()

    def _update(self):
        count = self.getValue()
        if count is None:
            self._result.config(text="Give the mass as a number above 0.")
            return
        name, size = next(iter(self._volumes.items()))
        self._result.config(text=f"{count:,} Gaussians, {spacing(size, count):.1f} Å apart in {name}.")


class MotionDialog(FigureDialog):
    """The principal motions, one of which is chosen with a click.

    Parameters
    ----------
    parent
        Tk window.
    results
        `Results` of the model.
    number
        of the motion chosen first, from 1.
    """

    def __init__(self, parent, results, number):
        self._results, self._number = results, number
        rows = 1 + (len(results.shares) > 3)
        FigureDialog.__init__(
            self,
            parent,
            "Principal motions",
            "How the particles of each half lie along the motions that both halves have in common. Click on one.",
            (10, 0.5 + 2.3 * rows),
        )

    def draw(self):
        """Draw a histogram for each motion."""
        count = self._results.particles.coordinates.shape[1]
        columns = min(3, count)
        self._axes = self.figure.subplots(-(-count // columns), columns, squeeze=False).flatten()
        for axes in self._axes[count:]:
            axes.axis("off")
        self._axes = self._axes[:count]
        histograms = self._results.readTable("coordinates")
        for number, axes in enumerate(self._axes, 1):
            drawCoordinate(axes, histograms, number)
            axes.set_title(f"Motion {number}: {describeShare(self._results.shares[number - 1])}", fontsize=10)
        self._axes[0].legend(fontsize=8, frameon=False)
        self.canvas.mpl_connect("button_press_event", self._clicked)
        self._show()

    def getValue(self):
        """Return the number of the motion, from 1."""
        return self._number

    def _clicked(self, event):
        for number, axes in enumerate(self._axes, 1):
            if event.inaxes is axes:
                self._number = number
                self._show()

    def _show(self):
        """Mark the chosen motion and say what it is."""
        for number, axes in enumerate(self._axes, 1):
            axes.set_facecolor("#fbeee6" if number == self._number else "white")
        values = self._results.particles.coordinates[:, self._number - 1]
        low, high = np.quantile(values, [0.025, 0.975])
        share = describeShare(self._results.shares[self._number - 1])
        self.say(
            f"Motion {self._number}: {share} of all motion; 95 % of the particles lie from {low:.2f} to {high:.2f} Å."
        )
        self.canvas.draw_idle()


PARTICLE, PATH, REGION = "particle", "path", "region"
_WHAT = {
    PARTICLE: "Click on a particle.",
    PATH: "Click on the points of the path, in order. Motions that are not drawn stay at their mean.",
    REGION: "Drag a rectangle around the particles to keep.",
}


class PlaneDialog(FigureDialog):
    """Particles along two motions: one is picked, a path is drawn through them, or a region around them.

    Parameters
    ----------
    parent
        Tk window.
    results
        `Results` of the model.
    purpose
        PARTICLE, PATH or REGION.
    """

    def __init__(self, parent, results, purpose):
        self._results, self._purpose = results, purpose
        self._picked, self._points, self._extents = None, [], None
        FigureDialog.__init__(self, parent, "Particles along the motions", _WHAT[purpose], (7.5, 5.6))

    def createControls(self, frame):
        """Create the choice of motions, and buttons that take points back."""
        count = self._results.particles.coordinates.shape[1]
        names = [f"motion {k + 1} ({describeShare(share)})" for k, share in enumerate(self._results.shares)]
        self._combos = []
        for column, (label, first) in enumerate((("Across", 0), ("Up", min(1, count - 1)))):
            tk.Label(frame, text=label).grid(row=0, column=2 * column, padx=5)
            combo = ComboBox(frame, names, initial=names[first], onChange=lambda _: self._replace())
            combo.grid(row=0, column=2 * column + 1)
            self._combos.append(combo)
        if self._purpose == PATH:
            tk.Button(frame, text="Take back", command=self._takeBack).grid(row=0, column=4, padx=10)

    def draw(self):
        """Draw the particles."""
        self._axes = self.figure.subplots()
        self.canvas.mpl_connect("button_press_event", self._clicked)
        self._replace()

    def getMotions(self):
        """Return the two motions that are drawn, from 0."""
        return [combo.getValue() for combo in self._combos]

    def _replace(self):
        """Draw the particles in the plane that was chosen; what was chosen in another is dropped."""
        self._picked, self._points, self._extents, self._marks = None, [], None, []
        particles, motions = self._results.particles, self.getMotions()
        places = particles.coordinates[:, motions]
        self._axes.clear()
        self._axes.scatter(
            *places.T,
            c=particles.motion,
            s=float(np.clip(6000 / len(places), 1.5, 16)),
            linewidths=0,
            cmap="viridis",
            alpha=0.8,
            rasterized=True,
        )
        self._axes.set_xlabel(f"motion {motions[0] + 1} (Å rms)")
        self._axes.set_ylabel(f"motion {motions[1] + 1} (Å rms)")
        # A selector, which begins at the origin, would change the view.
        self._axes.set_xlim(self._axes.get_xlim())
        self._axes.set_ylim(self._axes.get_ylim())
        if self._purpose == REGION:
            self._selector = RectangleSelector(
                self._axes,
                lambda *_: self._regionChanged(),
                useblit=False,
                interactive=True,
                props={"facecolor": _ACCENT, "alpha": 0.15, "edgecolor": _ACCENT},
            )
        self.say("Nothing is chosen yet.")
        self.canvas.draw_idle()

    def _clicked(self, event):
        if event.inaxes is not self._axes or event.button != 1 or self._purpose == REGION:
            return
        if self._purpose == PATH:
            self._points.append((event.xdata, event.ydata))
            self._drawPath()
            return
        places = self._axes.transData.transform(self._results.particles.coordinates[:, self.getMotions()])
        nearest = int(np.argmin(np.square(places - (event.x, event.y)).sum(1)))
        self._picked = nearest
        self._mark([self._results.particles.coordinates[nearest, self.getMotions()]])
        particles = self._results.particles
        self.say(
            f"Particle {particles.ids[nearest]}: motion {particles.motion[nearest]:.2f} Å rms, "
            f"error {particles.error[nearest]:.2f} Å rms."
        )

    def _takeBack(self):
        del self._points[-1:]
        self._drawPath()

    def _drawPath(self):
        self._mark(self._points)
        self.say(f"{len(self._points)} points." + (" A path needs two." if len(self._points) < 2 else ""))

    def _mark(self, points):
        for artist in self._marks:
            artist.remove()
        self._marks = self._axes.plot(
            *np.array(points).reshape(-1, 2).T,
            color=_ACCENT,
            marker="o",
            markersize=8,
            markerfacecolor="none",
            linewidth=1.5,
        )
        self.canvas.draw_idle()

    def _regionChanged(self):
        self._extents = self._selector.extents
        left, right, bottom, top = self._extents
        x, y = self._results.particles.coordinates[:, self.getMotions()].T
        inside = ((x >= left) & (x <= right) & (y >= bottom) & (y <= top)).sum()
        self.say(f"{inside:,} of {len(x):,} particles.")

    def validate(self):
        """Refuse where nothing was chosen."""
        if self._purpose == PATH:
            return len(self._points) >= 2
        return (self._picked if self._purpose == PARTICLE else self._extents) is not None

    def getValue(self):
        """Return the id of a particle, or the text of a path or a region as the forms take it."""
        if self._purpose == PARTICLE:
            return int(self._results.particles.ids[self._picked])
        if self._purpose == PATH:
            return pathText(self._points, self.getMotions())
        left, right, bottom, top = self._extents
        return regionText(self.getMotions(), ((left, right), (bottom, top)))


def pathText(points, motions):
    """Return the text of a path through points (Å rms) in the plane of two motions, counted from 0."""
    lines = []
    for point in points:
        coordinates = [0.0] * max(2, max(motions) + 1)
        for motion, value in zip(motions, point, strict=True):
            coordinates[motion] = value
        lines.append(", ".join(f"{value:.3f}" for value in coordinates))
    return "\n".join(lines)


def regionText(motions, ranges):
    """Return the text of a region from ranges (Å rms) of motions, counted from 0."""
    return "\n".join(f"{k + 1}: {low:.3f} : {high:.3f}" for k, (low, high) in zip(motions, ranges, strict=True))
