"""The result of a search for duplicates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from embedx.errors import LeakError
from embedx.paths import StorePath
from embedx.values import count_text

THRESHOLDS = (0.9, 0.95, 0.98, 0.99, 0.999)
"""The thresholds whose rows are counted, whatever the one of the search is."""
EDGES = (0.5, 0.6, 0.7, 0.8, 0.85, *THRESHOLDS)
"""The similarities between the bins of the histogram."""


class Part(NamedTuple):
    """The rows of one split of one store."""

    store: int
    """The store's place among those that were given."""
    split: str
    rows: int


class PairOfParts(NamedTuple):
    """The rows of one part that have a duplicate in another one, or in the same one."""

    part: Part
    other: Part
    duplicates: int
    """The number of rows of `part` with a duplicate in `other`."""

    @property
    def is_leak(self) -> bool:
        """True if the parts are two, and have rows in common."""
        return self.part != self.other and self.duplicates > 0


class Bin(NamedTuple):
    """The rows whose nearest neighbour's similarity is from `low`, inclusive, up to `high`."""

    low: float
    high: float
    rows: int


class AtThreshold(NamedTuple):
    """The number of rows that have a neighbour at a threshold."""

    threshold: float
    rows: int


@dataclasses.dataclass(frozen=True)
class DuplicatesResult:
    """The groups of duplicates in one store, or between two splits or stores."""

    stores: tuple[StorePath, ...]
    name: str
    """The name of the tensor."""
    threshold: float
    between: tuple[str, str] | None
    """The splits that were compared with each other alone; None for all of them."""
    parts: tuple[Part, ...]
    """The splits whose rows were compared, in order."""
    rows: int
    without_direction: int
    """The number of rows that are zeros, or have NaN or infinity; only their bytes are compared."""
    groups: int
    members: int
    """The rows in all groups besides their representatives."""
    equal: int
    """The members whose bytes are their representative's."""
    pairs: tuple[PairOfParts, ...]
    """The rows with duplicates for each part and each part that it was compared with."""
    leaked: int
    """The number of rows with a duplicate in another part; one that has some in several counts once."""
    histogram: tuple[Bin, ...]
    """The rows by the similarity of their nearest neighbour, which is 1 for equal bytes."""
    at_thresholds: tuple[AtThreshold, ...]
    """The rows with a neighbour at each of THRESHOLDS; the float32 similarities are right to 1e-6."""
    table: pa.Table
    """A row per row in a group, group by group, the representative first, the members in their order.

    `group` int64 from 0, `representative` (its key), `key`, `split`, `similarity` float64 to the representative,
    `equal` (its bytes) bool, `keep` bool, `path`, and `store` int64, the store's place from 0.
    """
    out: Path | None
    """The file of the table."""
    seconds: float

    @property
    def leaks(self) -> tuple[PairOfParts, ...]:
        """The pairs of different splits, or of splits of two stores, that have rows in common."""
        return tuple(pair for pair in self.pairs if pair.is_leak)

    def name_of(self, part: Part) -> str:
        """Returns a split's name for people; of two stores, with that of its store."""
        return f"{part.split} of {self.stores[part.store]}" if len(self.stores) > 1 else part.split

    def check_leaks(self) -> None:
        """Raises a LeakError with this result if there are leaks."""
        leaks = [
            f"{count_text(pair.duplicates, 'row')} of {self.name_of(pair.part)} in {self.name_of(pair.other)}"
            for pair in self.leaks
        ]
        if leaks:
            raise LeakError(
                f"--fail-on-leak: there are duplicates of {'; of '.join(leaks)}; take them out of one side, or raise "
                f"--threshold {self.threshold:g} if these are different images",
                self,
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers, without the table, as plain JSON values."""
        several = len(self.stores) > 1

        def name(part: Part) -> dict[str, Any]:
            return {"store": str(self.stores[part.store]), "split": part.split} if several else {"split": part.split}

        return {
            "stores": [str(store) for store in self.stores],
            "name": self.name,
            "threshold": self.threshold,
            "between": self.between,
            "parts": [{**name(part), "rows": part.rows} for part in self.parts],
            "rows": self.rows,
            "without_direction": self.without_direction,
            "groups": self.groups,
            "members": self.members,
            "equal": self.equal,
            "pairs_of_splits": [
                {"of": name(pair.part), "in": name(pair.other), "rows": pair.duplicates, "is_leak": pair.is_leak}
                for pair in self.pairs
            ],
            "leaked": self.leaked,
            "histogram": [each._asdict() for each in self.histogram],
            "at_thresholds": [each._asdict() for each in self.at_thresholds],
            "out": str(self.out) if self.out else None,
            "seconds": round(self.seconds, 3),
        }
