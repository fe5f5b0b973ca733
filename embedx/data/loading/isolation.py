"""Finds the inputs that end the process which decodes them, or never finish, so that the rest can go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from embedx.data.loading.circumstances import CRASHED, ENDED, NO_END, Failure
from embedx.system.processes import CHILDREN, abandon, tie_to_parent

_GRACE = 5.0
"""The grace period, in seconds, after the timeout before a worker counts as unkillable."""
_TICK = 0.25
"""The longest time, in seconds, between two looks at what is in hand."""


class Held(NamedTuple):
    """An input that a worker has in hand, or had when it ended."""

    pid: int
    row: int
    seconds: float
    """The time that the worker has spent on it, without the time in which it was suspended."""
    is_reading: bool
    """True if its bytes had not all been read."""

    def is_overdue(self, timeout: float) -> bool:
        """Tells whether the worker should have been ended long ago."""
        return self.seconds > timeout + _GRACE

    def is_stuck(self, timeout: float) -> bool:
        """Tells whether the time limit ended the worker, or should have and could not."""
        return self.seconds > timeout


class InHand:
    """The inputs that workers have in hand, in memory that they share with their parent; picklable."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = torch.zeros(workers, 4, dtype=torch.float64)  # pid, row, since (0: no input), read or not
        self._memory.share_memory_()
        self._spent: dict[tuple[float, ...], float] = {}  # seconds of each slot's content; known to the parent alone

    @contextlib.contextmanager
    def hold(self, row: int) -> Iterator[None]:
        """Records in a worker, for the duration of the context, that it has this row in hand."""
        slot = self._slot
        if slot is None:
            yield
            return
        slot[0], slot[1], slot[2] = os.getpid(), row, time.monotonic()
        try:
            yield
        finally:
            slot[2] = 0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Takes the input in hand for none within the context, as the time of waiting is not its own."""
        slot = self._slot
        if slot is not None:
            slot[2] = 0
        try:
            yield
        finally:
            if slot is not None:
                slot[2] = time.monotonic()

    def renew(self) -> None:
        """Begins the time of the input in hand anew, as its worker waits for its bytes and is not stuck in it."""
        if (slot := self._slot) is not None:
            slot[2] = time.monotonic()

    def note_read(self, is_read: bool) -> None:
        """Records in a worker whether it has read the bytes of what it has in hand."""
        if (slot := self._slot) is not None:
            slot[3] = is_read

    @cached_property
    def _slot(self) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """The numbers of this worker, as numpy's, since torch takes longer to set one; None in other processes."""
        worker = get_worker_info()
        return None if worker is None else self._memory[worker.id].numpy()

    def now(self) -> list[Held]:
        """Lists the inputs that are in hand now."""
        spent = self._spent
        return [
            Held(int(slot[0]), int(slot[1]), spent.get(slot, 0.0), is_reading=not is_read)
            for slot, is_read in self._contents().items()
        ]

    def add(self, seconds: float) -> None:
        """Adds time to all that is in hand, except where the worker has ended or is suspended."""
        before = self._spent
        self._spent = {
            slot: before[slot] + (seconds if _is_running(int(slot[0])) else 0) if slot in before else 0.0
            for slot in self._contents()
        }

    def _contents(self) -> dict[tuple[float, ...], bool]:
        """Returns pid, row and since of what is in hand, each with whether it has been read."""
        return {tuple(slot): bool(is_read) for *slot, is_read in self._memory.tolist() if slot[2]}


def _is_running(pid: int) -> bool:
    """Tells whether a process has neither ended nor been suspended; True where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TtZX"
    except OSError:
        return not os.path.exists("/proc/self/stat")


class RunningTime:
    """A clock that stands still while this process is suspended: it counts ticks, and a late one counts as two."""

    def __init__(self, timeout: float) -> None:
        self.tick = max(0.01, min(_TICK, timeout / 4))
        self._last = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last lap, at most two ticks."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        return min(gap, 2 * self.tick)


def end_late_workers(in_hand: InHand, timeout: float, stop: threading.Event) -> None:
    """Kills each worker that has had an input in hand for longer than the timeout, until it is told to stop.

    A decoder's endless loop and a blocked read can't prevent it, and a suspension of all processes costs no worker its
    input. A worker that waits for a file system's own process, such as FUSE's, lives on: its parent has to give it up.
    """
    clock = RunningTime(timeout)
    while not stop.wait(clock.tick):
        in_hand.add(clock.lap())
        for held in in_hand.now():
            if held.is_stuck(timeout):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(held.pid, signal.SIGKILL)


def become_decoding_process(name: str) -> None:
    """Makes this child end with its parent, be the first to be killed for memory, and have this name in `ps`."""
    tie_to_parent(name)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def find_fatal(dataset: Any, orders: Sequence[Any], timeout: float) -> dict[int, Failure]:
    """Loads inputs by `dataset[order]` in a process of its own, and in a new one after each input that ends it.

    Returns:
        The position and the failure of each input that ended its process, or that the process did not come back from.
    """
    fatal: dict[int, Failure] = {}
    first = 0
    while first < len(orders):
        begun, exitcode = _load_one_by_one(dataset, orders[first:], timeout)
        if exitcode == 0:
            break
        fatal[first + begun] = _failure(exitcode)
        first += begun + 1
    return fatal


def _load_one_by_one(dataset: Any, orders: Sequence[Any], timeout: float) -> tuple[int, int | None]:
    """Returns the position of the last input begun, and the exit code of the process; None if its time was over."""
    progress, child_progress = CHILDREN.Pipe(duplex=False)
    process = CHILDREN.Process(target=_probe, args=(dataset, orders, child_progress), daemon=True)
    process.start()
    child_progress.close()
    begun = progress.recv()  # without a limit: it takes as long as the process takes to start
    clock, spent = RunningTime(timeout), 0.0
    with contextlib.suppress(EOFError):
        while spent <= timeout:
            if progress.poll(clock.tick):
                begun, spent = progress.recv(), 0.0
                clock.lap()
            elif _is_running(process.pid or 0):
                spent += clock.lap()
        abandon(process)
        return begun, None
    process.join()
    return begun, process.exitcode


def _probe(dataset: Any, orders: Sequence[Any], progress: connection.Connection) -> None:
    become_decoding_process("embedx-probe")
    for position, order in enumerate(orders):
        progress.send(position)
        dataset[order]


def _failure(exitcode: int | None) -> Failure:
    if exitcode is None:
        return Failure(NO_END)
    return Failure(f"{CRASHED}{signal.Signals(-exitcode).name}" if exitcode < 0 else f"{ENDED}{exitcode}")
