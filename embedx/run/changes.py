"""Compares the inputs of a plan with the rows of a store, so that only new and changed inputs are computed.

Inputs are matched by key first; where size or modification time differ, by sha256. Inputs with a new key, or with new
content under an old one, are then looked for, by sha256, among the rows that are gone or whose input has changed.

Shapes: N inputs of a split's plan, K rows of the store. Positions of rows are int64, -1 where there is none.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.data.plan import Plan, SplitPlan
from embedx.run.summary import describe_counts
from embedx.store.format.index import PLACE_SCHEMA, REJECTED, ROW_SCHEMA, read_index

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]
Digests = Callable[[SplitPlan, Sequence[int]], list[str | None]]
"""Reads the inputs of these rows of a split's plan and returns the sha256 of each, None for an unreadable one."""

_NO_NUMBER, _NO_TEXT = -1, "\0"
_NO_ROWS = pa.schema([*ROW_SCHEMA, *PLACE_SCHEMA]).empty_table()


class Verdict(enum.IntEnum):
    """The relation of an input to the store; each input of either has one. They are told in this order."""

    NEW = 0
    """The store has no row of its key, and no free row of its content."""
    PENDING = 1
    """The store was begun with it, and no run has computed it yet."""
    CHANGED = 2
    """Its content is another than that stored under its key."""
    GONE = 3
    """The store has a row of it, and the plan has no such input any more."""
    RENAMED = 4
    """Its content was stored under another key."""
    RELABELLED = 5
    """Its content is the same, and its group or target another."""
    RETRIED = 6
    """It was rejected, and is to be tried again."""
    UNCHANGED = 7


_DIFFERENCES = (Verdict.NEW, Verdict.CHANGED, Verdict.GONE, Verdict.RENAMED, Verdict.RELABELLED)
"""The verdicts by which the inputs are not those of the store."""
_WITHOUT_EXAMPLE = (Verdict.RETRIED, Verdict.UNCHANGED)


@dataclasses.dataclass(frozen=True)
class SplitMatch:
    """The inputs of one split beside the store's rows."""

    verdicts: NDArray[np.int8]
    """[N] the Verdict on each input."""
    slot: Positions
    """[N] the stored row whose place in the store the input takes."""
    source_row: Positions
    """[N] the stored row that holds the input's embedding; -1: it has to be computed."""

    def rows(self, verdict: Verdict) -> Positions:
        """Returns the inputs with this verdict, as rows of the plan."""
        return np.flatnonzero(self.verdicts == verdict)


@dataclasses.dataclass(frozen=True)
class Changes:
    """The differences between a plan and the rows of a store."""

    plan: Plan
    stored: pa.Table
    """[K] the store's index rows, unit by unit."""
    splits: dict[str, SplitMatch]
    """The matches by the split's name."""
    gone: Positions
    """The stored rows whose inputs are gone."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of inputs with each verdict, by its name in lower case."""
        return {verdict.name.lower(): sum(len(rows) for _, rows in self._rows(verdict)) for verdict in Verdict}

    @property
    def inputs_differ(self) -> bool:
        """True if anything but modification times differs."""
        return any(len(rows) for verdict in _DIFFERENCES for _, rows in self._rows(verdict))

    def describe(self) -> str:
        """Returns the counts in words, such as `10 new (such as 'a.jpg'), 3 gone (such as 'b.jpg'), 90 unchanged`."""
        examples = {}
        for verdict in set(Verdict).difference(_WITHOUT_EXAMPLE):
            keys = (str(table["key"][int(rows[0])]) for table, rows in self._rows(verdict) if len(rows))
            examples[verdict.name.lower()] = f" (such as {next(keys, '')!r})"
        return describe_counts(self.counts, examples)

    def _rows(self, verdict: Verdict) -> list[tuple[pa.Table, Positions]]:
        """Returns the inputs with this verdict as rows of tables: the store's index, or each split's plan."""
        if verdict is Verdict.GONE:
            return [(self.stored, self.gone)]
        return [(self.plan.splits[name].table, match.rows(verdict)) for name, match in self.splits.items()]


def compare(
    plan: Plan, tables: Iterable[Path], sha256_of: Digests, *, names_differ: bool, retry_rejected: bool
) -> Changes:
    """Compares a plan with the rows of a store, which its whole units' index tables hold.

    Without `names_differ` keys, groups and targets are the same, and an input that the store lacks is pending.
    """
    stored = pa.concat_tables([_NO_ROWS, *map(read_index, tables)], promote_options="permissive")
    missing = Verdict.NEW if names_differ else Verdict.PENDING
    matches, contents = {}, {}
    unclaimed, movable = np.ones((2, len(stored)), bool)
    for name, split in plan.splits.items():
        match, contents[name] = _match_by_key(split, stored, sha256_of, missing, retry_rejected=retry_rejected)
        unclaimed[match.slot[match.slot >= 0]] = False
        movable[match.slot[(match.slot >= 0) & (match.verdicts != Verdict.CHANGED)]] = False
        matches[name] = match
    rows_of = _rows_by_sha256(stored, movable)
    sizes = _numbers(stored["bytes"])[movable]
    for name, split in plan.splits.items():
        candidates = (matches[name].slot < 0) & np.isin(_numbers(split.table["size"]), sizes)
        contents[name] |= _read(split, candidates, sha256_of)
        in_split = pc.equal(stored["split"], name).to_numpy()
        _match_by_content(matches[name], contents[name], rows_of, unclaimed, in_split)
    return Changes(plan, stored, matches, np.flatnonzero(unclaimed))


def _match_by_key(
    split: SplitPlan, stored: pa.Table, sha256_of: Digests, missing: Verdict, *, retry_rejected: bool
) -> tuple[SplitMatch, dict[int, str | None]]:
    """Matches inputs with the stored rows of their keys; returns also the sha256 of each changed one, by its row."""
    slot = _same_keys(split, stored)
    verdicts = np.where(slot < 0, missing, Verdict.UNCHANGED).astype(np.int8)
    verdicts[(slot >= 0) & _labels_differ(split, stored, slot)] = Verdict.RELABELLED
    if retry_rejected:
        verdicts[(slot >= 0) & at(pc.equal(stored["status"], REJECTED).to_numpy(), slot)] = Verdict.RETRIED
    now = _read(split, (slot >= 0) & _may_have_changed(split, stored, slot), sha256_of)
    then = stored["sha256"].take(pa.array(slot[list(now)])).to_pylist()
    changed = {row: new for (row, new), old in zip(now.items(), then, strict=True) if new is None or new != old}
    verdicts[list(changed)] = Verdict.CHANGED
    source_row = np.where(np.isin(verdicts, (Verdict.UNCHANGED, Verdict.RELABELLED)), slot, -1)
    return SplitMatch(verdicts, slot, source_row), changed


def _match_by_content(
    match: SplitMatch,
    contents: Mapping[int, str | None],
    rows_of: Mapping[str, Sequence[int]],
    unclaimed: Flags,
    in_split: Flags,
) -> None:
    """Adds to the match, in place, the stored rows with the content of changed inputs and of new keys.

    `contents` has the sha256 of these inputs by their row in the plan, and `rows_of` the stored rows whose content may
    be another input's now. `unclaimed` [K] tells which stored rows no input has claimed; it is modified in place.
    """
    for row, digest in contents.items():
        if not (rows := rows_of.get(digest or "")):
            continue
        match.source_row[row] = rows[0]
        if match.slot[row] < 0:
            match.verdicts[row] = Verdict.RENAMED
            if (free := next((old for old in rows if unclaimed[old]), None)) is not None:
                unclaimed[free] = False
                match.source_row[row] = free
                match.slot[row] = free if in_split[free] else -1


def _read(split: SplitPlan, chosen: Flags, sha256_of: Digests) -> dict[int, str | None]:
    """Reads the chosen inputs; returns their sha256 by their row in the plan."""
    rows = np.flatnonzero(chosen).tolist()
    return dict(zip(rows, sha256_of(split, rows), strict=True))


def _same_keys(split: SplitPlan, stored: pa.Table) -> Positions:
    """Returns [N], the stored row that has an input's key in this split."""
    own = np.flatnonzero(pc.equal(stored["split"], split.name).to_numpy())
    place = pc.index_in(split.table["key"], value_set=stored["key"].take(pa.array(own)).combine_chunks())
    found: Positions = pc.fill_null(place, -1).to_numpy().astype(np.int64)
    found[found >= 0] = own[found[found >= 0]]
    return found


def _may_have_changed(split: SplitPlan, stored: pa.Table, slot: Positions) -> Flags:
    """Returns [N], True where size or modification time differ; a size that is unknown does not count."""
    size, mtime = _numbers(split.table["size"]), _numbers(split.table["mtime_ns"])
    old_size, old_mtime = at(_numbers(stored["bytes"]), slot), at(_numbers(stored["mtime_ns"]), slot)
    may: Flags = ((size != old_size) & (size != _NO_NUMBER) & (old_size != _NO_NUMBER)) | (mtime != old_mtime)
    return may


def _labels_differ(split: SplitPlan, stored: pa.Table, slot: Positions) -> Flags:
    """Returns [N], True where group or target differ."""
    old = stored.select(["group", "target"]).take(pa.array(slot, mask=slot < 0))
    groups = pc.not_equal(pc.fill_null(split.table["group"], _NO_TEXT), pc.fill_null(old["group"], _NO_TEXT))
    differ: Flags = groups.to_numpy() | (_numbers(split.table["target"]) != _numbers(old["target"]))
    return differ


def _rows_by_sha256(stored: pa.Table, chosen: Flags) -> dict[str, list[int]]:
    """Returns the chosen stored rows, in order, by their sha256."""
    found: dict[str, list[int]] = {}
    rows = np.flatnonzero(chosen)
    for row, digest in zip(rows.tolist(), stored["sha256"].take(pa.array(rows)).to_pylist(), strict=True):
        if digest is not None:
            found.setdefault(digest, []).append(row)
    return found


def _numbers(column: pa.ChunkedArray) -> Positions:
    numbers: Positions = pc.fill_null(column, _NO_NUMBER).to_numpy()
    return numbers


def at(values: NDArray[Any], rows: Positions) -> NDArray[Any]:
    """Returns the values at these positions, and anything at -1."""
    return values[rows] if len(values) else np.zeros(len(rows), values.dtype)
