"""What holds for every test: one thread for each of two workers, which tests are slow, and a reason without a GPU."""

import os

# Before torch is imported; programs that a test starts inherit them.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import pytest

# Trained runs, a Scipion project and a browser: whatever test asks for one of them is slow.
SLOW_FIXTURES = {"trained", "bodies_run", "hinge_run", "browsed", "fab", "_chain"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let the tests of a file run in one worker, and so all of the plugin's: they share a project that takes long."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/scipion" if file.startswith("tests/scipion/") else file

    return Scheduling(config, log)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
