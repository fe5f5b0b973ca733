"""The batches of one split: which inputs each holds, and how a worker reads and decodes them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from embedx.data.decoding import memory
from embedx.data.decoding.batch_rows import BatchBuffer, Decoder, RunBuffer, RunDecoder
from embedx.data.loading.circumstances import NO_MEMORY, UNREAD, Failure, Patience
from embedx.data.loading.fetches import UnreadError
from embedx.data.loading.isolation import InHand
from embedx.data.loading.orders import Order, Orders
from embedx.data.loading.read_ahead import ReadAhead
from embedx.data.loading.shared_blocks import SharedBlocks
from embedx.data.loading.slots import Slots
from embedx.data.loading.torch_workers import is_out_of_memory
from embedx.data.loading.turns import Turns
from embedx.data.reading.files import RejectedInputError, is_url
from embedx.data.sources.base import RangeReader, Reader, Run, RunReader
from embedx.values import MAX_BYTES, too_large


class _Loaded(NamedTuple):
    """The outcome of loading an input."""

    failure: Failure | None
    size: int | None = None
    """The number of bytes that were read; None if they weren't."""
    sha256: str | None = None


class _LoadedRun(NamedTuple):
    """The outcomes of loading several inputs, in columns."""

    failures: list[Failure | None]
    sizes: list[int | None]
    sha256: list[str | None]


class Batches(Dataset[dict[str, Any]]):
    """Loads whole batches of one split: `__getitems__(orders)` reads and decodes the inputs of one.

    It holds nothing of the plan, because each worker gets a copy of it.
    """

    def __init__(
        self,
        reader: Reader,
        decoder: Decoder,
        batch_size: int,
        max_bytes: int = MAX_BYTES,
        reads: int | None = None,
        timeout: float = math.inf,
    ) -> None:
        self.reader = reader
        self._ranges = reader if isinstance(reader, RangeReader) else None  # once, as it takes long
        self.max_bytes = max_bytes
        self.decoder = decoder
        self.batch_size = batch_size
        self.fatal: dict[int, Failure] = {}
        """The rows that end the process which loads them; they fail unread."""
        self.alone: frozenset[int] = frozenset()
        """The rows that are loaded one by one, as a worker was lost that had them, or those next to them, in hand."""
        self._patience = Patience()
        self.blocks: SharedBlocks | None = None
        """The blocks of files behind URLs that the workers share."""
        self._new_ahead = partial(ReadAhead, reads, timeout, max_bytes)
        self._ahead: ReadAhead | None = None
        """The inputs that are read ahead, from the first batch on that has some at URLs."""
        self.in_hand = InHand(0)
        """The record of the inputs that the workers have in hand."""
        self.turns = Turns()
        """The memory that workers may take at the same time."""
        self.slots = Slots()
        """The memory in which batches pass to the parent."""

    @property
    def loads_runs(self) -> bool:
        """True if inputs that lie next to one another in a file are loaded at once."""
        return isinstance(self.reader, RunReader) and isinstance(self.decoder, RunDecoder)

    def __getitem__(self, order: Order) -> dict[str, Any]:
        """Loads a batch of one input."""
        return self.__getitems__(Orders.listed([order]))

    def __getitems__(self, orders: Orders) -> dict[str, Any]:
        """Loads these inputs into one batch; of the plan it has only the numbers of its rows, as `plan_rows`.

        Its rows are those of as many forward passes as it takes; the last ones are padding.
        """
        buffer = self.decoder.new_buffer(-(-len(orders) // self.batch_size) * self.batch_size, self.slots.take)
        self._read_ahead(orders)
        failures: list[Failure | None] = []
        sizes: list[int | None] = []
        digests: list[str | None] = []
        for start, stop in orders.runs():
            loaded = self._load_run(orders, start, stop, buffer)
            if loaded is None:
                each = [self._load(orders[row], buffer, row) for row in range(start, stop)]
                loaded = _LoadedRun(*map(list, zip(*each, strict=True)))
            failures += loaded.failures
            sizes += loaded.sizes
            digests += loaded.sha256
        return {
            **buffer.to_batch(len(orders)),
            "plan_rows": orders.rows.tolist(),
            "reasons": [failure and failure.reason for failure in failures],
            "unavailable": [failure is not None and failure.is_unavailable for failure in failures],
            "bytes": sizes,
            "sha256": digests,
        }

    def _read_ahead(self, orders: Orders) -> None:
        """Begins to read those of a batch's inputs, and of the next one's, that are at URLs."""
        if self._ahead is None:
            if not orders.name_urls():
                return
            self._ahead = self._new_ahead(self.blocks)
        each = itertools.chain(orders, orders.later or ())
        self._ahead.expect((order for order in each if order.row not in self.fatal), self._is_remote_range)

    def _is_remote_range(self, order: Order) -> bool:
        if self._ranges is None or b"://" not in order.path or not is_url(order.path):
            return False
        return self._ranges.is_range(order.path, order.offset)

    def _load_run(self, orders: Orders, start: int, stop: int, buffer: BatchBuffer) -> _LoadedRun | None:
        """Fills these rows of the buffer by inputs that lie next to one another in a file, which it reads at once.

        None if one of them has a fault; loaded one by one, each will tell its own.
        """
        reader, rows = self.reader, orders.rows[start:stop].tolist()
        if len(rows) < 2 or not isinstance(reader, RunReader) or not isinstance(buffer, RunBuffer):
            return None
        if not self.alone.isdisjoint(rows) or not self.fatal.keys().isdisjoint(rows):
            return None
        path, first = orders.place(start)
        with self.in_hand.hold(rows[0]):
            self.in_hand.note_read(False)
            try:
                run = reader.read_run(path, first or 0, len(rows), self.max_bytes)
                digests = _hashed(run)
                buffer.decode_run(start, run)
            except RejectedInputError:
                return None
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return None
        self._patience.note(None)
        size = len(run.head) + run.values[0].nbytes
        return _LoadedRun([None] * len(rows), [size] * len(rows), digests)

    def _load(self, order: Order, buffer: BatchBuffer, row: int) -> _Loaded:
        """Fills a row of the buffer; tries again what may pass within seconds."""
        if order.row in self.fatal:
            loaded = _Loaded(self.fatal[order.row])
        else:
            with self.in_hand.hold(order.row):
                loaded = self._attempt(order, buffer, row)
                for delay in self._patience.delays():
                    if loaded.failure is None or not loaded.failure.may_pass_soon:
                        break
                    time.sleep(delay)
                    loaded = self._attempt(order, buffer, row)
            self._patience.note(loaded.failure)
        if loaded.failure is not None:
            buffer.zero(row)
        return loaded

    def _attempt(self, order: Order, buffer: BatchBuffer, row: int) -> _Loaded:
        size, digest, failure = None, None, None
        try:
            self.in_hand.note_read(False)
            data = self._read(order)
            if len(data) > self.max_bytes:
                raise RejectedInputError(too_large(self.max_bytes))
            size, digest = len(data), hashlib.sha256(data).hexdigest()
            self.in_hand.note_read(True)
            self._decode(buffer, row, data)
        except RejectedInputError as error:
            failure = Failure.of(error, was_listed=order.size is not None)
        except UnreadError:
            failure = UNREAD
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failure = Failure(NO_MEMORY)
        return _Loaded(failure, size, digest)

    def _read(self, order: Order) -> bytes:
        if self._ahead is not None and (self._ahead.expects(order.row) or self._is_remote_range(order)):
            return self._ahead.take(order, self.in_hand.renew)
        return self.reader.read(order.path, order.offset, order.size, self.max_bytes)

    def _decode(self, buffer: BatchBuffer, row: int, data: bytes) -> None:
        """Decodes an input's bytes into a row; one that needs more memory than a worker's share waits for its turn."""
        try:
            with memory.allow(self.turns.share):
                buffer.decode_into(row, data)
        except memory.MemoryNeededError as error:
            needed = error.needed
        else:
            return
        with contextlib.ExitStack() as turn:
            with self.in_hand.pause():
                turn.enter_context(self.turns.take(needed))
            buffer.decode_into(row, data)


def _hashed(run: Run) -> list[str | None]:
    """Returns the sha256 of each input of a run."""
    head, digests = hashlib.sha256(run.head), list[str | None]()
    for values in run.values.reshape(len(run.values), -1).view(np.uint8):
        digest = head.copy()
        digest.update(values.data)
        digests.append(digest.hexdigest())
    return digests
