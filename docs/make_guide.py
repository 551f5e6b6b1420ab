"""Take the pictures of docs/guide.md from the run of `make demo`, in a headless Chromium.

python -m docs.make_guide [RUN]        RUN is demo/run if omitted
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tools.browser import IDLE, Chromium, Served, choose, place

HERE = Path(__file__).resolve().parent


def take(browser, name, width=1280, height=800):
    """Save a picture of the page once it is idle, with a reduced palette."""
    browser.resize(width, height)
    browser.wait(IDLE)
    browser.evaluate("new Promise((done) => setTimeout(done, 600))")
    path = HERE / "pictures" / f"{name}.png"
    browser.picture(path)
    Image.open(path).convert("RGB").quantize(256, kmeans=4, dither=Image.Dither.NONE).save(path, optimize=True)


def mode(browser, name):
    browser.evaluate(f"document.querySelector('[data-mode={name}]').click()")


def theme(browser):
    """Switch between light and dark."""
    browser.evaluate("document.getElementById('theme').click()")


def save(browser, name):
    browser.evaluate(f"document.getElementById('save-name').value = '{name}'")
    browser.evaluate("document.getElementById('save-button').click()")
    browser.wait(f"document.getElementById('saved-list').textContent.includes('{name}')")


def tour(browser):
    """Follow the steps of the guide, and take its pictures."""
    browser.wait("document.getElementById('colour').length > 1")
    end = 1.5 * browser.evaluate("explorer.run.deviations[0]")
    choose(browser, "colour", "dynHalf")
    take(browser, "explorer-halves")
    browser.evaluate("document.getElementById('show-errors').click()")
    browser.click(*place(browser, end, 0.0))
    take(browser, "explorer-click")
    browser.evaluate("document.getElementById('show-errors').click()")
    mode(browser, "compare")
    browser.click(*place(browser, -end, 0.0))
    browser.click(*place(browser, end, 0.0))
    theme(browser)
    take(browser, "explorer-compare", 1920, 1080)
    theme(browser)
    browser.resize(1280, 800)
    mode(browser, "lasso")
    top = 0.9 * browser.evaluate("explorer.landscape.view.y[1]")
    far = 1.02 * browser.evaluate("explorer.landscape.points.high[0]")
    browser.drag([place(browser, x, y) for x, y in [(end, top), (far, top), (far, 0.0), (end, 0.0), (end, top)]])
    browser.wait(IDLE)
    save(browser, "down")
    take(browser, "explorer-lasso")


if __name__ == "__main__":
    given = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/run")
    with tempfile.TemporaryDirectory() as folder:
        # Use a copy, so that the tour saves nothing in the run itself.
        shutil.copytree(given, Path(folder) / "demo" / "run")
        # The commands on the page should name the run as a user would.
        os.chdir(folder)
        with Served(Path("demo/run")) as served, Chromium(Path(folder) / "profile") as browser:
            browser.open(served.address)
            browser.wait(IDLE)
            tour(browser)
