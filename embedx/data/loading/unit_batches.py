"""The batches into which the units of a split are cut, one after another, and which of a unit's rows are loaded."""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, cast

import numpy as np
from torch.utils.data import Sampler

from embedx.data.loading.orders import Orders
from embedx.data.plan import SplitPlan
from embedx.values import MOST_READS

T = TypeVar("T")

_LATER_ROWS = MOST_READS
"""The number of a worker's next rows, at least, that a batch names where reading ahead pays."""


class UniqueRows:
    """Leaves out of a unit the rows whose input another row of the unit has already.

    Only paths tell that; an input at an offset of a file has one row.
    """

    def __init__(self, plan: SplitPlan) -> None:
        self.repeats: dict[int, list[int]] = {}
        """All the rows of an input that recurs in a unit, by the first of them, of the units so far."""
        encoded = plan.table["path"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        recur = len(encoded.dictionary) < len(codes) and plan.table["offset"].null_count == len(codes)
        self._codes = codes if recur else None

    def of(self, rows: Sequence[int]) -> Sequence[int]:
        """Returns the rows of a unit that are loaded: the first one of every input."""
        if self._codes is None:
            return rows
        numbers = np.asarray(rows)
        _, firsts, group = np.unique(self._codes[numbers], return_index=True, return_inverse=True)
        counts = np.bincount(group)
        for number in np.flatnonzero(counts > 1).tolist():
            self.repeats[int(numbers[firsts[number]])] = numbers[group == number].tolist()
        return cast(list[int], numbers[np.sort(firsts)].tolist())


class Remembered(Iterable[T]):
    """The items of an iterator, each taken when it is first needed; they may be iterated again."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._taken: list[T] = []

    def __iter__(self) -> Iterator[T]:
        for position in itertools.count():
            if position == len(self._taken):
                try:
                    self._taken.append(next(self._items))
                except StopIteration:
                    return
            yield self._taken[position]


class UnitBatches(Sampler[Orders]):
    """Cuts units, lists of rows of a plan, into batches; none crosses the end of its unit.

    The units may come one by one; then there is no length.
    """

    def __init__(self, plan: SplitPlan, units: Iterable[Sequence[int]], batch_size: int) -> None:
        self.plan = plan
        self.units = units
        self.batch_size = batch_size
        self.first = 0
        self.workers = 0

    def __iter__(self) -> Iterator[Orders]:
        """Yields the batches; one of inputs at URLs names those that the same worker gets next."""
        step = max(1, self.workers)
        for rows, later in islice(self._batches(step), self.first, None):
            orders = Orders.of(self.plan, rows)
            if later and orders.name_urls():
                orders.later = Orders.of(self.plan, list(itertools.chain.from_iterable(later)))
            yield orders

    def starting_at(self, first: int, workers: int = 0) -> UnitBatches:
        """Returns the same batches, beginning with the one of this number; so many workers take turns at them."""
        batches = copy.copy(self)
        batches.first, batches.workers = first, workers
        return batches

    def __len__(self) -> int:
        if not isinstance(self.units, Sequence):
            raise TypeError("the units come one by one")
        return sum(math.ceil(len(unit) / self.batch_size) for unit in self.units) - self.first

    def _batches(self, step: int) -> Iterator[tuple[Sequence[int], list[Sequence[int]]]]:
        """Yields the rows of each batch, and of some of every `step`-th one behind it; asks for no unit for these."""
        ahead = -(-_LATER_ROWS // self.batch_size) * step
        for units in [self.units] if isinstance(self.units, Sequence) else ([unit] for unit in self.units):
            window: deque[Sequence[int]] = deque()
            for rows in self._cut(units):
                window.append(rows)
                if len(window) > ahead:
                    yield window.popleft(), list(islice(window, step - 1, None, step))
            while window:
                yield window.popleft(), list(islice(window, step - 1, None, step))

    def _cut(self, units: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        return (
            unit[start : start + self.batch_size] for unit in units for start in range(0, len(unit), self.batch_size)
        )
