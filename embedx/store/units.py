"""Rows of one unit, gathered batch by batch and then committed: its shards first, its index table last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import StoreError
from embedx.store.files import write_all
from embedx.store.index import OK, PLACE_SCHEMA, UnitEntry, read_entry, write_index
from embedx.store.layout import GroupFolders, StoreTerms, Unit, folder_name, index_files, shard_path
from embedx.store.links import inside
from embedx.store.rows import StoredRows
from embedx.store.shards import FORMAT, INDEX, TARGETS, ShardEntry, ShardHeader, encode_shard

UNKNOWN_TARGET = -1
"""Stands in a shard's `targets` for a row without one, where others have one."""


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
        positions = self._count + _tensor(pc.indices_nonzero(embedded))
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
        rows = pa.concat_tables(self._rows, promote_options="default")
        order = pc.sort_indices(rows["index"])  # rows that stay come before those that are computed
        rows = rows.take(order)
        places = _tensor(order)
        shard_column: list[str | None] = [None] * len(rows)
        row_column: list[int | None] = [None] * len(rows)
        shards: list[ShardEntry] = []
        by_group = self._positions_by_group(rows)
        numbers = {INDEX: _tensor(rows["index"]), TARGETS: _tensor(rows["target"].fill_null(UNKNOWN_TARGET))}

        def files() -> Iterator[tuple[Path, bytes]]:
            for group, positions in by_group.items():
                shard, data = self._shard(unit, group, torch.tensor(positions), places, numbers)
                for row, position in enumerate(positions):
                    shard_column[position], row_column[position] = shard.path, row
                shards.append(shard)
                yield inside(self.terms.root, shard.path), data

        write_all(files(), below=self.terms.root, many=len(by_group) > _MANY_SHARDS)
        at = rows.schema.get_field_index("reason") + 1
        rows = rows.add_column(at, "shard", pa.array(shard_column, pa.string()))
        rows = rows.add_column(at + 1, "row", pa.array(row_column, pa.int64()))
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
        self._rows, self._count = [], 0
        return entry

    def _positions_by_group(self, rows: pa.Table) -> dict[str | None, list[int]]:
        """The rows that have an embedding, as positions in the unit, by group in order of appearance."""
        positions: dict[str | None, list[int]] = {}
        kept = pc.indices_nonzero(pc.equal(rows["status"], OK))
        for position, group in zip(kept.to_pylist(), rows["group"].take(kept).to_pylist(), strict=True):
            positions.setdefault(group if self.terms.grouped else None, []).append(position)
        return positions

    def _shard(
        self, unit: Unit, group: str | None, positions: Tensor, places: Tensor, numbers: Mapping[str, Tensor]
    ) -> tuple[ShardEntry, bytes]:
        selected = _as_slice(places[positions])
        tensors = {name: tensor[selected] for name, tensor in self._tensors.items()}
        tensors |= {name: column[positions] for name, column in numbers.items()}
        if (tensors[TARGETS] == UNKNOWN_TARGET).all():
            del tensors[TARGETS]
        path = shard_path(unit, self._folder(unit.split, group) if self.terms.grouped else None)
        header = ShardHeader(FORMAT, unit.split, group, unit.number, self.terms.recipe)
        return encode_shard(path, tensors, header)

    def _folder(self, split: str, group: str | None) -> str:
        if split not in self._folders:
            self._folders[split] = GroupFolders(inside(self.terms.root, folder_name(split)))
        return self._folders[split].of(group)


def _as_slice(positions: Tensor) -> Tensor | slice:
    """The same positions as a slice, if they are one: of that no copy is made."""
    first, behind = int(positions[0]), int(positions[-1]) + 1
    is_slice = behind - first == len(positions) and bool((positions.diff() == 1).all())
    return slice(first, behind) if is_slice else positions


def _tensor(column: pa.Array | pa.ChunkedArray) -> Tensor:
    """Whole numbers, none missing, as a tensor [N] int64."""
    return torch.from_numpy(column.to_numpy().astype("int64"))
