"""Inputs that end the process which decodes them, or never end themselves: found, so that the rest can go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

from embedx.system.processes import START_METHOD, abandon, tie_to_parent

NO_END = "no end within --timeout"
_GRACE = 5.0
"""Seconds after the end of its time at which a process that still lives is taken for one that can't be ended."""


class Held(NamedTuple):
    """An input that a worker has in hand, or had when it ended."""

    pid: int
    row: int
    since: float
    """By time.monotonic()."""

    def is_overdue(self, timeout: float) -> bool:
        """Whether its time limit should have ended the worker long ago."""
        return time.monotonic() - self.since > timeout + _GRACE


class InHand:
    """What every worker has in hand, in memory that they share with their parent; picklable.

    Args:
        workers: How many there are.
    """

    def __init__(self, workers: int) -> None:
        self._slots = torch.zeros(workers, 3, dtype=torch.float64)  # of a worker that has nothing in hand the last is 0
        self._slots.share_memory_()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def hold(self, row: int) -> Iterator[None]:
        """In a worker: says that it has this row in hand, while what is inside lasts."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        slot = self._slots[worker.id]
        slot[0], slot[1], slot[2] = os.getpid(), row, time.monotonic()
        try:
            yield
        finally:
            slot[2] = 0

    def now(self) -> list[Held]:
        """What is in hand."""
        return [Held(int(pid), int(row), since) for pid, row, since in self._slots.tolist() if since]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends this process by SIGALRM if what is inside takes longer; only in a child, whose parent will find out why.

    The system does it, so that neither a blocked read nor a decoder's endless loop can prevent it. But a read that
    waits for a file system's own process, as of FUSE, can: there the parent has to give up on its child.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def become_decoding_process(name: str) -> None:
    """Has this child end with its parent, and be the first that the system ends where memory runs out.

    Args:
        name: What `ps` and `top` show.
    """
    tie_to_parent(name)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def find_fatal(dataset: Any, orders: Sequence[Any], timeout: float) -> dict[int, str]:
    """Loads inputs one by one in a process of its own, and in a new one after each that ends it.

    Args:
        dataset: Whose `dataset[order]` loads one; picklable.
        orders: Which ones; picklable.
        timeout: Seconds after which the process ends by itself.

    Returns:
        For each that ended its process, or that it did not come back from, its position and the reason.
    """
    fatal: dict[int, str] = {}
    first = 0
    while first < len(orders):
        begun, exitcode = _load_one_by_one(dataset, orders[first:], timeout)
        if exitcode == 0:
            break
        fatal[first + begun] = _reason(exitcode)
        first += begun + 1
    return fatal


def _load_one_by_one(dataset: Any, orders: Sequence[Any], timeout: float) -> tuple[int, int | None]:
    """The position of the one that was last begun, and the exit code of the process that loaded them."""
    context = multiprocessing.get_context(START_METHOD)
    progress, child_progress = context.Pipe(duplex=False)
    process = context.Process(target=_probe, args=(dataset, orders, child_progress), daemon=True)
    process.start()
    child_progress.close()
    begun = progress.recv()  # without a limit: it takes as long as the process takes to start
    with contextlib.suppress(EOFError):
        while progress.poll(timeout + _GRACE):
            begun = progress.recv()
        abandon(process)
        return begun, -signal.SIGALRM
    process.join()
    return begun, process.exitcode


def _probe(dataset: Any, orders: Sequence[Any], progress: connection.Connection) -> None:
    become_decoding_process("embedx-probe")
    for position, order in enumerate(orders):
        progress.send(position)
        dataset[order]


def _reason(exitcode: int | None) -> str:
    if exitcode == -signal.SIGALRM:
        return NO_END
    if exitcode is not None and exitcode < 0:
        return f"decoder crashed: {signal.Signals(-exitcode).name}"
    return f"decoder ended its process with exit code {exitcode}"
