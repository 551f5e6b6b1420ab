"""A training that diverges steps back once; one that has finished goes on with more epochs."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch

from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.options import TrainOptions
from dynamight_core.training import stage as training_run
from dynamight_core.training.extension import earlier_epochs
from dynamight_core.training.progress import DivergedError, slower
from dynamight_core.training.schedule import schedule
from dynamight_core.training.stage import Trained
from tests.support.command_line import dynamight, train_words


def diverging(monkeypatch, *times):
    """Make training diverge after epoch 3 the given times; returns the learning rates that were looked at."""
    rates, left = [], list(times)
    check = training_run.check_converging

    def check_converging(trainers, number, entries):
        rates.append(trainers[0].options.learning_rate)
        check(trainers, number, entries)
        if number == 3 and left:
            left.pop()
            raise DivergedError("training diverged in epoch 3")

    monkeypatch.setattr(training_run, "check_converging", check_converging)
    return rates


def test_a_training_that_diverges_goes_back_once_with_smaller_rates(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(training_run, "_CHECKPOINT_SECONDS", 0.0)
    rates = diverging(monkeypatch, 1)
    code, text = dynamight(*train_words(data, run))
    assert code == 0, text
    assert "goes back to its last checkpoint, once" in text
    # Two epochs had a checkpoint; the third was done again.
    assert rates[:3] == [TrainOptions().learning_rate] * 3
    assert set(rates[3:]) == {slower(TrainOptions()).learning_rate}
    assert RunConfig.read(run).provenance["slower"]["factor"] < 1
    assert RunConfig.read(run).train.learning_rate == TrainOptions().learning_rate


def test_a_training_that_diverges_again_stops(data, tmp_path, monkeypatch):
    diverging(monkeypatch, 1, 2)
    code, text = dynamight(*train_words(data, tmp_path / "run"))
    assert code == 2
    assert "Error: training diverged in epoch 3" in text


def test_more_epochs_come_after_those_that_a_run_has():
    whole = schedule(TrainOptions())
    options = TrainOptions(epochs=TrainOptions().epochs + 6)
    more = schedule(options, before=[TrainOptions().epochs])
    assert more[: len(whole)] == whole
    added = more[len(whole) :]
    assert [epoch.kind for epoch in added] == ["refinement"] * 6 + ["reference"] * options.reference_epochs
    assert added[0].decoder_rate == min(epoch.decoder_rate for epoch in whole)
    again = schedule(replace(options, epochs=options.epochs + 2), before=[TrainOptions().epochs, options.epochs])
    assert again[: len(more)] == more
    assert [epoch.kind for epoch in again[len(more) :]][:3] == ["refinement"] * 2 + ["reference"]


def test_a_finished_run_goes_on_with_more_epochs_also_when_it_is_stopped(data, trained, tmp_path, monkeypatch):
    ends = []
    for name in ("at once", "stopped"):
        run = shutil.copytree(trained, tmp_path / name)
        (run / "reconstruction").mkdir(exist_ok=True)
        (run / "reconstruction" / "map.mrc").touch()
        epochs = len((run / "metrics.jsonl").read_text().splitlines())
        if name == "stopped":
            with monkeypatch.context() as patched:
                patched.setattr(Trained, "save", stop)
                assert dynamight(*train_words(data, run, "--resume", "--epochs", "10"))[0] == 130
            # It still belongs to the models that are there.
            assert (run / "reconstruction" / "map.mrc").exists()
        code, text = dynamight(*train_words(data, run, "--resume", "--epochs", "10"))
        assert code == 0, text
        assert len((run / "metrics.jsonl").read_text().splitlines()) > epochs
        assert earlier_epochs(run) == [8]
        assert not (run / "reconstruction" / "map.mrc").exists()
        ends.append(safetensors.torch.load_file(run / "half1" / "model.safetensors"))
    assert all(ends[0][key].equal(ends[1][key]) for key in ends[0])
    code, text = dynamight(*train_words(data, run, "--resume", "--epochs", "9"))
    assert code == 2
    assert "--epochs" in text


def stop(trained, longer):
    """Stand for a user who stops the program."""
    raise KeyboardInterrupt


def test_a_run_that_the_stop_rule_ended_gets_no_more_epochs(data, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["stopped"] = True
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, text = dynamight(*train_words(data, run, "--resume", "--epochs", "10"))
    assert code == 2
    assert "not for want of epochs" in text.replace("\n", " ")


def test_a_disk_that_is_full_when_a_longer_training_ends_leaves_the_earlier_results(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "reconstruction").mkdir(exist_ok=True)
    (run / "reconstruction" / "map.mrc").write_bytes(b"of the earlier models")
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    class Full(Trained):
        def __init__(self):
            self.run = run

        def _write(self):
            with atomic_path(run / "half1" / "model.safetensors") as path:
                path.write_bytes(b"new")
            raise InputError("no space left on device")

    with pytest.raises(InputError, match="no space"):
        Full().save(longer=True)
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
