"""What differs between a plan and the inputs of a store, and which rows of the store serve the plan as they are.

compare:  by key, then size and modification time, then sha256; what is new or changed is looked for, by sha256, among
          what is gone or was in the place of what has changed
lay_out:  a row stays in its unit; what is new fills up units that lose rows, those that are missing, and the last one;
          units that are as they should be are taken over whole

Shapes: N samples of a split's plan, K rows of the store. Positions of rows are int64, -1 where there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.plan import Plan, SplitPlan
from embedx.data.sources.base import as_text
from embedx.store.format.index import PLACE_SCHEMA, REJECTED, ROW_SCHEMA, read_index
from embedx.store.format.layout import Unit

Positions: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

_COUNTS = ("new", "pending", "changed", "gone", "renamed", "relabelled", "retried", "unchanged")
_NO_NUMBER, _NO_TEXT = -1, "\0"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A plan beside the rows of a store."""

    known: pa.Table
    """[K] the store's rows, unit by unit."""
    origins: dict[str, Positions]
    """Per split [N], the row of `known` whose embedding is that of the sample; -1: it has to be computed."""
    seats: dict[str, Positions]
    """Per split [N], the row of `known` whose place the sample takes; -1: none."""
    counts: dict[str, int]
    """Inputs that are new, pending (known, and not done), changed, gone, renamed, relabelled (another group or target),
    retried, and unchanged."""
    examples: dict[str, str]
    """For some of these counts, the key of one such input."""

    @property
    def inputs_differ(self) -> bool:
        """Whether anything but modification times is different."""
        return any(self.counts[name] for name in ("new", "changed", "gone", "renamed", "relabelled"))

    def describe(self) -> str:
        """The counts in words, such as `10 new (such as 'a.jpg'), 3 gone (such as 'b.jpg'), 4,990 unchanged`."""
        return describe_counts(self.counts, self.examples)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each row of a plan goes, and where it comes from."""

    counts: dict[str, int]
    """What is different from the store that is there (see Comparison)."""
    plan: Plan
    """With the samples' positions in the store."""
    computed: dict[str, list[int]]
    """Per split, the samples that have to be computed, by position."""
    units: dict[Unit, int]
    """All units, with their inputs."""
    linked: list[Unit]
    """Those that are in the store as they should be."""
    staying: dict[Unit, pa.Table]
    """For the others, the rows whose embeddings the store has (see UnitBatch.rows)."""


def describe_counts(counts: dict[str, int], examples: dict[str, str] | None = None) -> str:
    """The counts of a Comparison in words; those that are zero are left out."""
    words = []
    for name, count in counts.items():
        if count:
            example = f" (such as {examples[name]!r})" if examples and name in examples else ""
            words.append(f"{count:,} {name}{example}")
    return ", ".join(words)


def compare(
    plan: Plan,
    tables: Iterable[Path],
    sha256_of: Callable[[SplitPlan, Sequence[int]], list[str | None]],
    *,
    names_differ: bool,
    retry_rejected: bool,
) -> Comparison:
    """Compares a plan with the rows of a store.

    Args:
        plan: The inputs as they are now.
        tables: Index tables of the store's whole units.
        sha256_of: Reads the samples of these rows of a split's plan; None for one that can't be read.
        names_differ: Whether keys, groups or targets may differ; if not, what the store lacks is not new but not done.
        retry_rejected: Whether rejected inputs are to be computed, although they are as they were.

    Raises:
        StoreError: If an index table can't be read.
    """
    found = [read_index(table) for table in tables]
    known = pa.concat_tables(found, promote_options="permissive") if found else _nothing_known()
    sha256 = known["sha256"].to_pylist()
    rejected = pc.equal(known["status"], REJECTED).to_numpy()
    taken = np.zeros(len(known), bool)
    displaced = np.zeros(len(known), bool)
    contents: dict[tuple[str, int], str] = {}
    counts = dict.fromkeys(_COUNTS, 0)
    examples: dict[str, str] = {}
    origins, seats = {}, {}

    def count(name: str, split: SplitPlan, rows: Positions) -> None:
        counts[name] += len(rows)
        if len(rows) and name not in ("retried", "unchanged"):
            examples.setdefault(name, split.table["key"][int(rows[0])].as_py())

    for name, split in plan.splits.items():
        seat = _same_keys(split, known)
        taken[seat[seat >= 0]] = True
        origin = seat.copy()
        suspects = np.flatnonzero((seat >= 0) & _may_have_changed(split, known, seat))
        for row, digest in zip(suspects, sha256_of(split, suspects.tolist()), strict=True):
            if digest is None or digest != sha256[seat[row]]:
                origin[row] = -1
                displaced[seat[row]] = True
                if digest is not None:
                    contents[name, int(row)] = digest
        count("changed", split, np.flatnonzero((seat >= 0) & (origin < 0)))
        if retry_rejected:
            retried = np.flatnonzero((origin >= 0) & _at(rejected, origin))
            origin[retried] = -1
            count("retried", split, retried)
        origins[name], seats[name] = origin, seat
    displaced |= ~taken
    leftover = _by_sha256(known, np.flatnonzero(displaced))
    for (name, place), digest in contents.items():
        if digest in leftover:
            origins[name][place] = leftover[digest][0]
    for name, split in plan.splits.items():
        origin, seat = origins[name], seats[name]
        size = _numbers(split.table["size"])
        candidates = np.flatnonzero((seat < 0) & np.isin(size, _numbers(known["bytes"])[displaced]))
        renamed = []
        for row, digest in zip(candidates, sha256_of(split, candidates.tolist()), strict=True):
            if digest is not None and leftover.get(digest):
                old = next((old for old in leftover[digest] if not taken[old]), leftover[digest][0])
                origin[row] = old
                renamed.append(row)
                if not taken[old] and known["split"][old].as_py() == name:
                    seat[row] = old
                taken[old] = True
        count("renamed", split, np.array(renamed, np.int64))
        count("new" if names_differ else "pending", split, np.flatnonzero((seat < 0) & (origin < 0)))
        same_key = (origin >= 0) & (seat == origin) & ~np.isin(np.arange(len(split)), renamed)
        relabelled = np.flatnonzero(same_key & _labels_differ(split, known, seat))
        count("relabelled", split, relabelled)
        counts["unchanged"] += int(same_key.sum()) - len(relabelled)
    lost = np.flatnonzero(~taken)
    counts["gone"] = len(lost)
    if len(lost):
        examples["gone"] = known["key"][int(lost[0])].as_py()
    return Comparison(known, origins, seats, counts, examples)


def lay_out(plan: Plan, comparison: Comparison, rows_per_unit: int) -> Layout:
    """Gives each sample of the plan a place, such that as many units as can be stay as they are.

    Within a unit samples stand in the plan's order, without gaps.
    """
    splits: dict[str, SplitPlan] = {}
    computed: dict[str, list[int]] = {}
    units: dict[Unit, int] = {}
    linked: list[Unit] = []
    staying: dict[Unit, pa.Table] = {}
    known = comparison.known
    index = known["index"].to_numpy()
    for name, split in plan.splits.items():
        origin, seat = comparison.origins[name], comparison.seats[name]
        own = np.flatnonzero(pc.equal(known["split"], name).to_numpy())
        had = np.bincount(index[own] // rows_per_unit)
        unit = _units(np.where(seat >= 0, _at(index, seat) // rows_per_unit, -1), had, rows_per_unit)
        order = np.lexsort((np.arange(len(split)), unit))
        numbers, starts, sizes = np.unique(unit[order], return_index=True, return_counts=True)
        positions = np.empty(len(split), np.int64)
        positions[order] = np.repeat(numbers * rows_per_unit - starts, sizes) + np.arange(len(split))
        splits[name] = dataclasses.replace(split, positions=positions)
        computed[name] = order[origin[order] < 0].tolist()
        rows = _identities(splits[name], known, origin).take(pa.array(order))
        stays = origin[order] >= 0
        ends = np.cumsum(had)
        for number, start, size in zip(numbers.tolist(), starts.tolist(), sizes.tolist(), strict=True):
            here = Unit(name, number)
            units[here] = size
            now = rows.slice(start, size)
            if number < len(had) and had[number] == size:
                then = known.slice(own[0] + ends[number] - size, size)
                if set(then.column_names) >= set(now.column_names) and then.select(now.column_names).equals(now):
                    linked.append(here)
                    continue
            if stays[start : start + size].any():
                staying[here] = now.filter(pa.array(stays[start : start + size]))
    return Layout(comparison.counts, dataclasses.replace(plan, splits=splits), computed, units, linked, staying)


def _units(unit: Positions, had: Positions, rows_per_unit: int) -> Positions:
    """Gives the samples that have no unit (-1) one, in order: where rows are lost or missing, then at the end."""
    have = np.bincount(unit[unit >= 0], minlength=len(had))
    newcomers = np.flatnonzero(unit < 0)
    open_units = [number for number in range(len(had)) if have[number] < had[number] or had[number] == 0]
    if len(had) and len(had) - 1 not in open_units:
        open_units.append(len(had) - 1)
    further = range(len(had), len(had) + -(-len(newcomers) // rows_per_unit))
    room = [*(rows_per_unit - have[open_units]).tolist(), *(rows_per_unit for _ in further)]
    filled = unit.copy()
    filled[newcomers] = np.repeat(np.array([*open_units, *further], np.int64), room)[: len(newcomers)]
    return filled


def _identities(split: SplitPlan, known: pa.Table, origin: Positions) -> pa.Table:
    """The rows of the index table [N], in the plan's order; those to be computed lack what only reading tells."""
    own = split.table
    old = known.select([*("status", "reason", "bytes", "sha256"), *PLACE_SCHEMA.names]).take(
        pa.array(origin, mask=origin < 0)
    )
    columns = {
        "split": pa.array([split.name] * len(split), pa.string()),
        "index": pa.array(split.index(range(len(split)))),
        "path": pa.array([as_text(path) for path in own["path"].to_pylist()], pa.string()),
        **{name: own[name] for name in ("key", "offset", "group", "target", "mtime_ns", *split.metadata)},
        **{name: old[name] for name in old.column_names},
    }
    return pa.table({name: columns[name] for name in (*ROW_SCHEMA.names, *split.metadata, *PLACE_SCHEMA.names)})


def _same_keys(split: SplitPlan, known: pa.Table) -> Positions:
    """[N] for each sample of a split, the row of `known` that has its key there."""
    own = np.flatnonzero(pc.equal(known["split"], split.name).to_numpy())
    place = pc.index_in(split.table["key"], value_set=known["key"].take(pa.array(own)).combine_chunks())
    found: Positions = pc.fill_null(place, -1).to_numpy().astype(np.int64)
    found[found >= 0] = own[found[found >= 0]]
    return found


def _may_have_changed(split: SplitPlan, known: pa.Table, seat: Positions) -> Flags:
    """[N] whether size or modification time is another than that of the row; what can't be asked is no difference."""
    size, mtime = _numbers(split.table["size"]), _numbers(split.table["mtime_ns"])
    old_size, old_mtime = _at(_numbers(known["bytes"]), seat), _at(_numbers(known["mtime_ns"]), seat)
    resized: Flags = (size != old_size) & (size != _NO_NUMBER) & (old_size != _NO_NUMBER)
    rewritten: Flags = mtime != old_mtime
    return resized | rewritten


def _labels_differ(split: SplitPlan, known: pa.Table, seat: Positions) -> Flags:
    """[N] whether group or target is another than that of the row."""
    old = known.select(["group", "target"]).take(pa.array(seat, mask=seat < 0))
    groups = pc.not_equal(pc.fill_null(split.table["group"], _NO_TEXT), pc.fill_null(old["group"], _NO_TEXT))
    differ: Flags = groups.to_numpy()
    targets: Flags = _numbers(split.table["target"]) != _numbers(old["target"])
    return differ | targets


def _by_sha256(known: pa.Table, rows: Positions) -> dict[str, list[int]]:
    """Which of these rows have a sha256, in order."""
    found: dict[str, list[int]] = {}
    for row, digest in zip(rows.tolist(), known["sha256"].take(pa.array(rows)).to_pylist(), strict=True):
        if digest is not None:
            found.setdefault(digest, []).append(row)
    return found


def _numbers(column: pa.ChunkedArray) -> Positions:
    numbers: Positions = pc.fill_null(column, _NO_NUMBER).to_numpy()
    return numbers


def _at(values: np.ndarray[Any, Any], rows: Positions) -> np.ndarray[Any, Any]:
    """The values at these positions; anything at -1."""
    return values[rows] if len(values) else np.zeros(len(rows), values.dtype)


def _nothing_known() -> pa.Table:
    return pa.schema([*ROW_SCHEMA, *PLACE_SCHEMA]).empty_table()
