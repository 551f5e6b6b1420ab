"""Devices and their memory."""

import resource

import torch

from dynamight_core.errors import InputError


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
    """Use so many CPU threads; all that the process may use if None."""
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads is {threads}; give at least 1")
        torch.set_num_threads(threads)


def peak_memory(device: torch.device) -> int:
    """Return the most memory taken so far, bytes: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
