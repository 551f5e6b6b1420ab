"""One writer at a time; what killed processes leave is removed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dynamight_core import lock
from dynamight_core.errors import InputError
from dynamight_core.lock import LOCK, WRITER, writing

HOLD = """
import sys, time
from dynamight_core.lock import writing
with writing(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    return folder


@pytest.fixture
def other(run):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_with_the_first_one_s_name(run, other):
    with pytest.raises(InputError, match=rf"in use by '-c {run}' \(process {other.pid} on .*, since 20.*wait"):
        with writing(run):
            pass


def test_the_lock_of_a_killed_process_is_taken_over_and_its_parts_are_removed(run, other):
    (run / "half1").mkdir()
    for name in (f".map.{other.pid}.part.mrc", f"half1/.latents.{other.pid}.part"):
        (run / name).touch()
    mine = run / f".map.{os.getpid()}.part.mrc"
    mine.touch()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with writing(run):
        assert sorted(path.name for path in run.rglob("*part*")) == [mine.name]
        mine.unlink()
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "half1"]


def test_a_writer_may_nest_and_share_the_lock_between_threads(run):
    entered = threading.Event()

    def enter():
        with writing(run):
            entered.set()

    with writing(run):
        with writing(run):
            pass
        assert (run / LOCK).exists()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert entered.is_set()
    assert not (run / LOCK).exists()
    assert not (run / WRITER).exists()


def foreign_lock(run, age):
    """Leave the lock of a process on another machine, refreshed `age` seconds ago."""
    (run / LOCK).write_text(
        f"filelock/2\npid=1\nhost=not-{socket.gethostname()}\nmode=lease\ntoken=abc\nduration={lock._LEASE!r}\n"
    )
    (run / WRITER).write_text(json.dumps({"command": "dynamight train", "since": 0}))
    os.utime(run / LOCK, (time.time() - age,) * 2)


def test_a_fresh_lock_of_another_machine_is_respected_and_a_stale_one_taken_over(run, monkeypatch):
    monkeypatch.setattr(lock, "_LEASE", 1.0)
    monkeypatch.setattr(lock, "_REFRESH", 0.3)
    foreign_lock(run, 0)
    with pytest.raises(InputError, match="process 1 on not-"), writing(run):
        pass
    foreign_lock(run, 3600)
    with writing(run):
        pass


def test_refused_input_leaves_no_empty_run(tmp_path):
    with pytest.raises(InputError), writing(tmp_path / "new"):
        raise InputError
    assert not (tmp_path / "new").exists()
