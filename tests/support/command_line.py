"""The command line, run in the process of the tests."""

import io
from contextlib import redirect_stderr, redirect_stdout

from dynamight_core.cli import run

# The data set and the training of the tests in tests/core/command_line.
N, BOX, PIXEL = 220, 32, 6.0
SMALL = ["--n-gaussians", "200", "--epochs", "8", "--encoder-epochs", "4", "--reference-interval", "3"]
SMALL += ["--n-latents", "2", "--batch-size", "50", "--refits", "0", "--threads", "1"]


def dynamight(*words):
    """Run a command; returns exit code and everything printed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run([str(word) for word in words])
    return code, said.getvalue()


def train_words(data, run, *more):
    """Return the words of a training on a simulated data set."""
    return ["train", data.particles, run, "--map", data.consensus, "--half-maps", *data.half_maps, *SMALL, *more]
