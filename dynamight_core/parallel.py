"""Work on several things at once, which ends as a whole."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
_worker = threading.local()


class StoppedError(RuntimeError):
    """Other work that this was part of has failed or was stopped."""


def check_stopped() -> None:
    """Raise a `StoppedError` in a thread of `side_by_side` whose work is not wanted any more; long loops ask often."""
    stop = getattr(_worker, "stop", None)
    if stop is not None and stop.is_set():
        raise StoppedError("the work that this was part of has ended")


def side_by_side(function: Callable[[_Item], _Result], items: Sequence[_Item], device: torch.device) -> list[_Result]:
    """Return ``[function(item) for item in items]``, on a CPU all at once with an equal share of its threads each.

    Most operations of a training are too small for many threads: two halves that are independent make better use of
    them. On a GPU, or where there are fewer threads than items, one comes after the other; threads that cannot be
    shared equally rest. An item's numbers depend on the number of threads alone, not on what runs beside it, if
    `function` keeps away from global random numbers.

    Where one fails or Ctrl-C comes, the others end at their next `check_stopped`, and whatever it was that came is
    raised once all have ended.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < len(items):
        return [function(item) for item in items]
    stop = threading.Event()

    def work(item: _Item) -> _Result:
        _worker.stop = stop
        return function(item)

    # New threads take the number of threads that is set when they first ask.
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
