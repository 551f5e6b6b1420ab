"""Interrupted runs: what is left, what is resumed, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import starfile

from dynamight_core.cli.terminal import Terminal
from dynamight_core.config import RunConfig
from dynamight_core.run import Run
from dynamight_core.training import stage as training_run
from tests.support.command_line import SMALL, N, dynamight, train_words


def metrics(run):
    """Return the metrics without what the machine's load decides."""
    timed = ("seconds", "particles_per_second", "peak_memory_gb")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def test_a_run_stopped_again_and_again_ends_like_one_that_was_not_stopped(data, trained, tmp_path, monkeypatch):
    run, last = tmp_path / "run", len(metrics(trained)) // 2
    stops = [("training", 2, 0.0), ("training", 6, 0.0), ("training", 9, 0.0)]
    # With checkpoints seconds apart some epochs are done again; when all are done, latents remain to be inferred.
    stops += [("training", 12, 1e9), ("training", last, 1e9), ("inferring latents, half 2", None, 1e9)]
    for stage, done, checkpoint_seconds in stops:
        monkeypatch.setattr(training_run, "_CHECKPOINT_SECONDS", checkpoint_seconds)
        with monkeypatch.context() as patched:
            patched.setattr(Terminal, "progress", interrupt_at(stage, done))
            code, text = dynamight(*train_words(data, run, "--resume"))
        assert code == 130
        assert "Stopped; resume with --resume." in text
        assert not (run / "latents.safetensors").exists()
    code, text = dynamight(*train_words(data, run, "--resume"))
    assert code == 0, text
    assert metrics(run) == metrics(trained)
    found, wanted = (starfile.read(folder / "particles.star")["particles"] for folder in (run, trained))
    assert found.equals(wanted)


def interrupt_at(wanted, number):
    """Return a progress that stops the program when `number` of a stage are done, or at once where that is None."""

    def progress(self, stage, done, total):
        if stage == wanted and number in (None, done):
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_process_exits_with_130_and_leaves_a_run(data, tmp_path):
    run = tmp_path / "run"
    words = [str(word) for word in train_words(data, run, "--epochs", "500")]
    # Two threads: both halves are at work when the signal comes.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    # A shell's background jobs ignore the signal, and hand that down to what they start.
    process = subprocess.Popen(
        [sys.executable, "-m", "dynamight_core", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert (run / "config.yaml").exists()


def test_a_run_that_has_not_finished_is_refused_by_later_stages(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Terminal, "progress", interrupt_at("training", 1))
    monkeypatch.chdir(data.particles.parent)
    words = ["train", data.particles.name, tmp_path / "run", "--map", data.consensus.name, *SMALL]
    assert dynamight(*words)[0] == 130
    # Later stages find the input from any folder.
    assert RunConfig.read(tmp_path / "run").inputs.star == str(data.particles)
    code, text = dynamight("reconstruct", tmp_path / "run")
    assert code == 2
    assert "has not finished" in text


def test_a_run_that_was_stopped_before_it_was_judged_is_refused_at_once(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "analysis" / "summary.json").unlink()
    code, text = dynamight("reconstruct", run, "--overwrite")
    assert code == 2
    assert "summary.json is missing; make it with dynamight train --resume" in text
    assert "Half 1" not in text


def test_an_existing_run_needs_resume_or_overwrite_and_resume_the_same_options(data, trained):
    code, text = dynamight(*train_words(data, trained))
    assert code == 2
    assert "--resume" in text
    assert "--overwrite" in text
    code, text = dynamight(*train_words(data, trained, "--resume", "--n-latents", "3"))
    assert code == 2
    assert "--n-latents" in text


def test_training_can_start_from_the_models_of_a_finished_run(data, trained, tmp_path):
    code, text = dynamight(*train_words(data, tmp_path / "more", "--start-from", trained, "--epochs", "2"))
    assert code == 0, text
    found = metrics(tmp_path / "more")
    assert {entry["kind"] for entry in found} == {"refinement", "reference"}, "nothing warms up again"
    last = [entry["data"] for entry in metrics(trained) if entry["kind"] == "refinement"][-2:]
    for before, after in zip(last, found[:2], strict=True):
        assert after["data"] < before + 0.02 * abs(before), "it goes on where the other ended"


def test_training_does_not_start_from_models_of_another_shape_or_other_particles(data, trained, tmp_path):
    words = train_words(data, tmp_path / "run", "--start-from", trained)
    code, text = dynamight(*words, "--n-latents", "3")
    assert code == 2
    assert "--n-latents" in text
    fewer = starfile.read(data.particles)
    fewer["particles"] = fewer["particles"].iloc[:-10]
    starfile.write(fewer, data.particles.with_name("fewer.star"))
    words[1] = data.particles.with_name("fewer.star")
    code, text = dynamight(*words)
    assert code == 2
    assert "lacks the image of row" in text
    code, text = dynamight(*train_words(data, trained, "--overwrite", "--start-from", trained))
    assert code == 2
    assert "the new run itself" in text


def test_a_run_that_was_moved_together_with_its_inputs_is_found_again(data, trained, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(data.particles.parent, project / "data")
    shutil.copytree(trained, project / "run")
    config = RunConfig.read(project / "run")
    config.provenance["run"] = str(project / "run")
    for name in ("star", "map"):
        setattr(config.inputs, name, str(project / "data" / Path(getattr(config.inputs, name)).name))
    config.write(project / "run")
    project.rename(tmp_path / "moved")
    moved = Run(tmp_path / "moved" / "run")
    assert moved.config.inputs.map == str(tmp_path / "moved" / "data" / "consensus.mrc")
    assert len(moved.particles) == N
    linked = tmp_path / "moved" / "elsewhere" / "linked"
    linked.mkdir(parents=True)
    shutil.copy(moved.path / "config.yaml", linked)
    (linked / "latents.safetensors").symlink_to(moved.path / "latents.safetensors")
    assert RunConfig.read(linked).inputs.map == moved.config.inputs.map


def test_a_failure_is_one_sentence_with_the_place_of_its_traceback(trained, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("dynamight_core.analysis.state_maps.write_states", fail)
    code, text = dynamight("states", trained)
    log = trained / "error.log"
    assert code == 1
    assert "the disk caught fire" in text
    assert str(log) in text
    assert "Traceback" not in text
    assert "Traceback" in log.read_text()
    log.unlink()
