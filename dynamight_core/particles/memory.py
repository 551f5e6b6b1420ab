"""The memory that a run may use."""

import os
from pathlib import Path

from dynamight_core import processes


def available_memory() -> int:
    """Return the bytes of main memory that this process may still use.

    The smaller of the machine's free memory and the rest of its control groups' limits (containers, batch systems);
    processes that share a stage share it.
    """
    return max(0, min([_machine_memory(), *_group_memory()])) // processes.local_count()


def _machine_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Other systems than Linux have no such file: take the total.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_memory(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the bytes left in each limited control group of the process, version 1 or 2."""
    try:
        lines = [line.split(":", 2) for line in process.read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, name in lines:
        if controllers == "":
            base, limit_file, usage_file = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_file, usage_file = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / name.lstrip("/")
        # The limits of all parents apply. In a container the group may not exist, but the root does.
        for folder in [group, *group.parents][: len(group.parts) - len(base.parts) + 1]:
            try:
                limit = int((folder / limit_file).read_text())
                used = int((folder / usage_file).read_text())
                left.append(limit - used + _reclaimable(folder))
            except (OSError, ValueError):
                continue
    return left


def _reclaimable(group: Path) -> int:
    """Return the bytes of file cache that the system frees on demand."""
    fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
