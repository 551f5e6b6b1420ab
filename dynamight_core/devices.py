"""Devices and their memory."""

import ctypes
import resource
import sys
from functools import cache

import torch

from dynamight_core.errors import InputError

# glibc's names for mallopt, and what they are set to, bytes: what is freed goes back to the system from this much at
# the top of the heap on, and blocks from this size on are the system's own.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGE = 2**29, 2**26


def choose_device(name: str) -> torch.device:
    """Return the device of a name.

    Parameters
    ----------
    name
        "auto" (a GPU if there is one), "auto:1" (GPU 1 if there is any, else the CPU), "cpu", "cuda", "cuda:1", or a
        GPU's number.

    Raises
    ------
    InputError
        if there is no such device.
    """
    wanted, _, number = name.partition(":")
    if wanted == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = number or "cuda"
    try:
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
    except RuntimeError as error:
        raise InputError(f"--device is '{name}'; give auto, cpu, cuda or the number of a GPU") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device is '{name}' but there are {torch.cuda.device_count()} GPUs here; give cpu or auto")
    return device


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads, all that the process may use if None; and keep freed memory for the next tensor."""
    _keep_freed_memory()
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads is {threads}; give at least 1")
        torch.set_num_threads(threads)


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep blocks of some megabytes that are freed.

    A batch makes and frees hundreds of them. Given back to the system each time, they come again as pages to be
    faulted in and zeroed one by one: a fifth of the time of a training on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # other C libraries have none
            mallopt(_TRIM_THRESHOLD, _KEPT)
            mallopt(_MMAP_THRESHOLD, _LARGE)


def peak_memory(device: torch.device) -> int:
    """Return the most memory taken so far, bytes: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
