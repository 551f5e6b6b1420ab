"""A run that the tests of the explorer may write to, and its explorer."""

import shutil

import pytest

from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from tests.support import command_line


@pytest.fixture
def folder(drawn_run, tmp_path):
    """A copy of the run that a test may write to."""
    return shutil.copytree(drawn_run, tmp_path / "run")


@pytest.fixture
def explorer(folder):
    return Explorer(Run(folder), reporter=QUIET)


@pytest.fixture(scope="session")
def dynamight():
    """Call the command line; returns its exit code and what it printed."""
    return command_line.dynamight
