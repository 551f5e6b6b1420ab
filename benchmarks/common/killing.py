"""Commands that are killed, and what they leave: for benchmarks/kills.py."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import safetensors.numpy
import yaml
from PIL import Image

from dynamight_core.cli.main import run as run_command
from dynamight_core.earlier import unfinished
from dynamight_core.particles.star import read_blocks

# Audit events of Python whose first argument is a path. Opened files count if they may be written.
_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Values of an epoch that depend on the time it took.
_TIMES = {"seconds", "particles_per_second", "peak_memory_gb"}
# Members of a bundle that tell of the machine, and when files were written.
_MACHINE = {"environment.txt", "files.txt", "config.yaml", "files.json", "metrics.jsonl"}


class Calls:
    """Counts the calls that change files below a folder, in this process and its children.

    Parameters
    ----------
    folder
        whose files count.
    """

    def __init__(self, folder: Path):
        self._folder = str(folder)
        self._count = multiprocessing.RawValue("i", 0)

    @property
    def number(self) -> int:
        """Calls that the last child made."""
        return self._count.value

    def watch(self, last: int | None) -> None:
        """Count from now on, in a child; kill it before call number `last`."""
        self._count.value = 0
        fsync = os.fsync

        def counted() -> None:
            self._count.value += 1
            if self._count.value == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def heard(event: str, values: tuple) -> None:
            if event in _EVENTS or (event == "open" and isinstance(values[2], int) and values[2] & _WRITES):
                place = values[0]
                # A number is an open file, of which the program changes the permissions.
                if isinstance(place, int) or os.path.abspath(os.fsdecode(place)).startswith(self._folder):
                    counted()

        def synced(file) -> None:
            counted()
            fsync(file)

        sys.addaudithook(heard)
        os.fsync = synced


def in_child(
    action: list[str] | Callable[[], int],
    calls: Calls,
    call: int | None = None,
    after: float | None = None,
    tell: bool = False,
) -> int | None:
    """Run a command, or a function, in a child process.

    Parameters
    ----------
    action
        words of the command, or the function.
    calls
        counts the child's calls of the file system.
    call
        number of the call before which the child is killed.
    after
        seconds after which the child is killed.
    tell
        whether to print what it says if it fails.

    Returns
    -------
    int | None
        its exit code; None if it was killed.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            words = action if isinstance(action, list) else []
            sys.argv = ["dynamight", *words]
            if after is not None:
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            calls.watch(call)
            code = _quietly(action, tell)
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _quietly(action: list[str] | Callable[[], int], tell: bool) -> int:
    """Run a command or a function, and print nothing, or only what it says if it fails; return its exit code."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = run_command(action) if isinstance(action, list) else action()
    if code and tell:
        print(f"  said: {said.getvalue().strip()[-300:]}", file=sys.stderr, flush=True)
    return code


def broken(folder: Path) -> list[str]:
    """Return the files in a folder, but for hidden ones, that cannot be read to their end."""
    found = []
    for path in visible(folder):
        try:
            contents(path)
            if path.suffix in (".png", ".gif"):
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix in (".mrc", ".mrcs"):
                with mrcfile.open(path) as mrc:
                    assert mrc.data is not None
            elif path.suffix == ".star":
                assert all(len(table) for table in read_blocks(path).values())
            elif path.suffix == ".csv":
                pd.read_csv(path)
            elif not path.stat().st_size:
                raise ValueError("empty")
        except Exception as error:
            found.append(f"{path.name} ({error})")
    return found


def visible(folder: Path) -> list[Path]:
    """Return the files in a folder that are not hidden, and not in a hidden folder."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [folder / name for name in names if not any(part.startswith(".") for part in name.parts)]


def leftovers(folder: Path) -> list[str]:
    """Return what a killed program has left in a folder: parts, locks and earlier files."""
    return [path.name for path in folder.rglob(".*")] + list(unfinished(folder))


def differing(first: Path, second: Path) -> list[str]:
    """Return the names of files that are in one of two folders alone, or hold something else than in the other."""
    names = {path.relative_to(folder) for folder in (first, second) for path in visible(folder)}
    return [
        str(name)
        for name in sorted(names)
        if not ((first / name).exists() and (second / name).exists())
        or contents(first / name) != contents(second / name)
    ]


def state_of(folder: Path, patterns: Iterable[str]) -> dict[str, object]:
    """Return the contents of the files that match patterns, by name."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): contents(path) for path in sorted(paths & set(visible(folder)))}


def contents(path: Path) -> object:
    """Return what a file holds, without times, commands, and the order in which a library writes."""
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "np") as file:
            described = sorted((file.metadata() or {}).items())
        tensors = safetensors.numpy.load_file(path)
        return described, [
            (key, value.dtype.str, value.shape, value.tobytes()) for key, value in sorted(tensors.items())
        ]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return [(key, arrays[key].dtype.str, arrays[key].tobytes()) for key in sorted(arrays)]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [(name, archive.read(name)) for name in sorted(set(archive.namelist()) - _MACHINE)]
    if path.name == "config.yaml":
        values = yaml.safe_load(path.read_text())
        values["provenance"].pop("commands", None)
        # Written by the command between.
        values["stages"].pop("select", None)
        return values
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]
    if path.name == "files.json":
        # Names alone: it has checksums of files with times, and a run is not opened if they do not fit.
        return sorted(json.loads(path.read_text()))
    return path.read_bytes()
