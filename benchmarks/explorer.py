"""How fast `dynamight analyse` and `dynamight explore` are on a large run.

    python -m benchmarks.explorer OUT [--particles 327490]

The run is not trained. Two decoders are fitted to the true motion of the molecule `hinge`, and latents are drawn at
random (tools/drawn_run.py). The browser is a headless Chromium that renders in software. Prints one JSON object:
seconds, memory in GB and the size of the report in MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tools.browser import IDLE, Chromium, Served, choose, place
from tools.drawn_run import make_run


def timed(browser, action) -> float:
    """Return the seconds from an action until its answer is drawn."""
    started = time.monotonic()
    action()
    browser.wait(IDLE)
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.monotonic() - started


def measure_explorer(run: Path) -> dict[str, float]:
    """Return seconds of the explorer's start and of what a person does in it."""
    out = {}
    with tempfile.TemporaryDirectory() as profile, Served(run) as served, Chromium(Path(profile)) as browser:
        out["start_s"] = served.seconds
        out["page_s"] = timed(browser, lambda: browser.open(served.address))
        browser.wait("document.getElementById('colour').length > 1")
        for name, column in (("first_colour_s", "dynMotionError"), ("colour_s", "rlnDefocusU")):
            out[name] = timed(browser, lambda column=column: choose(browser, "colour", column))
        sides = browser.evaluate("[0, 1].flatMap((k) => [explorer.run.low[k], explorer.run.high[k]])")
        x, y = (np.array(pair) for pair in (sides[:2], sides[2:]))
        out["click_s"] = timed(browser, lambda: browser.click(*place(browser, 0.5 * x[1], 0.0)))
        browser.evaluate("document.querySelector('[data-mode=lasso]').click()")
        turn = np.linspace(0, 2 * np.pi, 40)
        ring = [place(browser, 0.6 * x[1] * (1 + 0.5 * np.cos(t)), 0.8 * y[1] * np.sin(t)) for t in turn]
        # From letting go to the mean map of what is inside.
        browser.press(ring)
        out["lasso_s"] = timed(browser, lambda: browser.release(*ring[-1]))
        if browser.messages:
            raise RuntimeError(browser.messages)
    return out


def measure_analyse(run: Path) -> dict[str, float]:
    """Return seconds, memory and the size of the report."""
    started = time.monotonic()
    command = [sys.executable, "-m", "dynamight_core", "analyse", str(run), "--embedding", "pca"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    size = (run / "analysis" / "report.html").stat().st_size / 1e6
    cpu = usage.ru_utime + usage.ru_stime
    return {"analyse_s": seconds, "analyse_cpu_s": cpu, "analyse_gb": usage.ru_maxrss / 2**20, "report_mb": size}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--particles", type=int, default=327_490)
    parser.add_argument("--gaussians", type=int, default=3000)
    arguments = parser.parse_args()
    run = arguments.out / "run"
    if not (run / "config.yaml").exists():
        make_run(arguments.out, arguments.particles, arguments.gaussians)
    result = {"particles": arguments.particles} | measure_analyse(run) | measure_explorer(run)
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
