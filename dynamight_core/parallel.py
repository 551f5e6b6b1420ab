"""Parallel work that ends as a whole."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from dynamight_core import processes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_worker = threading.local()


class StoppedError(RuntimeError):
    """Another part of parallel work failed or was stopped."""


def check_stopped() -> None:
    """Raise a `StoppedError` in a thread of `side_by_side` that should stop; called in long loops."""
    stop = getattr(_worker, "stop", None)
    if stop is not None and stop.is_set():
        raise StoppedError("parallel work was stopped")


def side_by_side(function: Callable[[_Item], _Result], items: Sequence[_Item], device: torch.device) -> list[_Result]:
    """Return ``[function(item) for item in items]``, computed in parallel on a CPU, each with as many threads.

    Most operations of a training are too small for many threads; two independent half-sets use them better. On a GPU,
    with fewer threads than items, or where several processes share the work, items are processed one by one. Results
    depend on the number of threads, but not on what runs in parallel, if `function` does not use global random numbers.

    If one item fails, or on Ctrl-C, the others stop at their next `check_stopped`, and the exception is then raised.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < len(items) or processes.count() > 1:
        return [function(item) for item in items]
    stop = threading.Event()

    def work(item: _Item) -> _Result:
        _worker.stop = stop
        return function(item)

    # A new thread uses the number of threads that is set at its first operation.
    torch.set_num_threads(threads // len(items))
    try:
        with ThreadPoolExecutor(len(items)) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                stop.set()
                raise
    finally:
        torch.set_num_threads(threads)
    return [future.result() for future in futures]


@contextmanager
def single_threads() -> Iterator[Executor]:
    """Give as many workers as torch has threads, each of which computes with one: their number changes no result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
