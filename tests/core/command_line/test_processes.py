"""Several processes: the numbers of one, a sentence where one of them ends, and options that do not go together."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.support.command_line import dynamight

ROOT = Path(__file__).parents[3]
SHORT = [
    "--n-gaussians",
    "150",
    "--n-latents",
    "2",
    "--epochs",
    "2",
    "--warm-up-epochs",
    "1",
    "--reference-epochs",
    "1",
]
SHORT += ["--device", "cpu", "--threads", "1"]


def started(*words):
    """Start the program."""
    command = [sys.executable, "-m", "dynamight_core", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def ended(*words):
    """Run the program; return its exit code and everything printed."""
    process = started(*words)
    said, errors = process.communicate(timeout=240)
    return process.returncode, said + errors


def train_words(data, run, *more):
    return ["train", data.particles, run, "--map", data.consensus, "--half-maps", *data.half_maps, *SHORT, *more]


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """A short training by one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    code, text = dynamight(*train_words(data, run))
    assert code == 0, text
    return run


def tensors(run):
    """Return all that a training has found."""
    files = ["latents", "half1/model", "half2/model", "analysis/motions"]
    found = {name: safetensors.torch.load_file(run / f"{name}.safetensors") for name in files}
    return {f"{name} {key}": value.double() for name, part in found.items() for key, value in part.items()}


def summary(run):
    return json.loads((run / "analysis" / "summary.json").read_text())


def test_a_process_for_each_half_set_gives_the_numbers_of_one(data, one, tmp_path):
    code, text = ended(*train_words(data, tmp_path / "run", "--processes", "2"))
    assert code == 0, text
    assert text.count("Conclusion:") == 1
    wanted, found = tensors(one), tensors(tmp_path / "run")
    assert all(found[name].equal(value) for name, value in wanted.items())
    assert summary(tmp_path / "run")["verdict"]["gain"] == pytest.approx(
        summary(one)["verdict"]["gain"], rel=1e-3, abs=1e-4
    )


def test_a_training_resumes_on_another_number_of_processes(data, one, tmp_path):
    """All epochs are done: four processes infer the latents, and judge them, as one does."""
    run = shutil.copytree(one, tmp_path / "run")
    (run / "latents.safetensors").unlink()
    code, text = ended(*train_words(data, run, "--resume", "--processes", "4"))
    assert code == 0, text
    assert "Resuming after epoch" in text
    wanted, found = tensors(one), tensors(run)
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm(), name
    for name in ("motion_rms", "error_rms", "unseen_motion_rms"):
        assert summary(run)[name] == pytest.approx(summary(one)[name], rel=1e-4)


def test_processes_infer_what_one_infers(data, one, tmp_path):
    for number in (1, 3):
        words = ["infer", one, data.particles, tmp_path / f"run{number}", "--device", "cpu", "--threads", "1"]
        code, text = (dynamight if number == 1 else ended)(*words, "--processes", str(number))
        assert code == 0, text
    wanted, found = (tensors(tmp_path / f"run{number}") for number in (1, 3))
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("more", [["--method", "wbp"], ["--method", "cg", "--no-controls"]])
def test_processes_reconstruct_the_maps_of_one(one, tmp_path, more):
    maps, words = {}, ["--no-shrink", "--device", "cpu", "--threads", "1", *more]
    for number in (1, 3):
        run = shutil.copytree(one, tmp_path / f"run{number}")
        code, text = (dynamight if number == 1 else ended)("reconstruct", run, *words, "--processes", str(number))
        assert code == 0, text
        names = ("map.mrc", "half1_unfil.mrc", "half2_unfil.mrc", "rigid/half1_unfil.mrc")
        maps[number] = [mrcfile.read(run / "reconstruction" / name) for name in names]
        assert (run / "analysis" / "controls" / "shuffled-latents.json").exists() != ("--no-controls" in more)
    for wanted, found in zip(maps[1], maps[3], strict=True):
        assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize("launcher", [True, False])
def test_a_process_that_is_killed_ends_all_with_a_sentence(data, tmp_path, launcher):
    run, status = tmp_path / "run", tmp_path / "status.json"
    words = train_words(data, run, "--epochs", "400", "--status-file", status)
    if launcher:
        process = started(*words, "--processes", "2")
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "dynamight_core", *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process_of(1, run), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "Error: process 2 of 2" in errors
    assert "resume with --resume" in errors
    assert json.loads(status.read_text())["message"].startswith("process 2 of 2")
    # Nobody holds the run, and no process is left.
    assert not (run / ".lock").exists()
    assert process_of(0, run) is None


def process_of(rank, run):
    """Return the process of a rank that works on a run, None if there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    return None


@pytest.mark.gpu
def test_two_gpus_train_as_one_process_does(data, one, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    code, text = ended(*train_words(data, tmp_path / "run", "--device", "0,1"))
    assert code == 0, text
    found, wanted = summary(tmp_path / "run"), summary(one)
    assert found["motion_rms"] == pytest.approx(wanted["motion_rms"], abs=wanted["error_rms"])


def template(name):
    """Return the job script of a name in the page on clusters."""
    text = (ROOT / "docs" / "cluster.md").read_text().partition(f"<!-- slurm {name} -->")[2]
    lines = text.lstrip("\n").split("\n\n")[0].splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines) + "\n"


@pytest.mark.parametrize("machines", [1, 2])
def test_the_templates_for_slurm_train(data, one, tmp_path, machines):
    """A stub of Slurm runs them: srun starts what follows it once for each machine."""
    words = {
        "srun": f'for node in $(seq {machines}); do "$@" & done; wait -n && wait',
        "scontrol": "echo localhost; echo other",
        "dynamight": f'exec {sys.executable} -m dynamight_core "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, line in words.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = template("one" if machines == 1 else "two")
    small = shlex.join([*SHORT[:-2], "--half-maps", *map(str, data.half_maps)])
    changes = {
        "particles.star": str(data.particles),
        "map.mrc": str(data.consensus),
        "--device 0,1,2,3": "--processes 2",
        "--nproc-per-node 4": "--nproc-per-node 1",
        ":29500": f":{port}",
        "--resume": f"--resume {small}",
    }
    for old, new in changes.items():
        script = script.replace(old, new)
    assert script.count("#SBATCH") == 6
    slurm = {"SLURM_NNODES": str(machines), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"}
    # One thread for each process.
    slurm |= {"SLURM_CPUS_PER_TASK": str(2 // machines)}
    environment = os.environ | slurm | {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wanted, found = tensors(one), tensors(tmp_path / "RUN")
    assert all(found[name].equal(value) for name, value in wanted.items())


def test_what_does_not_go_together_is_refused(data, one, tmp_path):
    code, text = dynamight(*train_words(data, tmp_path / "run", "--processes", "3", "--device", "0,1"))
    assert code == 2
    assert "--processes is 3, but --device names 2 GPUs" in text
    code, text = dynamight("analyse", one, "--processes", "2")
    assert code == 2
    assert "analyse runs in one process" in text


def test_an_error_of_all_processes_is_told_once(data, tmp_path):
    words = [
        word if word != data.consensus else tmp_path / "nothing.mrc" for word in train_words(data, tmp_path / "run")
    ]
    code, text = ended(*words, "--processes", "2")
    assert code == 2
    assert text.count("does not exist") == 1
    assert "Traceback" not in text
