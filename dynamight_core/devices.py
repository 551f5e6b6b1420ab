"""Devices and their memory."""

import ctypes
import resource
import sys
from functools import cache

import torch

from dynamight_core.errors import InputError

# glibc's codes for mallopt, and their values in bytes: freed memory beyond the first at the top of the heap returns to
# the system, and larger blocks than the second are mapped separately.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGE = 2**29, 2**26


def choose_device(name: str) -> torch.device:
    """Return the device with a name.

    Parameters
    ----------
    name
        "auto" (a GPU if there is one), "auto:1" (GPU 1 if there is any GPU, else the CPU), "cpu", "cuda", "cuda:1", or
        the number of a GPU.

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
        raise InputError(f"--device is '{name}'; use auto, cpu, cuda or the number of a GPU") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device is '{name}' but there are {torch.cuda.device_count()} GPUs; use cpu or auto")
    return device


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads (None: all available), and keep freed memory for the next tensor."""
    _keep_freed_memory()
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads is {threads}; use at least 1")
        torch.set_num_threads(threads)


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks of some megabytes.

    A batch allocates and frees hundreds of them. If they return to the system, their pages are mapped and zeroed again
    each time, which takes a fifth of the time of a training on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # other C libraries have none
            mallopt(_TRIM_THRESHOLD, _KEPT)
            mallopt(_MMAP_THRESHOLD, _LARGE)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of the GPU or of the process so far, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
