"""What holds for every test: one thread for each of two workers, and a reason where a GPU is missing."""

import os

# Before torch is imported; programs that a test starts inherit them.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import pytest

# Fixtures that take long and serve several files: their tests run in one worker, so that each is made once.
SHARED = ("_chain", "drawn_run", "hinge_set")


def pytest_collection_modifyitems(items):
    """Let the tests of a file, or of a shared fixture, run in one worker."""
    for item in items:
        shared = [name for name in SHARED if name in item.fixturenames]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else item.path.stem))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
