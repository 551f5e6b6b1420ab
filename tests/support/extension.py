"""The engine in an environment where another package adds a decoder and a loss term."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ENTRY_POINTS = """
[dynamight_core.decoders]
breathing = breathing:Breathing

[dynamight_core.loss_terms]
drift = breathing:DRIFT
"""


def extended_engine(site: Path):
    """Install the package `breathing` into a folder and return a function that runs the program with it."""
    here = Path(__file__).parent
    shutil.copy(here / "breathing.py", site)
    metadata = site / "breathing-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: breathing\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(here.parents[1])]), "COLUMNS": "200"}

    def run(*words):
        command = [sys.executable, "-m", "dynamight_core", *map(str, words)]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    return run
