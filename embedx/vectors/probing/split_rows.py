"""The rows of a store's split as a dataloader: embeddings and targets, batch by batch, kept in memory or streamed.

Shapes: N rows of a split, n of a batch, D embedding dimension, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.engine.state import Batch
from embedx.errors import ConfigError, StoreError, unknown
from embedx.names import INDEX, TARGETS
from embedx.store.format.index import OK
from embedx.store.format.shards import UNKNOWN_TARGET
from embedx.store.reading.embeddings import Shard
from embedx.store.reading.reader import Store

_BATCH_BYTES = 16 * 1024**2
_NAME_COLUMNS = ("class", "label", "cls", "group")
"""The columns that may hold the targets' names, besides that of `embedx extract --target-column`."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split all of whose rows are finite vectors of one length."""

    store: Store
    name: str
    tensor: str
    dim: int
    """The length of the vectors, D."""
    targets: Tensor
    """The rows' targets [N] int64, in the order of the shards; UNKNOWN_TARGET where a row has none."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> Tensor:
        """The distinct targets [C] int64, sorted."""
        return torch.unique(self.targets)  # type: ignore[no-any-return]

    def places(self, classes: Tensor) -> Tensor:
        """Returns the place [N] int64 of each row's target in `classes` [C], which is sorted."""
        return torch.searchsorted(classes, self.targets)


def open_split(store: Store, name: str, tensor: str) -> Split:
    """Opens a split and reads every number of this tensor of it once.

    Raises:
        ConfigError: If there is no such split or tensor, no row, or not one vector per row.
        StoreError: If a row has NaN or infinity, or a file is damaged.
    """
    if name not in store.splits:
        raise ConfigError(unknown("split", name, store.splits, hint=f"in {store.path}"))
    dim, targets = 0, []
    for shard in store.iter_shards(name, framework="torch", check=True):
        values = _values(shard, tensor)
        if values.ndim != 2:
            raise ConfigError(
                f"split {name!r}: {tensor!r} has {list(values.shape[1:])} numbers per row, and a probe takes one "
                "vector; run `embedx extract` with --pool avg"
            )
        if dim not in (0, values.shape[1]):
            raise StoreError(f"{shard.path}: {tensor!r} has {values.shape[1]} numbers per row, and elsewhere {dim}")
        dim = values.shape[1]
        _check_finite(store, shard, values)
        targets.append(shard.tensors.get(TARGETS, torch.full((len(values),), UNKNOWN_TARGET)))
    if not targets:
        raise ConfigError(f"split {name!r} of {store.path} has no rows")
    return Split(store, name, tensor, dim, torch.cat(targets))


class SplitRows:
    """The rows of a split as batches of `embeddings` [n, D] float32, `targets` [n] and `index` [n] int64.

    The rows come in the order of the shards, by which `index` counts them. The batches are the same whether they are
    kept in memory or streamed from the shards, so everything computed from them is the same to the bit.

    Args:
        split: The split to read.
        classes: The distinct targets [C] int64, sorted; a batch's `targets` are places in it.
        batch_rows: The largest number of rows in a batch.
        memory: The number of bytes up to which the batches are kept in memory once they have been read.
        kept: A mask [N] bool of the rows to take; None takes all.
    """

    def __init__(self, split: Split, classes: Tensor, batch_rows: int, memory: int, kept: Tensor | None = None) -> None:
        self.split = split
        self.batch_rows = batch_rows
        self._targets = split.places(classes)
        self._kept = kept
        self._fits = len(self) * split.dim * torch.float32.itemsize <= memory
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.split) if self._kept is None else int(self._kept.sum())

    def __iter__(self) -> Iterator[Batch]:
        if not self._fits:
            return self._read()
        self._batches = self._batches or list(self._read())
        return iter(self._batches)

    def _read(self) -> Iterator[Batch]:
        waiting: list[tuple[Tensor, Tensor]] = []
        for rows, index in self._parts():
            if waiting and len(rows) + sum(len(index) for _, index in waiting) > self.batch_rows:
                yield self._batch(waiting)
                waiting = []
            waiting.append((rows, index))
        if waiting:
            yield self._batch(waiting)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields pieces of shards: rows [n, D], and their numbers [n] in the split."""
        start = 0
        for shard in self.split.store.iter_shards(self.split.name, framework="torch"):
            values = _values(shard, self.split.tensor)
            for rows in (values[row : row + self.batch_rows] for row in range(0, len(values), self.batch_rows)):
                index = torch.arange(start, start + len(rows))
                start += len(rows)
                if self._kept is not None:
                    kept = self._kept[index]
                    rows, index = rows[kept], index[kept]
                yield rows.float(), index

    def _batch(self, parts: list[tuple[Tensor, Tensor]]) -> Batch:
        (rows, index), *others = parts
        if others:  # a single piece stays mapped, without a copy
            rows, index = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return {"embeddings": rows, "targets": self._targets[index], "index": index}


def batch_rows(dim: int, num_classes: int) -> int:
    """Returns the largest number of rows whose embeddings and whose logits take at most 16 MiB each."""
    return max(1, _BATCH_BYTES // (torch.float32.itemsize * max(dim, num_classes)))


def class_names(split: Split, classes: Tensor) -> list[str]:
    """Returns the classes' names from an index column that has one name per target, or else the targets as text."""
    path, _ = next((path, unit) for path, unit in split.store.units.items() if unit.split == split.name)
    there = set(split.store.read_table(path).column_names)
    stated = split.store.manifest.settings.target_column or ""
    for column in (stated, *_NAME_COLUMNS):
        if column not in there:
            continue
        table = split.store.index(split.name, ["target", "status", column])
        table = table.filter(pc.equal(table["status"], OK)).group_by(["target", column]).aggregate([])
        names = dict(zip(table["target"].to_pylist(), table[column].to_pylist(), strict=True))
        one_to_one = len(table) == len(names) == len(set(names.values()))
        if one_to_one and names.keys() == set(classes.tolist()) and all(isinstance(n, str) for n in names.values()):
            return [names[target] for target in classes.tolist()]
    return [str(target) for target in classes.tolist()]


def _values(shard: Shard, tensor: str) -> Tensor:
    names = shard.tensors.keys() - {INDEX, TARGETS}
    if tensor not in names:
        raise ConfigError(unknown("tensor", tensor, names, hint=f"in {shard.path}"))
    values: Tensor = shard.tensors[tensor]
    return values


def _check_finite(store: Store, shard: Shard, values: Tensor) -> None:
    """Raises a StoreError that names the first row with NaN or infinity."""
    # Such a row's sum is not finite either; others', of very large numbers, may be so too.
    suspects = (~values.sum(dim=1).isfinite()).nonzero().flatten()
    bad = suspects[~values[suspects].isfinite().all(dim=1)].tolist()
    if bad:
        rows = store.index(shard.split, ["key", "shard", "row"])
        own = rows.filter(pc.equal(rows["shard"], str(shard.path).removeprefix(f"{store.path}/")))
        key = own.filter(pc.equal(own["row"], bad[0]))["key"][0].as_py()
        raise StoreError(
            f"{len(bad)} rows of {shard.path} have NaN or infinity, the first is that of {key!r}; `embedx verify` "
            "names them all, embed them anew or leave them out"
        )
