"""The explorer: a person's clicks, and the files that follow from them; what it refuses."""

import gzip
import http.client
import json
import shutil
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import gemmi
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import starfile
import torch
from typer.testing import CliRunner

from dynamight_core import cli
from dynamight_core.analysis.annotations import colouring, read_annotations
from dynamight_core.analysis.explore import Explorer
from dynamight_core.analysis.landscape import plane_landscape
from dynamight_core.analysis.napari_view import NapariView
from dynamight_core.analysis.select import inside_polygon
from dynamight_core.analysis.serve import ACTIONS, ExplorerServer
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.run import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))
from chromium import PROGRAM, Chromium
from explorer import IDLE, Served, choose, place

N = 400
SQUARE = "1,2:0,-9:9,-9:9,9:0,9"


@pytest.fixture
def folder(drawn_run, tmp_path):
    """A copy of the run that a test may write to."""
    return shutil.copytree(drawn_run, tmp_path / "run")


@pytest.fixture
def explorer(folder):
    return Explorer(Run(folder), say=lambda line: None)


@pytest.fixture
def server(explorer):
    with ExplorerServer(explorer, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def dynamight(*words):
    result = CliRunner().invoke(cli.make_app(), [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# ------------------------------------------------------------------------------------------- what is shown


def test_a_conformation_on_the_page_is_the_map_that_states_writes(explorer):
    at = [2.0, 0.3]
    shown = explorer.state(at)
    full = StateModels(explorer.run).volume([*at, 0.0])
    assert len(full) == 64
    first = np.round(np.array(shown.values["first"]) / shown.values["spacing"] + 32).astype(int)[::-1]
    crop = tuple(slice(a, a + n) for a, n in zip(first, shown.arrays["density"].shape, strict=True))
    levels = shown.values["top"] / 255
    np.testing.assert_allclose(shown.arrays["density"] * levels, full[crop].clip(0), atol=0.51 * levels)
    # Nothing of the molecule is left out.
    assert full[crop].clip(0).sum() > 0.97 * full.clip(0).sum()
    rms = torch.tensordot(torch.tensor([*at, 0.0]), explorer.run.motions.components, 1).square().sum(-1).mean().sqrt()
    assert shown.values["displacement_rms"] == pytest.approx(float(rms), rel=1e-4)


def test_the_map_of_a_selection_is_the_mean_of_the_maps_of_its_particles(explorer):
    coordinates = explorer.coordinates
    order = coordinates[:, 0].argsort()
    corner = (coordinates[order[-4], 0] + coordinates[order[-3], 0]) / 2
    found = explorer.selection(f"1,2:{corner},-99:99,-99:99,99:{corner},99")
    assert found.values["particles"] == 3
    assert sum(found.values["halves"]) == 3
    models = StateModels(explorer.run)
    mean = np.mean([models.volume(coordinates[row]) for row in order[-3:]], 0)
    np.testing.assert_allclose(models.volume(coordinates[order[-3:]]), mean, atol=1e-5 * mean.max())


def test_points_and_colours_belong_together(explorer):
    points, colours = explorer.points([1, 2]), explorer.colours("dynMotion1")
    low, high = np.array(points.values["low"]), np.array(points.values["high"])
    places = low + points.arrays["places"] / 65535 * (high - low)
    inner = (colours.arrays["levels"] > 0) & (colours.arrays["levels"] < 254)
    span = colours.values["high"] - colours.values["low"]
    values = colours.values["low"] + colours.arrays["levels"] / 254 * span
    np.testing.assert_allclose(places[inner, 0], values[inner], atol=span / 254)
    validation = explorer.points([1, 2], "validation")
    assert len(validation.arrays["places"]) == validation.values["particles"] == N // 10


def test_the_landscape_counts_particles_and_knows_the_error_of_its_free_energy():
    # Many draws of one distribution: the scatter of the free energy is what a single draw predicts.
    rng = np.random.default_rng(0)
    energies, errors = [], []
    for _ in range(60):
        found = plane_landscape(*rng.normal(size=(2, 3000)), bins=24)
        assert found.counts.sum() <= 3000
        middle = np.searchsorted(found.x_edges, 0.0) - 1, np.searchsorted(found.y_edges, 1.0) - 1
        energies.append(-np.log(found.density[middle]))
        errors.append(found.free_energy_error[middle])
    assert np.std(energies) == pytest.approx(np.mean(errors), rel=0.35)
    steps = np.diff(found.x_edges)[0] * np.diff(found.y_edges)[0]
    assert found.density.sum() * steps == pytest.approx(3000, rel=0.02)


@pytest.mark.parametrize(
    ("values", "labels"),
    [(["b", "a", "a"], ["a", "b"]), ([1, 2, 2], ["1", "2"]), (list("abcdefghijklmnop"), 12), ([0.5, 1.0, 2.0], None)],
)
def test_columns_are_categories_or_numbers(values, labels):
    found = colouring(pd.Series(values), "x")
    if isinstance(labels, int):
        assert len(found.labels) == labels
        assert found.labels[-1] == "5 others"
    else:
        assert found.labels == labels


def test_a_users_table_is_joined_by_name_by_row_or_by_order(drawn_run, tmp_path):
    particles = starfile.read(drawn_run / "particles.star")["particles"]
    values = np.arange(N) * 1.5
    by_name = pd.DataFrame({"rlnImageName": particles["rlnImageName"], "score": values}).sample(frac=1, random_state=0)
    by_row = pd.DataFrame({"particle": [7, 3], "score": [values[6], values[2]]})
    for table, rows in ((by_name, range(N)), (by_row, [2, 6]), (pd.DataFrame({"score": values}), range(N))):
        path = tmp_path / "scores.csv"
        table.to_csv(path, index=False)
        found = read_annotations(path, "scores", particles)["scores: score"]
        assert found.notna().sum() == len(rows)
        np.testing.assert_allclose(found[list(rows)], values[list(rows)])


# ------------------------------------------------------------------------------------------- files


def test_what_is_saved_is_what_the_command_line_writes(explorer, folder):
    # The page saves; the command that it names, given another name, writes the same files.
    found = explorer.save_selection({"polygon": SQUARE, "half": 1}, "right")
    path = folder / "analysis" / "selections" / "right.star"
    rows = starfile.read(path)["particles"]
    assert found.values["particles"] == len(rows) > 0
    assert (rows["dynMotion1"] > 0).all() and (rows["dynHalf"] == 1).all()
    found = explorer.save_states({"through": ["-2", "0,0.5", "2"], "n": 3}, "way")
    out = folder / "analysis" / "states" / "way"
    maps = {f"path_state{i:02d}.mrc" for i in (1, 2, 3)}
    beside = {"states.csv", "states.cxc", "arrows.bild", "arrows.csv", "movie.gif", "movie.mp4"}
    assert {path.name for path in out.iterdir()} == beside | maps
    table = pd.read_csv(out / "states.csv")
    np.testing.assert_allclose(table["motion1_A"], [-2, 0, 2], atol=1e-3)
    explorer.save_states({"at": ["-2", "2"], "difference": True, "movie": False}, "two")
    volumes = {path.stem: read_map(path)[0] for path in (folder / "analysis" / "states" / "two").glob("*.mrc")}
    np.testing.assert_allclose(volumes["difference"], volumes["state02"] - volumes["state01"], atol=1e-5)
    lines = [line for line in (folder / "analysis" / "explored.sh").read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 3
    path.unlink()
    (out / "path_state02.mrc").rename(folder / "before.mrc")
    for line in lines:
        code, text = dynamight(*line.split()[1:])
        assert code == 0, text
    pd.testing.assert_frame_equal(starfile.read(path)["particles"], rows)
    np.testing.assert_array_equal(read_map(out / "path_state02.mrc")[0], read_map(folder / "before.mrc")[0])


def test_an_atomic_model_moves_along_and_is_saved_at_every_state(folder, tmp_path):
    run = Run(folder)
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    corner = run.box // 2 * run.pixel_size
    for number, point in enumerate(run.motions.points[::40].double().numpy() + corner, 1):
        atom, residue = gemmi.Atom(), gemmi.Residue()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*point)
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    structure.write_pdb(str(tmp_path / "model.pdb"))
    explorer = Explorer(run, tmp_path / "model.pdb", say=lambda line: None)
    parts = explorer.molecule().arrays
    assert len(parts["trace"]) == len(parts["trace_starts"]) == len(chain)
    explorer.save_states({"at": ["2"]}, "bent")
    saved = gemmi.read_structure(str(folder / "analysis" / "states" / "bent" / "model_state01.cif"))
    found = np.array([residue[0].pos.tolist() for residue in saved[0][0]])
    # The page's trace is in the frame of its densities, the file in its own.
    expected = parts["trace"] + 2 * parts["trace_motions"][0] + corner
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_nothing_is_overwritten_and_nothing_leaves_the_folder(explorer):
    explorer.save_selection({"polygon": SQUARE}, "one")
    for action, message in (
        (lambda: explorer.save_selection({"polygon": SQUARE}, "one"), "there already"),
        (lambda: explorer.save_selection({"polygon": SQUARE}, "../one"), "cannot be that of a file"),
        (lambda: explorer.save_states({"at": ["1"], "colour": 3}, "x"), "no option colour"),
        (lambda: explorer.file("../config.yaml"), "no file"),
        (lambda: explorer.selection("1,2:50,50:51,50:51,51"), "no particles"),
        (lambda: explorer.selection("1,9:0,0:1,0:1,1"), "motion 9 is not in this run"),
        (lambda: inside_polygon(explorer.coordinates, "1,2:0,0:1,1"), "at least three corners"),
        (lambda: explorer.state([0.0] * 9), "9 coordinates, the run 3"),
        (lambda: explorer.colours("nonsense"), "no column nonsense"),
        (lambda: explorer.points([1, 2], "half 3"), "group 'half 3' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            action()


# ------------------------------------------------------------------------------------------- bad input


def edit_latents(run):
    tensors = safetensors.torch.load_file(run / "latents.safetensors")
    tensors["latents"] = tensors["latents"].clone() * 1.3
    safetensors.torch.save_file(tensors, run / "latents.safetensors")


def lose_particles(run):
    tensors = safetensors.torch.load_file(run / "latents.safetensors")
    kept = {name: t[:, :-5] if name in ("latents", "covariances") else t[:-5] for name, t in tensors.items()}
    safetensors.torch.save_file({name: t.contiguous() for name, t in kept.items()}, run / "latents.safetensors")


def edit_star(run):
    path = run / "particles.star"
    blocks = starfile.read(path)
    blocks["particles"]["dynMotion1"] += 5.0
    starfile.write(blocks, path, overwrite=True)


def other_table(run):
    (run / "scores.csv").write_text("rlnImageName,score\n000001@other.mrcs,2\n")
    return ["--table", run / "scores.csv"]


def short_table(run):
    (run / "scores.csv").write_text("score\n1\n2\n")
    return ["--table", run / "scores.csv"]


BAD = {
    "unfinished": (lambda run: (run / "latents.safetensors").unlink(), "has not finished"),
    "not summarised": (lambda run: (run / "analysis" / "summary.json").unlink(), "summary.json is missing"),
    "half missing": (lambda run: (run / "half2" / "model.safetensors").unlink(), "half2/model.safetensors is missing"),
    "latents edited": (edit_latents, "do not belong together"),
    "particles lost": (lose_particles, "holds 395 particles"),
    "star edited": (lambda run: [edit_star(run), *other_table(run)][1:], "dynMotion1 of .* was edited"),
    "table of others": (other_table, "'000001@other.mrcs' in line 2"),
    "table too short": (short_table, "has 2 lines and the run 400"),
    "table missing": (lambda run: ["--table", run / "none.csv"], "none.csv does not exist"),
    "port": (lambda run: ["--port", "99999"], "a number from 1 to 65535"),
    "host": (lambda run: ["--host", "192.0.2.1"], "no address of this machine"),
    "model": (lambda run: ["--model", run / "none.pdb"], "none.pdb do not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_run_that_cannot_be_explored_is_refused_in_a_sentence(folder, case, monkeypatch):
    monkeypatch.setattr(ExplorerServer, "serve_forever", lambda server: pytest.fail("it was served"))
    break_it, message = BAD[case]
    words = break_it(folder) or []
    code, text = dynamight("explore", folder, "--no-browser", *words)
    assert code == 2, text
    assert text.startswith("Error: ")
    with pytest.raises(InputError, match=message):
        raise InputError(text.replace("\n", " "))


def test_a_port_in_use_is_refused(folder, server):
    code, text = dynamight("explore", folder, "--no-browser", "--port", server.server_address[1])
    assert code == 2
    assert f"port {server.server_address[1]} is in use; give another with --port" in text


# ------------------------------------------------------------------------------------------- the server


def request(server, method, path, token=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    headers = {} if token is None else {"X-Token": token}
    connection.request(method, path, json.dumps(body or {}), headers | {"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, gzip.decompress(data) if answer.getheader("Content-Encoding") == "gzip" else data


def test_only_who_has_the_token_is_answered(server):
    for method, path in [("GET", "/"), ("GET", "/files/summary.json"), *(("POST", f"/{name}") for name in ACTIONS)]:
        for token in (None, "wrong"):
            status, body = request(server, method, path, token)
            assert status == 403
            assert "token" in json.loads(body)["error"]
    assert request(server, "GET", "/files/summary.json", server.token)[0] == 200
    assert request(server, "GET", "/files/../config.yaml", server.token)[0] == 404
    assert socket.inet_aton(server.server_address[0]) == b"\x7f\x00\x00\x01"


def test_the_page_loads_nothing_from_elsewhere(server):
    status, page = request(server, "GET", "/", server.token)
    text = page.decode()
    assert status == 200
    assert "/* style */" not in text and "/* scripts */" not in text
    assert "http://" not in text and "https://" not in text and 'src="' not in text


def test_requests_that_make_no_sense_are_answered_with_a_sentence(server):
    for path, body, status, message in (
        ("/nothing", {}, 404, "no action nothing"),
        ("/state", {"where": 1}, 400, "cannot be understood"),
        ("/state", {"at": [0, 0, 0, 0]}, 422, "4 coordinates"),
        ("/landscape", {"plane": [1, 2], "quantity": "beauty"}, 422, "beauty"),
    ):
        found, answer = request(server, "POST", path, server.token, body)
        assert found == status
        assert message in json.loads(answer)["error"]


# ------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def browsed(drawn_run, tmp_path_factory):
    """The page of a run in a browser; returns browser and run."""
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    run = shutil.copytree(drawn_run, tmp_path_factory.mktemp("browsed") / "run")
    table = run / "scores.csv"
    pd.DataFrame({"particle": range(1, N + 1), "score": np.arange(N) % 3}).to_csv(table, index=False)
    with (
        Served(run, "--threads", "1", "--table", str(table)) as served,
        Chromium(tmp_path_factory.mktemp("profile")) as browser,
    ):
        browser.open(served.address)
        browser.wait(IDLE)
        yield browser, run
        # A refusal is a sentence on the page, and an error of the browser's own beside.
        wrong = [message for message in browser.messages if message.get("entry", {}).get("level") != "warning"]
        assert not [message for message in wrong if "status of 422" not in str(message)]


def mode(browser, name):
    browser.evaluate(f"document.querySelector('[data-mode={name}]').click()")


def save(browser, name):
    """Save under a name and wait until it is listed."""
    browser.evaluate(f"document.getElementById('save-name').value = '{name}'")
    browser.evaluate("document.getElementById('save-button').click()")
    browser.wait(f"document.getElementById('saved-list').textContent.includes('{name}')")
    browser.wait(IDLE)


def test_a_click_shows_and_saves_the_conformation_there(browsed):
    browser, run = browsed
    before = browser.evaluate("molecule.surfaces[0].positions.length")
    assert before > 1000
    mode(browser, "look")
    browser.click(*place(browser, 2.0, 0.1))
    browser.wait(IDLE)
    assert "motion 1 +2.0" in browser.evaluate("document.getElementById('molecule-caption').textContent")
    assert "nearest particle is row" in browser.evaluate("document.getElementById('result-text').textContent")
    save(browser, "clicked")
    table = pd.read_csv(run / "analysis" / "states" / "clicked" / "states.csv")
    assert table["motion1_A"][0] == pytest.approx(2.0, abs=0.05)
    assert (run / "analysis" / "states" / "clicked" / table["file"][0]).exists()


def test_a_lasso_becomes_a_subset(browsed):
    browser, run = browsed
    choose(browser, "colour", "scores.csv: score")
    browser.wait(IDLE)
    mode(browser, "lasso")
    ring = [(0.5, -0.8), (2.5, -0.8), (3, 0), (2.5, 0.8), (0.5, 0.8), (0.5, -0.8)]
    browser.drag([place(browser, x, y) for x, y in ring])
    browser.wait(IDLE)
    count = browser.evaluate("document.getElementById('result-text').querySelector('b').textContent")
    save(browser, "right")
    rows = starfile.read(run / "analysis" / "selections" / "right.star")["particles"]
    assert count == f"{len(rows)} particles"
    assert rows["dynMotion1"].between(0.4, 3.1).all()
    every = starfile.read(run / "particles.star")["particles"]
    inside = every.query("0.6 < dynMotion1 < 2.4 and abs(dynMotion2) < 0.7")
    assert set(inside["rlnImageName"]) <= set(rows["rlnImageName"])


def test_a_path_plays_and_becomes_a_movie(browsed):
    browser, run = browsed
    mode(browser, "path")
    for x in (-2.0, 0.0):
        browser.click(*place(browser, x, 0.0))
    browser.click(*place(browser, 2.0, 0.3), times=2)
    browser.wait(IDLE)
    browser.wait("state.playing !== null")
    first = browser.evaluate("Array.from(molecule.parts.moved.slice(0, 30))")
    browser.wait(f"molecule.parts.moved.slice(0, 30).some((v, i) => Math.abs(v - {json.dumps(first)}[i]) > 0.2)")
    browser.evaluate("document.getElementById('path-n').value = 4")
    save(browser, "way")
    table = pd.read_csv(run / "analysis" / "states" / "way" / "states.csv")
    np.testing.assert_allclose(table["motion1_A"].iloc[[0, -1]], [-2, 2], atol=0.05)
    assert len(table) == 4
    assert (run / "analysis" / "states" / "way" / "movie.gif").stat().st_size > 1000


def test_two_places_become_a_difference(browsed):
    browser, run = browsed
    mode(browser, "two")
    for x in (-2.0, 2.0):
        browser.click(*place(browser, x, 0.0))
    browser.wait(IDLE)
    assert browser.evaluate("molecule.surfaces.filter((s) => s.pair).length") == 2
    save(browser, "change")
    assert (run / "analysis" / "states" / "change" / "difference.mrc").exists()


def test_an_error_is_a_sentence_on_the_page(browsed):
    browser, _ = browsed
    mode(browser, "lasso")
    x, y = place(browser, *browser.evaluate("[landscape.view.x[0], landscape.view.y[0]]"))
    browser.drag([(x + 5, y - 5), (x + 25, y - 5), (x + 25, y - 20), (x + 5, y - 20)])
    browser.wait(IDLE)
    assert browser.evaluate("document.getElementById('toast').textContent") == (
        "The region holds no particles; draw it around some."
    )


def test_a_browser_without_webgl_is_told_so_and_still_works(browsed):
    browser, _ = browsed
    address = browser.evaluate("location.href")
    browser.open(address + "&nowebgl")
    browser.wait(IDLE)
    assert "has no WebGL 2" in browser.evaluate("document.getElementById('notice').textContent")
    browser.click(*place(browser, 1.0, 0.0))
    browser.wait(IDLE)
    assert "motion 1 +1.0" in browser.evaluate("document.getElementById('result-text').textContent")
    # Something is drawn in both views.
    for canvas in ("landscape.middle", "molecule.canvas"):
        drawn = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height).data.some((v) => v)"
        browser.wait(drawn)


# ------------------------------------------------------------------------------------------- napari


def test_napari_shows_volume_gaussians_field_and_particles_of_the_run(explorer):
    from napari.components import ViewerModel

    explorer.add_table("mine.csv", pd.DataFrame({"score": range(N)}).to_csv(index=False))
    view = NapariView(explorer)
    viewer = ViewerModel(ndisplay=3)
    for layer in view.layers:
        viewer.add_layer(layer)
    kinds = {layer.name: type(layer).__name__ for layer in viewer.layers}
    assert list(kinds.values()) == ["Image", "Points", "Vectors", "Points"]
    coordinates = explorer.coordinates
    np.testing.assert_allclose(view.particles.data[:, 2:0:-1], coordinates[:, :2])
    np.testing.assert_array_equal(view.particles.features["mine.csv: score"], range(N))
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
    np.testing.assert_allclose(view.field.data[:, 0, ::-1], expected[view.chosen], atol=1e-4)
    assert np.abs(view.volume.data - before).max() > 0.2


def test_napari_opens_its_window(drawn_run, monkeypatch):
    import napari

    opened = []
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setattr("napari.run", lambda: opened.append(napari.current_viewer()))
    code, text = dynamight("explore", drawn_run, "--viewer", "napari")
    assert code == 0, text
    assert [type(layer).__name__ for layer in opened[0].layers] == ["Image", "Points", "Vectors", "Points"]
    opened[0].close()


def test_without_napari_or_a_screen_the_page_is_named(drawn_run, monkeypatch):
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
    assert "choose browser or napari" in text
