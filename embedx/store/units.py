"""Rows of one unit, gathered batch by batch and then committed: its shards first, its index table last."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import StoreError
from embedx.store.index import OK, PLACE_SCHEMA, UnitEntry, write_index
from embedx.store.layout import StoreTerms, Unit, shard_path
from embedx.store.shards import FORMAT, INDEX, TARGETS, ShardEntry, ShardHeader, open_shard, write_shard

UNKNOWN_TARGET = -1
"""Stands in a shard's `targets` for a row without one, where others have one."""


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
    """Gathers one unit's rows in memory that is allocated once, and commits them."""

    def __init__(self, terms: StoreTerms, unit: Unit) -> None:
        self.terms = terms
        self.unit = unit
        self._rows: list[pa.Table] = []
        self._tensors: dict[str, Tensor] = {}
        self._count = 0

    def add(self, batch: UnitBatch) -> None:
        """Copies a batch's rows behind those already there.

        Raises:
            StoreError: If the tensors' names, shapes or lengths do not go with the rows before.
        """
        end = self._count + len(batch.rows)
        if end > self.terms.rows_per_unit:
            raise StoreError(f"{self.unit} has more than its {self.terms.rows_per_unit} rows")
        if self.terms.base is not None and set(PLACE_SCHEMA.names) <= set(batch.rows.column_names):
            tensors = tensors_of(self.terms.base, batch.rows)
            batch = UnitBatch(batch.unit, tensors, batch.rows.drop_columns(PLACE_SCHEMA.names))
        if batch.tensors:
            self._copy(batch, end)
        self._rows.append(batch.rows)
        self._count = end

    def _copy(self, batch: UnitBatch, end: int) -> None:
        if not self._tensors:
            self._tensors = {
                name: tensor.new_empty(self.terms.rows_per_unit, *tensor.shape[1:])
                for name, tensor in batch.tensors.items()
            }
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
        """
        rows = pa.concat_tables(self._rows, promote_options="default")
        order = pc.sort_indices(rows["index"])  # rows that stay come before those that are computed
        rows = rows.take(order)
        places = torch.from_numpy(order.to_numpy().astype("int64"))
        shard_column: list[str | None] = [None] * len(rows)
        row_column: list[int | None] = [None] * len(rows)
        shards = []
        for group, positions in self._positions_by_group(rows).items():
            shard = self._write_shard(rows, group, positions, places)
            for row, position in enumerate(positions):
                shard_column[position], row_column[position] = shard.path, row
            shards.append(shard)
        at = rows.schema.get_field_index("reason") + 1
        rows = rows.add_column(at, "shard", pa.array(shard_column, pa.string()))
        rows = rows.add_column(at + 1, "row", pa.array(row_column, pa.int64()))
        written = sum(shard.rows for shard in shards)
        entry = UnitEntry(
            split=self.unit.split,
            unit=self.unit.number,
            recipe=self.terms.recipe,
            inputs=len(rows),
            rows=written,
            rejected=len(rows) - written,
            shards=tuple(shards),
        )
        write_index(self.terms.root, rows, entry)
        return entry

    def _positions_by_group(self, rows: pa.Table) -> dict[str | None, list[int]]:
        """The rows that have an embedding, as positions in the unit, by group in order of appearance."""
        positions: dict[str | None, list[int]] = {}
        kept = pc.indices_nonzero(pc.equal(rows["status"], OK))
        for position, group in zip(kept.to_pylist(), rows["group"].take(kept).to_pylist(), strict=True):
            positions.setdefault(group if self.terms.grouped else None, []).append(position)
        return positions

    def _write_shard(self, rows: pa.Table, group: str | None, positions: list[int], places: Tensor) -> ShardEntry:
        selected = places[torch.tensor(positions)]
        tensors = {name: tensor[selected] for name, tensor in self._tensors.items()}
        own = rows.select(["index", "target"]).take(pa.array(positions))
        tensors[INDEX] = torch.tensor(own["index"].to_pylist())
        if own["target"].null_count < len(own):
            tensors[TARGETS] = torch.tensor(own["target"].fill_null(UNKNOWN_TARGET).to_pylist())
        path = shard_path(self.unit, group, grouped=self.terms.grouped)
        header = ShardHeader(FORMAT, self.unit.split, group, self.unit.number, self.terms.recipe)
        return write_shard(self.terms.root, path, tensors, header)


def tensors_of(root: Path, rows: pa.Table) -> dict[str, Tensor]:
    """Reads the tensors of some rows of a store.

    Args:
        root: The store.
        rows: n rows; `shard` and `row` say where each is, null for rejected ones.

    Returns:
        [n, ...] per tensor of the shards but `index` and `targets`, zero for rejected rows; empty if all are.

    Raises:
        StoreError: If a shard can't be read, or has no such row.
    """
    tensors: dict[str, Tensor] = {}
    for path in pc.unique(rows["shard"]).drop_null().to_pylist():
        here = pc.equal(rows["shard"], path)
        places = torch.from_numpy(pc.indices_nonzero(here).to_numpy().astype("int64"))
        numbers = torch.from_numpy(rows["row"].filter(here).to_numpy().copy())
        with open_shard(root / path) as shard:
            for name in sorted({*shard.keys()} - {INDEX, TARGETS}):
                values: Tensor = shard.get_tensor(name)
                if int(numbers.max()) >= len(values):
                    raise StoreError(f"{path} has no row {int(numbers.max())}; run `embedx verify {root}`")
                if name not in tensors:
                    tensors[name] = values.new_zeros(len(rows), *values.shape[1:])
                tensors[name][places] = values[numbers]
    return tensors
