"""The items that the writer process is given: rows that were computed, and rows that an update keeps.

Shapes: n rows of one unit, D embedding dimension, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import pyarrow as pa

from embedx.store.format.index import PLACE_SCHEMA
from embedx.store.format.layout import Unit

if TYPE_CHECKING:  # a store that is up to date is recognised without torch
    from torch import Tensor


class UnitBatch(NamedTuple):
    """The rows of one batch that belong to one unit."""

    unit: Unit
    tensors: dict[str, Tensor]
    """`embeddings` [n, D] or [n, T, D], and one tensor [n, ...] per extra layer."""
    rows: pa.Table
    """The identities of the n inputs, in the columns of `index.ROW_SCHEMA` and then the source's own."""

    def part(self, start: int, stop: int) -> UnitBatch:
        """Returns the rows from `start` up to `stop`."""
        tensors = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return self._replace(tensors=tensors, rows=self.rows.slice(start, stop - start))


class StayingRows(NamedTuple):
    """The rows of one unit that an update takes from the store that it replaces."""

    unit: Unit
    rows: pa.Table
    """The identities of the n inputs as they are now, in the same columns as those of a UnitBatch."""
    places: pa.Table
    """The places of the n embeddings in the old store, in the columns of `index.PLACE_SCHEMA`."""

    @classmethod
    def of(cls, unit: Unit, table: pa.Table) -> Self:
        """Makes them from a table [n] with the columns of an index table."""
        return cls(unit, table.drop_columns(PLACE_SCHEMA.names), table.select(PLACE_SCHEMA.names))
