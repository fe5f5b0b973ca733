"""Named loaders: worker processes read, hash, decode and resize; batches of one fixed shape come out.

A batch is a plain dict; B is the batch size, or a multiple of it where the inputs are rows of feature files, and n ≤ B
the number of its inputs:

    images    [B, 3, H, W] uint8, channels last in memory; instead `features` [B, D] or [B, T, D] for feature files.
              Rows n to B are padding; they are zero, as are the rows of rejected inputs
    index     [n] int64, each input's place in its split of the store
    keys, paths, offsets, mtime_ns, groups, reasons, bytes, sha256   lists of n; the reason of a decoded input is None
    unavailable   list of n; True for an input whose reason is the machine's or the network's fault
    targets   [n] int64, -1 where unknown; left out if the split has none
    image_rows  [n] int64, the row of `images` that each input has; only where inputs of a batch are one image, then n
              may be larger than B
    metadata  the source's own columns, by name, as n-row arrow arrays
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import torch

from embedx.data.decoding.batch_rows import Decoder, RunDecoder, batch_bytes
from embedx.data.loading.batches import Batches
from embedx.data.loading.circumstances import Failure, tried_twice
from embedx.data.loading.isolation import InHand, find_fatal
from embedx.data.loading.orders import as_numbers
from embedx.data.loading.shared_blocks import SharedBlocks
from embedx.data.loading.slots import Slots
from embedx.data.loading.torch_workers import TorchWorkers, WorkerCounts, WorkerLostError
from embedx.data.loading.turns import Turns
from embedx.data.loading.unit_batches import Remembered, UniqueRows, UnitBatches
from embedx.data.plan import SplitPlan
from embedx.data.sources.base import RunReader, paths_as_text
from embedx.errors import LoaderError
from embedx.system.machine import free_shared_memory
from embedx.system.processes import server_killed_by, start_fork_server
from embedx.values import MAX_BYTES

_READ = ("reasons", "unavailable", "bytes", "sha256")
"""The entries of a batch that tell how its inputs were read."""
_LOADED_BYTES = 1 << 22
"""The bytes of rows of files that are loaded as one batch, so that the time which each batch takes is not theirs."""
_LOADED_SHARE = 64
"""The number of times that they fit into the shared memory that is free, at least."""
_FRUITLESS_RESTARTS = 3
"""The number of times in a row that workers are replaced without a batch in between and without a fault found."""


def batches_at_once(plan: SplitPlan, decoder: Decoder, batch_size: int) -> int:
    """Returns the number of batches of the forward pass that are loaded as one, as it takes no time to load a row.

    It is 1 unless the inputs are rows of files: of others, such as files on a server, one may take long.
    """
    if not isinstance(decoder, RunDecoder) or not isinstance(plan.reader, RunReader) or plan.table["offset"].null_count:
        return 1
    free = free_shared_memory()
    most = _LOADED_BYTES if free is None else min(_LOADED_BYTES, free // _LOADED_SHARE)
    return max(1, most // max(1, batch_bytes(decoder, batch_size) or most))


class SplitLoader:
    """Loads some units of one split in batches; its workers can be started ahead of the first use.

    Args:
        units: The rows of each unit; no batch crosses the end of a unit. They may come from an iterator, which is
            asked for a unit when the workers are about to need one.
        workers: The number of processes that read and decode. 0 decodes in this process: a crashing image ends the
            run, and a hanging one stalls it.
        pin_memory: Whether batches come in pinned memory, from which CUDA copies asynchronously.
        again: The rows that an earlier run has tried and rejected.
        unique_keys: Whether keys are no paths, so that rows of a unit may be of one input, which is loaded once.
        timeout: The seconds after which a worker gives up an input, which is then rejected.
        max_bytes: The largest size of an input; one that is larger is rejected.
        reads: The number of reads from afar that each worker has in flight; None follows the latency.
        niceness: The steps of priority by which the workers come after this process.

    Raises:
        LoaderError: If the machine's shared memory has no room for batches of this size.
    """

    def __init__(
        self,
        plan: SplitPlan,
        units: Iterable[Sequence[int]],
        decoder: Decoder,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
        again: Collection[int] = (),
        unique_keys: bool = False,
        timeout: float = 300.0,
        max_bytes: int = MAX_BYTES,
        reads: int | None = None,
        niceness: int = 0,
    ) -> None:
        self._plan = plan
        self._has_targets = plan.table["target"].null_count < len(plan)
        unique = UniqueRows(plan) if unique_keys else None
        self._repeats = unique.repeats if unique is not None else {}
        loaded = units if unique is None else map(unique.of, units)
        self._units = list(loaded) if isinstance(units, Sequence) else Remembered(loaded)
        at_once = batch_size * batches_at_once(plan, decoder, batch_size)
        self._batches = UnitBatches(plan, self._units, at_once)
        self._dataset = Batches(plan.reader, decoder, batch_size, max_bytes, reads, timeout)
        self._timeout = timeout
        self._again = again
        workers = min(workers, len(self._batches)) if isinstance(units, Sequence) else workers
        size = batch_bytes(decoder, at_once)
        self._workers, self._prefetch = WorkerCounts.fitting(workers, size, batch_size)
        # Of images, new memory is a small part of what a batch takes; pinned memory is a copy anyway.
        self._slot_bytes = size if isinstance(decoder, RunDecoder) and not pin_memory else 0
        self._pin_memory = pin_memory
        self._niceness = niceness
        self._started: TorchWorkers | None = None
        self._running: TorchWorkers | None = None
        if workers:
            start_fork_server()

    def __len__(self) -> int:
        return len(self._batches)

    def start(self) -> None:
        """Starts the workers; they decode ahead while the caller does something else."""
        if self._started is None:
            self._started = self._start_at(0)

    def close(self) -> None:
        """Ends the workers, if batches are left."""
        if self._running is not None:
            self._running.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the batches in order; an input that ends its worker, or takes too long, is rejected.

        Raises:
            LoaderError: If workers end again and again, and no input is at fault.
        """
        if next(iter(self._units), None) is None:
            return
        delivered = fruitless = 0
        workers, self._started = self._started, None
        while True:
            workers = workers or self._start_at(delivered)
            try:
                for batch in workers:
                    yield self._with_plan_columns(self._dataset.slots.unpacked(batch))
                    delivered, fruitless = delivered + 1, 0
                self._dataset.slots = Slots()  # which frees the memory for the next split's
                return
            except WorkerLostError as error:
                if killer := server_killed_by():
                    raise LoaderError(
                        f"the fork server, the process that starts embedx's others, was killed by {killer}; the same "
                        "command goes on from what is kept"
                    ) from error
                fatal = self._find_fatal(workers, delivered)
                self._dataset.fatal |= fatal
                fruitless = 0 if fatal else fruitless + 1
                if fruitless > _FRUITLESS_RESTARTS:
                    raise LoaderError(
                        f"the processes that decode images die again and again ({error}), and no single image is at "
                        "fault; if memory is short, give fewer --workers; the same command goes on from what is "
                        "kept"
                    ) from error
                if fruitless > 1:
                    self._workers = max(1, self._workers // 2)  # an image may fit into memory alone, not beside others
            workers = self._running = None  # ends the other workers before the next ones start

    def _start_at(self, first: int) -> TorchWorkers:
        self._dataset.in_hand, self._dataset.turns = InHand(self._workers), Turns.of(self._workers)
        self._dataset.blocks = SharedBlocks.of(self._workers)
        self._dataset.slots = Slots(self._workers, self._prefetch + 1, self._slot_bytes)
        data, batches = self._dataset, self._batches.starting_at(first, self._workers)
        self._running = TorchWorkers(
            data,
            batches,
            data.in_hand,
            prefetch=self._prefetch,
            timeout=self._timeout,
            pin_memory=self._pin_memory,
            niceness=self._niceness,
        )
        return self._running

    def _find_fatal(self, workers: TorchWorkers, delivered: int) -> dict[int, Failure]:
        """Returns the rows that ended their worker, or that it is stuck in, each with its failure.

        Where it had a run of rows in hand, none is returned, and the rows under way are loaded one by one by the next
        worker. Somebody else may have killed a worker, so the batch that it was at is tried again in another process.
        """
        stuck, suspects = workers.rows_in_hand()
        fatal = dict(stuck)
        under_way = list(islice(self._batches.starting_at(delivered), self._workers * self._prefetch))
        if self._dataset.loads_runs and (suspects | stuck.keys()) - self._dataset.alone:
            self._dataset.alone = frozenset(row for batch in under_way for row in batch.rows.tolist())
            return {}  # as any row of the run in hand may be the one at fault
        for batch in under_way:
            if suspects.intersection(order.row for order in batch):
                orders = [order for order in batch if order.row not in fatal.keys() | self._dataset.fatal.keys()]
                found = find_fatal(self._dataset, orders, self._timeout)
                fatal |= {orders[position].row: failure for position, failure in found.items()}
        return fatal

    def _with_repeats(self, batch: dict[str, Any], rows: Sequence[int]) -> list[int]:
        """Gives a batch all rows of its inputs, in order, and the entry `image_rows`; returns these rows."""
        places = sorted((each, place) for place, row in enumerate(rows) for each in self._repeats.get(row, (row,)))
        image_rows = [place for _, place in places]
        batch |= {name: [batch[name][place] for place in image_rows] for name in _READ}
        batch["image_rows"] = torch.tensor(image_rows)
        return [row for row, _ in places]

    def _with_plan_columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Replaces the entry `plan_rows` of a batch by the entries that the plan has of these rows."""
        rows = batch.pop("plan_rows")
        if not self._repeats.keys().isdisjoint(rows):
            rows = self._with_repeats(batch, rows)
        samples = self._plan.table.take(pa.array(as_numbers(rows)))
        reasons = zip(rows, batch["reasons"], strict=True)
        batch |= {
            "reasons": [tried_twice(reason) if row in self._again else reason for row, reason in reasons],
            "index": torch.from_numpy(self._plan.index(rows)),
            "keys": samples["key"].to_pylist(),
            "paths": paths_as_text(samples["path"]).to_pylist(),
            "offsets": samples["offset"].to_pylist(),
            "mtime_ns": samples["mtime_ns"].to_pylist(),
            "groups": samples["group"].to_pylist(),
            "metadata": {name: samples[name].combine_chunks() for name in self._plan.metadata},
        }
        if self._has_targets:
            batch["targets"] = torch.tensor(samples["target"].fill_null(-1).to_numpy(), dtype=torch.int64)
        return batch
