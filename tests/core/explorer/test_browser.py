"""The explorer's page in a browser: a person's clicks, and the files that follow from them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import starfile

from tools.browser import IDLE, PROGRAM, Chromium, Served, choose, place

N = 400


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
    before = browser.evaluate("explorer.molecule.surfaces[0].positions.length")
    assert before > 1000
    mode(browser, "inspect")
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
    browser.wait("explorer.playing !== null")
    first = browser.evaluate("Array.from(explorer.molecule.parts.moved.slice(0, 30))")
    browser.wait(
        f"explorer.molecule.parts.moved.slice(0, 30).some((v, i) => Math.abs(v - {json.dumps(first)}[i]) > 0.2)"
    )
    browser.evaluate("document.getElementById('path-n').value = 2")
    save(browser, "way")
    table = pd.read_csv(run / "analysis" / "states" / "way" / "states.csv")
    np.testing.assert_allclose(table["motion1_A"].iloc[[0, -1]], [-2, 2], atol=0.05)
    assert len(table) == 2
    assert (run / "analysis" / "states" / "way" / "movie.gif").stat().st_size > 1000


def test_two_places_become_a_difference(browsed):
    browser, run = browsed
    mode(browser, "compare")
    for x in (-2.0, 2.0):
        browser.click(*place(browser, x, 0.0))
    browser.wait(IDLE)
    assert browser.evaluate("explorer.molecule.surfaces.filter((s) => s.pair).length") == 2
    save(browser, "change")
    assert (run / "analysis" / "states" / "change" / "difference.mrc").exists()


def test_a_view_of_three_motions_is_saved_and_comes_back(browsed):
    browser, run = browsed
    choose(browser, "plot", "pairs")
    browser.wait(IDLE)
    panels = "document.querySelectorAll('#pairs .panel')"
    assert browser.evaluate(f"{panels}.length") == 6
    # The panel in the last row: motions 1 and 3.
    browser.evaluate(f"{panels}[3].click()")
    browser.wait(IDLE)
    assert browser.evaluate("[explorer.plot, ...explorer.plane]") == ["plane", 1, 3]
    choose(browser, "plot", "space")
    choose(browser, "beside-menu", "consensus")
    browser.wait(IDLE)
    browser.wait("explorer.beside.surfaces.length === 1")
    browser.evaluate("explorer.cloud.front.focus()")
    # Turn it, and show the particle in the middle.
    browser.keys("ArrowLeft", "ArrowUp", "Enter")
    browser.wait(IDLE)
    assert "nearest particle is row" in browser.evaluate("document.getElementById('result-text').textContent")
    seen = "JSON.stringify([explorer.plot, explorer.plane, explorer.third, explorer.at, explorer.cloud.rotation])"
    before = browser.evaluate(seen)
    browser.evaluate("document.getElementById('view-save').click()")
    save(browser, "aside")
    assert json.loads((run / "analysis" / "views" / "aside.json").read_text())["values"]["beside-menu"] == "consensus"
    choose(browser, "plot", "plane")
    choose(browser, "beside-menu", "")
    browser.evaluate("explorer.cloud.resetView()")
    browser.wait(IDLE)
    assert browser.evaluate(seen) != before
    choose(browser, "view-menu", "aside")
    browser.wait(IDLE)
    assert browser.evaluate(seen) == before
    assert browser.evaluate("explorer.beside.surfaces.length") == 1
    choose(browser, "plot", "plane")
    choose(browser, "y-motion", "2")
    browser.wait(IDLE)


def test_an_error_is_a_sentence_on_the_page(browsed):
    browser, _ = browsed
    mode(browser, "lasso")
    x, y = place(browser, *browser.evaluate("[explorer.landscape.view.x[0], explorer.landscape.view.y[0]]"))
    browser.drag([(x + 5, y - 5), (x + 25, y - 5), (x + 25, y - 20), (x + 5, y - 20)])
    browser.wait(IDLE)
    assert browser.evaluate("document.getElementById('toast').textContent") == (
        "The region contains no particles; draw it around some."
    )


def test_a_browser_without_webgl_is_told_so_and_still_works(browsed):
    browser, _ = browsed
    address = browser.evaluate("location.href")
    browser.open(address.replace("#", "&nowebgl#"))
    browser.wait(IDLE)
    assert "WebGL 2 is not available" in browser.evaluate("document.getElementById('notice').textContent")
    browser.click(*place(browser, 1.0, 0.0))
    browser.wait(IDLE)
    assert "motion 1 +1.0" in browser.evaluate("document.getElementById('result-text').textContent")
    # Something is drawn in both views.
    for canvas in ("explorer.landscape.middle", "explorer.molecule.canvas"):
        drawn = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height).data.some((v) => v)"
        browser.wait(drawn)
