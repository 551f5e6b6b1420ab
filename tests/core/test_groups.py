"""Several processes compute what one does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def together(number, *words, **options):
    """Run a program of Python in a number of processes; return what torchrun and they have said, and the exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=ROOT,
        **options,
    )
    return done.stdout + done.stderr, done.returncode


def test_what_processes_compute_together_is_what_one_computes():
    text, code = together(3, "tests/support/shared_work.py")
    assert code == 0, text
