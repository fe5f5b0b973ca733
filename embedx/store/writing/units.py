"""Rows of one unit, gathered batch by batch and then committed: its shards first, its index table last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import StoreError
from embedx.names import INDEX, TARGETS
from embedx.store.format.atomic import write_all
from embedx.store.format.index import OK, PLACE_SCHEMA, UnitEntry, read_entry, write_index
from embedx.store.format.layout import GroupFolders, StoreTerms, Unit, folder_name, index_files, shard_path
from embedx.store.format.no_follow import path_inside
from embedx.store.format.shards import FORMAT, ShardEntry, ShardHeader, encode_shard
from embedx.store.reading.stored_rows import StoredRows

UNKNOWN_TARGET = -1
"""Stands in a shard's `targets` for a row without one, where others have one."""

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""[n], int64"""

_MANY_SHARDS = 16
"""Beyond so many it is quicker to bring all of the file system to disk than each of them."""


class UnitBatch(NamedTuple):
    """One batch on its way to the store; all its rows belong to one unit."""

    unit: Unit
    tensors: dict[str, Tensor]
    """`embeddings` [n, D] or [n, T, D], and one tensor [n, ...] per extra layer; none for rows that stay."""
    rows: pa.Table
    """The n inputs' identities, in the columns of `index.ROW_SCHEMA` and then the source's own. Those of rows that stay
    have the columns of `index.PLACE_SCHEMA` as well: where in the store that is replaced their tensors are."""

    def part(self, start: int, stop: int) -> UnitBatch:
        """The rows from `start` up to `stop`."""
        tensors = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return self._replace(tensors=tensors, rows=self.rows.slice(start, stop - start))


class UnitBuffer:
    """Gathers the rows of one unit after the other, in memory that is allocated once, and commits them."""

    def __init__(self, terms: StoreTerms) -> None:
        self.terms = terms
        self.unit: Unit | None = None
        """Whose rows are gathered; None if there are none."""
        self._rows: list[pa.Table] = []
        self._tensors: dict[str, Tensor] = {}
        self._count = 0
        self._folders: dict[str, GroupFolders] = {}

    @cached_property
    def _base(self) -> StoredRows:
        if self.terms.base is None:
            raise StoreError(f"{self.terms.root} replaces no store that rows could stay from")
        units = []
        for path in index_files(self.terms.base).values():
            with contextlib.suppress(StoreError):  # what is damaged does not stay
                units.append(read_entry(path))
        return StoredRows(self.terms.base, units)

    def add(self, batch: UnitBatch) -> None:
        """Copies a batch's rows behind those already there, all of one unit.

        Raises:
            StoreError: If the tensors' names, shapes or lengths do not go with the rows before.
        """
        self.unit = batch.unit
        end = self._count + len(batch.rows)
        if end > self.terms.rows_per_unit:
            raise StoreError(f"{self.unit} has more than its {self.terms.rows_per_unit} rows")
        if set(PLACE_SCHEMA.names) <= set(batch.rows.column_names):
            self._copy_staying(batch.rows)
            batch = batch._replace(rows=batch.rows.drop_columns(PLACE_SCHEMA.names))
        else:
            self._copy(batch, end)
        self._rows.append(batch.rows)
        self._count = end

    def _copy_staying(self, rows: pa.Table) -> None:
        embedded = pc.is_valid(rows["shard"])
        positions = torch.from_numpy(self._count + _numbers(pc.indices_nonzero(embedded)))
        places = rows.filter(embedded)
        for name in self._base.names if len(places) else ():
            tensor = self._base.gather(name, places)
            self._allocate(name, tensor)[positions] = tensor

    def _allocate(self, name: str, like: Tensor) -> Tensor:
        """The memory for a unit's tensor of this name."""
        if name not in self._tensors:
            self._tensors[name] = like.new_empty(self.terms.rows_per_unit, *like.shape[1:])
        return self._tensors[name]

    def _copy(self, batch: UnitBatch, end: int) -> None:
        for name, tensor in batch.tensors.items() if not self._tensors else ():
            self._allocate(name, tensor)
        if batch.tensors.keys() != self._tensors.keys():
            raise StoreError(f"{self.unit}: a batch has {list(batch.tensors)}, not {list(self._tensors)}")
        for name, tensor in batch.tensors.items():
            if len(tensor) != len(batch.rows) or tensor.shape[1:] != self._tensors[name].shape[1:]:
                raise StoreError(
                    f"{self.unit}: {name!r} of a batch of {len(batch.rows)} rows has shape "
                    f"{list(tensor.shape)}, not [{len(batch.rows)}, "
                    f"{', '.join(map(str, self._tensors[name].shape[1:]))}]"
                )
            self._tensors[name][self._count : end] = tensor

    def commit(self) -> UnitEntry:
        """Writes the unit: its shards, then its index table, by which it comes into being.

        Raises:
            OSError: If a file can't be written; the unit does not exist then.
            StoreError: If one would be written through a link.
        """
        if (unit := self.unit) is None:
            raise StoreError("there are no rows to commit")
        rows = pa.concat_tables(self._rows, promote_options="default").combine_chunks()
        self._rows.clear()  # of a unit of many short rows they take as much memory as the tensors
        places = _numbers(pc.sort_indices(rows["index"]))  # as rows that stay come before those that are computed
        in_order = not (places[1:] < places[:-1]).any()
        if not in_order:
            rows = rows.take(places)
        groups = self._by_group(rows)
        numbers = {INDEX: _numbers(rows["index"]), TARGETS: _numbers(rows["target"].fill_null(UNKNOWN_TARGET))}
        shards: list[ShardEntry] = []
        known: set[str] = set()

        def files() -> Iterator[tuple[str, Sequence[bytes | memoryview]]]:
            for group, positions in groups:
                own = {name: column[positions] for name, column in numbers.items()}
                selected = _as_slice(positions) if in_order else torch.from_numpy(places[positions])
                shard, parts = self._shard(unit, group, selected, own)
                shards.append(shard)
                yield path_inside(self.terms.root, shard.path, known), parts

        write_all(files(), below=self.terms.root, many=len(groups) > _MANY_SHARDS)
        at = rows.schema.get_field_index("reason") + 1
        paths, within = _places(shards, [positions for _, positions in groups], len(rows))
        rows = rows.add_column(at, "shard", paths).add_column(at + 1, "row", within)
        written = sum(shard.rows for shard in shards)
        entry = UnitEntry(
            split=unit.split,
            unit=unit.number,
            recipe=self.terms.recipe,
            inputs=len(rows),
            rows=written,
            rejected=len(rows) - written,
            shards=tuple(shards),
        )
        write_index(self.terms.root, rows, entry)
        self.unit = None
        self._count = 0
        return entry

    def _by_group(self, rows: pa.Table) -> list[tuple[str | None, Numbers]]:
        """The rows that have an embedding, as positions in the unit, by group in order of appearance."""
        kept = _numbers(pc.indices_nonzero(pc.equal(rows["status"], OK)))
        if not self.terms.grouped or len(kept) == 0:
            return [(None, kept)] if len(kept) else []
        groups = rows["group"].take(kept).combine_chunks().dictionary_encode("encode")
        codes = _numbers(groups.indices)
        order = np.argsort(codes, kind="stable")
        parts = np.split(kept[order], np.flatnonzero(np.diff(codes[order])) + 1)
        return list(zip(groups.dictionary.to_pylist(), parts, strict=True))

    def _shard(
        self, unit: Unit, group: str | None, selected: Tensor | slice, numbers: Mapping[str, Numbers]
    ) -> tuple[ShardEntry, list[bytes | memoryview]]:
        tensors: dict[str, Tensor | Numbers] = {name: tensor[selected] for name, tensor in self._tensors.items()}
        tensors[INDEX] = numbers[INDEX]
        if (numbers[TARGETS] != UNKNOWN_TARGET).any():
            tensors[TARGETS] = numbers[TARGETS]
        path = shard_path(unit, self._folder(unit.split, group) if self.terms.grouped else None)
        header = ShardHeader(FORMAT, unit.split, group, unit.number, self.terms.recipe)
        return encode_shard(path, tensors, header)

    def _folder(self, split: str, group: str | None) -> str:
        if split not in self._folders:
            self._folders[split] = GroupFolders(Path(path_inside(self.terms.root, folder_name(split))))
        return self._folders[split].of(group)


def _as_slice(positions: Numbers) -> Tensor | slice:
    """The same ascending positions as a slice, if they are one: of that no copy is made."""
    first, behind = int(positions[0]), int(positions[-1]) + 1
    is_slice = behind - first == len(positions)
    return slice(first, behind) if is_slice else torch.from_numpy(positions)


def _places(shards: Sequence[ShardEntry], positions: Sequence[Numbers], count: int) -> tuple[pa.Array, pa.Array]:
    """The columns of PLACE_SCHEMA for so many rows, of which each shard has those at its positions, in that order."""
    shard, row = np.full((2, count), -1)
    for number, own in enumerate(positions):
        shard[own], row[own] = number, np.arange(len(own))
    rejected = shard < 0
    paths = pa.array([entry.path for entry in shards], pa.string())
    return paths.take(pa.array(shard, mask=rejected)), pa.array(row, mask=rejected)


def _numbers(column: pa.Array | pa.ChunkedArray) -> Numbers:
    """Whole numbers, none missing."""
    numbers: Numbers = column.to_numpy().astype(np.int64, copy=False)
    return numbers
