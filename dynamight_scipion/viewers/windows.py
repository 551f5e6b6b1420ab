"""Windows with figures: plain ones, slices that can be leafed through, and movies."""

from matplotlib.widgets import Button, RadioButtons, Slider
from pyworkflow.gui.plotter import Plotter

from .figures import HALF_COLOURS, SOFT, drawSlices, greyLimits, projections, sliceOf

_FRAME_TIME = 140  # milliseconds


def figureView(title, size, draw, *arguments, **options):
    """Return a view of a figure in a window of its own.

    Parameters
    ----------
    title
        of the window.
    size
        width and height, inches.
    draw
        function that draws on a figure, its first argument.
    """
    plotter = Plotter(figsize=size, windowTitle=title)
    # Constrained layout does what Plotter's own layout would, and leaves room for legends.
    plotter.tightLayoutOn = False
    plotter.getFigure().set_layout_engine("constrained")
    draw(plotter.getFigure(), *arguments, **options)
    return plotter


def slicesView(title, layers, samplingRate):
    """Return a view of slices of several volumes, side by side, with a slider and the choice of direction.

    Parameters
    ----------
    title
        of the window.
    layers
        list of `figures.Layer`, of volumes of one shape.
    samplingRate
        Å.
    """
    width = min(4.2 * len(layers), 14)
    return figureView(title, (width, width / len(layers) + 1.1), _drawLeaves, layers, samplingRate)


def _drawLeaves(figure, layers, samplingRate):
    """Draw slices with widgets that choose them."""
    above, below = figure.subfigures(2, 1, height_ratios=[1, 0.16])
    images = drawSlices(above, layers)
    size = max(layers[0].volume.shape)
    across = RadioButtons(below.add_axes([0.02, 0.0, 0.16, 1.0], frameon=False), ["z", "y", "x"], active=0)
    slider = Slider(
        below.add_axes([0.32, 0.35, 0.48, 0.3]),
        "slice",
        0,
        size - 1,
        valinit=size // 2,
        valstep=1,
        color=HALF_COLOURS[1],
    )

    def update(_=None):
        axis, index = across.value_selected, int(slider.val)
        for image, layer in zip(images, layers):
            length = layer.volume.shape["zyx".index(axis)]
            image.set_data(sliceOf(layer.volume, axis, min(index, length - 1)))
        slider.valtext.set_text(f"{axis} = {(index - size // 2) * samplingRate:.0f} Å")
        figure.canvas.draw_idle()

    across.on_clicked(update)
    slider.on_changed(update)
    update()
    # Widgets that nobody holds are dead.
    figure.widgets = [across, slider]


def movieView(title, names, volumes):
    """Return a view that plays volumes one after the other, in projection along z, y and x.

    Parameters
    ----------
    title
        of the window.
    names
        of the volumes, shown with them.
    volumes
        list of [z, y, x] arrays of one shape.
    """
    return figureView(title, (10, 4.6), _drawMovie, names, volumes)


def _drawMovie(figure, names, volumes):
    """Draw the first frame, and widgets that play the others."""
    above, below = figure.subfigures(2, 1, height_ratios=[1, 0.16])
    frames = [projections(volume) for volume in volumes]
    images = []
    for number, (axes, axis) in enumerate(zip(above.subplots(1, 3), "zyx")):
        low, high = greyLimits([frame[number] for frame in frames])
        images.append(axes.imshow(frames[0][number], cmap="gray", vmin=low, vmax=high, origin="lower"))
        axes.set_title(f"along {axis}", fontsize=10, color=SOFT)
        axes.set_xticks([])
        axes.set_yticks([])
    title = above.suptitle(names[0], fontsize=11)
    slider = Slider(
        below.add_axes([0.22, 0.35, 0.72, 0.3]), "state", 1, len(frames), valinit=1, valstep=1, color=HALF_COLOURS[1]
    )
    button = Button(below.add_axes([0.03, 0.15, 0.1, 0.7]), "Pause")
    # Restarted when a frame has been drawn: however slow drawing is, the window responds.
    timer = figure.canvas.new_timer(interval=_FRAME_TIME)
    timer.single_shot = True
    # There and back: a path does not end where it began.
    rounds = [*range(1, len(frames) + 1), *range(len(frames) - 1, 1, -1)]
    playing = {"at": 0, "on": len(frames) > 1}

    def update(value):
        for image, projection in zip(images, frames[int(value) - 1]):
            image.set_data(projection)
        slider.valtext.set_text("")
        title.set_text(names[int(value) - 1])
        figure.canvas.draw_idle()

    def drawn(_):
        if playing["on"]:
            timer.start()

    def step():
        if playing["on"]:
            playing["at"] = (playing["at"] + 1) % len(rounds)
            slider.set_val(rounds[playing["at"]])

    def toggle(_):
        playing["on"] = not playing["on"]
        button.label.set_text("Pause" if playing["on"] else "Play")
        figure.canvas.draw_idle()

    def closed(_):
        playing["on"] = False
        timer.stop()

    slider.on_changed(update)
    button.on_clicked(toggle)
    timer.add_callback(step)
    update(1)
    # Once everything has its place it keeps it: frames need no layout.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    figure.canvas.mpl_connect("draw_event", drawn)
    figure.canvas.mpl_connect("close_event", closed)
    # Widgets that nobody holds are dead.
    figure.widgets = [slider, button, timer]
