"""What the viewers show: the engine's tables, drawn right, opened from protocols and from objects."""

import os
import re
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import pyworkflow
import pyworkflow.gui.project  # before the form, which it needs
from matplotlib.figure import Figure
from pwem.objects import ParticleFlex, SetOfParticlesFlex, Volume
from pwem.viewers import Chimera, ChimeraView
from pyworkflow.gui.plotter import Plotter
from pyworkflow.viewer import DESKTOP_TKINTER, MessageView

from dynamight_scipion.protocols import (
    DynamightProtControl,
    DynamightProtDeformations,
    DynamightProtDisplaceModel,
    DynamightProtSelect,
    DynamightProtStates,
)
from dynamight_scipion.protocols.protocol_control import KINDS
from dynamight_scipion.viewers import (
    ADynamightDisplacedModelsViewer,
    ADynamightModelViewer,
    ADynamightStatesViewer,
    DynamightControlViewer,
    DynamightReconstructViewer,
    chimera,
    figures,
    pages,
)
from dynamight_scipion.viewers.results import Results, readTable
from tests.support.plugin import BOX


@pytest.fixture(scope="module")
def _made(_chain, _workflow):
    """A selection and states of the chain's model, run once."""
    here = os.getcwd()
    os.chdir(_workflow.project.path)
    try:
        model = {"inputModel": (_chain["deformations"], "outputModel")}
        places = Results(_chain["deformations"].outputModel).particles.coordinates[:, 0]
        selection = _workflow.run(
            DynamightProtSelect, model, nClusters=2, region=f"1: {np.median(places):.6f} :", numberOfThreads=1
        )
        states = _workflow.run(DynamightProtStates, model, nStates=3, numberOfThreads=1)
    finally:
        os.chdir(here)
    return {"selection": selection, "states": states}


@pytest.fixture
def selection(workflow, _made):
    return _made["selection"]


@pytest.fixture
def states(workflow, _made):
    return _made["states"]


class Form:
    """Stands for the window in which a viewer's parameters are."""

    def __init__(self, title, viewer, *args, **kwargs):
        self.root = None

    def showInfo(self, *args):
        raise AssertionError(args)

    showError = showInfo

    def show(self, **kwargs):
        pass


@pytest.fixture
def opened(workflow, monkeypatch):
    """Return a function that opens the viewer which Scipion finds first for an object."""
    monkeypatch.setattr("pyworkflow.gui.form.FormWindow", Form)

    def open_viewer(obj):
        viewer = viewersOf(obj)[0](project=workflow.project)
        viewer.visualize(obj)
        return viewer

    return open_viewer


def viewersOf(obj):
    return pyworkflow.Config.getDomain().findViewers(obj, DESKTOP_TKINTER)


def eye(viewer, name, **values):
    """Return the views behind the eye of a parameter."""
    for parameter, value in values.items():
        getattr(viewer, parameter).set(value)
    assert viewer.validate() == []
    return viewer._getVisualizeDict()[name](name)


def parameters(viewer):
    """Return the names of a viewer's parameters, in their order, but for those of every protocol."""
    return [name for name, _ in viewer.getDefinition().iterParams() if name not in ("runName", "runMode")]


def drawnPlaces(plot):
    """Return the places of all points that a plot shows, in any order."""
    return [np.array(part.get_offsets()) for axes in plot.getFigure().axes for part in axes.collections]


# ------------------------------------------------------------------ which viewer


def test_protocols_and_outputs_open_their_viewer_first(chain, selection, states):
    expected = {
        ADynamightModelViewer: [
            chain["deformations"],
            chain["deformations"].outputModel,
            chain["deformations"].outputParticles,
            selection,
            selection.outputParticles,
            selection.outputClasses,
        ],
        DynamightReconstructViewer: [chain["reconstruction"]],
        ADynamightStatesViewer: [states, states.outputStates],
        ADynamightDisplacedModelsViewer: [DynamightProtDisplaceModel()],
    }
    for viewer, targets in expected.items():
        for target in targets:
            assert viewersOf(target)[0] is viewer, target


def test_sets_of_other_programs_are_left_to_their_viewers(workflow, chain):
    others = SetOfParticlesFlex.create(workflow.project.getTmpPath(), progName="Zernike3D")
    others.append(ParticleFlex(progName="Zernike3D"))
    ours = {ADynamightModelViewer, ADynamightStatesViewer, ADynamightDisplacedModelsViewer}
    for target in (others, chain["particles"].outputParticles, chain["reconstruction"].outputVolume):
        assert not ours & set(viewersOf(target))


# ------------------------------------------------------------------ particles and training


def test_the_form_begins_with_the_conclusion(opened, chain):
    viewer = opened(chain["deformations"])
    first = viewer.getParam(parameters(viewer)[0])
    summary = chain["deformations"].outputModel.loadSummary()
    title, *lines = summary["conclusion"]["lines"]
    assert str(first.label) == title.rstrip(".")
    assert first.help.get() == "\n".join(lines)
    (message,) = eye(viewer, "verdict")
    assert all(line in message.getMessage() for line in summary["conclusion"]["lines"])


@pytest.mark.parametrize("output", ["outputModel", "outputParticles"])
def test_every_particle_is_drawn_where_its_motions_are(opened, chain, output):
    viewer = opened(getattr(chain["deformations"], output))
    expected = np.array([p.getZFlex()[[2, 0]] for p in chain["deformations"].outputParticles])
    (plot,) = eye(viewer, "drawing", acrossMotion=3, upMotion=1)
    (places,) = [places for places in drawnPlaces(plot) if len(places) == len(expected)]
    np.testing.assert_allclose(np.sort(places, 0), np.sort(expected, 0), atol=1e-4)


def test_all_colours_and_planes_can_be_drawn(opened, chain, selection):
    viewer = opened(chain["deformations"])
    assert f"class in '{selection.getRunName()}'" in viewer._colours
    count = len(chain["deformations"].outputParticles)
    for plane in range(3):
        for colour in range(len(viewer._colours)):
            views = eye(viewer, "drawing", plane=plane, colour=colour)
            # The small run asked for no UMAP.
            assert [type(view) for view in views] == [MessageView if plane == 1 else Plotter]
            if plane != 1:
                # The colour bar is an axes too, with one collection or none of its own.
                # All particles are in the latent spaces of both halves.
                drawn = sum(len(places) for places in drawnPlaces(views[0]) if len(places) > 2)
                assert drawn == count * (2 if plane == 2 else 1)
                views[0].close()


def test_a_selection_and_its_classes_are_told_from_other_particles(opened, selection):
    ids = selection.outputParticles.getIdSet()
    viewer = opened(selection.outputParticles)
    colouring = viewer._colouring()
    assert set(viewer._results.particles.ids[colouring.values == 0]) == ids

    viewer = opened(selection)
    colouring = viewer._colouring()
    for number, cluster in enumerate(selection.outputClasses.iterItems()):
        assert set(viewer._results.particles.ids[colouring.values == number]) == cluster.getIdSet()
    assert set(viewer._results.particles.ids[colouring.values < 0]).isdisjoint(ids)


def test_curves_of_training_are_those_of_the_engine(opened, chain):
    (plot,) = eye(opened(chain["deformations"]), "training")
    curves = readTable(chain["deformations"].outputModel.getRunPath("training_curves.csv"))
    drawn = {axes.get_title(): axes.lines for axes in plot.getFigure().axes if axes.axison}
    assert set(drawn) == set(curves["curve"])
    for title, lines in drawn.items():
        for half, line in enumerate(lines, 1):
            mine = (curves["curve"] == title) & (curves["half"] == half)
            np.testing.assert_array_equal(line.get_data(), [curves["epoch"][mine], curves["value"][mine]])


def test_every_curve_of_training_has_a_panel():
    count, titles = 6, [f"curve {number}" for number in range(5)]
    curves = {
        "curve": np.repeat(titles, count),
        "half": np.tile([1, 2], 5 * count // 2),
        "epoch": np.arange(5 * count) % count,
        "kind": np.full(5 * count, "encoder"),
        "value": np.arange(5.0 * count),
    }
    figure = Figure()
    figures.drawTraining(figure, curves)
    assert [axes.get_title() for axes in figure.axes if axes.axison] == titles


def test_a_running_protocol_shows_its_training_and_nothing_more(workflow, opened, chain, monkeypatch):
    running = workflow.new(DynamightProtDeformations)
    workflow.project.saveProtocol(running)
    messages = []
    monkeypatch.setattr(MessageView, "show", lambda self: messages.append(self.getMessage()))
    opened(running)
    assert "nothing to show yet" in messages[0]

    folder = Path(running._getRunFolder())
    folder.mkdir(parents=True)
    shutil.copy(chain["deformations"].outputModel.getRunPath("training_curves.csv"), folder)
    viewer = opened(running)
    assert parameters(viewer) == ["training"]
    (plot,) = eye(viewer, "training")
    assert plot.getFigure().axes[0].lines


def test_histograms_and_maps_of_the_motion_can_be_drawn(opened, chain):
    viewer = opened(chain["deformations"])
    for name, axes in (("distributions", 3), ("coordinates", 3), ("molecule", 7), ("slices", 5)):
        (plot,) = eye(viewer, name)
        assert len(plot.getFigure().axes) == axes, name
        plot.close()


def test_density_is_highest_where_particles_are(request):
    random = np.random.default_rng(0)
    dense, sparse = random.normal(0, 0.1, (300, 2)), random.uniform(2, 8, (60, 2))
    density = figures.localDensity(np.concatenate([dense, sparse]))
    assert density.max() == 1
    assert np.median(density[:300]) > 5 * np.median(density[300:])


def test_a_missing_table_is_reported_in_words(opened, chain, tmp_path):
    viewer = opened(chain["deformations"])
    for name, path in (
        ("coordinates", ("tables", "coordinates.csv")),
        ("distributions", ("tables", "motion_and_error.csv")),
        ("slices", ("motion.mrc",)),
        ("report", ("report.html",)),
    ):
        file = Path(viewer._results.findFile(*path))
        shutil.move(file, tmp_path / "away")
        (view,) = eye(viewer, name)
        assert f"{file} is missing: run the protocol" in view.getMessage()
        shutil.move(tmp_path / "away", file)


def test_histograms_are_those_of_the_report(opened, chain):
    viewer = opened(chain["deformations"])
    tables = Path(viewer._results.findFile("tables"))
    (plot,) = eye(viewer, "coordinates")
    drawn = [part.get_data().values for part in plot.getFigure().axes[0].patches if part.get_label()[:4] == "half"]
    table = readTable(tables / "coordinates.csv")
    for half, counts in enumerate(drawn, 1):
        np.testing.assert_array_equal(counts, table["particles"][(table["motion"] == 1) & (table["half"] == half)])
    (plot,) = eye(viewer, "distributions")
    above = readTable(tables / "above_error.csv")["particles_that_move_by_more_than_their_error_percent"][0]
    assert plot.getFigure().axes[2].get_title() == f"{above:.0f} % move by more than their uncertainty"


# ------------------------------------------------------------------ maps and states


def test_fsc_curves_are_those_of_the_protocol(opened, chain):
    viewer = opened(chain["reconstruction"])
    curves = {item.getObjLabel(): item.clone().getData() for item in chain["reconstruction"].outputFSCs}
    for everything, count in ((False, 2), (True, 10)):
        (plot,) = eye(viewer, "fsc", allCurves=everything)
        drawn = {line.get_label(): line for line in plot.getFigure().axes[0].lines if "," in line.get_label()}
        assert len(drawn) == count
        for label, line in drawn.items():
            np.testing.assert_allclose(line.get_ydata(), curves[label][1])
        plot.close()


def test_a_control_shows_its_verdict_and_its_curves(opened, workflow, chain):
    model = {"inputModel": (chain["deformations"], "outputModel")}
    control = workflow.new(DynamightProtControl, model, kind=KINDS.index("noise-particles"), numberOfThreads=1)
    assert viewersOf(control)[0] is DynamightControlViewer
    workflow.launch(control)
    viewer = opened(control)
    assert parameters(viewer) == ["verdict", "curves"]
    assert viewer.getDefinition().getParam("verdict").label.get() == control.loadControl()["verdict"].capitalize()
    (plot,) = eye(viewer, "curves")
    (axes,) = plot.getFigure().axes
    wanted = {curve.getObjLabel(): curve.getData()[1] for curve in (c.clone() for c in control.outputFSCs.iterItems())}
    for name, values in wanted.items():
        (line,) = [line for line in axes.lines if line.get_label() == name]
        assert list(line.get_ydata()) == values
        assert axes.get_ylim()[0] < min(values)


def test_both_maps_are_coloured_by_local_resolution_on_one_scale(opened, chain, monkeypatch):
    protocol = chain["reconstruction"]
    paths = [protocol._getMapPath(*folder, "local_resolution.mrc") for folder in (("rigid",), ())]
    resolutions = np.random.default_rng(0).uniform(8, 20, (2, BOX, BOX, BOX)).astype(np.float32)
    for path, values in zip(paths, resolutions, strict=True):
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(values)
    monkeypatch.setattr(protocol, "outputLocalResolution", Volume(paths[1]), raising=False)
    viewer = opened(protocol)
    (plot,) = eye(viewer, "localResolution")
    images = [axes.images[0] for axes in plot.getFigure().axes if axes.images][1:3]
    assert images[0].get_clim() == images[1].get_clim()
    for image, values in zip(images, resolutions, strict=True):
        shown = np.ma.filled(image.get_array(), np.nan)
        inside = np.isfinite(shown)
        assert inside.any()
        np.testing.assert_array_equal(shown[inside], values[BOX // 2][inside])
    plot.close()
    for path in paths:
        os.remove(path)


def test_slices_before_and_after_follow_the_slider(opened, chain):
    (plot,) = eye(opened(chain["reconstruction"]), "slices")
    figure = plot.getFigure()
    across, slider = figure.widgets
    across.set_active(2)
    slider.set_val(11)
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for name, image in zip(("outputRigid", "outputVolume"), images, strict=False):
        with mrcfile.open(getattr(chain["reconstruction"], name).getFileName()) as mrc:
            np.testing.assert_array_equal(image, mrc.data[:, :, 11])
    np.testing.assert_allclose(images[2], images[1] - images[0])


def test_deviations_between_states_are_drawn_by_region(opened, states):
    viewer = opened(states.outputStates)
    (plot,) = eye(viewer, "deviations")
    table = readTable(Path(states._getExtraPath("states", "deviations.csv")))
    whole = plot.getFigure().axes[0].images[0].get_array()
    inside = table["region"] == "molecule"
    assert whole.shape == (3, 3)
    np.testing.assert_allclose(whole[np.triu_indices(3, 1)], table["deviation_A"][inside])


def test_the_movie_shows_every_state_and_can_be_paused(opened, states):
    (plot,) = eye(opened(states.outputStates), "movie")
    figure = plot.getFigure()
    slider, button, _ = figure.widgets
    assert button.label.get_text() == "Pause"
    for number, state in enumerate(states.outputStates.iterItems(), 1):
        slider.set_val(number)
        with mrcfile.open(state.getFileName()) as mrc:
            np.testing.assert_allclose(figure.axes[0].images[0].get_array(), mrc.data.sum(0), rtol=1e-5)
        # Not minus zero.
        assert f"state {number} at {state.getZFlex()[0] + 0.0:.2f}".replace("-0.00", "0.00") in (
            figure.subfigs[0].get_suptitle()
        )


def test_the_movie_file_opens_in_the_browser(opened, states, monkeypatch):
    addresses = []
    monkeypatch.setattr(pages.webbrowser, "open", addresses.append)
    viewer = opened(states.outputStates)
    (view,) = eye(viewer, "movieFile")
    view.show()
    assert addresses == [Path(states.getMovies()[0]).resolve().as_uri()]
    Path(states.getMovies()[0]).rename("moved")
    assert "movieFile" not in parameters(opened(states.outputStates))
    Path("moved").rename(states.getMovies()[0])


def test_displacements_are_drawn_for_every_state():
    figure = Figure()
    figures.drawDisplacements(figure, np.arange(12.0).reshape(3, 4), ["a", "b", "c"])
    np.testing.assert_array_equal([line.get_ydata() for line in figure.axes[0].lines], np.arange(12).reshape(3, 4))


# ------------------------------------------------------------------ other programs


def scripts(viewer, monkeypatch, program):
    """Return the view and the lines of the session that a viewer makes for a ChimeraX."""
    monkeypatch.setattr(Chimera, "_program", program)
    (view,) = eye(viewer, "chimera")
    (path,) = Path(viewer.protocol._getExtraPath()).glob("*.cxc")
    return view, path.read_text()


def test_sessions_of_chimerax_open_files_that_are_there_from_anywhere(opened, chain, states, monkeypatch, tmp_path):
    program = tmp_path / "ChimeraX"
    program.touch()
    for target, files in ((chain["reconstruction"], 2), (chain["deformations"], 4), (states, 3)):
        view, text = scripts(opened(target), monkeypatch, str(program))
        assert isinstance(view, ChimeraView)
        paths = re.findall(r'"([^"]+)"', text)
        assert len(paths) == files
        assert all(os.path.isabs(path) and os.path.exists(path) for path in paths)


# What the commands are, as ChimeraX's user guide gives their syntax.
MODELS, COLOUR, FILE = r"(#!?\d+(?:[-,]\d+)*)", r"#[0-9a-f]{6}", r'"/[^"]+"'
PALETTE = rf"palette -?[\d.e+-]+,{COLOUR}(?::-?[\d.e+-]+,{COLOUR})+"
COMMANDS = [
    rf"open {FILE}(?: name \w+)?",
    rf"open {FILE}(?: {FILE})* vseries true",
    rf"volume {MODELS} style surface step \d+ sdLevel [\d.]+",
    rf"color {MODELS} {COLOUR}",
    rf"color sample {MODELS} map {MODELS} {PALETTE}",
    rf"color byattribute bfactor {MODELS} {PALETTE}",
    rf"hide {MODELS} models",
    rf"show {MODELS} atoms",
    rf"style {MODELS} ball",
    rf"key {COLOUR}:\S+(?: {COLOUR}:\S+)+",
    rf"transparency {MODELS} \d+",
    rf"morph {MODELS} frames \d+ same true method linear",
    rf"vseries play {MODELS} loop true direction oscillate",
    "set bgColor white",
    "lighting soft",
    "graphics silhouettes true",
    "view",
]
SESSIONS = {
    "maps": chimera.beforeAndAfter("a.mrc", "b.mrc"),
    "maps and local resolution": chimera.beforeAndAfter("a.mrc", "b.mrc", ["resolution.mrc"], (4.0, 12.5)),
    "maps and both resolutions": chimera.beforeAndAfter("a.mrc", "b.mrc", ["one.mrc", "two.mrc"], (4.0, 12.5)),
    "motion": chimera.colouredByMotion("a.mrc", "motion.mrc", ["half 1.cif", "half 2.cif"], 1e-4),
    "series": chimera.volumeSeries(["a.mrc", "b.mrc", "c.mrc"]),
    "morph": chimera.morphedModels(["a.cif", "b.cif", "c.cif"], "map.mrc"),
    "one model": chimera.morphedModels(["a.cif"], "map.mrc"),
}


@pytest.mark.parametrize("name", SESSIONS)
def test_sessions_speak_the_language_of_chimerax_and_of_models_that_are_open(name):
    opened = 0
    for line in SESSIONS[name]:
        (match,) = [found for found in (re.fullmatch(command, line) for command in COMMANDS) if found] or [None]
        assert match, f"no command of ChimeraX: {line}"
        # A series is one model.
        opened += line.startswith("open ")
        numbers = [int(number) for models in match.groups() for number in re.findall(r"\d+", models)]
        assert all(1 <= number <= opened for number in numbers), f"{opened} models are open: {line}"


def test_without_chimerax_a_message_says_where_the_session_is(opened, states, monkeypatch):
    view, _ = scripts(opened(states), monkeypatch, "/nowhere/ChimeraX")
    assert isinstance(view, MessageView)
    path = view.getMessage().splitlines()[-1]
    assert path.endswith(".cxc")
    assert os.path.exists(path)


def test_one_model_is_shown_without_a_morph():
    assert not any(line.startswith("morph") for line in chimera.morphedModels(["a.cif"], "map.mrc"))
    assert any(line.startswith("morph #2-3 ") for line in chimera.morphedModels(["a.cif", "b.cif"], "map.mrc"))


def test_report_opens_in_the_browser(opened, chain, monkeypatch):
    addresses = []
    monkeypatch.setattr(pages.webbrowser, "open", addresses.append)
    (view,) = eye(opened(chain["deformations"]), "report")
    view.show()
    report = chain["deformations"].outputModel.getRunPath("analysis", "report.html")
    assert addresses == [Path(report).resolve().as_uri()]


def test_explorer_is_served_by_the_engine_and_ends_with_scipion(opened, chain, monkeypatch):
    said, ends = [], []
    monkeypatch.setattr(pages, "showInfo", lambda title, text, window: said.append(text))
    monkeypatch.setattr(pages, "showError", lambda title, text, window: pytest.fail(text))
    monkeypatch.setattr(pages.atexit, "register", lambda function, *given, **_: ends.append((function, *given)))
    (view,) = eye(opened(chain["deformations"]), "explorer")
    view._window = Clock()
    view.show()
    assert "http://127.0.0.1:" in said[0]
    ((end, server),) = ends
    assert server.poll() is None
    log = Path(chain["deformations"].outputModel.getRunPath("analysis", "explorer.log"))
    assert log.stat().st_mode & 0o077 == 0
    # Shown again, from a file that only its owner can read.
    shown = []
    monkeypatch.setattr(pages.webbrowser, "open", shown.append)
    view.show()
    assert "token" not in shown[0]
    assert said[0].split()[-1] in Path(shown[0].removeprefix("file://")).read_text()
    ends.pop()
    end(server)
    # It ends as if it had been stopped in a terminal; otherwise this raises.
    server.wait(10)


class Clock:
    """Stands for a Tk window, as far as time goes."""

    @staticmethod
    def after(milliseconds, function, *arguments):
        """Wait and call."""
        import time

        time.sleep(milliseconds / 1000)
        function(*arguments)
