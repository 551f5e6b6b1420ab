"""Dialogs of the wizards: a figure with controls, and a line that describes the choice."""

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
    drawCoordinates,
    greyLimits,
    sliceOf,
)

from .preview import gaussiansOfMass, massOfVolume, spacing

_ACCENT = HALF_COLOURS[2]


@dataclass(frozen=True)
class Overlay:
    """Drawing over slices of a map.

    Parameters
    ----------
    sentence
        shown under the slices.
    outlines
        a volume [z, y, x], its contour level and a colour for each.
    dots
        (n, 3) voxels [z, y, x] to mark.
    """

    sentence: str
    outlines: tuple = ()
    dots: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))


class FigureDialog(dialog.Dialog):
    """A dialog with a figure. After Select, `value` is the choice.

    Parameters
    ----------
    parent
        Tk window.
    title
        of the dialog.
    explanation
        shown above the figure.
    size
        width and height of the figure in inches.
    canSelect
        whether the user can choose something.
    """

    def __init__(self, parent, title, explanation, size, canSelect=True):
        self._explanation, self._size = explanation, size
        close = ("Cancel", dialog.RESULT_CANCEL) if canSelect else ("Close", dialog.RESULT_CLOSE)
        buttons = [("Select", dialog.RESULT_YES)] * canSelect + [close]
        dialog.Dialog.__init__(self, parent, title, buttons=buttons, default=buttons[0][0])

    def body(self, frame):
        """Create explanation, figure, controls and message, from top to bottom."""
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
        """Create the controls under the figure, if any."""

    def draw(self):
        """Draw the figure for the first time."""
        raise NotImplementedError

    def getValue(self):
        """Return the current choice."""

    def apply(self):
        """Keep the choice before the window closes."""
        self.value = self.getValue()

    def say(self, text):
        """Show a line under the figure."""
        self._message.config(text=text)


class SlicesDialog(FigureDialog):
    """Three slices through a map, with an overlay that a slider changes.

    Parameters
    ----------
    parent, title, explanation
        as for `FigureDialog`.
    volume
        [z, y, x].
    centre
        (z, y, x) voxel common to the slices.
    overlay
        function of the slider's value (None without a slider) that returns an `Overlay`.
    slider
        label, lowest, highest and initial value, and step; None if there is nothing to choose.
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
        self._scale = _slider(frame, label, (low, high, first, step), 420, self._schedule)
        self._scale.grid(row=0, column=0, sticky="w")

    def getValue(self):
        """Return the slider's value, None without a slider."""
        return None if self._slider is None else self._scale.get()

    def draw(self):
        """Draw the slices and the overlay."""
        low, high = greyLimits([self._volume])
        self._panels = []
        for axes, axis in zip(self.figure.subplots(1, 3, squeeze=False)[0], "zyx"):
            index = int(self._centre["zyx".index(axis)])
            axes.imshow(sliceOf(self._volume, axis, index), cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set_title(f"perpendicular to {axis}", fontsize=10, color=SOFT)
            axes.set_xticks([])
            axes.set_yticks([])
            self._panels.append((axes, axis, index))
        self._drawn = []
        self._update()

    def _schedule(self):
        # The slider reports every pixel that it moves.
        if self._pending:
            self.after_cancel(self._pending)
        self._pending = self.after(60, self._update)

    def _update(self):
        """Draw the overlay of the slider's value."""
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


def _slider(frame, label, values, length, changed):
    """Return a slider from the lowest, highest and initial of its values, and the step; it calls a function."""
    low, high, first, step = values
    limits = {"from_": low, "to": high, "value": first, "step": step}
    return LabelSlider(frame, label, **limits, length=length, showvalue=1, callback=lambda *_: changed())


def _label(parent, text="", colour=INK):
    return tk.Label(parent, text=text, fg=colour, justify=tk.LEFT, wraplength=560)


class GaussiansDialog(dialog.Dialog):
    """Number of Gaussians from a molecular mass or a volume. After Select, `value` is the number.

    Parameters
    ----------
    parent
        Tk window.
    volumes
        sizes (Å³) by name; the first is the molecule in the map.
    """

    def __init__(self, parent, volumes):
        self._volumes = volumes
        buttons = [("Select", dialog.RESULT_YES), ("Cancel", dialog.RESULT_CANCEL)]
        dialog.Dialog.__init__(self, parent, "Number of Gaussians", buttons=buttons, default="Select")

    def body(self, frame):
        """Create the fields."""
        explanation = (
            "Use one or two Gaussians per residue (110 Da). Time and memory are proportional to their number. With too "
            "few, the model cannot follow the motion of small parts."
        )
        _label(frame, explanation).grid(columnspan=2, sticky="w", padx=5, pady=5)
        self._source = tk.StringVar(value="")
        first = next(iter(self._volumes.values()))
        self._mass = tk.StringVar(value=f"{massOfVolume(first):.0f}")
        tk.Radiobutton(frame, text="Molecular mass (kDa)", variable=self._source, value="").grid(
            row=1, column=0, sticky="w", padx=5
        )
        tk.Entry(frame, textvariable=self._mass, width=10).grid(row=1, column=1, sticky="w", pady=5)
        for name, size in self._volumes.items():
            text = f"Volume of {name}: {size:,.0f} Å³, or {massOfVolume(size):,.0f} kDa of protein"
            tk.Radiobutton(frame, text=text, variable=self._source, value=name).grid(columnspan=2, sticky="w", padx=5)
        note = (
            "Volumes tend to be too large: the map is low-pass filtered to find the molecule, and masks have margins."
        )
        _label(frame, note, SOFT).grid(columnspan=2, sticky="w", padx=5, pady=5)
        self._perResidue = _slider(frame, "Gaussians per residue", (0.5, 3, 2, 0.1), 260, self._update)
        self._perResidue.grid(columnspan=2, sticky="w")
        self._result = _label(frame)
        self._result.grid(columnspan=2, sticky="w", padx=5, pady=8)
        for variable in (self._mass, self._source):
            variable.trace_add("write", lambda *_: self._update())
        self._update()

    def getValue(self):
        """Return the number of Gaussians, or None if the mass is not a number above 0."""
        source = self._source.get()
        try:
            mass = massOfVolume(self._volumes[source]) if source else float(self._mass.get())
        except ValueError:
            return None
        return gaussiansOfMass(mass, self._perResidue.get()) if mass > 0 else None

    def validate(self):
        """Accept only a number above 0 as the mass."""
        return self.getValue() is not None

    def apply(self):
        """Keep the choice before the window closes."""
        self.value = self.getValue()

    def _update(self):
        count = self.getValue()
        if count is None:
            self._result.config(text="Enter the mass as a number above 0.")
            return
        name, size = next(iter(self._volumes.items()))
        self._result.config(text=f"{count:,} Gaussians, {spacing(size, count):.1f} Å apart in {name}.")


class MotionDialog(FigureDialog):
    """The principal motions; a click chooses one.

    Parameters
    ----------
    parent
        Tk window.
    results
        `Results` of the model.
    number
        of the initially chosen motion, from 1.
    """

    def __init__(self, parent, results, number):
        self._results, self._number = results, number
        rows = 1 + (len(results.shares) > 3)
        FigureDialog.__init__(
            self,
            parent,
            "Principal motions",
            "Distribution of the particles of each half-set along the principal motions. Click a motion to choose it.",
            (10, 0.5 + 2.3 * rows),
        )

    def draw(self):
        """Draw a histogram for each motion."""
        histograms = self._results.readTable("coordinates")
        self._axes = drawCoordinates(self.figure, histograms, self._results.shares)
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
        """Mark and describe the chosen motion."""
        for number, axes in enumerate(self._axes, 1):
            axes.set_facecolor("#fbeee6" if number == self._number else "white")
        values = self._results.particles.coordinates[:, self._number - 1]
        low, high = np.quantile(values, [0.025, 0.975])
        explained = describeShare(self._results.shares[self._number - 1])
        self.say(
            f"Motion {self._number}: {explained} of the variance; 95 % of particles from {low:.2f} to {high:.2f} Å rms."
        )
        self.canvas.draw_idle()


PARTICLE, PATH, REGION = "particle", "path", "region"
_INSTRUCTIONS = {
    PARTICLE: "Click a particle.",
    PATH: "Click the points of the path in order. Coordinates along other motions are zero.",
    REGION: "Drag a rectangle around the particles to keep.",
}


class PlaneDialog(FigureDialog):
    """Particles along two motions, to choose a particle, a path or a region.

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
        FigureDialog.__init__(self, parent, "Particles along the motions", _INSTRUCTIONS[purpose], (7.5, 5.6))

    def createControls(self, frame):
        """Create the choice of motions, and a button that removes points."""
        count = self._results.particles.coordinates.shape[1]
        names = [f"motion {k + 1} ({describeShare(share)})" for k, share in enumerate(self._results.shares)]
        self._combos = []
        for column, (label, first) in enumerate((("X", 0), ("Y", min(1, count - 1)))):
            tk.Label(frame, text=label).grid(row=0, column=2 * column, padx=5)
            combo = ComboBox(frame, names, initial=names[first], onChange=lambda _: self._replace())
            combo.grid(row=0, column=2 * column + 1)
            self._combos.append(combo)
        if self._purpose == PATH:
            tk.Button(frame, text="Undo", command=self._undo).grid(row=0, column=4, padx=10)

    def draw(self):
        """Draw the particles."""
        self._axes = self.figure.add_subplot()
        self.canvas.mpl_connect("button_press_event", self._clicked)
        self._replace()

    def getMotions(self):
        """Return the two motions of the axes, from 0."""
        return [combo.getValue() for combo in self._combos]

    def _replace(self):
        """Draw the particles along the chosen motions, and clear the choice."""
        self._picked, self._points, self._extents, self._marks = None, [], None, []
        particles, motions = self._results.particles, self.getMotions()
        x, y = particles.coordinates[:, motions].T
        self._axes.clear()
        self._axes.scatter(
            x,
            y,
            c=particles.motion,
            s=float(np.clip(6000 / len(x), 1.5, 16)),
            linewidths=0,
            cmap="viridis",
            alpha=0.8,
            rasterized=True,
        )
        self._axes.set_xlabel(f"motion {motions[0] + 1} (Å rms)")
        self._axes.set_ylabel(f"motion {motions[1] + 1} (Å rms)")
        # Otherwise the selector, which starts at the origin, changes the view.
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
        self.say("Nothing chosen yet.")
        self.canvas.draw_idle()

    def _clicked(self, event):
        if event.inaxes is not self._axes or event.button != 1 or self._purpose == REGION:
            return
        if self._purpose == PATH:
            self._points.append((event.xdata, event.ydata))
            self._drawPath()
            return
        pixels = self._axes.transData.transform(self._results.particles.coordinates[:, self.getMotions()])
        nearest = int(np.argmin(np.square(pixels - (event.x, event.y)).sum(1)))
        self._picked = nearest
        self._mark([self._results.particles.coordinates[nearest, self.getMotions()]])
        particles = self._results.particles
        self.say(
            f"Particle {particles.ids[nearest]}: motion {particles.motion[nearest]:.2f} Å rms, "
            f"error {particles.error[nearest]:.2f} Å rms."
        )

    def _undo(self):
        del self._points[-1:]
        self._drawPath()

    def _drawPath(self):
        self._mark(self._points)
        self.say(f"{len(self._points)} points." + (" A path needs at least two." if len(self._points) < 2 else ""))

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
        """Accept only a complete choice."""
        if self._purpose == PATH:
            return len(self._points) >= 2
        return (self._picked if self._purpose == PARTICLE else self._extents) is not None

    def getValue(self):
        """Return the id of a particle, or the text of a path or a region for the form."""
        if self._purpose == PARTICLE:
            return int(self._results.particles.ids[self._picked])
        if self._purpose == PATH:
            return pathText(self._points, self.getMotions())
        left, right, bottom, top = self._selector.extents
        return regionText(self.getMotions(), ((left, right), (bottom, top)))


def pathText(points, motions):
    """Return the text of a path through points (Å rms) in the plane of two motions, counted from 0."""
    lines = []
    for point in points:
        coordinates = [0.0] * max(2, max(motions) + 1)
        for motion, value in zip(motions, point):
            coordinates[motion] = value
        lines.append(", ".join(f"{value:.3f}" for value in coordinates))
    return "\n".join(lines)


def regionText(motions, ranges):
    """Return the text of a region from ranges (Å rms) of motions, counted from 0."""
    return "\n".join(f"{k + 1}: {low:.3f} : {high:.3f}" for k, (low, high) in zip(motions, ranges))
