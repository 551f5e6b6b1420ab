"""The run in napari: its layers, a click, and what is said without napari or a screen."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import starfile

from dynamight_core.analysis.explorer.napari_view import NapariView


@pytest.mark.slow
def test_napari_shows_volume_gaussians_field_and_particles_of_the_run(explorer):
    from napari.components import ViewerModel

    explorer.add_table("mine.csv", pd.DataFrame({"score": range(len(explorer.coordinates))}).to_csv(index=False))
    view = NapariView(explorer)
    viewer = ViewerModel(ndisplay=3)
    for layer in view.layers:
        viewer.add_layer(layer)
    kinds = {layer.name: type(layer).__name__ for layer in viewer.layers}
    assert list(kinds.values()) == ["Image", "Points", "Vectors", "Points", "Shapes"]
    coordinates = explorer.coordinates
    np.testing.assert_allclose(view.particles.data[:, 2:0:-1], coordinates[:, :2])
    np.testing.assert_array_equal(view.particles.features["mine.csv: score"], range(len(explorer.coordinates)))
    # The density lies where the Gaussians do, in the viewer's coordinates.
    weights = np.clip(view.volume.data - 0.1, 0, None)
    centre = [np.average(np.arange(len(weights)), weights=weights.sum(tuple({0, 1, 2} - {i}))) for i in range(3)]
    np.testing.assert_allclose(view.volume.data_to_world(centre), view.gaussians.data.mean(0), atol=3.0)
    # The particles lie to the right of the molecule and do not touch it.
    right = view.particles.extent.world[0][2]
    assert right > view.gaussians.data[:, 2].max()


def test_a_click_on_a_particle_in_napari_shows_its_conformation(explorer):
    view = NapariView(explorer)
    before = view.volume.data.copy()
    far = int(explorer.coordinates[:, 0].argmax())
    place = view.particles.data_to_world(view.particles.data[far])
    event = SimpleNamespace(position=np.array(place), view_direction=None, dims_displayed=[1, 2])
    view.particles.mouse_drag_callbacks[0](view.particles, event)
    shift = np.tensordot(explorer.coordinates[far], explorer.run.motions.components.numpy(), 1)
    expected = (explorer.run.motions.points + explorer.run.motions.mean).numpy() + shift
    np.testing.assert_allclose(view.gaussians.data[:, ::-1], expected, atol=1e-4)
    np.testing.assert_allclose(view.arrows.data[:, 0, ::-1], expected[view.chosen], atol=1e-4)
    assert np.abs(view.volume.data - before).max() > 0.2


def test_a_click_on_an_empty_place_in_napari_shows_the_conformation_there(explorer):
    view = NapariView(explorer)
    wanted = explorer.coordinates.mean(0)
    wanted[:2] = explorer.coordinates[:, :2].max(0) * 1.5
    place = view.particles.data_to_world([0, wanted[1], wanted[0]])
    event = SimpleNamespace(position=np.array(place), view_direction=None, dims_displayed=[1, 2])
    view.particles.mouse_drag_callbacks[0](view.particles, event)
    shift = np.tensordot(wanted, explorer.run.motions.components.numpy(), 1)
    expected = (explorer.run.motions.points + explorer.run.motions.mean).numpy() + shift
    np.testing.assert_allclose(view.gaussians.data[:, ::-1], expected, atol=1e-3)


@pytest.mark.slow
def test_drawings_in_napari_become_movies_and_star_files(explorer, capsys):
    view = NapariView(explorer)
    places = explorer.coordinates[:, :2]
    low, middle, high = (np.quantile(places, share, 0) for share in (0.1, 0.5, 0.9))

    def corners(*points):
        return np.array([[0, y, x] for x, y in points])

    view.drawings.add_paths([corners(low, middle, high)])
    view.drawings.add_polygons([corners(low, (high[0], low[1]), high, (low[0], high[1]))])
    ((key, save),) = view.drawings.keymap.items()
    assert str(key) == "S"
    save(view.drawings)
    folder = explorer.run.path / "analysis"
    table = pd.read_csv(folder / "states" / "napari_path1" / "states.csv")
    assert len(table) == 20
    np.testing.assert_allclose(table[["motion1_A", "motion2_A"]].iloc[[0, -1]], [low, high], atol=1e-3)
    assert (folder / "states" / "napari_path1" / "movie.gif").exists()
    inside = ((places > low) & (places < high)).all(1)
    assert len(starfile.read(folder / "selections" / "napari_region1.star")["particles"]) == inside.sum()
    assert "Saved: " in capsys.readouterr().out
    # A second press saves what is new.
    view.drawings.add_ellipses([corners(low, (high[0], low[1]), high, (low[0], high[1]))])
    save(view.drawings)
    assert "an ellipse cannot be saved" in capsys.readouterr().out
    assert not (folder / "states" / "napari_path2").exists()


@pytest.mark.slow
def test_napari_opens_its_window(drawn_run, monkeypatch, dynamight):
    import napari

    opened = []
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setattr("napari.run", lambda: opened.append(napari.current_viewer()))
    code, text = dynamight("explore", drawn_run, "--viewer", "napari")
    assert code == 0, text
    assert [type(layer).__name__ for layer in opened[0].layers] == ["Image", "Points", "Vectors", "Points", "Shapes"]
    opened[0].close()


def test_without_napari_or_a_screen_the_page_is_named(drawn_run, monkeypatch, dynamight):
    for name in ("QT_QPA_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    code, text = dynamight("explore", drawn_run, "--viewer", "napari")
    assert code == 2
    assert "needs a screen" in text
    monkeypatch.setitem(sys.modules, "napari", None)
    code, text = dynamight("explore", drawn_run, "--viewer", "napari")
    assert code == 2
    assert "dynamight-core[napari]" in text
    code, text = dynamight("explore", drawn_run, "--viewer", "chimera")
    assert code == 2
    assert "choose one of browser, napari" in text
