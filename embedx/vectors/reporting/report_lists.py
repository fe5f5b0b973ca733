"""The lists of a report: groups of duplicates, leaks and findings, first as numbers of rows, then as members.

Shapes: N rows, C compared rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedx.vectors.pairs.duplicates_result import THRESHOLDS, DuplicatesResult
from embedx.vectors.pairs.nearest_rows import NearestOfAll
from embedx.vectors.reporting.findings import Found
from embedx.vectors.reporting.report_data import (
    DuplicateFacts,
    DuplicateGroup,
    Finding,
    Findings,
    LeakMatrix,
    Member,
    Pair,
)
from embedx.vectors.reporting.report_rows import ReportRows

MOST_GROUPS = 200
MOST_MEMBERS = 8
"""The most members of a group that are shown."""
MOST_PAIRS = 100
_STEPS = 40


class Copy(NamedTuple):
    """A row of a group of duplicates."""

    row: int
    """The number of the row."""
    similarity: float
    equal: bool


class Group(NamedTuple):
    """A group of duplicates."""

    size: int
    copies: tuple[Copy, ...]
    """The first rows, the representative first."""


class Copies(NamedTuple):
    """The groups of duplicates that are shown, and the pairs in different splits."""

    groups: tuple[Group, ...]
    pairs: tuple[tuple[Copy, Copy], ...]

    def rows(self) -> Iterator[int]:
        """Yields the numbers of the rows: those of pairs, then the first two of each group, then the others."""
        for pair in self.pairs:
            yield from (copy.row for copy in pair)
        for part in (slice(2), slice(2, None)):
            for group in self.groups:
                yield from (copy.row for copy in group.copies[part])


def copies_of(result: DuplicatesResult | None, report_rows: ReportRows) -> Copies:
    """Returns the largest groups, and the most similar rows of different splits, of a search among compared rows."""
    if result is None or not result.groups:
        return Copies((), ())
    table = result.table
    group = table["group"].to_numpy()
    numbers = _numbers_of(table, report_rows)
    similarities, equal = table["similarity"].to_numpy(), table["equal"].to_numpy()
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(starts, append=len(group))

    def copy(place: int) -> Copy:
        return Copy(int(numbers[place]), float(similarities[place]), bool(equal[place]))

    groups = []
    for own in np.lexsort((starts, -sizes))[:MOST_GROUPS].tolist():
        shown = range(starts[own], starts[own] + min(int(sizes[own]), MOST_MEMBERS))
        groups.append(Group(int(sizes[own]), tuple(map(copy, shown))))
    first = starts[group]
    leaks = np.flatnonzero(report_rows.split_codes[numbers] != report_rows.split_codes[numbers[first]])
    leaks = leaks[np.lexsort((leaks, -similarities[leaks], ~equal[leaks]))][:MOST_PAIRS]
    return Copies(tuple(groups), tuple((copy(int(first[place])), copy(place)) for place in leaks.tolist()))


def _numbers_of(table: pa.Table, report_rows: ReportRows) -> NDArray[np.int64]:
    """Returns the numbers [G] of the rows of a table of duplicates."""
    compared = report_rows.compared
    keys, splits = report_rows.subset(compared).table["key"].to_pylist(), report_rows.split_codes[compared].tolist()
    number_of = dict(zip(zip(splits, keys, strict=True), compared.tolist(), strict=True))
    place_of = {split: place for place, split in enumerate(report_rows.splits)}
    pairs = zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True)
    return np.array([number_of[place_of[split], key] for split, key in pairs], np.int64)


def duplicate_facts(result: DuplicatesResult | None, near: NearestOfAll, threshold: float) -> DuplicateFacts:
    """Returns the duplicates among the compared rows in numbers."""
    best = near.similarities[near.places[:, 0] >= 0, 0]
    low = float(np.floor(best.min() * 20) / 20) if len(best) else 0.0
    low = min(low, 0.95)
    counts = np.bincount(np.minimum(((best - low) / (1 - low) * _STEPS).astype(np.int64), _STEPS - 1), minlength=_STEPS)
    return DuplicateFacts(
        threshold=threshold,
        groups=result.groups if result else 0,
        rows=result.members if result else 0,
        equal=result.equal if result else 0,
        rows_looked_at=len(near.places),
        histogram=tuple(counts.tolist()),
        histogram_limits=(low, 1.0),
        at_thresholds=tuple((each.threshold, each.rows) for each in result.at_thresholds)
        if result
        else tuple((each, 0) for each in THRESHOLDS),
    )


def leak_matrix(result: DuplicatesResult | None, splits: tuple[str, ...]) -> LeakMatrix:
    """Returns how many rows of each split have a duplicate in each split."""
    counts = np.zeros((len(splits), len(splits)), np.int64)
    for pair in result.pairs if result else ():
        counts[splits.index(pair.part.split), splits.index(pair.other.split)] += pair.duplicates
    return LeakMatrix(splits, counts, result.leaked if result else 0)


class Members:
    """Makes members of the numbers of rows.

    Args:
        report_rows: The rows of the report.
        picture_of: The number of each row's picture, [N] int32; -1 where it has none.
        point_of: The number of each row's point, [N] int32; -1 where it has none.
    """

    def __init__(self, report_rows: ReportRows, picture_of: NDArray[np.int32], point_of: NDArray[np.int32]) -> None:
        self._rows, self._picture_of, self._point_of = report_rows, picture_of, point_of

    def member(self, row: int, similarity: float = 1.0, equal: bool = False) -> Member:
        """Returns a row as lists show it."""
        rows = self._rows
        return Member(
            key=rows.rows.table["key"][row].as_py(),
            split=rows.splits[rows.split_codes[row]],
            label=rows.labels.of(row),
            picture=int(self._picture_of[row]),
            point=int(self._point_of[row]),
            similarity=similarity,
            equal=equal,
        )

    def findings(self, found: Found) -> Findings:
        """Returns rows that were found, as a list shows them."""
        shown = (Finding(self.member(row), text) for row, text in zip(found.rows, found.texts, strict=True))
        return Findings(found.total, found.looked_at, tuple(shown), found.rule)

    def groups(self, copies: Copies) -> tuple[DuplicateGroup, ...]:
        """Returns groups of duplicates, as a list shows them."""
        return tuple(
            DuplicateGroup(tuple(self.member(*copy) for copy in group.copies), group.size) for group in copies.groups
        )

    def pairs(self, copies: Copies) -> tuple[Pair, ...]:
        """Returns pairs of duplicates in different splits, as a list shows them."""
        return tuple(Pair(self.member(a.row), self.member(*b)) for a, b in copies.pairs)
