"""The vectors of a store's rows, block by block or by their numbers, with their inputs beside them.

Shapes: N rows, n rows of a block, D embedding dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from embedx.errors import ConfigError, StoreError, unknown
from embedx.names import EMBEDDINGS
from embedx.store.format.index import INDEX_SCHEMA, OK, UnitEntry
from embedx.store.reading.index_rows import concat_rows
from embedx.store.reading.reader import Store
from embedx.store.reading.stored_rows import StoredRows
from embedx.vectors.where import matching_rows

KEYS = ("split", "key")
"""The columns that name a row's input."""
_PLACE = ("shard", "row")


@dataclasses.dataclass(frozen=True)
class VectorRows:
    """Rows of a store, one vector each, in the order of its units and shards; the shards are mapped, not read."""

    store: Store
    name: str
    """The name of the tensor."""
    dim: int
    """The length of the vectors, D."""
    table: pa.Table
    """The N rows of the index tables: `split`, `key`, `shard`, `row`, and the other columns that were asked for."""
    stored: StoredRows
    """The reader of the shards, which may check each shard's sha256 before its first row is used."""

    def __len__(self) -> int:
        return len(self.table)

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Yields the number of the first row and the vectors [n, D] float32 of each block, of at most so many rows.

        Blocks are pieces of a mapped shard where that has float32 and all of its rows are wanted, and else copies.
        """
        start = 0
        waiting: list[Tensor] = []
        for piece in self._pieces(rows):
            if waiting and len(piece) + sum(map(len, waiting)) > rows:
                yield start, _joined(waiting)
                start += sum(map(len, waiting))
                waiting = []
            waiting.append(piece)
        if waiting:
            yield start, _joined(waiting)

    def take(self, numbers: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """Returns the vectors [n, D] float32 of rows by their numbers, which count the rows from 0."""
        if not len(numbers):
            return torch.empty(0, self.dim)
        places = self.table.select(_PLACE).take(pa.array(numbers, pa.int64()))
        return self.stored.gather(self.name, places).float()

    def _pieces(self, most: int) -> Iterator[Tensor]:
        paths = [path for path, _, _ in self._runs]
        wanted = [self._row[start:stop] for _, start, stop in self._runs]
        for (path, start, stop), values in zip(self._runs, self.stored.tensors(paths, self.name, wanted), strict=True):
            if (values.ndim, *values.shape[1:]) != (2, self.dim):
                shape = list(values.shape[1:])
                raise StoreError(f"{path}: {self.name!r} has {shape} numbers per row, and elsewhere {self.dim}")
            rows = self._row[start:stop]
            if rows[-1] >= len(values) or rows[0] < 0:
                raise self.store.folder.fault(f"{path} and its index table disagree; run `embedx verify` on it")
            is_run = rows[-1] - rows[0] == len(rows) - 1
            for first in range(0, len(rows), most):
                own = rows[first : first + most]
                piece = values[own[0] : own[-1] + 1] if is_run else values[torch.from_numpy(own.copy())]
                yield piece.float()

    @cached_property
    def _row(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        found: np.ndarray[tuple[int], np.dtype[np.int64]] = self.table["row"].to_numpy()
        return found

    @cached_property
    def _runs(self) -> list[tuple[str, int, int]]:
        """The rows of each shard: its path, the number of the first one, and that behind the last one."""
        if not len(self):
            return []
        shards = self.table["shard"].combine_chunks().dictionary_encode()
        codes = shards.indices.to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist()]
        return [
            (shards.dictionary[codes[start]].as_py(), start, stop)
            for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True)
        ]


def open_rows(
    store: Store,
    splits: Iterable[str] = (),
    *,
    name: str = EMBEDDINGS,
    where: str | None = None,
    columns: Sequence[str] = (),
    check: bool = True,
) -> VectorRows:
    """Opens the rows of a store that have a vector.

    Args:
        store: The store; of one that is not complete, the rows that are committed.
        splits: The names of the splits, in the order in which their rows are wanted; none takes all of them.
        name: The name of the tensor: `embeddings`, or an extra layer's.
        where: A condition in SQL on the columns of the index, such as `group = 'cat'`; None takes all rows.
        columns: The names of further columns of the index to read; a store that lacks one has nulls there.
        check: Whether each shard's sha256 is checked before its first row is used; it takes as long as reading it.

    Raises:
        ConfigError: If there is no such split or tensor, the condition can't be met or understood, there are no rows,
            or not one vector per row.
        StoreReplacedError: If another store has taken this one's place.
        StoreError: If a file is damaged.
    """
    splits = list(dict.fromkeys(splits)) or store.splits
    for split in splits:
        if split not in store.splits:
            raise ConfigError(unknown("split", split, store.splits, hint=f"in {store.path}"))
    units = {path: unit for path, unit in store.units.items() if unit.split in splits}
    wanted = list(dict.fromkeys([*KEYS, "status", *_PLACE, *columns]))
    paths = [path for split in splits for path in units if units[path].split == split]
    of_embedx = where is None and set(wanted) <= set(INDEX_SCHEMA.names)
    read = zip(paths, store.read_tables(paths, wanted if of_embedx else None), strict=True)
    tables = [_in_order_of_shards(store, path, units[path], table) for path, table in read]
    table = concat_rows(tables)
    if where is not None:
        table = table.filter(matching_rows(table, where))
    for column in wanted:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table)))
    table = table.select([column for column in wanted if column != "status"])
    if not len(table):
        condition = "" if where is None else f" where {where}"
        raise ConfigError(f"{store.path} has no rows{condition} (split {', '.join(splits) or 'none'})")
    stored = StoredRows(store.folder, store.units.values(), check=check)
    first = table["shard"][0].as_py()
    if name not in (names := stored.names_in(first)):
        raise ConfigError(unknown("tensor", name, names, hint=f"in {store.path}"))
    shape = stored.shape_in(first, name)
    if len(shape) != 1:
        raise ConfigError(
            f"{store.path}: {name!r} has {list(shape)} numbers per row, and one vector is needed; run `embedx extract` "
            "with --pool avg"
        )
    return VectorRows(store, name, shape[0], table, stored)


def unit_length(rows: Tensor) -> Tensor:
    """Scales vectors [n, D] to the length 1; one of zeros, or with NaN or infinity, becomes zeros.

    Each is divided by its largest absolute value first, so that no square overflows or vanishes.
    """
    largest = rows.abs().amax(dim=1, keepdim=True)
    is_usable = largest.isfinite() & (largest > 0)
    scaled = torch.where(is_usable, rows / torch.where(is_usable, largest, 1), 0)
    return scaled / torch.where(is_usable, torch.linalg.vector_norm(scaled, dim=1, keepdim=True), 1)


def _in_order_of_shards(store: Store, path: str, unit: UnitEntry, table: pa.Table) -> pa.Table:
    """Returns the rows of a unit's index table that have a vector, ordered by their places."""
    table = table.filter(pc.equal(table["status"], OK))
    shards = pa.array([entry.path for entry in unit.shards], pa.string())
    codes = pc.index_in(table["shard"], value_set=shards)
    if len(table) != unit.rows or codes.null_count or table["row"].null_count:
        raise store.folder.fault(f"{path} and its shards disagree; run `embedx verify {store.path}`")
    numbers, rows = codes.to_numpy(), table["row"].to_numpy()
    order = np.lexsort([rows, numbers])
    is_ordered = bool((np.diff(order) == 1).all())
    return table if is_ordered else table.take(pa.array(order))


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
