"""Take pictures of the plugin in Scipion's windows: the project, the forms, the viewers, the wizards.

python -m docs.gui.screenshots FOLDER [NAME ...]

FOLDER is that of `docs/gui/project.py`, which makes the project. Pictures go to FOLDER/pictures, all or those whose
names are given; those of the documents also to docs/pictures, with few colours. Needs Xvfb, openbox and ImageMagick
(Debian: xvfb, openbox, imagemagick, fonts-dejavu-core); no window opens on the screen.
"""

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from docs.gui.project import project_folder, scipion_environment

SIZE = "1500x950"
PICTURES = Path(__file__).resolve().parent.parent / "pictures"
# Pictures that the documents show
KEPT = ("project", "form-deformations", "viewer-particles", "wizard-threshold", "viewer-maps")
# Where the wizards' figures are clicked, as fractions of the first axes
CLICKS = {"path": ((0.1, 0.9), (0.45, 0.5), (0.85, 0.75)), "particle": ((0.2, 0.25),), "motion": ((0.5, 0.5),)}
# Likewise from where to where they are dragged on
DRAGS = {"region": ((0.6, 0.05), (0.97, 0.5))}
# Milliseconds that a window gets to draw itself.
PAUSE = 1800


class Driver:
    """Works through steps inside Scipion's own main loop, and takes pictures of windows.

    Parameters
    ----------
    window
        pyworkflow's ProjectWindow.
    out
        folder of the pictures.
    wanted
        names of the pictures, all if empty.
    """

    def __init__(self, window, out, wanted):
        self.window, self.root, self.out, self.wanted = window, window.root, out, wanted
        self.view = window.getViewWidget()
        self.runs = {run.getObjLabel(): run for run in window.project.getRuns()}
        self.out.mkdir(exist_ok=True)
        self.busy = False

    def start(self, steps):
        """Run a generator of functions, one after the other, while Scipion's main loop runs."""

        def advance():
            if self.busy:
                self.root.after(200, advance)
                return
            action = next(steps, None)
            if action is None:
                # Not the window's own way: it would ask.
                os._exit(0)
            # Scheduled before: a window that is opened may keep the loop to itself.
            self.root.after(PAUSE, advance)
            try:
                action()
            except Exception:
                traceback.print_exc()
                os._exit(1)

        self.root.after(2 * PAUSE, advance)

    def shoot(self, name, window=None):
        """Take a picture of a window with its frame, or of the screen."""
        # Drawing goes through the main loop, in which the next step may be due.
        self.busy = True
        target = "root"
        if window is not None:
            window.lift()
            # Whole, however high it is
            window.geometry("+0+0")
            window.update()
            time.sleep(0.4)
            window.update()
            target = window.wm_frame()
        self.busy = False
        subprocess.run(["import", "-window", target, str(self.out / f"{name}.png")], check=True)
        print(name, flush=True)
        if name in KEPT:
            reduce_colours(self.out / f"{name}.png", PICTURES / f"{name}.png")

    def children(self):
        """Return the windows that are open, but for the main one, the newest last."""
        import tkinter

        from matplotlib import pyplot

        def below(widget):
            for child in widget.winfo_children():
                if isinstance(child, tkinter.Toplevel) and child.winfo_viewable() and child is not self.root:
                    yield child
                yield from below(child)

        figures = [pyplot.figure(number).canvas.manager.window for number in pyplot.get_fignums()]
        return [*below(self.root), *figures]

    def close_all(self):
        """Close every window but the main one."""
        from matplotlib import pyplot

        pyplot.close("all")
        for window in reversed(self.children()):
            if window.winfo_exists():
                window.destroy()

    def steps(self, name, *actions):
        """Yield actions, then a picture of the newest window, unless it is not wanted."""
        if self.wanted and not any(name.startswith(wanted) for wanted in self.wanted):
            return
        yield from actions
        yield lambda: self.shoot(name, self.children()[-1] if self.children() else None)

    def select(self, label):
        """Select a protocol in the project, by its name."""
        self.view._deselectItems(None)
        self.view._selectItemProtocol(self.runs[label])
        self.view.updateRunsGraph(True)

    def fail(self):
        """Estimate deformations with a threshold above all density: what a failure of the engine looks like."""
        project = self.window.project
        protocol = project.copyProtocol(self.runs["deformations"])
        protocol.setObjLabel("with a wrong threshold")
        protocol.threshold.set(1e6)
        project.launchProtocol(protocol, wait=True)
        self.view.updateRunsGraph(True)
        self.view.drawRunsGraph(reorganize=True)
        self.view._deselectItems(None)
        self.view._selectItemProtocol(protocol)
        self.view.updateRunsGraph(True)

    def form(self, label, tab=0, expert=False):
        """Open the form of a protocol, on one of its tabs."""
        protocol = self.runs[label]
        if expert:
            protocol.expertLevel.set(1)
        self.root.after(PAUSE // 2, lambda: self._tab(tab))
        self.view._editProtocol(protocol)

    def _tab(self, number):
        from tkinter.ttk import Notebook

        def below(widget):
            yield widget
            for child in widget.winfo_children():
                yield from below(child)

        for widget in below(self.children()[-1]):
            if isinstance(widget, Notebook):
                widget.select(number)

    def analyse(self, label):
        """Open the viewer of a protocol, as the button Analyze Results does."""
        self.select(label)
        self.view._analyzeResultsClicked()

    def view_output(self, label, output):
        """Open the viewer of an output, as a double click on it does."""
        self.select(label)
        self.view._viewObject(getattr(self.runs[label], output).getObjId())

    def eye(self, name, **values):
        """Set parameters in the viewer that is open, and click the eye of one."""
        form = next(iter(self._forms()))
        for parameter, value in values.items():
            form.setVar(parameter, value)
        form.widgetDict[name]._visualizeVar()

    def wizard(self, name):
        """Open the wizard of a parameter in the form that is open."""
        form = next(iter(self._forms()))
        form.wizParamName = name
        form.wizards[name]().show(form)

    def show_tree(self, name):
        """Show a tree of protocols, with the plugin's branches open."""
        self.view.settings.setProtocolView(name)
        self.view.protCfg = self.view.getCurrentProtocolView()
        self.view.updateProtocolsTree(self.view.protCfg)
        tree = self.view.protTree

        def opened(item):
            inside = [opened(child) for child in tree.get_children(item)]
            ours = any(inside) or "Dynamight" in item
            if item:
                tree.item(item, open=ours)
            return ours

        opened("")

    def choose_template(self):
        """Open the list of workflow templates, as the menu Others does."""
        from scipion.guiplugin import importFromTemplate

        importFromTemplate(self.window)

    def point_at_template(self):
        """Select the plugin's template in the list."""
        tree = self.children()[-1].tree
        tree.selection_set([item for item in tree.get_children() if "flexible" in tree.item(item)["text"]])

    def accept_template(self):
        """Go on to the form of the template."""
        from pyworkflow.gui.dialog import RESULT_YES

        self.children()[-1]._handleResult(RESULT_YES)

    def fill_template(self):
        """Fill the form of the template, take its picture, and accept it."""
        import gc

        from scipion.scripts.kickoff import KickoffView

        view = next(item for item in gc.get_objects() if isinstance(item, KickoffView))
        simulated = self.out.parent / "simulated"
        files = {"particles": "particles", "map": "consensus", "half1": "consensus_half1", "half2": "consensus_half2"}
        for field in view.template.params.values():
            name = files.get(field.getAlias())
            if name:
                suffix = ".star" if name == "particles" else ".mrc"
                view._setValue(field.getTitle(), str(simulated / f"{name}{suffix}"))
        self.shoot("template-form", view.root)
        view._onReadDataFromTemplateForm()

    def delete_made(self):
        """Delete the protocols that were made for a picture."""
        known = {run.getObjId() for run in self.runs.values()}
        made = [run for run in self.window.project.getRuns() if run.getObjId() not in known]
        if made:
            self.window.project.deleteProtocol(*made)
            self.view._selection.clear()
            self.view._updateSelection()
            self.view.updateRunsGraph(True)
            self.view.drawRunsGraph(reorganize=True)

    def click(self, *places):
        """Click on the figure of the newest dialog, at fractions of its axes."""
        from matplotlib.backend_bases import MouseEvent

        dialog = self.children()[-1]
        for place in places:
            x, y = dialog.figure.axes[0].transAxes.transform(place)
            event = MouseEvent("button_press_event", dialog.canvas, x, y, button=1)
            dialog.canvas.callbacks.process("button_press_event", event)

    def drag(self, *ends):
        """Drag from one place of the newest dialog's figure to another, fractions of its axes."""
        from matplotlib.backend_bases import MouseEvent

        dialog = self.children()[-1]
        places = [dialog.figure.axes[0].transAxes.transform(end) for end in ends]
        for kind, (x, y) in zip(("press", "motion", "release"), (places[0], places[1], places[1]), strict=True):
            name = "motion_notify_event" if kind == "motion" else f"button_{kind}_event"
            dialog.canvas.callbacks.process(name, MouseEvent(name, dialog.canvas, x, y, button=1))

    def give_mask(self, label):
        """Give a protocol, as it is shown, the mask that it wrote as its input."""
        protocol = self.runs[label]
        protocol.inputMask.set(protocol)
        protocol.inputMask.setExtended("outputMask")

    @staticmethod
    def _forms():
        """Return the forms that are open, the newest first."""
        import gc

        from pyworkflow.gui.form import FormWindow

        found = [item for item in gc.get_objects() if isinstance(item, FormWindow) and item.root.winfo_exists()]
        return sorted(found, key=lambda form: -int(form.root.winfo_id()))


def reduce_colours(source, target):
    """Write a picture with at most 256 colours, those that are rare and far from others among them."""
    from PIL import Image

    picture = Image.open(source).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)


def pictures(driver):
    """Yield every step of every picture."""
    yield from driver.steps("project", lambda: driver.select("deformations"))
    yield from driver.steps("failure", driver.fail)
    yield driver.delete_made
    forms = {
        "deformations": ("deformations", 5),
        "reconstruct": ("map with motion corrected", 3),
        "states": ("states along motion 1", 1),
        "select": ("conformations", 1),
        "displace": ("atomic model along motion 1", 1),
        "control": ("is it the particles' motion", 1),
    }
    for name, (label, tabs) in forms.items():
        for expert in (False, True):
            for tab in range(tabs):
                picture = f"form-{name}" + (f"-{tab + 1}" if tab else "") + ("-expert" if expert else "")
                yield from driver.steps(picture, lambda t=tab, e=expert, la=label: driver.form(la, t, e))
                yield driver.close_all
    yield from viewers(driver)
    yield from wizards(driver)
    for name in ("Protocols SPA", "Flexibility Hub"):
        yield from driver.steps(f"tree-{name.split()[0].lower()}", lambda n=name: driver.show_tree(n))
    yield from driver.steps("template-list", driver.choose_template, driver.point_at_template)
    yield from driver.steps("template-loaded", driver.accept_template, driver.fill_template)
    yield driver.delete_made


def wizards(driver):
    """Yield the steps of the pictures of the wizards."""
    opened = {
        "diameter": ("deformations", 0, "particleDiameter"),
        "threshold": ("deformations", 1, "threshold"),
        "gaussians": ("deformations", 1, "nGaussians"),
        "motion": ("states along motion 1", 0, "motion"),
        "path": ("states along motion 1", 0, "path"),
        "particle": ("states along motion 1", 0, "firstParticle"),
        "region": ("conformations", 0, "region"),
        "reach": ("map with motion corrected", 1, "regionRadius"),
        "mask": ("map with motion corrected", 0, "inputMask"),
    }
    yield lambda: driver.give_mask("map with motion corrected")
    for name, (label, tab, parameter) in opened.items():
        # The last step waits: some dialogs have something to work out first.
        yield from driver.steps(
            f"wizard-{name}",
            lambda la=label, t=tab: driver.form(la, t),
            lambda p=parameter: driver.wizard(p),
            lambda: time.sleep(1),
            lambda n=name: driver.click(*CLICKS.get(n, ())),
            lambda n=name: driver.drag(*DRAGS[n]) if n in DRAGS else None,
        )
        yield driver.close_all


def viewers(driver):
    """Yield the steps of the pictures of the viewers."""
    figures = {
        "deformations": {
            "verdict": ("verdict", {}),
            "training": ("training", {}),
            "particles": ("drawing", {}),
            "particles-umap": ("drawing", {"plane": 1, "colour": 3}),
            "particles-latents": ("drawing", {"plane": 2, "colour": 5}),
            "particles-class": ("drawing", {"plane": 0, "colour": 6}),
            "distributions": ("distributions", {}),
            "coordinates": ("coordinates", {}),
            "molecule": ("molecule", {}),
            "motion": ("slices", {}),
            "chimera": ("chimera", {}),
            "table": ("table", {}),
        },
        "map with motion corrected": {
            "fsc": ("fsc", {"allCurves": True}),
            "maps": ("slices", {}),
            "resolution": ("localResolution", {}),
        },
        "states along motion 1": {"movie": ("movie", {}), "states": ("slices", {})},
        "conformations": {"classes": ("drawing", {})},
        "atomic model along motion 1": {"displacements": ("displacements", {})},
        "is it the particles' motion": {"control": ("curves", {})},
    }
    for label, shown in figures.items():
        name = "analyse-" + label.replace("'", "").replace(" ", "-")
        yield from driver.steps(name, lambda la=label: driver.analyse(la))
        yield driver.close_all
        for name, (parameter, values) in shown.items():
            yield from driver.steps(
                f"viewer-{name}", lambda la=label: driver.analyse(la), lambda p=parameter, v=values: driver.eye(p, **v)
            )
            yield driver.close_all
    for output in ("outputModel", "outputParticles"):
        yield from driver.steps(f"double-click-{output}", lambda o=output: driver.view_output("deformations", o))
        yield driver.close_all


def inside(folder, wanted):
    """Open the project's window and take the pictures; to be called in the virtual screen."""
    os.chdir(project_folder(folder))
    import pyworkflow

    pyworkflow.Config.getDomain().getPlugins()
    from pyworkflow.gui.project import ProjectWindow

    window = ProjectWindow(str(project_folder(folder)))
    driver = Driver(window, folder / "pictures", wanted)
    driver.start(pictures(driver))
    window.show()


def main():
    """Start a virtual screen with a window manager, and Scipion in it."""
    folder = Path(sys.argv[1]).resolve()
    if os.environ.get("SCIPION_HOME") == str(folder):
        inside(folder, sys.argv[2:])
        return
    read, write = os.pipe()
    screen = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{SIZE}x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as number:
        display = f":{number.readline().strip()}"
    environment = scipion_environment(folder) | {"DISPLAY": display}
    manager = subprocess.Popen(["openbox"], env=environment, stderr=subprocess.DEVNULL)
    try:
        raise SystemExit(
            subprocess.call([sys.executable, "-m", "docs.gui.screenshots", *sys.argv[1:]], env=environment)
        )
    finally:
        manager.terminate()
        screen.terminate()


if __name__ == "__main__":
    main()
