"""How the program ends: exit codes, status files, versions."""

import json

import pytest
import torch

from dynamight_core import devices
from dynamight_core.devices import choose_device, describe_device
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
    monkeypatch.setattr(devices, "_compute", lambda device: None)
    assert choose_device("auto:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="2 GPUs"):
        choose_device("auto:3")


def test_a_gpu_that_was_asked_for_and_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:0", "0"):
        with pytest.raises(InputError, match=f"--device is '{name}', but .*; use cpu or auto"):
            choose_device(name)
    with pytest.raises(InputError, match="--device is 'mps'"):
        choose_device("mps")


def test_a_gpu_that_does_not_compute_is_an_error(monkeypatch):
    def fail(device):
        raise RuntimeError("CUDA error: no kernel image is available\nfurther lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla K80")
    monkeypatch.setattr(devices, "_compute", fail)
    with pytest.raises(InputError, match=r"GPU 0 \(Tesla K80\) does not compute \(CUDA error: no kernel image"):
        choose_device("auto")


def test_the_device_is_told_with_its_reason(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    assert describe_device("cpu", cpu) == "Device: CPU, as --device says."
    assert describe_device("auto:1", gpu) == "Device: GPU 1 (H100), chosen automatically."
    assert describe_device("1", gpu) == "Device: GPU 1 (H100), as --device says."
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert describe_device("auto", cpu) == "Device: CPU, since CUDA_VISIBLE_DEVICES hides all GPUs."
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA" in describe_device("auto", cpu)


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
