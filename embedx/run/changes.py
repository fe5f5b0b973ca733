"""Compares the inputs of a plan with the rows of a store, so that only new and changed inputs are computed.

Inputs are matched by key first; where size or modification time differ, by sha256. Inputs with a new key, or with new
content under an old one, are then looked for, by sha256, among the rows that are gone or whose input has changed.

Shapes: N inputs of a split's plan, K rows of the store. Positions of rows are int64, -1 where there is none.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.data.plan import Plan, SplitPlan
from embedx.data.sources.base import paths_as_text
from embedx.errors import StoreMismatchError
from embedx.run.columns import at, labels_differ, may_have_changed, numbers, places_differ, renamed_classes
from embedx.run.metadata import Flags, MetadataDifferences, Positions, compare_metadata
from embedx.run.summary import describe_counts
from embedx.store.format.index import INDEX_SCHEMA, OK, PLACE_SCHEMA, ROW_SCHEMA, read_index
from embedx.store.format.layout import StoredFile

Digests = Callable[[SplitPlan, Sequence[int]], list[str | None]]
"""Reads the inputs of these rows of a split's plan and returns the sha256 of each, None for an unreadable one."""

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
    """Its content is the same, and its group, target or class another."""
    WITH_OTHER_METADATA = 6
    """Its content and labels are the same, and a column of its source's own has another value or type."""
    MOVED = 7
    """All is the same but its path, or its place in that file."""
    RETRIED = 8
    """It was rejected, or unavailable, and is to be tried again."""
    UNCHANGED = 9


_DIFFERENCES = frozenset(Verdict) - {Verdict.PENDING, Verdict.MOVED, Verdict.RETRIED, Verdict.UNCHANGED}
"""The verdicts by which the inputs are not those of the store."""
_STORED = (Verdict.RELABELLED, Verdict.WITH_OTHER_METADATA, Verdict.MOVED, Verdict.UNCHANGED)
"""The verdicts by which the store has the embedding in the input's own row."""
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
    metadata: MetadataDifferences
    """The inputs whose metadata in their slot are others."""

    def rows(self, verdict: Verdict) -> Positions:
        """Returns the inputs with this verdict, as rows of the plan."""
        return np.flatnonzero(self.verdicts == verdict)


@dataclasses.dataclass(frozen=True)
class Changes:
    """The differences between a plan and the rows of a store."""

    plan: Plan
    stored: pa.Table
    """[K] the store's index rows, unit by unit, in the columns that every index table has."""
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
        """True if anything differs but modification times and the places of the inputs."""
        return any(len(rows) for verdict in _DIFFERENCES for _, rows in self._rows(verdict))

    def describe(self) -> str:
        """Returns the counts in words, such as `10 new (such as 'a.jpg'), 3 gone (such as 'b.jpg'), 90 unchanged`."""
        examples = {}
        for verdict in set(Verdict).difference(_WITHOUT_EXAMPLE):
            texts = (self._example(name, int(rows[0])) for name, rows in self._rows(verdict) if len(rows))
            examples[verdict.name.lower()] = f" (such as {next(texts, '')})"
        return describe_counts(self.counts, examples)

    def _example(self, split: str | None, row: int) -> str:
        """Returns the key of an input and the difference of its metadata, or the key of a stored row of any split."""
        if split is None:
            return repr(str(self.stored["key"][row]))
        difference = self.splits[split].metadata.describe(row)
        return f"{str(self.plan.splits[split].table['key'][row])!r}{difference and f': {difference}'}"

    def describe_moved(self) -> str:
        """Returns a sentence on the inputs that are elsewhere now."""
        name = next(name for name, match in self.splits.items() if len(match.rows(Verdict.MOVED)))
        row = int(self.splits[name].rows(Verdict.MOVED)[0])
        now, then = self.plan.splits[name].table.slice(row, 1), self.stored.slice(int(self.splits[name].slot[row]), 1)
        old, new = (
            " at byte ".join(str(part) for part in (paths[0].as_py(), table["offset"][0].as_py()) if part is not None)
            for paths, table in ((then["path"], then), (paths_as_text(now["path"]), now))
        )
        count = self.counts["moved"]
        inputs = "1 input is" if count == 1 else f"{count:,} inputs are"
        return f"{inputs} no longer where the store says (such as {now['key'][0].as_py()!r}: {old} → {new})"

    def _rows(self, verdict: Verdict) -> list[tuple[str | None, Positions]]:
        """Returns the inputs with this verdict as rows of each split's plan, by its name; None stands for the store."""
        if verdict is Verdict.GONE:
            return [(None, self.gone)]
        return [(name, match.rows(verdict)) for name, match in self.splits.items()]


def compare(
    plan: Plan,
    tables: Iterable[StoredFile],
    sha256_of: Digests,
    *,
    classes: Sequence[str] | None,
    names_differ: bool | None,
    retries: Callable[[str, str], bool],
) -> Changes:
    """Compares a plan with the rows of a store, which its whole units' index tables hold.

    Args:
        plan: The inputs. A split that is kept is the store's own: of it only the labels are compared.
        tables: The paths of the index tables.
        sha256_of: The function that reads inputs.
        classes: The names of the store's classes; None if it does not tell them.
        names_differ: False if keys, groups and targets are the same, so that an input that the store lacks is pending;
            None if the store does not say: then they are if its rows stand where the plan has them.
        retries: The function that tells by its status and reason whether an input without a row is to be tried again.
    """
    units = [read_index(path) for path in tables]
    stored = pa.concat_tables([_NO_ROWS, *(unit.select(INDEX_SCHEMA.names) for unit in units)])
    renamed = renamed_classes(plan.classes, classes) if classes is not None else []
    if names_differ is None:
        names_differ = not all(_is_in_place(split, stored) for split in plan.splits.values())
    missing = Verdict.NEW if names_differ else Verdict.PENDING
    matches, contents = {}, {}
    reasons = zip(stored["status"].to_pylist(), stored["reason"].to_pylist(), strict=True)
    again = np.array([status != OK and retries(status, reason or "") for status, reason in reasons], bool)
    unclaimed, movable = np.ones((2, len(stored)), bool)
    for name, split in plan.splits.items():
        slot = same_keys(split, stored)
        metadata = _metadata_differ(split, units, stored, slot)
        verdicts = np.where(slot < 0, missing, Verdict.UNCHANGED).astype(np.int8)
        verdicts[(slot >= 0) & places_differ(split, stored, slot)] = Verdict.MOVED
        verdicts[metadata.rows] = Verdict.WITH_OTHER_METADATA
        verdicts[(slot >= 0) & labels_differ(split, stored, slot, renamed)] = Verdict.RELABELLED
        if split.kept is None:
            verdicts[(slot >= 0) & at(again, slot)] = Verdict.RETRIED
        contents[name] = _changed(split, stored, slot, sha256_of)
        verdicts[list(contents[name])] = Verdict.CHANGED
        match = SplitMatch(verdicts, slot, np.where(np.isin(verdicts, _STORED), slot, -1), metadata)
        unclaimed[match.slot[match.slot >= 0]] = False
        movable[match.slot[(match.slot >= 0) & (match.verdicts != Verdict.CHANGED)]] = False
        matches[name] = match
    rows_of = _rows_by_sha256(stored, movable)
    sizes = numbers(stored["bytes"])[movable]
    for name, split in plan.splits.items():
        candidates = (matches[name].slot < 0) & np.isin(numbers(split.table["size"]), sizes)
        contents[name] |= _read(split, candidates, sha256_of)
        in_split = pc.equal(stored["split"], name).to_numpy()
        _match_by_content(matches[name], contents[name], rows_of, unclaimed, in_split)
    return Changes(plan, stored, matches, np.flatnonzero(unclaimed))


def check_gone(changes: Changes, max_gone: float) -> None:
    """Refuses an update that would drop much of a split, as where a folder of the inputs is not mounted.

    Raises:
        StoreMismatchError: If more than this share of a split's inputs is gone; a split that is dropped has none.
    """
    splits = np.array(changes.stored["split"].to_pylist(), object)
    for name in changes.plan.splits:
        gone, total = changes.gone[splits[changes.gone] == name], int((splits == name).sum())
        if len(gone) > max_gone * total:
            raise StoreMismatchError(
                f"{len(gone):,} of the {total:,} inputs of split {name!r} are gone (such as "
                f"{str(changes.stored['key'][int(gone[0])])!r}), and their rows would be dropped; see that all folders "
                f"are there and mounted, or give --update --max-gone {math.ceil(100 * len(gone) / total)}%"
            )


def _is_in_place(split: SplitPlan, stored: pa.Table) -> bool:
    """Tells whether each stored row of a split's keys has the number that its input has in the plan."""
    slot = same_keys(split, stored)
    return np.array_equal(numbers(stored["index"])[slot[slot >= 0]], np.flatnonzero(slot >= 0))


def _changed(split: SplitPlan, stored: pa.Table, slot: Positions, sha256_of: Digests) -> dict[int, str | None]:
    """Returns the sha256 of each input whose content is no longer that in its slot, by its row in the plan."""
    now = _read(split, (slot >= 0) & may_have_changed(split, stored, slot), sha256_of)
    then = stored["sha256"].take(pa.array(slot[list(now)])).to_pylist()
    return {row: new for (row, new), old in zip(now.items(), then, strict=True) if new is None or new != old}


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


def same_keys(split: SplitPlan, stored: pa.Table) -> Positions:
    """Returns [N], the stored row that has an input's key in this split."""
    own = np.flatnonzero(pc.equal(stored["split"], split.name).to_numpy())
    place = pc.index_in(split.table["key"], value_set=stored["key"].take(pa.array(own)).combine_chunks())
    found: Positions = pc.fill_null(place, -1).to_numpy().astype(np.int64)
    found[found >= 0] = own[found[found >= 0]]
    return found


def _metadata_differ(
    split: SplitPlan, units: Sequence[pa.Table], stored: pa.Table, slot: Positions
) -> MetadataDifferences:
    if split.kept is not None:
        return MetadataDifferences(np.zeros(len(split), np.bool_))
    own = pc.equal(stored["split"], split.name).to_numpy()
    first = int(own.argmax()) if own.any() else 0
    metadata = [unit.drop_columns(INDEX_SCHEMA.names) for unit in units if unit["split"][0].as_py() == split.name]
    return compare_metadata(split.table.select(split.metadata), metadata, np.where(slot < 0, -1, slot - first))


def _rows_by_sha256(stored: pa.Table, chosen: Flags) -> dict[str, list[int]]:
    """Returns the chosen stored rows, in order, by their sha256."""
    found: dict[str, list[int]] = {}
    rows = np.flatnonzero(chosen)
    for row, digest in zip(rows.tolist(), stored["sha256"].take(pa.array(rows)).to_pylist(), strict=True):
        if digest is not None:
            found.setdefault(digest, []).append(row)
    return found
