"""Takes up the rows that interrupted runs have computed, so that only the others are computed.

They are in the journals of units, and in stores that updates of other inputs have left behind.

A row is taken by its key, if its input is of the size and time that it had then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from embedx.data.plan import Plan, SplitPlan
from embedx.errors import StoreError, StoreMismatchError
from embedx.paths import BucketPath, StorePath, store_path
from embedx.run.changes import same_keys
from embedx.run.columns import may_have_changed
from embedx.run.metadata import Flags, Positions
from embedx.run.update import index_rows
from embedx.store.format.index import INDEX_SCHEMA, OK, PLACE_SCHEMA, REJECTED, read_index
from embedx.store.format.journal import records
from embedx.store.format.layout import StoredFile, StoreRoot, Unit, folder_name, index_files, journal_files
from embedx.store.format.manifest import Manifest
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.writing.checks import place_of
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import JournalledRows, StayingRows

_STORE = "store"
"""The column with the folder of a row's store."""
_NO_ROWS = pa.schema([*INDEX_SCHEMA, (_STORE, pa.string())]).empty_table()


def take_up(
    session: StoreSession,
    plan: Plan,
    missing: Mapping[Unit, Sequence[int]],
    console: Console,
    *,
    retry_rejected: bool,
) -> dict[Unit, Sequence[int]]:
    """Hands the rows that need not be computed to the session.

    Args:
        session: The session, which knows the journals.
        plan: The inputs of the run.
        missing: The rows of the plan that are to be computed, by their unit.
        console: The console for notices.
        retry_rejected: True if rejected rows are computed again.

    Returns:
        The rows that are still to be computed, by their unit.
    """
    left = dict(missing)
    statuses = [OK] if retry_rejected else [OK, REJECTED]
    stores = [session.root]
    if session.manifest.updates and session.root != session.out:
        stores += [session.out, *_others(session)]  # the store may not have been finished
    journals = [journal_files(root) for root in stores]
    aside = _set_aside(session)
    slots = {name: _unchanged(split, aside) for name, split in plan.splits.items()} if len(aside) else {}
    _leave_damaged(session, missing, aside, slots)
    for unit in missing if any(journals) or slots else ():
        for journal in itertools.chain.from_iterable(files.get(place_of(unit), ()) for files in journals):
            stored = _read(journal, unit, session.manifest.fingerprint, console)
            if stored is None or not len(left[unit]):
                continue
            split, rows = plan.splits[unit.split], left[unit]
            found, is_kept = _matching(
                _part(split, rows), stored.filter(pc.is_in(stored["status"], pa.array(statuses)))
            )
            if is_kept.any():
                session.earlier.computed.setdefault(unit, []).append(JournalledRows.of(unit, journal, found))
                left[unit] = [row for row, kept in zip(rows, is_kept.tolist(), strict=True) if not kept]
                session.goes_on = True
        if len(left[unit]) and slots:
            _take_from_stores(session, plan.splits[unit.split], unit, left, aside, slots[unit.split])
        if not len(left[unit]):
            session.earlier.whole.append(unit)
    return left


def check_same_inputs(plan: Plan, out: StorePath, store: Manifest) -> None:
    """Refuses inputs none of which is in the journals of a split, where nothing else tells that they are others.

    Raises:
        StoreMismatchError: If the journals' rows would be removed, as their inputs are not those that are named.
    """
    journals = {} if index_files(out) else journal_files(out)
    for name, split in plan.splits.items():
        keys: list[str] = []
        for folder, number, path in ((*place, path) for place, paths in journals.items() for path in paths):
            if folder == folder_name(name):
                with contextlib.suppress(StoreError):  # told once they are taken up
                    for record in records(path, Unit(name, number), store.fingerprint):
                        keys += record.rows["key"].to_pylist()
        if keys and not pc.any(pc.is_in(split.table["key"], pa.array(keys))).as_py():
            raise StoreMismatchError(
                f"the inputs are not those of the store {out}, where {len(keys):,} rows of split {name!r} are computed "
                f"(such as {keys[0]!r}): name those again, replace them with --update, or choose another folder"
            )


def _set_aside(session: StoreSession) -> pa.Table:
    """Returns the embedded rows of the stores that interrupted updates have left, the last first, and each's store."""
    tables = [_NO_ROWS]
    for folder in _others(session):
        for place, entry in session.checks.whole_units(folder, read_tables=True).items():
            rows = read_index(index_files(folder)[place], INDEX_SCHEMA.names)
            tables.append(rows.append_column(_STORE, pa.array([str(folder)] * entry.inputs)))
    stored = pa.concat_tables(tables)
    return stored.filter(pc.equal(stored["status"], OK))


def _others(session: StoreSession) -> list[StoreRoot]:
    """Returns the stores that interrupted updates have left, the last first."""
    return [*reversed(session.leftovers)] if session.manifest.updates and session.root != session.out else []


def _leave_damaged(
    session: StoreSession, missing: Mapping[Unit, Sequence[int]], aside: pa.Table, slots: Mapping[str, Positions]
) -> None:
    """Sets the slot [N] of inputs whose shard in a store that was set aside is damaged to -1, in place."""
    used = [slots[unit.split][list(rows)] for unit, rows in missing.items() if slots and len(rows)]
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *used]))
    taken = aside.take(pa.array(rows[rows >= 0])).select([_STORE, "shard"]).group_by([_STORE, "shard"]).aggregate([])
    for store in pc.unique(taken[_STORE]).to_pylist():
        shards = taken.filter(pc.equal(taken[_STORE], store))["shard"].to_pylist()
        if damaged := session.checks.damaged_shards(_root_of(store), shards):
            is_of_them = pc.is_in(aside["shard"], pa.array(sorted(damaged)))
            bad = np.flatnonzero(pc.and_(pc.equal(aside[_STORE], store), is_of_them).to_numpy())
            for slot in slots.values():
                slot[np.isin(slot, bad)] = -1


def _take_from_stores(
    session: StoreSession,
    split: SplitPlan,
    unit: Unit,
    left: dict[Unit, Sequence[int]],
    aside: pa.Table,
    slot: Positions,
) -> None:
    """Hands a unit's rows in stores that were set aside to the session, and takes them out of `left`.

    `slot` [N] is the row of `aside` for each input of the split; -1 for none.
    """
    rows = left[unit]
    slot = slot[np.asarray(rows, np.int64)]
    is_kept = slot >= 0
    found = index_rows(_part(split, rows), aside, slot).filter(pa.array(is_kept))
    stores = aside[_STORE].take(pa.array(slot[is_kept]))
    for store in pc.unique(stores).to_pylist():
        own = StayingRows.of(unit, found.filter(pc.equal(stores, store)), _root_of(store))
        session.earlier.computed.setdefault(unit, []).append(own)
        session.goes_on = True
    left[unit] = [row for row, kept in zip(rows, is_kept.tolist(), strict=True) if not kept]


def _root_of(place: str) -> StoreRoot:
    """Returns the folder of a store that was set aside."""
    found = store_path(place)
    return ObjectFolder(found, generation="") if isinstance(found, BucketPath) else found


def _part(split: SplitPlan, rows: Sequence[int]) -> SplitPlan:
    """Returns these rows of a split."""
    table = split.table.take(pa.array(rows, pa.int64()))
    return dataclasses.replace(split, table=table, positions=split.index(rows))


def _unchanged(split: SplitPlan, stored: pa.Table) -> Positions:
    """Returns [N], the stored row of an input's key, if it is of the size and time that it had then; otherwise -1."""
    slot = same_keys(split, stored)
    slot[(slot >= 0) & may_have_changed(split, stored, slot)] = -1
    return slot


def _read(journal: StoredFile, unit: Unit, recipe: str, console: Console) -> pa.Table | None:
    """Reads the identities in a journal, the last first, with their places; None if there are none.

    An input that was computed twice, as it had changed, so comes first as it was the second time.
    """
    tables: list[pa.Table] = []
    try:
        tables.extend(record.rows for record in records(journal, unit, recipe))
    except StoreError as error:
        console.print(f"{error}; its rows from there on are computed again", markup=False, soft_wrap=True)
    if not tables:
        return None
    rows = pa.concat_tables(tables, promote_options="permissive")
    rows = rows.append_column(PLACE_SCHEMA.field("shard"), pa.nulls(len(rows), pa.string()))
    rows = rows.append_column(PLACE_SCHEMA.field("row"), pa.array(range(len(rows)), pa.int64()))
    return rows.take(pa.array(range(len(rows))[::-1]))


def _matching(part: SplitPlan, stored: pa.Table) -> tuple[pa.Table, Flags]:
    """Returns the index rows of those inputs that the journal has unchanged, and which of the inputs they are."""
    slot = _unchanged(part, stored)
    is_kept = slot >= 0
    return index_rows(part, stored, slot).filter(pa.array(is_kept)), is_kept
