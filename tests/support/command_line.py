"""The command line, run in the process of the tests."""

import io
from contextlib import redirect_stderr, redirect_stdout

from dynamight_core.cli import run


def dynamight(*words):
    """Run a command; returns exit code and everything printed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run([str(word) for word in words])
    return code, said.getvalue()
