"""A training that diverges steps back once."""

from dynamight_core.config import RunConfig
from dynamight_core.options import TrainOptions
from dynamight_core.training import stage as training_run
from dynamight_core.training.progress import DivergedError, slower
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
