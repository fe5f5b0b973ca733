"""The writer process: disk never blocks the forward pass, and no failure of it goes unnoticed.

Parent:  put(batch) ── bounded queue ──▶ child:  gather → commit each unit when the next one begins
         close()    ── sentinel      ──▶         commit the last unit, report, exit 0
         abort()    ── the feeder is cancelled, the child ended; the unit under way is dropped

The report comes on a pipe of its own: `None` when all is written, else the error's text and traceback. `close()`
believes only a report of success *and* an exit code of 0.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable
from multiprocessing import connection, resource_sharer
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, Self

import torch
import torch.multiprocessing  # which teaches ForkingPickler to move tensors to shared memory

from embedx.errors import WriterError
from embedx.processes import START_METHOD, return_large_blocks, start_fork_server, tie_to_parent
from embedx.store.units import StoreTerms, UnitBatch, UnitBuffer

_QUEUE_LENGTH = 8
"""Batches that may wait; beyond it `put` waits, so that a slow disk costs time and not memory."""
_POLL_SECONDS = 0.2
_ABORT_SECONDS = 2.0
_LONGEST_SUMMARY = 2000


class _Failure(NamedTuple):
    """What the child tells of its error: texts, as the error itself may not pass through a pipe."""

    summary: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        summary = traceback.format_exception_only(error)[-1].strip()
        if len(summary) > _LONGEST_SUMMARY:
            summary = f"{summary[:_LONGEST_SUMMARY]}… ({len(summary):,} characters)"
        return cls(summary, "".join(traceback.format_exception(error)))


class WriterProcess:
    """The parent's hold of the writer process.

    Args:
        terms: The store that is written.
        buffer_factory: What gathers and commits a unit, in the child; picklable.
    """

    def __init__(self, terms: StoreTerms, buffer_factory: Callable[..., UnitBuffer] = UnitBuffer) -> None:
        start_fork_server()
        context = multiprocessing.get_context(START_METHOD)
        self._queue = context.Queue(maxsize=_QUEUE_LENGTH)
        self._report, child_report = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(self._queue, child_report, terms, buffer_factory), name="embedx-writer"
        )
        # The child dies with its parent by itself; `daemon` covers a parent that exits without close().
        self._process.daemon = True
        self._process.start()
        child_report.close()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def put(self, batch: UnitBatch) -> None:
        """Hands a batch over, waiting while the queue is full.

        The batch is pickled here, its tensors moved to shared memory, and not in the queue's own thread, which
        would drop what it can't pickle.

        Raises:
            WriterError: If the process has failed.
        """
        self._send(bytes(ForkingPickler.dumps(batch)))

    def close(self) -> None:
        """Has the last unit committed and the process end.

        Raises:
            WriterError: If anything that was put is not committed.
        """
        self._send(None)
        # The report is received before the child is waited for, which can't end while the pipe is full of it.
        connection.wait([self._report, self._process.sentinel])
        success = self._receive()
        self._process.join()
        if not success or self._process.exitcode != 0:
            raise self._gone()
        self._queue.close()

    def abort(self) -> None:
        """Ends the process without committing the unit under way. Safe to call at any time."""
        self._queue.cancel_join_thread()
        self._queue.close()
        # The thread that hands out shared memory would complain of a child that ends in the middle of asking.
        resource_sharer.stop(timeout=_ABORT_SECONDS)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                stop()
                self._process.join(_ABORT_SECONDS)

    def _send(self, item: bytes | None) -> None:
        while True:
            self._check()
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=_POLL_SECONDS)

    def _check(self) -> None:
        """Raises a WriterError if the process reported one, or is gone without a report."""
        alive = self._process.is_alive()  # before the report is looked for: it is sent before the end
        self._receive()
        if not alive:
            raise self._gone()

    def _receive(self) -> bool:
        """Takes the report, if there is one yet: True for success.

        Raises:
            WriterError: If the report tells of an error.
        """
        if not self._report.poll():
            return False
        try:
            report: _Failure | None = self._report.recv()
        except EOFError:  # the child died before it had sent all of it
            return False
        if report is None:
            return True
        error = WriterError(
            f"the writer process failed: {report.summary}; what it had committed stays, and once the cause "
            "is gone, running again writes the rest"
        )
        error.add_note(f"in the writer process:\n{report.traceback}")
        raise error

    def _gone(self) -> WriterError:
        return WriterError(
            f"the writer process {_cause_of_end(self._process.exitcode)} before all was written; what it "
            "had committed stays, and running again writes the rest"
        )


def _cause_of_end(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _run(
    items: Any, report: connection.Connection, terms: StoreTerms, buffer_factory: Callable[..., UnitBuffer]
) -> None:
    """The child's main function."""
    tie_to_parent("embedx-writer")
    return_large_blocks()
    torch.set_num_threads(1)
    try:
        _write_units(items, terms, buffer_factory)
    except BaseException as error:  # noqa: BLE001  (whatever it is, the parent must hear of it)
        # Texts always pass through the pipe; the error itself may not be picklable.
        report.send(_Failure.of(error))
        raise SystemExit(1) from None
    report.send(None)


def _write_units(items: Any, terms: StoreTerms, buffer_factory: Callable[..., UnitBuffer]) -> None:
    buffer: UnitBuffer | None = None
    while (item := items.get()) is not None:
        batch: UnitBatch = ForkingPickler.loads(item)
        if buffer is not None and buffer.unit != batch.unit:
            buffer.commit()
            buffer = None
        buffer = buffer or buffer_factory(terms, batch.unit)
        buffer.add(batch)
    if buffer is not None:
        buffer.commit()
