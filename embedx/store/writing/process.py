"""The writer process: disk never blocks the forward pass, and no failure of it goes unnoticed.

Parent:  put(batch) ── tensors in a ring of shared memory, identities in a bounded queue ──▶ child: gathers them,
                       commits each unit when the next one begins, and journals one that takes long
         close()    ── sentinel ──▶ child: commits the last unit, reports, exits with 0
         save()     ── sentinel ──▶ child: journals the unit under way, reports, exits with 0
         abort()    ── the queue's feeder is cancelled, the child killed; the unit under way is as in its journal

The report comes on a pipe of its own: the number of rows when all is written, else the error's text and traceback.
`close()` believes only a report of success *and* an exit code of 0.
"""

from __future__ import annotations

import contextlib
import enum
import math
import pickle
import queue
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any, NamedTuple, Self

import pyarrow as pa
import torch
from torch import Tensor

from embedx.errors import StoreError, WriterError, WriterLostError
from embedx.store.format.layout import StoreTerms, Unit
from embedx.store.writing.ring import SlotRing, TensorPlace, bytes_needed
from embedx.store.writing.unit_rows import EarlierRows, UnitBatch
from embedx.store.writing.units import UnitBuffer
from embedx.system.machine import return_large_blocks
from embedx.system.processes import CHILDREN, server_killed_by, start_fork_server, tie_to_parent
from embedx.terminal import traceback_lines

_QUEUE_LENGTH = 8
"""The number of batches that may wait; then `put` waits, so that a slow disk costs time and not memory."""
_POLL_SECONDS = 0.2
_SAVE_SECONDS = 30.0
"""The time that an interrupted run waits for its journal; at a signal the command ends sooner."""
_ABORT_SECONDS = 2.0
_LONGEST_SUMMARY = 2000


class _Item(NamedTuple):
    """The part of a batch that goes through the queue."""

    unit: Unit
    places: dict[str, TensorPlace]
    rows: pa.Table
    computed_at: float


class _End(enum.Enum):
    """The last item in the queue."""

    COMMIT = "commit"
    """Commits the unit under way."""
    SAVE = "save"
    """Journals the unit under way, which another run will continue."""


class _Failure(NamedTuple):
    """The child's report of its error: texts, as the error itself may not pass through a pipe."""

    summary: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        summary = traceback.format_exception_only(error)[-1].strip()
        if len(summary) > _LONGEST_SUMMARY:
            summary = f"{summary[:_LONGEST_SUMMARY]}… ({len(summary):,} characters)"
        return cls(summary, "\n".join(traceback_lines(error)))


class WriterProcess:
    """The writer process, as the parent sees it.

    Args:
        terms: The terms of the store to write.
        first: The tensors of the first batch, which give the size of a slot; later batches may have more or fewer rows.
        buffer_factory: The class that gathers and commits units in the child; it must be picklable.
        on_commit: The function that is called, during a later call, with each unit that the child has committed.
        rows: The rows of a slot, if the first batch has fewer.
    """

    def __init__(
        self,
        terms: StoreTerms,
        first: Mapping[str, Tensor],
        buffer_factory: Callable[..., UnitBuffer] = UnitBuffer,
        on_commit: Callable[[Unit], None] = lambda unit: None,
        rows: int = 1,
    ) -> None:
        self._on_commit = on_commit
        start_fork_server()
        self._ring = SlotRing(CHILDREN, bytes_needed(first, rows), _QUEUE_LENGTH)
        self._queue = CHILDREN.Queue(maxsize=_QUEUE_LENGTH)
        self._items = 0
        self._report, child_report = CHILDREN.Pipe(duplex=False)
        self._process = CHILDREN.Process(
            target=_run, args=(self._queue, self._ring, child_report, terms, buffer_factory), name="embedx-writer"
        )
        # The child dies with its parent by itself; `daemon` covers a parent that exits without close().
        self._process.daemon = True
        try:
            self._process.start()
            child_report.close()
        except BaseException:  # such as Ctrl-C: nobody has this object yet, to end the process
            self.abort()
            raise

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def put_earlier(self, rows: EarlierRows) -> None:
        """Hands over rows of a unit that need not be computed, as `put` does a batch."""
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
            self._send(pickle.dumps(_Item(batch.unit, places, batch.rows, time.monotonic())))
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
        self._send(pickle.dumps(_End.COMMIT))
        self._end()

    def save(self) -> int:
        """Waits until the process has journalled the unit under way and ended.

        Returns:
            The number of rows of batches that it has brought to disk.

        Raises:
            WriterError: If anything that was put is not on disk, or not in time.
        """
        deadline = time.monotonic() + _SAVE_SECONDS
        self._send(pickle.dumps(_End.SAVE), deadline)
        return self._end(deadline)

    def abort(self) -> None:
        """Ends the process without bringing the current unit to disk. Safe to call at any time."""
        self._queue.cancel_join_thread()
        self._queue.close()
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_ABORT_SECONDS)

    def _end(self, deadline: float = math.inf) -> int:
        """Waits for the end of the process; returns the number of rows that it reports."""

        def left() -> float | None:
            return None if deadline == math.inf else max(0.0, deadline - time.monotonic())

        rows, alive = None, True  # the report is received first: the child can't end while the pipe is full of it
        while rows is None and alive and connection.wait([self._report, self._process.sentinel], left()):
            alive = self._process.is_alive()  # before the report is looked for: it is sent before the end
            rows = self._receive()
        self._process.join(left())
        if rows is None or self._process.exitcode != 0:
            raise self._gone()
        self._queue.close()
        return rows

    def _send(self, item: bytes, deadline: float = math.inf) -> None:
        while time.monotonic() < deadline:
            self._check()
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=_POLL_SECONDS)

    def _check(self) -> None:
        """Raises a WriterError if the process has reported an error, or has ended without a report."""
        alive = self._process.is_alive()  # before the report is looked for: it is sent before the end
        self._receive()
        if not alive:
            raise self._gone()

    def _receive(self) -> int | None:
        """Takes what the child has reported; returns the number of rows of its last report, raises the error it tells.

        None if there is no last report yet.
        """
        while self._report.poll():
            try:
                report: Unit | _Failure | int = self._report.recv()
            except EOFError:  # the child died before it had sent all of it
                break
            if isinstance(report, int):
                return report
            if isinstance(report, _Failure):
                kept = "what it brought to disk stays, and once the cause is gone, running again writes the rest"
                error = WriterError(f"the writer process failed: {report.summary}; {kept}")
                error.add_note(f"in the writer process:\n{report.traceback}")
                raise error
            self._on_commit(report)
        return None

    def _gone(self) -> WriterLostError:
        code = self._process.exitcode or 0
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            cause += ", by hand or by the system for want of memory,"
        if killer := server_killed_by():
            cause = f"was lost as its fork server, the process that starts embedx's others, was killed by {killer},"
        return WriterLostError(
            f"the writer process {cause} before all was written; what it brought to disk stays, and running again "
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that goes to all of a run's processes lets this one finish
    tie_to_parent("embedx-writer")
    return_large_blocks()
    pa.set_memory_pool(pa.system_memory_pool())  # arrow's own would keep what it has had
    torch.set_num_threads(1)

    def tell(message: Unit | _Failure | int) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent was killed, and this process will be in a moment
            report.send(message)

    try:
        buffer = buffer_factory(terms)
        buffer.on_commit = tell
        rows = _write_units(items, ring, buffer)
    except BaseException as error:  # noqa: BLE001  (the parent must hear of any error)
        # Texts always pass through the pipe; the error itself may not be picklable.
        tell(_Failure.of(error))
        raise SystemExit(1) from None
    tell(rows)


def _write_units(items: Any, ring: SlotRing, buffer: UnitBuffer) -> int:
    """Writes what is put until the last item; returns the number of rows of batches."""
    count = 0
    while (item := _next_item(items, buffer)) is not _End.COMMIT:
        if item is _End.SAVE:
            buffer.save()
            return count
        if buffer.unit not in (None, item.unit):
            buffer.commit()
        if isinstance(item, _Item):
            tensors = {name: ring.read(place) for name, place in item.places.items()}
            buffer.add(UnitBatch(item.unit, tensors, item.rows, item.computed_at))
            count += len(item.rows)
        else:
            buffer.add(item)
    if buffer.unit is not None:
        buffer.commit()
    return count


def _next_item(items: Any, buffer: UnitBuffer) -> _Item | EarlierRows | _End:
    """Waits for the next item, and saves the buffer's rows whenever they are old enough."""
    while True:
        left = buffer.seconds_left
        if left is not None and left <= 0:
            buffer.save()
            continue
        with contextlib.suppress(queue.Empty):
            item: _Item | EarlierRows | _End = pickle.loads(items.get(timeout=left))
            return item
