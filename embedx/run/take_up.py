"""Takes up the rows that an interrupted run has computed and journalled, so that only the others are computed.

A row is taken by its key, if its input is of the size and time that it had then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from embedx.data.plan import Plan, SplitPlan
from embedx.errors import StoreError
from embedx.run.changes import same_keys
from embedx.run.columns import may_have_changed
from embedx.run.metadata import Flags
from embedx.run.update import index_rows
from embedx.store.format.index import OK, PLACE_SCHEMA, REJECTED
from embedx.store.format.journal import records
from embedx.store.format.layout import Unit, journal_files
from embedx.store.writing.session import StoreSession
from embedx.store.writing.stock import place_of
from embedx.store.writing.unit_rows import JournalledRows


def take_up(
    session: StoreSession,
    plan: Plan,
    missing: Mapping[Unit, Sequence[int]],
    console: Console,
    *,
    retry_rejected: bool,
) -> dict[Unit, Sequence[int]]:
    """Hands the rows of units' journals to the session.

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
        stores.append(session.out)  # the update of a store that was not finished
    journals = [journal_files(root) for root in stores]
    for unit in missing if any(journals) else ():
        for journal in (files[place_of(unit)] for files in journals if place_of(unit) in files):
            stored = _read(journal, unit, session.manifest.fingerprint, console)
            if stored is None or not len(left[unit]):
                continue
            split, rows = plan.splits[unit.split], left[unit]
            table = split.table.take(pa.array(rows, pa.int64()))
            part = dataclasses.replace(split, table=table, positions=split.index(rows))
            found, is_kept = _matching(part, stored.filter(pc.is_in(stored["status"], pa.array(statuses))))
            if is_kept.any():
                session.earlier.journalled.setdefault(unit, []).append(JournalledRows.of(unit, journal, found))
                left[unit] = [row for row, kept in zip(rows, is_kept.tolist(), strict=True) if not kept]
                session.goes_on = True
        if not len(left[unit]):
            session.earlier.whole.append(unit)
    return left


def _read(journal: Path, unit: Unit, recipe: str, console: Console) -> pa.Table | None:
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
    slot = same_keys(part, stored)
    slot[(slot >= 0) & may_have_changed(part, stored, slot)] = -1
    is_kept = slot >= 0
    return index_rows(part, stored, slot).filter(pa.array(is_kept)), is_kept
