"""Inputs that end the process which decodes them, or never end themselves: found, so that the rest can go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Any

from embedx.processes import START_METHOD, tie_to_parent


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends this process by SIGALRM if what is inside takes longer; only in a child, whose parent will find out why.

    The system does it, so that neither a blocked read nor a decoder's endless loop can prevent it.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def find_fatal_rows(dataset: Any, rows: Sequence[int]) -> dict[int, str]:
    """Loads rows one by one in a process of its own, and in a new one after each that ends it.

    Args:
        dataset: Whose `dataset[row]` loads one; picklable.
        rows: Which ones.

    Returns:
        For each row that ended its process, the reason.
    """
    fatal: dict[int, str] = {}
    while rows:
        begun, exitcode = _load_one_by_one(dataset, rows)
        if exitcode == 0:
            break
        fatal[rows[begun]] = _reason(exitcode)
        rows = rows[begun + 1 :]
    return fatal


def _load_one_by_one(dataset: Any, rows: Sequence[int]) -> tuple[int, int | None]:
    """The position of the row that was last begun, and the exit code of the process that loaded them."""
    context = multiprocessing.get_context(START_METHOD)
    progress, child_progress = context.Pipe(duplex=False)
    process = context.Process(target=_probe, args=(dataset, rows, child_progress), daemon=True)
    process.start()
    child_progress.close()
    begun = 0
    with contextlib.suppress(EOFError):
        while True:
            begun = progress.recv()
    process.join()
    return begun, process.exitcode


def _probe(dataset: Any, rows: Sequence[int], progress: connection.Connection) -> None:
    tie_to_parent("embedx-probe")
    for position, row in enumerate(rows):
        progress.send(position)
        dataset[row]


def _reason(exitcode: int | None) -> str:
    if exitcode == -signal.SIGALRM:
        return "no end within --timeout"
    if exitcode is not None and exitcode < 0:
        return f"decoder crashed: {signal.Signals(-exitcode).name}"
    return f"decoder ended its process with exit code {exitcode}"
