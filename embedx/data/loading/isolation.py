"""Finds the inputs that end the process which decodes them, or never finish, so that the rest can go on."""

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
"""The grace period, in seconds, after the timeout before a worker counts as unkillable."""


class Held(NamedTuple):
    """An input that a worker has in hand, or had when it ended."""

    pid: int
    row: int
    since: float
    """The time at which it was taken up, by time.monotonic()."""

    def is_overdue(self, timeout: float) -> bool:
        """Tells whether the time limit should have ended the worker long ago."""
        return time.monotonic() - self.since > timeout + _GRACE

    def is_stuck(self, exitcode: int | None, timeout: float) -> bool:
        """Tells whether the time limit ended the worker, whose exit code is given, or should have and could not."""
        return exitcode == -signal.SIGALRM or (exitcode is None and self.is_overdue(timeout))


class InHand:
    """The inputs that workers have in hand, in memory that they share with their parent; picklable."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots = torch.zeros(workers, 3, dtype=torch.float64)  # pid, row, since; 0 for a worker without an input
        self._slots.share_memory_()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def hold(self, row: int) -> Iterator[None]:
        """Records in a worker, for the duration of the context, that it has this row in hand."""
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
        """Lists the inputs that are in hand now."""
        return [Held(int(pid), int(row), since) for pid, row, since in self._slots.tolist() if since]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends this process by SIGALRM if the context lasts longer; does nothing in a process without a parent.

    The system sends the signal, so neither a blocked read nor an endless loop in a decoder can prevent it. A read that
    waits for a file system's own process, such as FUSE's, can: the parent then has to give up on its child.
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
    """Makes this child end with its parent, be the first to be killed for memory, and have this name in `ps`."""
    tie_to_parent(name)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def find_fatal(dataset: Any, orders: Sequence[Any], timeout: float) -> dict[int, str]:
    """Loads inputs by `dataset[order]` in a process of its own, and in a new one after each input that ends it.

    Returns:
        The position and the reason of each input that ended its process, or that the process did not come back from.
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
    """Returns the position of the last input begun, and the exit code of the process that loaded them."""
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
