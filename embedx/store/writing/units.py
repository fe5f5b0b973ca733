"""Rows of one unit, gathered batch by batch and then committed: its shards first, its index table last.

Rows of a unit that takes long go to its journal in the meantime.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import StoreError
from embedx.names import INDEX, TARGETS
from embedx.store.format.index import OK, STATUSES, UnitEntry, in_order, read_entry, write_index
from embedx.store.format.journal import records
from embedx.store.format.layout import (
    GroupFolders,
    StoredFile,
    StoreRoot,
    StoreTerms,
    Unit,
    index_files,
    index_path,
    journal_path,
    shard_path,
)
from embedx.store.format.open_folder import open_folder
from embedx.store.format.shards import (
    FORMAT,
    UNKNOWN_TARGET,
    ShardEntry,
    ShardHeader,
    encode_shard,
    form,
    inputs_digest,
)
from embedx.store.format.storage import storage_of, write_shards
from embedx.store.reading.stored_rows import StoredRows
from embedx.store.writing.unit_journal import UnitJournal
from embedx.store.writing.unit_rows import EarlierRows, JournalledRows, StayingRows, UnitBatch

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""[n], int64"""
Groups: TypeAlias = Sequence[tuple[str | None, Numbers]]
"""The rows that have an embedding, as positions in the unit, by group."""

_MANY_SHARDS = 16
"""The number of shards from which it is quicker to bring the whole file system to disk than each of them."""


class UnitBuffer:
    """Gathers the rows of one unit after the other, in memory that is allocated once, and commits them."""

    def __init__(self, terms: StoreTerms) -> None:
        self.terms = terms
        self.on_commit: Callable[[Unit], None] = lambda unit: None
        """The function that is called with each unit once it is committed."""
        self.unit: Unit | None = None
        """The unit whose rows are gathered; None if there are none."""
        self._rows: list[pa.Table] = []
        self._tensors: dict[str, Tensor] = {}
        self._count = 0
        self._journal: UnitJournal | None = None
        self._journals_read: list[StoredFile] = []
        """The journals of other processes from which rows of this unit came."""
        self._saved = 0
        """The number of the tables in `_rows` that need not go to the journal any more."""
        self._unsaved_since = math.inf
        """The time at which the first of the others was computed."""
        self._folders: dict[str, GroupFolders] = {}
        self._stores: dict[str, StoredRows] = {}

    def _store(self, folder: StoreRoot | None) -> StoredRows:
        """Returns the rows of the store in this folder; None is the one that is replaced."""
        folder = folder or self.terms.base
        if folder is None:
            raise StoreError(f"{self.terms.root} replaces no store that rows could stay from")
        if str(folder) not in self._stores:
            units = []
            for path in index_files(folder).values():
                with contextlib.suppress(StoreError):  # what is damaged does not stay
                    units.append(read_entry(path))
            self._stores[str(folder)] = StoredRows(open_folder(folder), units, check=True)
        return self._stores[str(folder)]

    def add(self, batch: UnitBatch | EarlierRows) -> None:
        """Copies a batch's rows behind those already there, all of one unit; kept rows come before computed ones.

        Raises:
            StoreError: If the tensors' names, shapes or lengths do not go with the rows before.
        """
        self.unit = batch.unit
        end = self._count + len(batch.rows)
        if end > self.terms.rows_per_unit:
            raise StoreError(f"{self.unit} has more than its {self.terms.rows_per_unit} rows")
        if isinstance(batch, UnitBatch):
            self._copy(batch, end)
            self._unsaved_since = min(self._unsaved_since, batch.computed_at)
        else:
            self._copy_staying(batch) if isinstance(batch, StayingRows) else self._copy_journalled(batch)
            self._saved += 1
        self._rows.append(batch.rows)
        self._count = end

    @property
    def seconds_left(self) -> float | None:
        """The seconds until rows have to be journalled; None as long as there are none."""
        if self.terms.journal_seconds is None or not math.isfinite(self._unsaved_since):
            return None
        return self._unsaved_since + self.terms.journal_seconds - time.monotonic()

    def save(self) -> None:
        """Brings the rows so far to disk: commits the unit if it is full, and journals them otherwise."""
        if self.unit is None or self.terms.journal_seconds is None or len(self._rows) == self._saved:
            return
        if self._count == self.terms.rows_per_unit:
            self.commit()
            return
        self._journal = self._journal or UnitJournal(self.terms, self.unit)
        rows = pa.concat_tables(self._rows[self._saved :], promote_options="default").combine_chunks()
        start = self._count - len(rows)
        self._journal.append({name: tensor[start : self._count] for name, tensor in self._tensors.items()}, rows)
        self._saved = len(self._rows)
        self._unsaved_since = math.inf

    def _copy_staying(self, batch: StayingRows) -> None:
        embedded = pc.is_valid(batch.places["shard"])
        positions = torch.from_numpy(self._count + _numbers(pc.indices_nonzero(embedded)))
        places, store = batch.places.filter(embedded), self._store(batch.store)
        found = [store.names_in(path) for path in pc.unique(places["shard"]).to_pylist()]
        for name in dict.fromkeys(chain.from_iterable(found)):
            tensor = store.gather(name, places)
            self._allocate(name, tensor)[positions] = tensor

    def _copy_journalled(self, batch: JournalledRows) -> None:
        places = torch.tensor(_numbers(batch.places["row"]))
        left = len(places)
        start = end = 0
        for record in records(batch.journal, batch.unit, self.terms.recipe):
            mine = (places >= start) & (places < start + len(record.rows))
            for name, tensor in record.load().items():
                self._allocate(name, tensor)[self._count + mine.nonzero().flatten()] = tensor[places[mine] - start]
            start, end, left = start + len(record.rows), record.end, left - int(mine.sum())
            if not left:
                break
        if left:
            raise StoreError(f"{batch.journal}: {left} rows are gone; something else has written to it during the run")
        root = self.terms.root
        if batch.journal == root / journal_path(batch.unit, self.terms.writer.token):
            self._journal = UnitJournal(self.terms, batch.unit, end)
        elif str(batch.journal) == str(root / batch.journal.name):  # and not the store that this one will replace
            self._journals_read.append(batch.journal)

    def _allocate(self, name: str, like: Tensor) -> Tensor:
        """Returns the memory for a unit's tensor of this name."""
        if name not in self._tensors:
            self._tensors[name] = like.new_empty(self.terms.rows_per_unit, *like.shape[1:])
        return self._tensors[name]

    def _copy(self, batch: UnitBatch, end: int) -> None:
        for name, tensor in batch.tensors.items() if not self._tensors else ():
            self._allocate(name, tensor)
        if batch.tensors.keys() != self._tensors.keys():
            raise StoreError(f"{self.unit}: a batch has {list(batch.tensors)}, not {list(self._tensors)}")
        for name, tensor in batch.tensors.items():
            expected = [len(batch.rows), *self._tensors[name].shape[1:]]
            if list(tensor.shape) != expected:
                raise StoreError(
                    f"{self.unit}: {name!r} of a batch of {len(batch.rows)} rows has shape {list(tensor.shape)}, not "
                    f"{expected}"
                )
            if form(tensor) != (before := form(self._tensors[name])):
                raise StoreError(f"{self.unit}: {name!r} is {form(tensor)}, but {before} in the rows before")
            self._tensors[name][self._count : end] = tensor

    def commit(self) -> UnitEntry:
        """Writes the unit: its shards, then its index table, which commits it."""
        if (unit := self.unit) is None:
            raise StoreError("there are no rows to commit")
        rows, order = self._take_rows()
        groups = self._by_group(rows)
        shards: list[ShardEntry] = []
        files = self._shard_files(unit, rows, groups, order, shards)
        writer, many = self.terms.writer, len(groups) > _MANY_SHARDS
        named = write_shards(self.terms.root, files, lambda: shards[-1].sha256, many=many, token=writer.token)
        shards = [shard._replace(path=place) for shard, (place, _) in zip(shards, named, strict=True)]
        written, rejected, unavailable = (pc.sum(pc.equal(rows["status"], status)).as_py() for status in STATUSES)
        recipe, count = self.terms.recipe, len(rows)
        entry = UnitEntry(unit.split, unit.number, recipe, count, written, rejected, tuple(shards), unavailable)
        entry = entry._replace(environment=writer.environment)
        if not write_index(self.terms.root, _with_places(rows, shards, groups), entry, self.terms.about, writer.token):
            entry = self._give_way(unit, [path for path, is_new in named if is_new])
        if self.terms.journal_seconds is not None:
            (self._journal or UnitJournal(self.terms, unit)).remove()
            for journal in self._journals_read:
                storage_of(self.terms.root).remove(journal.name)
        self.unit = self._journal = None
        self._journals_read.clear()
        self._count = self._saved = 0
        self._unsaved_since = math.inf
        self.on_commit(unit)
        return entry

    def _give_way(self, unit: Unit, made: Sequence[str]) -> UnitEntry:
        """Removes the shards that this process has made of a unit, but for those that the one that committed it names.

        Returns the description of the unit as it is committed.
        """
        entry = read_entry(self.terms.root / index_path(unit))
        for path in set(made) - {shard.path for shard in entry.shards}:
            storage_of(self.terms.root).remove(path)
        return entry

    def _take_rows(self) -> tuple[pa.Table, Numbers | None]:
        """Takes the rows [n], sorted as in the plan, and their order before; None if that was the same."""
        rows = pa.concat_tables(self._rows, promote_options="default").combine_chunks()
        self._rows.clear()  # of a unit of many short rows they take as much memory as the tensors
        order = _numbers(pc.sort_indices(rows["index"]))  # as rows that stay come before those that are computed
        if not (order[1:] < order[:-1]).any():
            return rows, None
        return rows.take(order), order

    def _by_group(self, rows: pa.Table) -> Groups:
        """Sorts the rows that have an embedding by group, the groups in order of appearance."""
        kept = _numbers(pc.indices_nonzero(pc.equal(rows["status"], OK)))
        if not self.terms.grouped or len(kept) == 0:
            return [(None, kept)] if len(kept) else []
        groups = rows["group"].take(kept).combine_chunks().dictionary_encode("encode")
        codes = _numbers(groups.indices)
        order = np.argsort(codes, kind="stable")
        parts = np.split(kept[order], np.flatnonzero(np.diff(codes[order])) + 1)
        return list(zip(groups.dictionary.to_pylist(), parts, strict=True))

    def _shard_files(
        self, unit: Unit, rows: pa.Table, groups: Groups, order: Numbers | None, shards: list[ShardEntry]
    ) -> Iterator[tuple[str, Sequence[bytes | memoryview]]]:
        """Yields the path and the bytes of each shard, and appends its entry to `shards`."""
        index, targets = _numbers(rows["index"]), _numbers(rows["target"].fill_null(UNKNOWN_TARGET))
        inputs = rows.select(["index", "sha256"])
        for group, positions in groups:
            selected = _as_slice(positions) if order is None else torch.from_numpy(order[positions])
            tensors: dict[str, Tensor | Numbers] = {name: tensor[selected] for name, tensor in self._tensors.items()}
            tensors[INDEX] = index[positions]
            if (targets[positions] != UNKNOWN_TARGET).any():
                tensors[TARGETS] = targets[positions]
            path = shard_path(unit, self._folder(unit.split, group) if self.terms.grouped else None)
            digest = inputs_digest(inputs.take(pa.array(positions)))
            header = ShardHeader(FORMAT, unit.split, group, unit.number, self.terms.recipe, digest)
            shard, parts = encode_shard(path, tensors, header)
            shards.append(shard)
            yield shard.path, parts

    def _folder(self, split: str, group: str | None) -> str:
        if split not in self._folders:
            self._folders[split] = GroupFolders(self.terms.writer.groups.get(split, ()))
        return self._folders[split].of(group)


def _as_slice(positions: Numbers) -> Tensor | slice:
    """Returns ascending positions as a slice if they are one, as that makes no copy."""
    first, behind = int(positions[0]), int(positions[-1]) + 1
    is_slice = behind - first == len(positions)
    return slice(first, behind) if is_slice else torch.from_numpy(positions)


def _with_places(rows: pa.Table, shards: Sequence[ShardEntry], groups: Groups) -> pa.Table:
    """Adds the columns of PLACE_SCHEMA to a unit's rows; each shard has the rows of one group."""
    shard, row = np.full((2, len(rows)), -1)
    for number, (_, positions) in enumerate(groups):
        shard[positions], row[positions] = number, np.arange(len(positions))
    missing = shard < 0
    paths = pa.array([entry.path for entry in shards], pa.string()).take(pa.array(shard, mask=missing))
    return in_order(rows.append_column("shard", paths).append_column("row", pa.array(row, mask=missing)))


def _numbers(column: pa.Array | pa.ChunkedArray) -> Numbers:
    """Returns a column of integers, none of which is missing, as int64."""
    numbers: Numbers = column.to_numpy().astype(np.int64, copy=False)
    return numbers
