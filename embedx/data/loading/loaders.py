"""Named DataLoaders: worker processes read, hash, decode and resize; batches of one fixed shape come out.

A batch is a plain dict; B is the batch size, n ≤ B the number of its inputs:

    images    [B, 3, H, W] uint8, channels last in memory; or features [B, D] or [B, T, D], where the inputs are those.
              Rows n to B are padding, and zero like those of rejected inputs
    index     [n] int64, each input's place in its split of the store
    keys, paths, offsets, mtime_ns, groups, reasons, bytes, sha256   lists of n; a reason is None for what was decoded
    targets   [n] int64, -1 where unknown; left out if the split has none
    metadata  the source's own columns, by name, as n-row arrow arrays
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import math
import multiprocessing
import os
import re
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing import connection, reduction
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from embedx.data.decoding.batch_rows import Decoder, Rows
from embedx.data.loading.isolation import NO_END, InHand, become_decoding_process, find_fatal, time_limit
from embedx.data.plan import SplitPlan
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources.base import Reader, as_text
from embedx.errors import EmbedxError
from embedx.system.processes import START_METHOD, abandon, start_fork_server

_PREFETCH_BATCHES = 4
"""Batches each worker decodes ahead of the forward pass."""

_TIMEOUT = 300.0

_NO_MEMORY = "too large for the memory there is"
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory")
"""How torch's MemoryError is told from its other RuntimeErrors."""

_LOOK_SECONDS = 1.0
"""How long a batch is waited for until it is looked whether the workers are alive, and at what."""
_IDLE_SECONDS = 300.0
"""How long a batch is waited for while no worker has anything in hand."""
_NOTHING_CAME = "DataLoader timed out"
_WORKER_DIED = "DataLoader worker (pid"
_FRUITLESS_RESTARTS = 3
"""Times that workers are started anew without a batch between, where none of the inputs is found to be at fault."""


class LoaderError(EmbedxError):
    """A worker process ended before its work was done."""


class Order(NamedTuple):
    """What a worker is told of an input."""

    row: int
    """Of the plan."""
    path: bytes
    offset: int | None
    size: int | None


class Batches(Dataset[dict[str, Any]]):
    """The inputs of one split, read and decoded: `__getitems__(orders)` gives a whole batch.

    It holds nothing of the plan, of which each worker would have a copy.
    """

    def __init__(self, reader: Reader, decoder: Decoder, batch_size: int, timeout: float = _TIMEOUT) -> None:
        self.reader = reader
        self.timeout = timeout
        self.decoder = decoder
        self.batch_size = batch_size
        self.fatal: dict[int, str] = {}
        """Rows that would end the process, with the reason; they are not touched."""
        self.in_hand = InHand(0)
        """What the workers have in hand."""

    def __getitem__(self, order: Order) -> dict[str, Any]:
        """A batch of one input."""
        return self.__getitems__([order])

    def __getitems__(self, orders: Sequence[Order]) -> dict[str, Any]:
        """Reads and decodes these inputs into one batch: what only reading tells of it, and the plan's `rows`."""
        batch = self.decoder.begin(self.batch_size)
        outcomes = [self._load(order, batch, row) for row, order in enumerate(orders)]
        reasons, sizes, digests = zip(*outcomes, strict=True)
        return {
            **batch.finish(len(orders)),
            "rows": [order.row for order in orders],
            "reasons": list(reasons),
            "bytes": list(sizes),
            "sha256": list(digests),
        }

    def _load(self, order: Order, batch: Rows, row: int) -> tuple[str | None, int | None, str | None]:
        """Fills a row of the batch; returns (reason if rejected, bytes, sha256)."""
        size, digest = None, None
        try:
            if order.row in self.fatal:
                raise RejectedInputError(self.fatal[order.row])
            with self.in_hand.hold(order.row), time_limit(self.timeout):
                data = self.reader.read(order.path, order.offset, order.size)
                size, digest = len(data), hashlib.sha256(data).hexdigest()
                batch.fill(row, data)
        except (RejectedInputError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            batch.clear(row)
            return str(error) if isinstance(error, RejectedInputError) else _NO_MEMORY, size, digest
        return None, size, digest


class UnitBatches(Sampler[list[Order]]):
    """The orders for the given units, batch by batch, from batch `first` on; none reaches over the end of a unit."""

    def __init__(self, plan: SplitPlan, units: Sequence[Sequence[int]], batch_size: int, first: int = 0) -> None:
        self.places = plan.table.select(["path", "offset", "size"])
        self.units = units
        self.batch_size = batch_size
        self.first = first

    def __iter__(self) -> Iterator[list[Order]]:
        batches = (
            unit[start : start + self.batch_size]
            for unit in self.units
            for start in range(0, len(unit), self.batch_size)
        )
        return map(self._orders, islice(batches, self.first, None))

    def starting_at(self, first: int) -> UnitBatches:
        """The same, from another batch on."""
        later = copy.copy(self)
        later.first = first
        return later

    def _orders(self, rows: Sequence[int]) -> list[Order]:
        places = self.places.take(pa.array(rows, pa.int64()))
        return list(map(Order, rows, *(column.to_pylist() for column in places.columns)))

    def __len__(self) -> int:
        return sum(math.ceil(len(unit) / self.batch_size) for unit in self.units) - self.first


class SplitLoader:
    """A DataLoader over some units of one split, whose workers can be started ahead of the first use.

    Args:
        plan: The split.
        units: Which of its rows, in runs; no batch reaches over the end of a run.
        decoder: What turns an input's bytes into a row of a batch.
        batch_size: Of every batch.
        workers: Processes that read and decode; 0: none, and then an input that ends its process ends this one, and one
            that takes for ever does so.
        pin_memory: Whether batches come in memory that CUDA copies from by itself.
        timeout: Seconds after which an input that a worker does not get done with is rejected.
    """

    def __init__(
        self,
        plan: SplitPlan,
        units: Sequence[Sequence[int]],
        decoder: Decoder,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
        timeout: float = _TIMEOUT,
    ) -> None:
        self.inputs = sum(len(unit) for unit in units)
        self._plan = plan
        self._has_targets = plan.table["target"].null_count < len(plan)
        self._batches = UnitBatches(plan, units, batch_size)
        self._dataset = Batches(plan.reader, decoder, batch_size, timeout)
        self._workers = min(workers, len(self._batches))
        self._pin_memory = pin_memory
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._processes: dict[int | None, BaseProcess] = {}
        if workers:
            start_fork_server()

    def __len__(self) -> int:
        return len(self._batches)

    def start(self) -> None:
        """Starts the workers; they decode ahead while the caller does something else."""
        if self._iterator is None:
            self._iterator = self._begin(0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches in order. An input that ends its worker, or takes too long, is rejected; the rest goes on.

        Raises:
            LoaderError: If workers end again and again, and no input is at fault.
        """
        delivered, fruitless, asked = 0, 0, time.monotonic()
        iterator, self._iterator = self._iterator, None
        while True:
            iterator = iterator or self._begin(delivered)
            try:
                for batch in iterator:
                    yield self._identified(batch)
                    delivered, fruitless, asked = delivered + 1, 0, time.monotonic()
                return
            except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
                # The first is torch's own word; the others come of asking a dead worker for a batch's memory.
                message = str(error) if isinstance(error, RuntimeError) else _WORKER_DIED
                if _NOTHING_CAME in message and self._may_wait(asked):
                    continue
                if _NOTHING_CAME not in message and _WORKER_DIED not in message:
                    raise
                iterator = None  # and with it the other workers, before those that follow
                found = self._at_fault(delivered)
                self._dataset.fatal.update(found)
                fruitless, asked = 0 if found else fruitless + 1, time.monotonic()
                if fruitless > _FRUITLESS_RESTARTS:
                    raise LoaderError(
                        f"processes that decode images die again and again ({error!r}), and no image by itself is the "
                        "cause; what is committed stays, and running again goes on from there; if memory is short, "
                        "give fewer --workers"
                    ) from error
                if fruitless > 1:
                    self._workers = max(1, self._workers // 2)  # what fits alone may not fit beside others

    def _begin(self, first: int) -> Iterator[dict[str, Any]]:
        """Starts workers on the batches from the given one on."""
        workers = self._workers
        self._dataset.in_hand = InHand(workers)
        others = set(multiprocessing.active_children())
        with warnings.catch_warnings():  # it warns of more workers than cores, which serve where images come from afar
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                self._dataset,
                batch_sampler=self._batches.starting_at(first),
                collate_fn=_as_is,
                num_workers=workers,
                prefetch_factor=_PREFETCH_BATCHES if workers else None,
                multiprocessing_context=START_METHOD if workers else None,
                worker_init_fn=_start_worker if workers else None,
                pin_memory=self._pin_memory,
                timeout=_LOOK_SECONDS if workers else 0,
            )
            iterator = iter(loader)
        self._processes = {process.pid: process for process in set(multiprocessing.active_children()) - others}
        for process in self._processes.values():
            atexit.register(abandon, process)
        return iterator

    def _may_wait(self, asked: float) -> bool:
        """Whether the batch that was asked for at this time can still be expected, though nothing came for a while."""
        held = self._dataset.in_hand.now()
        if not held:  # the workers are starting, or what takes over their batches in this process has ended
            return time.monotonic() - asked < _IDLE_SECONDS
        return not any(one.is_overdue(self._dataset.timeout) for one in held)

    def _at_fault(self, delivered: int) -> dict[int, str]:
        """The inputs that ended their worker, or that it does not come back from, with the reason.

        As a worker may have been killed by somebody, the batch that it was at is tried again, elsewhere.
        """
        timeout = self._dataset.timeout
        connection.wait([process.sentinel for process in self._processes.values()], _LOOK_SECONDS)
        fatal: dict[int, str] = {}
        suspects: set[int] = set()
        for held in self._dataset.in_hand.now():
            exitcode = self._processes[held.pid].exitcode
            if exitcode == -signal.SIGALRM or (exitcode is None and held.is_overdue(timeout)):
                fatal[held.row] = NO_END
            elif exitcode is not None:
                suspects.add(held.row)
        under_way = self._batches.starting_at(delivered)
        for batch in islice(under_way, self._workers * _PREFETCH_BATCHES):
            if suspects.intersection(order.row for order in batch):
                orders = [order for order in batch if order.row not in fatal.keys() | self._dataset.fatal.keys()]
                found = find_fatal(self._dataset, orders, timeout)
                fatal.update({orders[position].row: reason for position, reason in found.items()})
        return fatal

    def _identified(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with what the plan says of its rows."""
        rows = batch.pop("rows")
        samples = self._plan.table.take(pa.array(rows, pa.int64()))
        batch |= {
            "index": torch.from_numpy(self._plan.index(rows)),
            "keys": samples["key"].to_pylist(),
            "paths": [as_text(path) for path in samples["path"].to_pylist()],
            "offsets": samples["offset"].to_pylist(),
            "mtime_ns": samples["mtime_ns"].to_pylist(),
            "groups": samples["group"].to_pylist(),
            "metadata": {name: samples[name].combine_chunks() for name in self._plan.metadata},
        }
        if self._has_targets:
            batch["targets"] = torch.tensor(samples["target"].fill_null(-1).to_pylist(), dtype=torch.int64)
        return batch


def _start_worker(worker: int) -> None:
    become_decoding_process("embedx-loader")
    # libpng and libtiff print a line per odd file; what matters of it is in the reason of a rejected input.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    # Starts the thread that hands out the memory of batches. If memory were too short for it later, when the first one
    # is asked for, the parent would wait for ever.
    reduction.DupFd(nowhere)


def _as_is(batch: Any) -> Any:
    return batch
