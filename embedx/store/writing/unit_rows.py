"""The items that the writer process is given: rows that were computed, now or by an earlier run, or stay in an update.

Shapes: n rows of one unit, D embedding dimension, T tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

import pyarrow as pa

from embedx.store.format.index import PLACE_SCHEMA
from embedx.store.format.layout import StoredFile, StoreRoot, Unit

if TYPE_CHECKING:  # a store that is up to date is recognised without torch
    from torch import Tensor


class UnitBatch(NamedTuple):
    """The rows of one batch that belong to one unit."""

    unit: Unit
    tensors: dict[str, Tensor]
    """`embeddings` [n, D] or [n, T, D], and one tensor [n, ...] per extra layer."""
    rows: pa.Table
    """The identities of the n inputs, in the columns of `index.ROW_SCHEMA` and then the source's own."""
    computed_at: float = math.inf
    """The monotonic time at which the rows were handed over; they are journalled once they are old."""

    def part(self, start: int, stop: int) -> UnitBatch:
        """Returns the rows from `start` up to `stop`."""
        tensors = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return self._replace(tensors=tensors, rows=self.rows.slice(start, stop - start))


class StayingRows(NamedTuple):
    """The rows of one unit that an update takes from another store."""

    unit: Unit
    rows: pa.Table
    """The identities of the n inputs as they are now, in the same columns as those of a UnitBatch."""
    places: pa.Table
    """The places of the n embeddings in the other store, in the columns of `index.PLACE_SCHEMA`."""
    store: StoreRoot | None = None
    """The folder of the other store; None for that which is replaced."""

    @classmethod
    def of(cls, unit: Unit, table: pa.Table, store: StoreRoot | None = None) -> Self:
        """Makes them from a table [n] with the columns of an index table."""
        return cls(unit, table.drop_columns(PLACE_SCHEMA.names), table.select(PLACE_SCHEMA.names), store)


class JournalledRows(NamedTuple):
    """The rows of one unit that an earlier run has computed and journalled, and not committed."""

    unit: Unit
    rows: pa.Table
    """The identities of the n inputs as they are now, in the same columns as those of a UnitBatch."""
    journal: StoredFile
    """The journal that has their tensors."""
    places: pa.Table
    """The places of the n rows: `row` counts those of all of the journal's records."""

    @classmethod
    def of(cls, unit: Unit, journal: StoredFile, table: pa.Table) -> Self:
        """Makes them from a table [n] with the columns of an index table."""
        return cls(unit, table.drop_columns(PLACE_SCHEMA.names), journal, table.select(PLACE_SCHEMA.names))


EarlierRows: TypeAlias = StayingRows | JournalledRows
"""The rows of one unit that need not be computed."""


@dataclasses.dataclass
class EarlierUnits:
    """The rows that need not be computed, by the unit that is still to be written."""

    staying: dict[Unit, StayingRows] = dataclasses.field(default_factory=dict)
    computed: dict[Unit, list[EarlierRows]] = dataclasses.field(default_factory=dict)
    """The rows that interrupted runs have computed, in journals and in stores that were set aside."""
    whole: list[Unit] = dataclasses.field(default_factory=list)
    """The units that had been journalled to their end, and only have to be committed; they are the first to be."""

    @property
    def units(self) -> list[Unit]:
        """All units of which there are rows, in the order in which they are written where nothing is computed."""
        return list(dict.fromkeys([*self.whole, *self.computed, *self.staying]))

    def of(self, unit: Unit) -> list[EarlierRows]:
        """Returns the rows of a unit."""
        staying = self.staying.get(unit)
        return [*([] if staying is None else [staying]), *self.computed.get(unit, ())]

    def take(self, unit: Unit) -> list[EarlierRows]:
        """Takes the rows of a unit; a second time there are none."""
        rows = self.of(unit)
        self.staying.pop(unit, None)
        self.computed.pop(unit, None)
        return rows


def cut_into_units(rows: pa.Table, rows_per_unit: int) -> Iterator[tuple[Unit, int, int]]:
    """Cuts a batch's rows where one unit ends and the next begins: (unit, first position, position behind)."""
    split = rows["split"][0].as_py()
    units = [index // rows_per_unit for index in rows["index"].to_pylist()]
    for unit in dict.fromkeys(units):
        start = units.index(unit)
        yield Unit(split, unit), start, start + units.count(unit)
