"""One writer at a time: the lock on the folder of a run. Reading needs no lock.

The lock is the file ``.lock``, made with O_EXCL and refreshed by a thread (filelock's `SoftFileLease`), so that it also
works on file systems without locks, such as NFS. A lock whose process is dead is taken over at once on the same
machine, and on others when it has not been refreshed for `_LEASE`.
"""

import functools
import json
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import SoftFileLease, Timeout

from dynamight_core import processes
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, write_error

LOCK, WRITER = ".lock", ".writer.json"
# Seconds without a refresh after which the lock of another machine is stale, and between refreshes.
_LEASE, _REFRESH = 180.0, 30.0
# Seconds to wait for another writer: most write for a moment.
_PATIENCE = 5.0
_PART = re.compile(r"\..+\.(\d+)\.part(\..*)?")

_Stage = TypeVar("_Stage", bound=Callable[..., Any])


@dataclass
class _Held:
    """A lock that this process holds: whether its folder is new, and how many blocks use it."""

    lease: SoftFileLease
    new: bool
    users: int = 0


# By folder.
_held: dict[Path, _Held] = {}
_change = threading.Lock()


@contextmanager
def writing(run: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock on a run's folder, which is created if it is missing. Blocks and threads of a process share it.

    What processes that were killed have left is removed first. Of several processes that share a stage, the first one
    holds it for all of them.

    Raises
    ------
    InputError
        if another process holds the lock, or took it over because this one did not refresh it.
    """
    if not processes.is_first():
        yield
        return
    folder = Path(run).resolve()
    with _change:
        if folder not in _held:
            _held[folder] = _Held(*_acquire(Path(run), folder))
        held = _held[folder]
        held.users += 1
    try:
        yield
    finally:
        with _change:
            held.users -= 1
            lost = held.lease.compromise is not None
            if not held.users:
                del _held[folder]
                _release(held, folder, lost)
    if lost:
        raise InputError(
            f"{run} was not reachable for more than {_LEASE:g} s, and another program has begun to write it; do not "
            "use its results, and run the command again"
        )


def is_writing(run: str | Path) -> bool:
    """Return whether this process, or one that is alive as far as can be told, holds the lock on a run."""
    folder = Path(run).resolve()
    if folder in _held:
        return True
    lease = SoftFileLease(folder / LOCK, lease_duration=_LEASE, thread_local=False)
    owner = lease.owner
    if owner is None:
        return (folder / LOCK).exists()
    if owner.hostname == socket.gethostname():
        return processes.is_alive(owner.pid)
    return not _is_stale(lease, folder)


def writes_run(stage: _Stage) -> _Stage:
    """Hold the lock of a run (the first argument, which has a `path`) while a function runs."""

    @functools.wraps(stage)
    def locked(run: Any, *arguments: Any, **options: Any) -> Any:
        with writing(run.path):
            return stage(run, *arguments, **options)

    return cast(_Stage, locked)


def remove_parts(folder: Path) -> None:
    """Remove unfinished files and folders of other processes from a folder whose lock this process holds."""
    for path in [*folder.rglob(".*.part"), *folder.rglob(".*.part.*")]:
        found = _PART.fullmatch(path.name)
        if found and int(found[1]) != os.getpid():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _acquire(run: Path, folder: Path) -> tuple[SoftFileLease, bool]:
    """Return the lock of a folder, held, and whether the folder is new."""
    if folder.is_file():
        raise InputError(f"{run} is a file; use a folder for the run")
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lease = SoftFileLease(
            folder / LOCK, lease_duration=_LEASE, heartbeat_interval=_REFRESH, thread_local=False, poll_interval=0.1
        )
        lease.acquire(timeout=_LEASE + _REFRESH if _is_stale(lease, folder) else _PATIENCE)
    except Timeout as error:
        raise InputError(f"{run} is in use by {_describe(lease, folder)}; wait until it ends, or stop it") from error
    except OSError as error:
        raise write_error(run, error) from error
    try:
        remove_parts(folder)
        with atomic_path(folder / WRITER) as path:
            path.write_text(json.dumps({"command": shlex.join(sys.argv), "since": time.time()}))
    except BaseException:
        lease.release()
        raise
    return lease, new


def _release(held: _Held, folder: Path, lost: bool) -> None:
    # A folder that vanished or cannot be reached has no lock to release.
    with suppress(OSError):
        if not lost:
            (folder / WRITER).unlink(missing_ok=True)
        held.lease.release()
        if held.new:
            # Input that was refused must not leave an empty run.
            folder.rmdir()


def _is_stale(lease: SoftFileLease, folder: Path) -> bool:
    """Whether another machine holds the lock and has not refreshed it, by the clock of the file system."""
    owner = lease.owner
    if owner is None or owner.hostname == socket.gethostname():
        return False
    with suppress(FileNotFoundError), tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - (folder / LOCK).stat().st_mtime > _LEASE
    return False


def _describe(lease: SoftFileLease, folder: Path) -> str:
    """Return who holds a lock: command, process, machine and since when."""
    owner = lease.owner
    who = "another program" if owner is None else f"process {owner.pid} on {owner.hostname}"
    told: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        told = json.loads((folder / WRITER).read_text())
    if not told:
        return who
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["since"]))
    return f"'{told['command']}' ({who}, since {since})"
