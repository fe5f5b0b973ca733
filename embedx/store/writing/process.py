"""The writer process: disk never blocks the forward pass, and no failure of it goes unnoticed.

Parent:  put(batch) ── tensors in a ring of shared memory, identities in a bounded queue ──▶ child: gathers them,
                       and commits each unit when the next one begins
         close()    ── sentinel ──▶ child: commits the last unit, reports, exits with 0
         abort()    ── the queue's feeder is cancelled, the child ended; the unit under way is dropped

The report comes on a pipe of its own: `None` when all is written, else the error's text and traceback. `close()`
believes only a report of success *and* an exit code of 0.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import signal
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any, NamedTuple, Self

import pyarrow as pa
import torch
from torch import Tensor

from embedx.errors import StoreError, WriterError
from embedx.store.format.layout import StoreTerms, Unit
from embedx.store.writing.ring import SlotRing, TensorPlace, bytes_needed
from embedx.store.writing.unit_rows import StayingRows, UnitBatch
from embedx.store.writing.units import UnitBuffer
from embedx.system.machine import return_large_blocks
from embedx.system.processes import START_METHOD, start_fork_server, tie_to_parent

_QUEUE_LENGTH = 8
"""The number of batches that may wait; then `put` waits, so that a slow disk costs time and not memory."""
_POLL_SECONDS = 0.2
_ABORT_SECONDS = 2.0
_LONGEST_SUMMARY = 2000


class _Item(NamedTuple):
    """The part of a batch that goes through the queue."""

    unit: Unit
    places: dict[str, TensorPlace]
    rows: pa.Table


class _Failure(NamedTuple):
    """The child's report of its error: texts, as the error itself may not pass through a pipe."""

    summary: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        summary = traceback.format_exception_only(error)[-1].strip()
        if len(summary) > _LONGEST_SUMMARY:
            summary = f"{summary[:_LONGEST_SUMMARY]}… ({len(summary):,} characters)"
        return cls(summary, "".join(traceback.format_exception(error)))


class WriterProcess:
    """The writer process, as the parent sees it.

    Args:
        terms: The terms of the store to write.
        first: The tensors of the first batch, which give the size of a slot; later batches may have more or fewer rows.
        buffer_factory: The class that gathers and commits units in the child; it must be picklable.
    """

    def __init__(
        self,
        terms: StoreTerms,
        first: Mapping[str, Tensor],
        buffer_factory: Callable[..., UnitBuffer] = UnitBuffer,
    ) -> None:
        start_fork_server()
        context = multiprocessing.get_context(START_METHOD)
        self._ring = SlotRing(context, bytes_needed(first), _QUEUE_LENGTH)
        self._queue = context.Queue(maxsize=_QUEUE_LENGTH)
        self._items = 0
        self._report, child_report = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(self._queue, self._ring, child_report, terms, buffer_factory), name="embedx-writer"
        )
        # The child dies with its parent by itself; `daemon` covers a parent that exits without close().
        self._process.daemon = True
        self._process.start()
        child_report.close()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def put_staying(self, rows: StayingRows) -> None:
        """Hands over the rows of a unit that stay, as `put` does a batch."""
        self._send(pickle.dumps(rows))

    def put(self, batch: UnitBatch) -> None:
        """Hands a batch over, waiting while the queue is full. Its tensors may be overwritten afterwards.

        The identities are pickled here, as the queue's own thread would drop an item that it can't pickle. A batch that
        is larger than the first one is handed over in parts.

        Raises:
            WriterError: If the process has failed.
            StoreError: If one row has more bytes than the whole first batch.
        """
        if bytes_needed(batch.tensors) <= self._ring.slot_bytes:
            places = self._ring.write(self._items, batch.tensors)
            self._send(pickle.dumps(_Item(batch.unit, places, batch.rows)))
            self._items += 1
        elif (half := len(batch.rows) // 2) > 0:
            self.put(batch.part(0, half))
            self.put(batch.part(half, len(batch.rows)))
        else:
            size = sum(tensor.nbytes for tensor in batch.tensors.values())
            raise StoreError(
                f"{batch.unit}: a row has {size} bytes, more than the whole first batch; give all rows one shape"
            )

    def close(self) -> None:
        """Waits until the process has committed the last unit and ended.

        Raises:
            WriterError: If anything that was put is not committed.
        """
        self._send(None)
        # The report is received first, as the child can't end while the pipe is full of it.
        connection.wait([self._report, self._process.sentinel])
        success = self._receive()
        self._process.join()
        if not success or self._process.exitcode != 0:
            raise self._gone()
        self._queue.close()

    def abort(self) -> None:
        """Ends the process without committing the current unit. Safe to call at any time."""
        self._queue.cancel_join_thread()
        self._queue.close()
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
        """Raises a WriterError if the process has reported an error, or has ended without a report."""
        alive = self._process.is_alive()  # before the report is looked for: it is sent before the end
        self._receive()
        if not alive:
            raise self._gone()

    def _receive(self) -> bool:
        """Takes the report, if it is there; returns True if it tells of success, and raises the error that it tells."""
        if not self._report.poll():
            return False
        try:
            report: _Failure | None = self._report.recv()
        except EOFError:  # the child died before it had sent all of it
            return False
        if report is None:
            return True
        error = WriterError(
            f"the writer process failed: {report.summary}; the units that it committed stay, and once the cause is "
            "gone, running again writes the rest"
        )
        error.add_note(f"in the writer process:\n{report.traceback}")
        raise error

    def _gone(self) -> WriterError:
        code = self._process.exitcode or 0
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WriterError(
            f"the writer process {cause} before all was written; the units that it committed stay, and running again "
            "writes the rest"
        )


def _run(
    items: Any,
    ring: SlotRing,
    report: connection.Connection,
    terms: StoreTerms,
    buffer_factory: Callable[..., UnitBuffer],
) -> None:
    """Runs in the child: writes the units, and reports success or the error."""
    tie_to_parent("embedx-writer")
    return_large_blocks()
    pa.set_memory_pool(pa.system_memory_pool())  # arrow's own would keep what it has had
    torch.set_num_threads(1)
    try:
        _write_units(items, ring, buffer_factory(terms))
    except BaseException as error:  # noqa: BLE001  (the parent must hear of any error)
        # Texts always pass through the pipe; the error itself may not be picklable.
        report.send(_Failure.of(error))
        raise SystemExit(1) from None
    report.send(None)


def _write_units(items: Any, ring: SlotRing, buffer: UnitBuffer) -> None:
    while (pickled := items.get()) is not None:
        item: _Item | StayingRows = pickle.loads(pickled)
        if buffer.unit not in (None, item.unit):
            buffer.commit()
        if isinstance(item, _Item):
            tensors = {name: ring.read(place) for name, place in item.places.items()}
            buffer.add(UnitBatch(item.unit, tensors, item.rows))
        else:
            buffer.add(item)
    if buffer.unit is not None:
        buffer.commit()
