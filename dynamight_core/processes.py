"""Which of several processes this one is, if a stage is run by several, and which are alive.

torchrun starts them, on one machine or on many, and says in their environment how many there are. All of them run the
same program; the first one alone talks to the user and writes files. What they compute together is in `groups`.
"""

import os


def count() -> int:
    """Return the number of processes that run this stage together, on all machines; 1 without torchrun."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return _told("RANK", 0)


def local_count() -> int:
    """Return the number of processes on this machine."""
    return _told("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the number of this process among those on this machine, from 0."""
    return _told("LOCAL_RANK", 0)


def is_first() -> bool:
    """Return whether this process talks to the user and writes files."""
    return rank() == 0


def name() -> str:
    """Return the name of this process for the user, such as "process 2 of 4"."""
    return f"process {rank() + 1} of {count()}"


def is_alive(number: int) -> bool:
    """Return whether there is a process with this number on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is another user's.
        return True
    return True


def _told(variable: str, alone: int) -> int:
    # Clusters may set the other variables for programs of their own.
    return int(os.environ.get(variable, alone)) if "TORCHELASTIC_RUN_ID" in os.environ else alone
