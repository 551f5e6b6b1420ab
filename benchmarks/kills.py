"""Commands killed at random times and at calls of the file system: what they leave, and what comes after.

    python -m benchmarks.kills OUT [--kills 200] [--seed 0]

A tiny data set is trained and reconstructed without disturbance. Then each command is killed (SIGKILL) at a random time
or before a random call that renames, removes, syncs or makes a file, in a copy of the run, and run again. Prints a line
for each command: kills, files that cannot be read, sets that mix two results, leftovers after the next command, and
results that differ from those of an undisturbed run.
"""

import argparse
import contextlib
import filecmp
import io
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import mrcfile
import safetensors.torch

from dynamight_core.cli.main import run as run_command
from dynamight_core.earlier import unfinished

SMALL = ["--n-gaussians", "60", "--epochs", "3", "--warm-up-epochs", "1", "--n-latents", "2", "--refits", "0"]
SMALL += ["--reference-epochs", "1", "--n-motions", "2", "--batch-size", "60", "--threads", "1", "--device", "cpu"]
_CALLS = ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir")
# Written anew by every command, with its time or its own words.
_TIMED = {"config.yaml", "metrics.jsonl", "report.html", "explored.sh", "files.json", "summary.json"}


def quietly(words: list[str]) -> int:
    """Run a command and print nothing; return its exit code."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run_command(words)


def in_child(words: list[str], call: int | None = None, after: float | None = None) -> int | None:
    """Run a command in a child that is killed before a numbered call, or after some seconds; None if it was killed."""
    pid = os.fork()
    if not pid:
        count = 0

        def counted(function):
            def called(*arguments, **options):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return called

        for name in _CALLS if call else ():
            setattr(os, name, counted(getattr(os, name)))
        if after is not None:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        code = 1
        try:
            code = quietly(words)
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def broken(run: Path) -> list[str]:
    """Return the files of a run that cannot be read."""
    found = []
    for path in run.rglob("*"):
        try:
            if path.name.startswith("."):
                continue
            if path.suffix == ".safetensors":
                safetensors.torch.load_file(path)
            elif path.suffix == ".mrc":
                with mrcfile.open(path) as mrc:
                    assert mrc.data is not None
            elif path.is_file() and not path.stat().st_size and path.suffix != ".log":
                found.append(path.name)
        except Exception as error:
            found.append(f"{path.name} ({error})")
    return found


def differing(first: Path, second: Path) -> list[str]:
    """Return the files in which two runs differ, but for those with times and words."""
    names = {path.relative_to(run) for run in (first, second) for path in run.rglob("*") if path.is_file()}
    names = {name for name in names if name.name not in _TIMED and "checkpoints" not in name.parts}
    return [
        str(name)
        for name in sorted(names)
        if not ((first / name).exists() and (second / name).exists()) or not same(first / name, second / name)
    ]


def same(first: Path, second: Path) -> bool:
    """Return whether two files are the same; safetensors writes what describes a model in any order."""
    if first.suffix != ".safetensors":
        return filecmp.cmp(first, second, shallow=False)
    one, other = safetensors.torch.load_file(first), safetensors.torch.load_file(second)
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def leftovers(run: Path) -> list[str]:
    """Return what a killed program has left: parts, locks and earlier files."""
    return [path.name for path in run.rglob(".*")] + list(unfinished(run))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, draw = arguments.out, random.Random(arguments.seed)
    shutil.rmtree(out, ignore_errors=True)
    star, work = str(out / "d" / "particles.star"), out / "work"
    inputs = ["--map", str(out / "d" / "consensus.mrc")]
    assert quietly(["simulate", str(out / "d"), "--particles", "240", "--box", "20", "--pixel-size", "8"]) == 0
    train = ["train", star, str(work), *inputs, *SMALL]
    reconstruct = ["reconstruct", str(work), "--threads", "1", "--device", "cpu", "--no-shrink"]
    states = ["states", str(work), "--n", "2", "--no-movie", "--use-unsupported-motion"]
    points = ["select", str(work), "--along", "1:-9:9", "--use-unsupported-motion"]
    # Each command, what must be there before it, and how it is run again.
    steps = {
        "train": (train, train + ["--resume"]),
        "reconstruct": (reconstruct, reconstruct + ["--overwrite"]),
        "states": (states, states + ["--overwrite"]),
        "select": (points, points + ["--overwrite"]),
    }
    before, after, seconds = {}, {}, {}
    for name, (first, _) in steps.items():
        before[name], after[name] = out / f"{name}-before", out / f"{name}-after"
        if work.exists():
            shutil.copytree(work, before[name])
        started = time.monotonic()
        code = in_child(first)
        seconds[name] = time.monotonic() - started
        if code:
            sys.exit(f"{name} ends with {code}: {' '.join(first)}")
        shutil.copytree(work, after[name])
    found = {name: Counter() for name in steps}
    for number in range(arguments.kills):
        name = list(steps)[number % len(steps)]
        first, again = steps[name]
        shutil.rmtree(work, ignore_errors=True)
        if before[name].exists():
            # Every other time there is an earlier result to replace.
            shutil.copytree(after[name] if number // len(steps) % 2 else before[name], work)
        replaced = name != "train" and number // len(steps) % 2
        words = again if replaced else first
        at_call = number // (2 * len(steps)) % 2
        if at_call:
            code = in_child(words, call=draw.randint(1, 60))
        else:
            code = in_child(words, after=draw.uniform(0, seconds[name]))
        found[name]["kills" if code is None else "ended before"] += 1
        found[name]["broken"] += len(broken(work)) if work.exists() else 0
        if in_child(again if name == "train" or replaced or code == 0 else first) != 0 and in_child(again) != 0:
            found[name]["not run again"] += 1
            continue
        left, changed = leftovers(work), differing(work, after[name])
        found[name]["leftovers"] += len(left)
        found[name]["differ"] += len(changed)
        if left or changed:
            print(f"  {name} ({'call' if at_call else 'time'}): {left} {changed}", flush=True)
    for name, counts in found.items():
        print(f"{name}: {dict(counts)}", flush=True)
    sys.exit(
        any(counts[key] for counts in found.values() for key in ("broken", "leftovers", "differ", "not run again"))
    )


if __name__ == "__main__":
    main()
