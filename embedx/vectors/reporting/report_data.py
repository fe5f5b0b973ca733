"""The contents of a report: what `embedx report` finds out about a store, before it becomes a page.

Shapes: M points on the map, S splits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

SHOWN_NEIGHBOURS = 8
"""The number of neighbours of each point."""


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line about the store as a whole."""

    name: str
    """A few words, such as `backbone`."""
    value: str
    """The value in words."""


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """The counts of one split."""

    name: str
    inputs: int
    rows: int
    rejected: int
    unavailable: int


@dataclasses.dataclass(frozen=True)
class ClassFacts:
    """The rows of one class."""

    name: str
    rows: tuple[int, ...]
    """The number of rows in each split, in the order of `ReportData.splits`."""


@dataclasses.dataclass(frozen=True)
class Reject:
    """Inputs that gave no row for the same reason."""

    reason: str
    status: str
    """`rejected` or `unavailable`."""
    count: int
    keys: tuple[str, ...]
    """Examples, at most 10."""


@dataclasses.dataclass(frozen=True)
class Categories:
    """A column whose values are a few names."""

    codes: NDArray[np.uint16]
    """The place of each point's name among the names, [M] uint16."""
    names: tuple[str, ...]
    """The names, the most frequent first. Where the column had more than fit, the last one stands for the others."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column whose values are numbers."""

    values: NDArray[np.float32]
    """The values, [M] float32; NaN where there is none."""


@dataclasses.dataclass(frozen=True)
class Points:
    """The rows on the map, column by column."""

    total_rows: int
    """The number of rows of which the points are all, or a stratified sample."""
    x: NDArray[np.uint16]
    """The places from left to right, [M] uint16."""
    y: NDArray[np.uint16]
    """The places from top to bottom, [M] uint16; in the same scale as `x`."""
    keys: list[str]
    """The keys of the inputs, [M]."""
    splits: NDArray[np.uint16]
    """The number of each point's split in `ReportData.splits`, [M] uint16."""
    neighbours: NDArray[np.int32]
    """The nearest points of each point, the nearest first, [M, 8] int32; -1 where there are fewer."""
    similarities: NDArray[np.float32]
    """The cosine similarities of those, [M, 8] float32; 0 where there is none."""
    colours: dict[str, Categories | Numbers]
    """The columns by which the points can be coloured, by their titles, in the order in which they are offered."""
    picture: NDArray[np.int32]
    """The number of each point's picture in `ReportData.pictures`, [M] int32; -1 where there is none."""
    is_sample: bool
    """True if rows that have neighbours are not among the points; the neighbours are those among the points then."""
    metadata: dict[str, list[str]]
    """The further columns that are shown of a point, each of [M] texts; an empty text where there is no value."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """The small picture of one input."""

    data: bytes | None
    """A whole file of WebP, JPEG or PNG; None if there is none."""
    fault: str | None
    """The reason why there is none, such as that the file has changed; None if there is one."""
    width: int
    """The width of the input in pixels; 0 if it is not known."""
    height: int
    """The height of the input in pixels; 0 if it is not known."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One row, as lists show it."""

    key: str
    split: str
    label: str
    """The name of its class or else of its group; empty if it has neither."""
    picture: int
    """The number of its picture in `ReportData.pictures`; -1 if it has none."""
    point: int
    """The number of its point on the map; -1 if it is not there."""
    similarity: float = 1.0
    """The cosine similarity to the first member of its group or pair."""
    equal: bool = False
    """True if its bytes are those of the first member of its group or pair."""


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """Rows that are near one of them."""

    members: tuple[Member, ...]
    """The rows, the representative first; no more than can be shown."""
    size: int
    """The number of rows in the group, shown or not."""


@dataclasses.dataclass(frozen=True)
class DuplicateFacts:
    """The duplicates in numbers."""

    threshold: float
    """The cosine similarity from which on two rows count as duplicates."""
    groups: int
    """The number of groups."""
    rows: int
    """The number of rows beyond the first of each group."""
    equal: int
    """The number of those whose bytes are equal to the first one's."""
    rows_looked_at: int
    """The number of rows among which duplicates were looked for."""
    histogram: tuple[int, ...]
    """The number of rows by the similarity of their nearest neighbour, in equal steps between the two limits."""
    histogram_limits: tuple[float, float]
    """The lowest and the highest similarity of the histogram."""
    at_thresholds: tuple[tuple[float, int], ...]
    """Five thresholds, each with the number of rows whose nearest neighbour is at least so similar."""


@dataclasses.dataclass(frozen=True)
class LeakMatrix:
    """The rows of each split that have a duplicate in each split."""

    splits: tuple[str, ...]
    """The names of the S splits."""
    counts: NDArray[np.int64]
    """The rows of the split of the row that have a duplicate in the split of the column, [S, S] int64."""
    rows: int
    """The number of rows with a duplicate in another split; one that has some in several counts once."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two rows of different splits that are duplicates."""

    a: Member
    b: Member
    """The other one, with its similarity to `a`."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A row that somebody should look at."""

    member: Member
    text: str
    """The reason, such as `mean cosine distance 0.83`."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """Rows that somebody should look at for the same reason."""

    total: int
    """The number of them, shown or not; of pictures, among those that were looked at."""
    looked_at: int
    """The number of rows that were looked at."""
    shown: tuple[Finding, ...]
    """The first of them, the most striking first."""
    rule: str
    """The rule by which they were found, in a sentence."""

    @property
    def count(self) -> int | None:
        """The number of them; None where no row was looked at, so that it is not known."""
        return self.total if self.looked_at else None


@dataclasses.dataclass(frozen=True)
class ReportData:
    """All that a report shows."""

    title: str
    facts: tuple[Fact, ...]
    notices: tuple[str, ...]
    """Sentences about the limits of this report, such as that the store is not complete, or rows were sampled."""
    splits: tuple[SplitFacts, ...]
    classes: tuple[ClassFacts, ...]
    """The classes or groups, the largest first."""
    label_name: str
    """The column that `classes` and labels are of: `class`, `group`, or nothing where there is neither."""
    rejects: tuple[Reject, ...]
    points: Points
    map_name: str
    """The method of the map in words."""
    pictures: tuple[Picture, ...]
    images_shown: bool
    """False if pictures were not wanted."""
    duplicates: tuple[DuplicateGroup, ...]
    """At most 200 groups, the largest first."""
    duplicate_facts: DuplicateFacts
    leaks: LeakMatrix
    leak_pairs: tuple[Pair, ...]
    """At most 100 pairs, the most similar first."""
    outliers: Findings
    contradicted: Findings
    degenerate: Findings
    dark: Findings
    blurry: Findings
    tiny: Findings
    odd_shaped: Findings
