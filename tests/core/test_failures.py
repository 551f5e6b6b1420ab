"""What the system refuses becomes a sentence; closed pipes and signals end nothing without a word."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import yaml

from dynamight_core.config import RunConfig
from dynamight_core.devices import choose_device, set_threads
from dynamight_core.errors import InputError, understood
from dynamight_core.files import atomic_path, read_map
from dynamight_core.limits import limit_of_system
from dynamight_core.particles.star import read_blocks
from dynamight_core.reporter import QUIET
from dynamight_core.structures import read_structure
from dynamight_core.training.checkpoint import checkpoint_epochs
from dynamight_core.training.progress import read_metrics


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "cannot use /data: no space left.*make room"),
        (safetensors.SafetensorError("I/O error: No space left on device (os error 28)"), "no space left.*make room"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (MemoryError(), "memory is exhausted"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--batch-size"),
        (RuntimeError("can't start new thread"), "--threads"),
    ],
)
def test_limits_of_the_system_are_told_with_a_cure(error, sentence):
    import re

    assert re.search(sentence, limit_of_system(error))


def test_an_error_of_the_program_is_not_taken_for_a_limit():
    assert limit_of_system(RuntimeError("shapes do not match")) is None
    assert limit_of_system(KeyError("x")) is None


def test_a_full_disk_inside_safetensors_is_a_sentence_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*too large"), atomic_path(tmp_path / "model") as path:
            safetensors.torch.save_file({"x": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask_whatever_wrote_them(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "model.safetensors") as path:
            safetensors.torch.save_file({"x": torch.zeros(3)}, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("read", [read_blocks, read_map, read_structure])
def test_pipes_and_folders_are_refused_as_inputs(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.star")
    for path, kind in ((tmp_path / "pipe.star", "pipe or device"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=f"is a {kind}, not a file"):
            read(path)


@pytest.mark.parametrize(
    "text", [b"# \xe9\n", b"", b"[1, 2]", b"inputs: 3\nprovenance: {}\n", b"\0", b"a: [", b"- a\nb: c"]
)
def test_a_damaged_config_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(InputError, match="cannot be understood"):
        RunConfig.read(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("train.epochs", "many", "--epochs is 'many'; give a whole number"),
        ("train.epochs", 2.5, "--epochs is 2.5; give a whole number"),
        ("train.epochs", None, "--epochs is nothing; give a whole number"),
        ("train.refine_poses", "no", "--refine-poses is 'no'; give true or false"),
        ("train.learning_rate", True, "--learning-rate is True; give a number"),
        ("inputs.mask", 3, "--mask is 3; give text or nothing"),
        ("inputs.half_maps", ["a.mrc", 2], "--half-maps is .*; give a list of text or nothing"),
        ("inputs.passthrough", "a.cs", "--passthrough is 'a.cs'; give a list of text"),
        ("inputs.star", ["a"], r"--star is \['a'\]; give text"),
        ("provenance.earlier_epochs", 3, "provenance.earlier_epochs is 3 instead of a list of whole numbers"),
        ("provenance.run", 3, "provenance.run is 3 instead of text"),
        ("stages.reconstruct", "done", "stages.reconstruct is 'done' instead of names with values"),
        ("stages", {"reconstruct": {"conformation": 3}}, "--conformation is 3; give text"),
    ],
)
def test_a_value_of_another_type_in_a_config_is_refused_by_name(tmp_path, place, value, sentence):
    RunConfig(provenance={"run": str(tmp_path)}).write(tmp_path)
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(path.read_text())
    *outer, name = place.split(".")
    (values[outer[0]] if outer else values)[name] = value
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=f"in {path}, {sentence}"):
        RunConfig.read(tmp_path)


def test_an_mmcif_file_without_rows_is_refused(tmp_path):
    path = tmp_path / "x.cif"
    for text in (
        "data_x\nloop_\n_atom_site.id\n",
        "data_x\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1 2\n",
        "",
        "loop_",
    ):
        path.write_text(text)
        with pytest.raises(InputError):
            read_structure(path)


def test_devices_and_threads_that_are_not_there_are_refused():
    for name in ("mps", "xpu", "meta", "nonsense"):
        with pytest.raises(InputError, match="--device"):
            choose_device(name)
    with pytest.raises(InputError, match="--threads"):
        set_threads(100_000)


def test_other_files_among_checkpoints_are_ignored_and_damaged_metrics_too(tmp_path):
    for name in ("epoch00003.safetensors", "epoch_old.safetensors", "epoch00004 (copy).safetensors"):
        (tmp_path / name).touch()
    assert checkpoint_epochs(tmp_path) == [3]
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path, 3, QUIET) == []
    path.write_text('{"epoch": 1}\n{"epoch": 2\n{"epoch": 4}\n')
    assert read_metrics(path, 3, QUIET) == [{"epoch": 1}]


def test_a_closed_pipe_does_not_end_a_command():
    code = (
        "import time\n"
        "from dynamight_core.cli.terminal import Terminal\n"
        "with Terminal() as reporter:\n"
        "    reporter.say('first')\n"
        "    time.sleep(1)\n"
        "    for _ in range(3): reporter.say('x' * 100_000)\n"
        "open('done', 'w')\n"
    )
    folder = os.getcwd()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.wait(30)
    done = os.path.join(folder, "done")
    assert os.path.exists(done)
    os.unlink(done)


SLOW = """
import sys, time
import dynamight_core.simulate.dataset
from dynamight_core.cli import main

def simulate(*arguments):
    print("begun", flush=True)
    time.sleep(60)

dynamight_core.simulate.dataset.simulate = simulate
sys.argv = ["dynamight", "simulate", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_hup_end_a_command_as_ctrl_c_does(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "d")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "Stopped" in errors


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read \(permission denied\)"):
        with understood(tmp_path / "files.json", "restore it"):
            raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")
