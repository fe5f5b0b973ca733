"""The inputs that a worker is to load, in columns, as they pass to it; and which of them lie next to one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.plan import SplitPlan

_PLACES = ("path", "offset", "size")


class Order(NamedTuple):
    """An input that a worker is to load."""

    row: int
    """The number of the input's row in the plan."""
    path: bytes
    offset: int | None
    size: int | None


class Orders:
    """The inputs of one batch.

    Args:
        rows: The numbers [n] of their rows in the plan.
        places: Their columns `path`, `offset` and `size`.
    """

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.int64]], places: pa.Table) -> None:
        self.rows = rows
        self._places = places

    @classmethod
    def of(cls, plan: SplitPlan, rows: Sequence[int]) -> Orders:
        """Takes them from a plan."""
        numbers = as_numbers(rows)
        return cls(numbers, plan.table.select(_PLACES).take(pa.array(numbers)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Order]:
        return map(Order, self.rows.tolist(), *(column.to_pylist() for column in self._places.columns))

    def runs(self) -> list[tuple[int, int]]:
        """Cuts them into runs, as (first position, position behind): the offsets of a run count up in one file."""
        count, offsets = len(self), self._places["offset"]
        if offsets.null_count or not count:
            return [(position, position + 1) for position in range(count)]
        codes = pc.dictionary_encode(self._places["path"].combine_chunks()).indices.to_numpy()
        follows = (np.diff(codes) == 0) & (np.diff(offsets.to_numpy()) == 1)
        cuts = [0, *(np.flatnonzero(~follows) + 1).tolist(), count]
        return list(zip(cuts[:-1], cuts[1:], strict=True))


def as_numbers(rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns rows as an array [n] int64, and a range without making its numbers one by one."""
    return np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else np.asarray(rows, np.int64)
