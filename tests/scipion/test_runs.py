"""Runs of a protocol: stops, changes, copies, subsets and failures."""

import contextlib
import time
from pathlib import Path

import psutil
import pytest
from pwem.protocols import ProtSubSet
from pyworkflow.protocol import MODE_RESUME

from dynamight_scipion.protocols import DynamightProtDeformations
from tests.support.plugin import PARTICLES, same_input, small


@pytest.fixture(scope="module")
def resumed(_workflow, _chain):
    """A run that was stopped while it trained, and continued; and whether it was really stopped."""
    with contextlib.chdir(_workflow.project.path):
        epochs = {"nEpochs": 16, "encoderEpochs": 16}
        run = _workflow.new(DynamightProtDeformations, same_input(_chain), **small(_chain, **epochs))
        _workflow.launch(run, wait=False)
        checkpoints = Path(run._getExtraPath("run", "half2", "checkpoints"))
        deadline = time.monotonic() + 200
        while not list(checkpoints.glob("*.safetensors")):
            assert time.monotonic() < deadline, _workflow.log(run)
            time.sleep(0.2)
        before = enginesOf(run)
        _workflow.project.stopProtocol(run)
        psutil.wait_procs(before, timeout=20)
        stopped = run.isAborted() and not hasattr(run, "outputModel")
        left = enginesOf(run)
        run.runMode.set(MODE_RESUME)
        _workflow.launch(run)
    return {"run": run, "stopped": stopped, "before": before, "left": left}


def enginesOf(run):
    """Return the processes of the engine that work in the folder of a protocol."""
    words = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    return [process for process, line in words.items() if run._getExtraPath("run") in line]


def test_a_stop_ends_the_engine_too(resumed):
    assert resumed["stopped"]
    assert resumed["before"]
    assert resumed["left"] == []


def test_a_stopped_run_goes_on_from_its_checkpoint(workflow, resumed):
    run = resumed["run"]
    assert run.isFinished(), workflow.log(run)
    assert "Resuming after epoch" in workflow.log(run)
    assert len(run.outputParticles) == PARTICLES


def test_an_unchanged_protocol_does_nothing_and_a_changed_parameter_runs_again(workflow, resumed):
    run = resumed["run"]
    trained = Path(run._getExtraPath("run", "half1", "model.safetensors"))
    converted = Path(run._getExtraPath("particles.star"))
    before = trained.stat().st_mtime, converted.stat().st_mtime
    run.runMode.set(MODE_RESUME)
    workflow.launch(run)
    assert run.isFinished()
    assert (trained.stat().st_mtime, converted.stat().st_mtime) == before
    assert run.outputModel.getNumberOfMotions() == 3

    run.nMotions.set(2)
    run.nEpochs.set(1)
    workflow.launch(run)
    assert run.isFinished(), workflow.log(run)
    assert trained.stat().st_mtime > before[0]
    assert converted.stat().st_mtime == before[1], "the particles are the same"
    assert run.outputModel.getNumberOfMotions() == 2
    assert len(run.outputParticles.getFirstItem().getZFlex()) == 2


def test_a_run_continues_from_the_model_of_another(workflow, chain):
    more = workflow.new(
        DynamightProtDeformations,
        same_input(chain) | {"previousModel": (chain["deformations"], "outputModel")},
        **small(chain, doContinue=True, nEpochs=1),
    )
    more.nLatents.set(5)
    assert "The previous model has 2 latent dimensions" in more.validate()[0]
    more.nLatents.set(2)
    workflow.launch(more)
    assert more.isFinished(), workflow.log(more)
    metrics = Path(more._getExtraPath("run", "metrics.jsonl")).read_text()
    assert "refinement" in metrics
    assert "warm-up" not in metrics


def test_a_copy_has_the_parameters_and_nothing_that_was_found(workflow, chain):
    copied = workflow.project.copyProtocol(chain["deformations"])
    assert copied.inputParticles.get().getObjId() == chain["particles"].outputParticles.getObjId()
    assert copied.nGaussians.get() == 200
    assert not hasattr(copied, "outputModel")
    assert copied.summary()[0] == "No results yet."
    copied.nGaussians.set(10)
    assert any("at least 50" in error for error in copied.validate())


def test_a_subset_runs_through_again_within_a_mask_of_allowed_motion_and_keeps_its_ids(workflow, chain):
    subset = workflow.run(
        ProtSubSet, {"inputFullSet": (chain["deformations"], "outputParticles")}, chooseAtRandom=True, nElements=240
    )
    ((name, chosen),) = subset.iterOutputAttributes()
    again = workflow.run(
        DynamightProtDeformations,
        {
            "inputParticles": (subset, name),
            "inputVolume": (chain["reconstruction"], "outputVolume"),
            "inputMask": (chain["reconstruction"], "outputMask"),
        },
        **small(chain, nEpochs=1),
    )
    assert Path(again.outputModel.getMask()).exists()
    assert "--mask" in workflow.log(again)
    assert again.outputParticles.getIdSet() == chosen.getIdSet()
    assert len(again.outputParticles) == 240


def test_a_failure_of_the_engine_is_one_sentence_in_summary_and_log(workflow, chain):
    dark = workflow.launch(
        workflow.new(DynamightProtDeformations, same_input(chain), **small(chain, invertContrast=True))
    )
    sentence = "the particles correlate negatively with the map"
    assert dark.isFailed()
    assert sentence in dark.getErrorMessage()
    assert sentence in "\n".join(dark.summary())
    assert sentence in workflow.log(dark)
    assert "Traceback" not in workflow.log(dark)


def test_an_engine_that_cannot_be_started_is_told_in_one_sentence(workflow, chain, monkeypatch):
    monkeypatch.setenv("DYNAMIGHT_ENV_ACTIVATION", "export PATH=/usr/bin:/bin")
    lost = workflow.launch(workflow.new(DynamightProtDeformations, same_input(chain), **small(chain)))
    assert lost.isFailed()
    assert "check DYNAMIGHT_ENV_ACTIVATION in Scipion's configuration" in lost.getErrorMessage()


def test_an_engine_that_is_killed_is_told_from_one_that_fails(workflow, chain, monkeypatch, tmp_path):
    engine = tmp_path / "dynamight"
    engine.write_text("#!/bin/bash\nkill -9 $$\n")
    engine.chmod(0o755)
    monkeypatch.setenv("DYNAMIGHT_ENV_ACTIVATION", f'export PATH="{tmp_path}:$PATH"')
    killed = workflow.launch(workflow.new(DynamightProtDeformations, same_input(chain), **small(chain)))
    assert killed.isFailed()
    assert "dynamight train was ended from outside before it was done" in killed.getErrorMessage()
