"""The inputs that a worker is to load, in columns, as they pass to it; and which of them lie next to one another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.plan import SplitPlan
from embedx.data.sources.base import COMMON_SCHEMA

_PLACES = pa.schema([COMMON_SCHEMA.field(name) for name in ("path", "offset", "size")])


class Order(NamedTuple):
    """An input that a worker is to load."""

    row: int
    """The number of the input's row in the plan."""
    path: bytes
    offset: int | None
    size: int | None


class Orders:
    """The inputs of one batch, which are single objects only where they are asked for.

    Args:
        rows: The numbers [n] of their rows in the plan.
        places: Their columns `path`, `offset` and `size`.
    """

    later: Orders | None = None
    """The inputs that the same worker gets next, where reading them ahead pays."""

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.int64]], places: pa.Table) -> None:
        self.rows = rows
        self._places = places

    @classmethod
    def of(cls, plan: SplitPlan, rows: Sequence[int]) -> Self:
        """Takes the inputs in these rows of a plan."""
        numbers = as_numbers(rows)
        return cls(numbers, plan.table.select(_PLACES.names).take(pa.array(numbers)))

    @classmethod
    def listed(cls, orders: Sequence[Order]) -> Self:
        """Makes them from single ones."""
        rows, *places = zip(*orders, strict=True)
        return cls(as_numbers(rows), pa.table(list(map(list, places)), schema=_PLACES))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Order:
        return self._each[position]

    def __iter__(self) -> Iterator[Order]:
        return iter(self._each)

    @cached_property
    def _each(self) -> list[Order]:
        return list(map(Order, self.rows.tolist(), *(column.to_pylist() for column in self._places.columns)))

    def runs(self) -> list[tuple[int, int]]:
        """Cuts them into runs, as (first position, position behind): the offsets of a run count up in one file."""
        offsets = self._places["offset"]
        if offsets.null_count or not len(self):
            return [(position, position + 1) for position in range(len(self))]
        codes = pc.dictionary_encode(self._places["path"].combine_chunks()).indices.to_numpy()
        follows = (np.diff(codes) == 0) & (np.diff(offsets.to_numpy()) == 1)
        cuts = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(self)]
        return list(itertools.pairwise(cuts))

    def name_urls(self) -> bool:
        """Tells whether some of them may be read from afar."""
        return bool(pc.any(pc.match_substring(self._places["path"], "://")).as_py())

    def place(self, position: int) -> tuple[bytes, int | None]:
        """Returns the path and the offset of one of them."""
        return self._places["path"][position].as_py(), self._places["offset"][position].as_py()


def as_numbers(rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns rows as an array [n] int64, and a range without making its numbers one by one."""
    return np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else np.asarray(rows, np.int64)
