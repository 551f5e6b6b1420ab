"""Devices and their memory."""

import ctypes
import os
import resource
import sys
from functools import cache
from pathlib import Path

import torch

from dynamight_core import processes
from dynamight_core.errors import InputError

# glibc's codes for mallopt, and their values in bytes: freed memory beyond the first at the top of the heap returns to
# the system, and larger blocks than the second are mapped separately.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGE = 2**29, 2**26
# CPU threads that are allowed on any machine.
_MANY_THREADS = 64


def choose_device(name: str) -> torch.device:
    """Return the device with a name.

    Parameters
    ----------
    name
        "auto" (a GPU if there is one), "auto:1" (GPU 1 if there is any GPU, else the CPU), "cpu", "cuda", "cuda:1", the
        number of a GPU, or several numbers, one for each process on this machine. With "auto" and "cuda", each process
        takes the GPU of its number.

    Raises
    ------
    InputError
        if there is no such device, or the GPU does not compute.
    """
    chosen = _of_this_process(name)
    wanted, _, number = chosen.partition(":")
    own = str(processes.local_rank()) if processes.local_count() > 1 else "cuda"
    if wanted == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        chosen = number or own
    elif chosen == "cuda":
        chosen = own
    try:
        device = torch.device(f"cuda:{chosen}" if chosen.isdigit() else chosen)
    except RuntimeError as error:
        raise InputError(f"--device is '{name}'; use auto, cpu, cuda or the number of a GPU") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is '{name}'; use auto, cpu, cuda or the number of a GPU")
    if device.type == "cuda":
        _check_gpu(name, device)
        if processes.count() > 1:
            # Messages between processes are sent from the current GPU.
            torch.cuda.set_device(device)
    return device


def listed_devices(name: str) -> list[str]:
    """Return the devices that an option names: GPUs separated by commas, each for a process of its own."""
    wanted, colon, numbers = name.partition(":")
    if "," not in name or not all(number.strip().isdigit() for number in (numbers or wanted).split(",")):
        return [name]
    return [f"{wanted}:{number.strip()}" if colon else number.strip() for number in (numbers or wanted).split(",")]


def processes_for(name: str) -> int:
    """Return the number of processes that an option for devices asks for: one for each GPU."""
    one = "," not in name or (name.startswith("auto") and not torch.cuda.is_available())
    return 1 if one else len(listed_devices(name))


def _of_this_process(name: str) -> str:
    """Return the device of this process among those that an option names."""
    listed = listed_devices(name)
    if len(listed) == 1:
        return name
    if name.startswith("auto") and not torch.cuda.is_available():
        return "auto"
    if len(listed) != processes.local_count():
        raise InputError(
            f"--device names {len(listed)} GPUs, but {processes.local_count()} processes run on this machine; start as "
            "many with torchrun, or start dynamight without it, which then starts one for each GPU"
        )
    return listed[processes.local_rank()]


def _check_gpu(name: str, device: torch.device) -> None:
    """Refuse a GPU that is missing or does not compute."""
    if (device.index or 0) >= torch.cuda.device_count():
        found = f"there are {torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else _why_no_gpu()
        raise InputError(f"--device is '{name}', but {found}; use cpu or auto, or make the GPU available")
    try:
        _compute(device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--device is '{name}', but GPU {device.index or 0} ({torch.cuda.get_device_name(device)}) does not "
            f"compute ({reason}); free it, install a PyTorch that supports it, or use another device"
        ) from error


def _compute(device: torch.device) -> None:
    """Add two numbers on a device, which shows that programs run there."""
    torch.ones(2, device=device).sum().item()


def describe_device(name: str, device: torch.device) -> str:
    """Return a sentence on which `device` computes and why; `name` is the option of `choose_device`."""
    if device.type == "cuda":
        why = "chosen automatically" if name.startswith("auto") else "as --device says"
        return f"Device: GPU {device.index or 0} ({torch.cuda.get_device_name(device)}), {why}."
    if not name.startswith("auto"):
        return "Device: CPU, as --device says."
    return f"Device: CPU, since {_why_no_gpu()}."


def _why_no_gpu() -> str:
    """Return the reason for which PyTorch has no GPU."""
    present = Path("/dev/nvidia0").exists()
    if torch.version.cuda is None:
        build = f"this PyTorch ({torch.__version__}) was built without CUDA"
        return f"{build}, although there is an NVIDIA GPU" if present else build
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs"
    if present:
        return f"the driver of the NVIDIA GPU does not suit this PyTorch (CUDA {torch.version.cuda}; see nvidia-smi)"
    return "PyTorch finds no NVIDIA GPU (see nvidia-smi)"


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads (None: all available), and keep freed memory for the next tensor.

    The processes on a machine share them.
    """
    _keep_freed_memory()
    sharing = processes.local_count()
    if threads is None and sharing > 1:
        # torchrun sets one for each process, whatever there is.
        threads = len(os.sched_getaffinity(0))
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads is {threads}; use at least 1")
        cores = os.cpu_count() or 1
        # Thousands end in a segmentation fault.
        if threads > max(_MANY_THREADS, 4 * cores):
            raise InputError(f"--threads is {threads}, but there are {cores} cores; use at most that")
        torch.set_num_threads(max(1, threads // sharing))


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
