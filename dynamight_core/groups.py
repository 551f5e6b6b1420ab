"""What several processes compute together: sums, gathered rows, and decisions that all of them follow.

A `Group` is a number of processes that share particles. For one process it is `ALONE`, whose methods return what they
are given, so that stages call them in any case. All processes of a group must call its methods in the same order.

The group that shares the work at hand is `current_group`: all processes, or during training those of a half-set. With
two processes or more, the first half of them trains half-set 1 and the second half trains half-set 2. Neighbours are on
one machine, where they sum fastest. No sum or gathering is over processes of different half-sets; what has to pass
between half-sets is handed over by `exchange`, by name.
"""

import functools
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dynamight_core import processes

_Value = TypeVar("_Value")
# A process may have to wait for another one that reads all images. If one dies, torchrun ends the others.
_PATIENCE = timedelta(days=2)
_work = threading.local()


class LostProcessError(RuntimeError):
    """Another process of the run ended while this one waited for it."""


@contextmanager
def _together() -> Iterator[None]:
    """Tell the failure of a message between processes from other failures."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(str(error)) from error


class Group:
    """Processes that share particles.

    Parameters
    ----------
    rank, size
        number of this process in the group, from 0, and their number.
    first
        number of the group's first process among all.
    handle
        of torch.distributed; None for one process.

    Attributes
    ----------
    sent
        bytes that this process has handed to `sum_`, `gather` and `agreed` so far, by the name of the method.
    """

    def __init__(self, rank: int = 0, size: int = 1, first: int = 0, handle: dist.ProcessGroup | None = None):
        self.rank, self.size, self._first, self._handle = rank, size, first, handle
        self.sent: dict[str, int] = {}

    def shard(self, items: torch.Tensor) -> torch.Tensor:
        """Return the part of (n, ...) items that is this process's, in order; empty if there are too few."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def split(self, items: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
        """Return the part of (n, ...) items that is this process's in batches of a size."""
        mine = self.shard(items)
        return mine.split(size) if len(mine) else ()

    def deal(self, n: int) -> tuple[torch.Tensor, float]:
        """Return which of the n items of a batch are this process's, and their fraction of the batch.

        Every size-th, so that the first items of the batch are shared as well. There is always one; if it is another
        process's, the fraction is 0.
        """
        mine = torch.arange(self.rank, n, self.size)
        return (mine, len(mine) / n) if len(mine) else (torch.zeros(1, dtype=torch.long), 0.0)

    def sum_(self, *tensors: torch.Tensor) -> None:
        """Sum tensors over the group, in place; those of one type and device go in one message."""
        if self._handle is None or not tensors:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for alike in kinds.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            self._count("sum", flat)
            with _together():
                dist.all_reduce(flat, group=self._handle)
            with torch.no_grad():
                for tensor, values in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                    tensor.copy_(values.view_as(tensor))

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the group, through which gradients flow back to all processes."""
        if self._handle is None:
            return value
        summed: torch.Tensor = _Total.apply(value, self)  # type: ignore[no-untyped-call]
        return summed

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return the (n, ...) rows of which every process has a `shard`."""
        if self._handle is None:
            return part
        sizes = torch.zeros(self.size, dtype=torch.long, device=part.device)
        sizes[self.rank] = len(part)
        self.sum_(sizes)
        lengths = sizes.tolist()
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        pieces = [torch.empty_like(padded) for _ in lengths]
        self._count("gather", padded)
        with _together():
            dist.all_gather(pieces, padded, group=self._handle)
        return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])

    def same_(self, *tensors: torch.Tensor) -> None:
        """Give all processes the tensors of the first one, in place: copies that are computed may differ in digits."""
        if self._handle is None:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()
            self._count("same", values)
            with _together():
                dist.broadcast(values, self._first, group=self._handle)
            with torch.no_grad():
                tensor.copy_(values)

    def agreed(self, value: _Value, device: torch.device | str = "cpu") -> _Value:
        """Return the value of the first process, with its tensors on a device."""
        return value if self._handle is None else _handed_over(value, self._first, device, self._handle)

    def once(self, function: Callable[[], _Value]) -> _Value:
        """Return what a function returns in the first process, alone; the others wait for it."""
        if self._handle is None:
            return function()
        value: Any = None
        if self.rank == 0:
            with _by_itself():
                value = function()
        found: _Value = _handed_over(value, self._first, "cpu", self._handle)
        return found

    def wait(self) -> None:
        """Wait until all processes of the group are here."""
        self.sum_(torch.zeros(1))

    def _count(self, how: str, values: torch.Tensor) -> None:
        self.sent[how] = self.sent.get(how, 0) + values.numel() * values.element_size()


class _Total(torch.autograd.Function):
    """A sum over the group. Every process has a part of the loss: its gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        summed = value.detach().clone()
        group.sum_(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        summed = gradients[0].contiguous().clone()
        ctx.group.sum_(summed)
        return summed, None


ALONE = Group()


def world() -> Group:
    """Return the group of all processes, which is connected by the first call; `ALONE` in what one process does."""
    return ALONE if getattr(_work, "by_itself", False) else _connected()[0]


def current_group() -> Group:
    """Return the group that shares the work at hand."""
    group: Group | None = getattr(_work, "group", None)
    return world() if group is None else group


def neighbours() -> Group:
    """Return the group of all processes on this machine."""
    return ALONE if getattr(_work, "by_itself", False) else _connected()[2]


@contextmanager
def _by_itself() -> Iterator[None]:
    """Let this process do a block without the others."""
    before = getattr(_work, "by_itself", False)
    _work.by_itself = True
    try:
        with within(ALONE):
            yield
    finally:
        _work.by_itself = before


@contextmanager
def within(group: Group) -> Iterator[None]:
    """Let a group share the work of a block."""
    before = getattr(_work, "group", None)
    _work.group = group
    try:
        yield
    finally:
        _work.group = before


def own_halves(halves: Sequence[int]) -> tuple[list[int], Group]:
    """Return which half-sets this process trains, and the group that it does so with.

    Parameters
    ----------
    halves
        (1, 2), or (1,) for a joint model of both, which all processes train.
    """
    everyone = world()
    if everyone.size == 1 or len(halves) == 1:
        return list(halves), everyone
    return [_half(everyone.rank, everyone.size)], _connected()[1]


def exchange(own: Mapping[int, _Value], device: torch.device | str = "cpu") -> dict[int, _Value]:
    """Return what belongs to each half-set, by its number, of which each process has its own.

    Parameters
    ----------
    own
        of the half-sets that this process trains.
    device
        of the tensors returned.
    """
    everyone = world()
    if everyone.size == 1:
        return dict(own)
    found: dict[int, _Value] = {}
    for leader in _leaders(everyone.size):
        found |= _handed_over(dict(own), leader, device, None)
    return dict(sorted(found.items()))


def collect(own: Mapping[int, Any]) -> dict[int, Any]:
    """Return what belongs to each half-set in the first process, and nothing in the others."""
    everyone = world()
    if everyone.size == 1:
        return dict(own)
    second = _leaders(everyone.size)[1]
    if everyone.rank == second:
        with _together():
            values = _packed(dict(own))
            dist.send(torch.tensor([len(values)]), 0)
            dist.send(values, 0)
    if everyone.rank:
        return {}
    with _together():
        size = torch.zeros(1, dtype=torch.long)
        dist.recv(size, second)
        values = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(values, second)
    others: dict[int, Any] = _unpacked(values, "cpu")
    return dict(own) | others


def lost_process() -> str | None:
    """Return which process of the run, on this machine, has ended; None if none is known to have."""
    if not dist.is_initialized():
        return None
    store = dist.distributed_c10d._get_default_store()
    for number in range(processes.count()):
        try:
            place, identifier = store.get(f"dynamight/process/{number}").decode().rsplit(" ", 1)
            if place == socket.gethostname() and not _is_alive(int(identifier)):
                return f"process {number + 1} of {processes.count()}"
        except RuntimeError:
            # The store is gone with the machine that kept it.
            return None
    return None


def fails_first() -> bool:
    """Return whether no other process of the run has failed before, which is the one that tells the user."""
    if not dist.is_initialized():
        return processes.is_first()
    try:
        return int(dist.distributed_c10d._get_default_store().add("dynamight/failed", 1)) == 1
    except RuntimeError:
        return processes.is_first()


@functools.cache
def _connected() -> tuple[Group, Group, Group]:
    """Return the groups of all processes, of those that train this process's half-set, and of those on this machine."""
    size, rank = processes.count(), processes.rank()
    if size == 1:
        return ALONE, ALONE, ALONE
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
    with _together():
        dist.init_process_group(backend, timeout=_PATIENCE)
    store = dist.distributed_c10d._get_default_store()
    store.set(f"dynamight/process/{rank}", f"{socket.gethostname()} {os.getpid()}")
    everyone = Group(rank, size, 0, dist.group.WORLD)
    machines = torch.zeros(size, dtype=torch.long)
    machines[rank] = rank - processes.local_rank()
    everyone.sum_(machines)
    halves = [_half(number, size) for number in range(size)]
    return everyone, _group_of(rank, halves), _group_of(rank, machines.tolist())


def _group_of(rank: int, labels: list[int]) -> Group:
    """Return the group of the processes with the label of this one; all processes make all groups, in one order."""
    own = ALONE
    for label in sorted(set(labels)):
        members = [number for number, each in enumerate(labels) if each == label]
        handle = dist.new_group(members, timeout=_PATIENCE)
        if rank in members and len(members) > 1:
            own = Group(members.index(rank), len(members), members[0], handle)
    return own


def _half(rank: int, size: int) -> int:
    """Return the half-set that a process trains."""
    return 1 if 2 * rank < size else 2


def _leaders(size: int) -> tuple[int, int]:
    """Return the first process of each half-set."""
    return 0, next(rank for rank in range(size) if _half(rank, size) == 2)


def _handed_over(value: Any, source: int, device: torch.device | str, handle: dist.ProcessGroup | None) -> Any:
    """Return the value of one process in all of a group; any object."""
    mine = dist.get_rank() == source
    values = _packed(value) if mine else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor([len(values)])
    with _together():
        dist.broadcast(size, source, group=handle)
        values = values if mine else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(values, source, group=handle)
    return value if mine else _unpacked(values, device)


def _packed(value: Any) -> torch.Tensor:
    stream = io.BytesIO()
    torch.save(value, stream)
    return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8).clone()


def _unpacked(values: torch.Tensor, device: torch.device | str) -> Any:
    return torch.load(io.BytesIO(values.numpy().tobytes()), map_location=device, weights_only=False)


def _is_alive(identifier: int) -> bool:
    """Return whether a process of this machine computes; one that has ended may still be listed."""
    try:
        return Path(f"/proc/{identifier}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
