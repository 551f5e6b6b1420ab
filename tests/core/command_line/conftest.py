"""A small data set and a run of it, trained from the command line."""

import json
import shutil

import pytest
import torch

from dynamight_core.simulate.dataset import SimulateOptions, simulate
from tests.support.command_line import BOX, PIXEL, N, dynamight, train_words


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return simulate(SimulateOptions(particles=N, box=BOX, pixel_size=PIXEL, snr=2.0), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A run that training has finished; tests add to it but change nothing."""
    run = tmp_path_factory.mktemp("runs") / "run"
    code, text = dynamight(*train_words(data, run))
    assert code == 0, text
    assert "Conclusion: " in text
    return run


@pytest.fixture(scope="session")
def moving(trained, tmp_path_factory):
    """The run as if its motion were supported: it is too small for that, and commands would ask for a flag."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("moving") / "run")
    summary = run / "analysis" / "summary.json"
    found = json.loads(summary.read_text())
    found["verdict"]["verdict"], found["shared_motions"] = "supported", [1, 2]
    summary.write_text(json.dumps(found))
    return run
