"""The pages for everyone: no serious finding of axe-core, light and dark, and a walk with the keyboard alone."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import starfile

from dynamight_core.analysis.report import write_report
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from tools.browser import IDLE, PROGRAM, Chromium, Served, choose

AXE = Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js"
FOCUS = "document.activeElement.id || document.activeElement.getAttribute('aria-label')"


@pytest.fixture(scope="module")
def pages(drawn_run, tmp_path_factory):
    """A browser, the addresses of explorer and report, and the run."""
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    run = shutil.copytree(drawn_run, tmp_path_factory.mktemp("accessible") / "run")
    report = write_report(Run(run), reporter=QUIET)
    with (
        Served(run, "--threads", "1") as served,
        Chromium(tmp_path_factory.mktemp("profile")) as browser,
    ):
        yield browser, served, report.as_uri(), run


def findings(browser):
    """Return the serious findings of axe-core on the page, in short."""
    browser.evaluate(AXE.read_text() + "; 0")
    found = browser.evaluate("axe.run().then((r) => JSON.stringify(r.violations))")
    return [
        (each["id"], [node["html"][:120] for node in each["nodes"]][:3])
        for each in json.loads(found)
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed (npm ci)")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", ["overview", "explore", "report"])
def test_axe_has_no_serious_finding(pages, page, theme):
    browser, served, report, _ = pages
    browser.resize(1280, 800)
    if page == "report":
        browser.open(report)
        browser.wait("Boolean(globalThis.report)")
        browser.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    else:
        browser.open("about:blank")
        browser.open(f"{served.overview}#{page}")
        browser.wait(IDLE)
    if browser.evaluate("document.documentElement.dataset.theme") != theme:
        browser.evaluate("document.getElementById('theme').click()")
    assert findings(browser) == []
    if page == "explore":
        for plot in ("pairs", "space"):
            choose(browser, "plot", plot)
            choose(browser, "beside-menu", "consensus")
            browser.wait(IDLE)
            assert findings(browser) == []


def tab_to(browser, name, most=60):
    """Press Tab until an element has the focus, by its id or label."""
    for _ in range(most):
        if (browser.evaluate(FOCUS) or "").startswith(name):
            return
        browser.keys("Tab")
    raise AssertionError(f"{name} cannot be reached with Tab")


def test_a_subset_and_a_path_are_made_and_saved_with_the_keyboard_alone(pages):
    browser, served, _, run = pages
    browser.open("about:blank")
    browser.open(served.overview)
    browser.wait(IDLE)
    browser.keys("e", "l")
    tab_to(browser, "particles; arrow keys")
    # A square around the middle.
    steps = [("ArrowLeft", 8), ("ArrowDown", 8), ("ArrowRight", 16), ("ArrowUp", 16), ("ArrowLeft", 16)]
    for name, times in steps:
        browser.keys(*[name] * times)
        if name != "ArrowLeft" or times != 8:
            browser.keys("Enter")
    browser.keys("f")
    browser.wait("document.getElementById('result-title').textContent === 'Region'")
    browser.wait(IDLE)
    tab_to(browser, "save-button")
    browser.keys("Enter")
    browser.wait("document.getElementById('saved-list').textContent.includes('selection-1')")
    assert len(starfile.read(run / "analysis" / "selections" / "selection-1.star")["particles"]) > 10
    browser.keys("p")
    tab_to(browser, "particles; arrow keys")
    browser.keys("Enter", *["ArrowRight"] * 12, "Enter", "f")
    browser.wait("document.getElementById('result-title').textContent === 'Path'")
    browser.wait(IDLE)
    # Fewer states than are offered: their movie takes long.
    tab_to(browser, "path-n")
    browser.keys(*["ArrowDown"] * 8)
    tab_to(browser, "save-button")
    browser.keys("Enter")
    browser.wait("document.getElementById('saved-list').textContent.includes('path-1')")
    assert len(pd.read_csv(run / "analysis" / "states" / "path-1" / "states.csv")) == 2


@pytest.mark.parametrize("page", ["overview", "explore", "report"])
def test_a_phone_in_portrait_shows_the_whole_width(pages, page):
    browser, served, report, _ = pages
    browser.resize(390, 844)
    browser.open("about:blank")
    browser.open(report if page == "report" else f"{served.overview}#{page}")
    browser.wait("Boolean(globalThis.report)" if page == "report" else IDLE)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
