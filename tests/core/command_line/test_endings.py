"""How the program ends: exit codes, status files, versions."""

import json

import pytest
import torch

from dynamight_core.devices import choose_device
from dynamight_core.errors import InputError
from tests.support.command_line import dynamight, train_words


def test_the_status_file_says_how_a_command_ended(trained, tmp_path):
    status = tmp_path / "status.json"
    assert dynamight("--status-file", status, "select", trained, "--half", 1, "--out", tmp_path / "half1.star")[0] == 0
    assert json.loads(status.read_text()) == {"exit_code": 0, "message": ""}
    code, text = dynamight("--status-file", status, "select", trained, "--half", 3)
    told = json.loads(status.read_text())
    assert told["exit_code"] == code == 2
    assert text.strip() == f"Error: {told['message']}"


def test_auto_with_a_number_is_that_gpu_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto:3") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="2 GPUs"):
        choose_device("auto:3")


def test_the_version_is_the_package_s():
    from dynamight_core import __version__

    assert dynamight("--version") == (0, f"dynamight {__version__}\n")


def test_a_seed_that_random_generators_do_not_take_is_bad_input(data, tmp_path):
    for words in (["simulate", tmp_path / "data"], train_words(data, tmp_path / "run")):
        for seed in (-1, 10**20):
            code, text = dynamight(*words, "--seed", seed)
            assert code == 2
            assert "--seed" in text


def test_an_unknown_command_or_option_is_bad_input():
    assert dynamight("explode")[0] == 2
    assert dynamight("train", "--frobnicate")[0] == 2
