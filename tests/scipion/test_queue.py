"""Protocols in a queue: a stub of Slurm, which runs jobs at once, shows what is submitted and how."""

import json
import re
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pyworkflow import Config
from pyworkflow.protocol.hosts import HostConfig

from dynamight_scipion.protocols import DynamightProtReconstruct, DynamightProtStates
from dynamight_scipion.protocols.protocol_from_model import ALONG_PATH, AT_CLUSTERS

HOSTS = """[localhost]
PARALLEL_COMMAND = mpirun -np %_(JOB_NODES)d %_(COMMAND)s
NAME = SLURM
MANDATORY = 0
SUBMIT_COMMAND = {stub}/sbatch %_(JOB_SCRIPT)s
SUBMIT_TEMPLATE = #!/bin/bash
    ##SBATCH --job-name=%_(JOB_NAME)s
    ##SBATCH --partition=%_(JOB_QUEUE)s
    ##SBATCH --cpus-per-task=%_(JOB_THREADS)d
    ##SBATCH --gres=gpu:%_(GPU_COUNT)d
    ##SBATCH --time=%_(JOB_TIME)s:00:00
    %_(JOB_COMMAND)s
CANCEL_COMMAND = {stub}/scancel %_(JOB_ID)s
CHECK_COMMAND = {stub}/squeue -h -j %_(JOB_ID)s
QUEUES = {{"gpu": [["JOB_TIME", "24", "Time (hours)", "Wall time"]]}}
"""
# A job is a folder: its script, and the process that runs it.
SBATCH = """#!{python}
import os, pathlib, shutil, subprocess, sys
jobs = pathlib.Path("{stub}/jobs")
number = str(len(list(jobs.iterdir())) + 1)
(jobs / number).mkdir()
shutil.copy(sys.argv[1], jobs / number / "script")
with open(jobs / number / "log", "w") as log:
    job = subprocess.Popen(["bash", jobs / number / "script"], stdout=log, stderr=log, start_new_session=True)
(jobs / number / "pid").write_text(str(job.pid))
print("Submitted batch job", number)
"""
SQUEUE = """#!/bin/bash
kill -0 $(cat {stub}/jobs/$3/pid) 2>/dev/null && echo "$3 gpu running"
true
"""
SCANCEL = """#!/bin/bash
kill -- -$(cat {stub}/jobs/$1/pid)
touch {stub}/jobs/$1/cancelled
"""


class Slurm:
    """The stub's folder, and what was submitted to it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            path = folder / name
            path.write_text(text.format(stub=folder, python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (folder / "hosts.conf").write_text(HOSTS.format(stub=folder))

    def job(self, number):
        return self.folder / "jobs" / str(number)

    @property
    def scripts(self):
        numbers = sorted(int(job.name) for job in (self.folder / "jobs").iterdir())
        return [(self.job(number) / "script").read_text() for number in numbers]


@pytest.fixture
def slurm(workflow, tmp_path, monkeypatch):
    """Give the project a host with a queue."""
    stub = Slurm(tmp_path / "slurm")
    hosts = str(stub.folder / "hosts.conf")
    monkeypatch.setattr(workflow.project, "_hosts", HostConfig.load(hosts))
    # Projects that are opened to look after a protocol, and processes that run one, read it anew.
    monkeypatch.setattr(Config, "SCIPION_HOSTS", hosts)
    monkeypatch.setenv("SCIPION_HOSTS", hosts)
    return stub


def queued(workflow, protocolClass, chain, bySteps, **parameters):
    protocol = workflow.new(protocolClass, {"inputModel": (chain["deformations"], "outputModel")}, **parameters)
    protocol._useQueue.set(True)
    protocol.setQueueParams(["gpu", {"JOB_TIME": "2", "QUEUE_FOR_JOBS": "Y" if bySteps else "N"}])
    return protocol


def waitFor(workflow, protocol, isReached, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        workflow.project._updateProtocol(protocol)
        if isReached():
            return
        time.sleep(0.5)
    raise AssertionError(f"still {protocol.getStatus()} after {seconds} s")


def test_a_whole_protocol_runs_as_one_job(workflow, chain, slurm):
    protocol = queued(
        workflow, DynamightProtStates, chain, bySteps=False, statesAt=AT_CLUSTERS, nStates=2, numberOfThreads=3
    )
    workflow.launch(protocol, wait=False)
    waitFor(workflow, protocol, lambda: not protocol.isActive())
    assert protocol.isFinished(), protocol.getErrorMessage()
    (script,) = slurm.scripts
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --cpus-per-task=3" in script
    assert "#SBATCH --time=2:00:00" in script
    assert "pw_protocol_run.py" in script
    assert sum(volume._dynParticles.get() for volume in protocol.outputStates) == 300


def test_each_step_runs_as_a_job_of_its_own_that_needs_nothing_but_its_command(workflow, chain, slurm):
    places = {particle.getObjId(): particle.getZFlex() for particle in chain["deformations"].outputParticles}
    protocol = queued(
        workflow,
        DynamightProtStates,
        chain,
        bySteps=True,
        statesAt=ALONG_PATH,
        path="3\n120\n -0.5, 0.1",
        nStates=5,
        doFields=False,
    )
    workflow.launch(protocol)
    assert protocol.isFinished(), protocol.getErrorMessage()
    (script,) = slurm.scripts
    command = script.strip().splitlines()[-1]
    assert re.search(r"dynamight .*--status-file \S+ states \S+/run --out", command)
    latents = [volume.getZFlex() for volume in protocol.outputStates]
    np.testing.assert_allclose(latents[0], places[3], atol=1e-3)
    np.testing.assert_allclose(latents[-1], [-0.5, 0.1, 0], atol=1e-3)


def fakeEngine(folder, status):
    """Write a program `dynamight` that keeps its words, tells how it ended, and returns the line that activates it."""
    folder.mkdir()
    path = folder / "dynamight"
    path.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        f"pathlib.Path({str(folder)!r}, 'words.json').write_text(json.dumps(sys.argv[1:]))\n"
        f"status = {status!r}\n"
        "pathlib.Path(sys.argv[sys.argv.index('--status-file') + 1]).write_text(json.dumps(status))\n"
        "sys.exit(status['exit_code'])\n"
    )
    path.chmod(0o755)
    return f'export PATH="{folder}:$PATH"'


@pytest.mark.parametrize("bySteps", [False, True])
def test_gpus_are_numbered_as_the_job_sees_them_and_a_failed_job_says_why(
    workflow, chain, slurm, tmp_path, monkeypatch, bySteps
):
    status = {"exit_code": 1, "message": "the GPU has caught fire"}
    monkeypatch.setenv("DYNAMIGHT_ENV_ACTIVATION", fakeEngine(tmp_path / "engine", status))
    protocol = queued(workflow, DynamightProtReconstruct, chain, bySteps, gpuList="3")
    workflow.launch(protocol, wait=bySteps)
    waitFor(workflow, protocol, lambda: not protocol.isActive())
    assert protocol.isFailed()
    assert "the GPU has caught fire" in str(protocol.getErrorMessage())
    assert "#SBATCH --gres=gpu:1" in slurm.scripts[0]
    words = json.loads(Path(tmp_path, "engine", "words.json").read_text())
    assert words[words.index("--device") + 1] == "auto:0", "GPU 3 of the machine is the first of the job"


@pytest.mark.parametrize("useGpu", [True, False])
def test_all_gpus_of_the_list_and_all_processes_share_a_reconstruction(
    workflow, chain, slurm, tmp_path, monkeypatch, useGpu
):
    status = {"exit_code": 1, "message": "enough is known"}
    monkeypatch.setenv("DYNAMIGHT_ENV_ACTIVATION", fakeEngine(tmp_path / "engine", status))
    used = {"gpuList": "2,3"} if useGpu else {"useGpu": False, "numberOfMpi": 3}
    protocol = queued(workflow, DynamightProtReconstruct, chain, True, numberOfThreads=2, **used)
    workflow.launch(protocol)
    waitFor(workflow, protocol, lambda: not protocol.isActive())
    words = json.loads(Path(tmp_path, "engine", "words.json").read_text())
    device, threads = (words[words.index(option) + 1] for option in ("--device", "--threads"))
    if useGpu:
        assert "#SBATCH --gres=gpu:2" in slurm.scripts[0]
        assert device == "auto:0,1"
        assert "--processes" not in words
    else:
        # Threads are those of each process in Scipion, and those of all in the engine.
        assert (device, words[words.index("--processes") + 1], threads) == ("cpu", "3", "6")


def test_a_stopped_protocol_is_cancelled_in_the_queue(workflow, chain, slurm):
    protocol = queued(workflow, DynamightProtStates, chain, bySteps=False, nStates=2)
    workflow.launch(protocol, wait=False)
    workflow.project.stopProtocol(protocol)
    assert (slurm.job(1) / "cancelled").exists()
    assert protocol.isAborted()
