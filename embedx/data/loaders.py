"""Named DataLoaders: worker processes read, hash, decode and resize; batches of one fixed shape come out.

A batch is a plain dict; B is the batch size, n ≤ B the number of its inputs:

    images    [B, 3, H, W] uint8, channels last in memory; rows n to B are padding, rejected inputs are black
    index     [n] int64, each input's row in the split's plan
    keys, paths, groups, reasons, bytes, sha256   lists of n; a reason is None for an input that was decoded
    targets   [n] int64, -1 where unknown; left out if the split has none
    metadata  the source's own columns, by name, as n-row arrow arrays
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from embedx.config import Preprocessing
from embedx.data.decode import RejectedInputError, decode, preprocess, read_file
from embedx.data.plan import SplitPlan
from embedx.data.sources import as_text
from embedx.errors import EmbedxError
from embedx.processes import START_METHOD, start_fork_server, tie_to_parent

_PREFETCH_BATCHES = 4
"""Batches each worker decodes ahead of the forward pass."""

_WORKER_DIED = re.compile(r"DataLoader worker \(pid|Pin memory thread exited")


class LoaderError(EmbedxError):
    """A worker process ended before its work was done."""


class ImageBatches(Dataset[dict[str, Any]]):
    """The samples of one split as batches: `__getitems__(rows)` gives a whole batch."""

    def __init__(self, plan: SplitPlan, preprocessing: Preprocessing, batch_size: int) -> None:
        self.plan = plan
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.has_targets = plan.table["target"].null_count < len(plan)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A batch of one input."""
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Reads and decodes the samples of these rows of the plan into one batch."""
        samples = self.plan.table.take(pa.array(rows, pa.int64()))
        images = _empty_images(self.batch_size, self.preprocessing.crop)
        outcomes = [self._load(path, image) for path, image in zip(samples["path"].to_pylist(), images, strict=False)]
        images[len(rows) :] = 0
        reasons, sizes, digests = zip(*outcomes, strict=True)
        batch = {
            "images": images,
            "index": torch.tensor(rows, dtype=torch.int64),
            "keys": samples["key"].to_pylist(),
            "paths": [as_text(path) for path in samples["path"].to_pylist()],
            "groups": samples["group"].to_pylist(),
            "reasons": list(reasons),
            "bytes": list(sizes),
            "sha256": list(digests),
            "metadata": {name: samples[name].combine_chunks() for name in self.plan.metadata},
        }
        if self.has_targets:
            batch["targets"] = torch.tensor(samples["target"].fill_null(-1).to_pylist(), dtype=torch.int64)
        return batch

    def _load(self, path: bytes, image: Tensor) -> tuple[str | None, int | None, str | None]:
        """Fills `image` [3, H, W]; returns (reason if rejected, bytes, sha256)."""
        size, digest = None, None
        try:
            data = read_file(path)
            size, digest = len(data), hashlib.sha256(data).hexdigest()
            image.copy_(preprocess(decode(data, exif=self.preprocessing.exif), self.preprocessing))
        except RejectedInputError as error:
            image.zero_()
            return str(error), size, digest
        return None, size, digest


class UnitBatches(Sampler[list[int]]):
    """Rows of the given units, batch by batch; no batch reaches over the end of a unit."""

    def __init__(self, units: Sequence[range], batch_size: int) -> None:
        self.units = units
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for unit in self.units:
            for start in range(0, len(unit), self.batch_size):
                yield list(unit[start : start + self.batch_size])

    def __len__(self) -> int:
        return sum(math.ceil(len(unit) / self.batch_size) for unit in self.units)


class SplitLoader:
    """A DataLoader over some units of one split, whose workers can be started ahead of the first use."""

    def __init__(
        self,
        plan: SplitPlan,
        units: Sequence[range],
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        batches = UnitBatches(units, batch_size)
        workers = min(workers, len(batches))
        self.inputs = sum(len(unit) for unit in units)
        self._loader = DataLoader(
            ImageBatches(plan, preprocessing, batch_size),
            batch_sampler=batches,
            collate_fn=_as_is,
            num_workers=workers,
            prefetch_factor=_PREFETCH_BATCHES if workers else None,
            multiprocessing_context=START_METHOD if workers else None,
            worker_init_fn=_start_worker if workers else None,
            pin_memory=pin_memory,
        )
        self._iterator: Iterator[dict[str, Any]] | None = None
        if workers:
            start_fork_server()

    def __len__(self) -> int:
        return len(self._loader)

    def start(self) -> None:
        """Starts the workers; they decode ahead while the caller does something else."""
        if self._iterator is None:
            self._iterator = iter(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator, self._iterator = self._iterator or iter(self._loader), None
        try:
            yield from iterator
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            # The first is torch's own word; the others come of asking a dead worker for a batch's memory.
            if isinstance(error, RuntimeError) and not _WORKER_DIED.search(str(error)):
                raise
            raise LoaderError(
                f"a process that decodes images died ({error!r}); what is committed stays, and running again goes "
                "on from there; if memory is short, give fewer --workers"
            ) from error


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(worker: int) -> None:
    tie_to_parent("embedx-loader")
    # libpng and libtiff print a line per odd file; what matters of it is in the reason of a rejected input.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _as_is(batch: Any) -> Any:
    return batch


def _empty_images(batch_size: int, size: int) -> Tensor:
    """[B, 3, size, size] uint8, channels last; in a worker already in shared memory, so no copy follows."""
    images = torch.empty(batch_size, size, size, 3, dtype=torch.uint8)
    if get_worker_info() is not None:
        images.share_memory_()  # type: ignore[no-untyped-call]
    return images.permute(0, 3, 1, 2)
