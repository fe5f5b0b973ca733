"""The rows that are compared for duplicates: all rows of a store with each other, or those of two sides.

Shapes: N rows of all parts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedx.errors import ConfigError
from embedx.heartbeat import Heartbeat
from embedx.store.reading.reader import Store
from embedx.vectors.pairs.comparable import check_comparable
from embedx.vectors.pairs.duplicates_config import DuplicatesConfig
from embedx.vectors.pairs.duplicates_result import Part
from embedx.vectors.pairs.stars import NONE
from embedx.vectors.vector_rows import VectorRows, open_rows

_COLUMNS = ("path", "bytes", "sha256")


@dataclasses.dataclass(frozen=True)
class Sides:
    """Rows, numbered through all parts, and which of them are compared with which."""

    parts: tuple[Part, ...]
    rows: tuple[VectorRows, ...]
    """The rows of each part."""
    border: int | None
    """The number of parts that are compared with the parts behind them alone; None compares all rows with all."""

    @classmethod
    def open(cls, stores: Sequence[Store], config: DuplicatesConfig, heartbeat: Heartbeat) -> Sides:
        """Opens the rows of one store, or of two splits or stores.

        Raises:
            ConfigError: If there are no such rows, or the vectors of two stores can't be compared.
            StoreError: If a store is damaged.
        """
        if differences := check_comparable(stores):
            heartbeat.tell(
                f"the recipes of the stores differ a little, and so may the vectors of equal images "
                f"({'; '.join(differences)})"
            )
        opened = _open_rows(stores, config)
        cut = [(number, part) for number, rows in opened for part in _cut(rows)]
        parts = tuple(Part(number, rows.table["split"][0].as_py(), len(rows)) for number, rows in cut)
        border = None if len(opened) == 1 else len(_cut(opened[0][1]))
        if config.fail_on_leak and len(parts) == 1:
            raise ConfigError(
                f"--fail-on-leak looks for rows that splits or stores have in common, and there is one split alone, "
                f"{parts[0].split!r}; give two splits or stores, or leave it out"
            )
        return cls(parts, tuple(rows for _, rows in cut), border)

    @classmethod
    def among(cls, rows: VectorRows) -> Sides:
        """Makes parts of the splits of rows of one store, which are all compared with each other."""
        cut = _cut(rows)
        parts = tuple(Part(0, part.table["split"][0].as_py(), len(part)) for part in cut)
        return cls(parts, tuple(cut), None)

    @property
    def apart(self) -> int:
        """The number of rows on the first of two sides; 0 where all rows are compared with all."""
        return sum(part.rows for part in self.parts[: self.border or 0])

    @cached_property
    def part_of(self) -> NDArray[np.int64]:
        """The place of each row's part [N] int64."""
        return np.repeat(np.arange(len(self.parts)), [part.rows for part in self.parts])

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """A number [N] int64 for each row's bytes, equal for equal bytes; NONE where the index has no sha256."""
        sums = pa.chunked_array([chunk for part in self.rows for chunk in part.table["sha256"].chunks], pa.string())
        codes: NDArray[np.int32] = sums.combine_chunks().dictionary_encode().indices.fill_null(NONE).to_numpy()
        return codes.astype(np.int64)

    @property
    def compared(self) -> list[tuple[int, int]]:
        """The pairs of parts that are compared, in both orders, and each part with itself where it is."""
        every = range(len(self.parts))
        pairs = itertools.product(every, every)
        return [(a, b) for a, b in pairs if self.border is None or (a < self.border) != (b < self.border)]


def _open_rows(stores: Sequence[Store], config: DuplicatesConfig) -> list[tuple[int, VectorRows]]:
    """Opens the rows of each side, with the place of its store."""
    between = config.between
    if between is not None and len(stores) == 1 and between[0] == between[1]:
        raise ConfigError(f"--between names {between[0]!r} twice; give two splits, such as --between train val")
    numbers = (0, 0) if len(stores) == 1 and between is not None else range(len(stores))
    wanted = [config.split] * len(numbers) if between is None else [[split] for split in between]
    opened = [
        (number, open_rows(stores[number], splits, name=config.name, where=config.where, columns=_COLUMNS))
        for number, splits in zip(numbers, wanted, strict=True)
    ]
    if len({rows.dim for _, rows in opened}) > 1:
        a, b = (f"{rows.store.path} has vectors of {rows.dim} numbers" for _, rows in opened)
        raise ConfigError(f"{a}, and {b}; only vectors of one backbone and layer can be compared")
    return opened


def _cut(rows: VectorRows) -> list[VectorRows]:
    """Cuts rows into those of each split, in order."""
    splits = rows.table["split"].combine_chunks().dictionary_encode().indices.to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(splits)) + 1).tolist(), len(splits)]
    return [
        dataclasses.replace(rows, table=rows.table.slice(start, stop - start))
        for start, stop in itertools.pairwise(borders)
    ]
