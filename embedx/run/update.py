"""Gives each input of a changed plan a place in the store, so that as many units as possible stay as they are.

A row stays in its unit. New rows fill the units that lose rows, those that are missing, and the last, then new units.
Within a unit the rows stand in the plan's order, without gaps.

Shapes: N inputs of a split's plan, K rows of the store, U units that the store has of the split, up to the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.plan import Plan, SplitPlan
from embedx.data.sources.base import paths_as_text
from embedx.run.changes import Changes, Verdict
from embedx.run.columns import at
from embedx.run.metadata import Positions
from embedx.store.format.index import INDEX_SCHEMA, PLACE_SCHEMA, REJECTED, ROW_SCHEMA
from embedx.store.format.layout import Unit
from embedx.store.writing.unit_rows import StayingRows

_OF_SHARDS = [name for name in INDEX_SCHEMA.names if name not in ("key", "path", "offset", "mtime_ns")]
"""The columns by which the rows of two units have the same shards."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of each row of a plan in the updated store, and the origin of its embedding."""

    counts: dict[str, int]
    """The number of inputs with each verdict (see Changes)."""
    plan: Plan
    """The plan, with each input's `index` in the updated store."""
    retried: dict[str, set[int]]
    """The rejected inputs that are tried again, as rows of the plan, per split."""
    computed: dict[str, list[int]]
    """The inputs to be computed, as rows of the plan, per split."""
    units: dict[Unit, int]
    """All units of the updated store, with their number of inputs."""
    linked: dict[Unit, pa.Table | None]
    """The units whose shards the store has exactly so already, each with its index rows if these have changed."""
    staying: dict[Unit, StayingRows]
    """The rows whose embeddings the store has, for each of the other units."""


def lay_out(changes: Changes, rows_per_unit: int) -> Layout:
    """Gives each input of the plan a place."""
    layout = Layout(changes.counts, dataclasses.replace(changes.plan, splits={}), {}, {}, {}, {}, {})
    for name, split in changes.plan.splits.items():
        has_other_metadata = changes.splits[name].metadata.rows
        slot, source_row = changes.splits[name].slot, changes.splits[name].source_row
        stored_units = _stored_units(changes.stored, name, rows_per_unit)
        sizes = np.array([len(rows) for rows in stored_units], np.int64)
        unit = np.where(slot < 0, -1, at(changes.stored["index"].to_numpy(), slot) // rows_per_unit)
        unit = _place_new(unit, sizes, rows_per_unit)
        order = np.argsort(unit, kind="stable")
        numbers, starts, counts = np.unique(unit[order], return_index=True, return_counts=True)
        positions = np.empty(len(split), np.int64)
        positions[order] = np.repeat(numbers * rows_per_unit - starts, counts) + np.arange(len(split))
        layout.plan.splits[name] = dataclasses.replace(split, positions=positions)
        retried = changes.splits[name].rows(Verdict.RETRIED)
        was_rejected = pc.equal(changes.stored["status"].take(pa.array(slot[retried])), REJECTED)
        layout.retried[name] = set(retried[was_rejected.to_numpy()].tolist())
        layout.computed[name] = order[source_row[order] < 0].tolist()
        rows = index_rows(layout.plan.splits[name], changes.stored, source_row).take(pa.array(order))
        has_source = pa.array(source_row[order] >= 0)
        for number, start, count in zip(numbers.tolist(), starts.tolist(), counts.tolist(), strict=True):
            unit_rows = rows.slice(start, count)
            layout.units[Unit(name, number)] = count
            if number < len(stored_units) and _have_same(_OF_SHARDS, stored_units[number], unit_rows):
                is_same = _have_same(INDEX_SCHEMA.names, stored_units[number], unit_rows)
                is_same = is_same and not has_other_metadata[order[start : start + count]].any()
                layout.linked[Unit(name, number)] = None if is_same else unit_rows
            elif len(staying := unit_rows.filter(has_source.slice(start, count))):
                layout.staying[Unit(name, number)] = StayingRows.of(Unit(name, number), staying)
    return layout


def _stored_units(stored: pa.Table, split: str, rows_per_unit: int) -> list[pa.Table]:
    """Returns [U], the stored rows of each unit of a split; none for a unit that is missing."""
    own = np.flatnonzero(pc.equal(stored["split"], split).to_numpy())
    sizes = np.bincount(stored["index"].to_numpy()[own] // rows_per_unit)
    starts = np.cumsum(sizes) - sizes + (own[0] if len(own) else 0)
    return [stored.slice(start, size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]


def _place_new(unit: Positions, sizes: Positions, rows_per_unit: int) -> Positions:
    """Gives the inputs that have no unit one: where rows are lost or missing, in the last, and then in further units.

    `unit` [N] is the number of each input's unit, -1 for none; `sizes` [U] are the units' numbers of rows in the store.
    """
    kept = np.bincount(unit[unit >= 0], minlength=len(sizes))
    new = np.flatnonzero(unit < 0)
    is_open = (kept < sizes) | (sizes == 0)
    is_open[-1:] = True
    further = np.arange(len(sizes), len(sizes) - (-len(new) // rows_per_unit))
    open_units = np.flatnonzero(is_open)
    room = np.concatenate([rows_per_unit - kept[open_units], np.full(len(further), rows_per_unit)])
    filled = unit.copy()
    filled[new] = np.repeat(np.concatenate([open_units, further]), room)[: len(new)]
    return filled


def _have_same(names: Sequence[str], stored: pa.Table, rows: pa.Table) -> bool:
    """Tells whether a stored unit and index rows have the same values in these columns."""
    return bool(stored.select(names).equals(rows.select(names)))


def index_rows(split: SplitPlan, stored: pa.Table, source_row: Positions) -> pa.Table:
    """Returns the index rows [N] in the plan's order; the columns that reading fills are null for inputs to compute."""
    own = split.table
    old = stored.select([*("status", "reason", "bytes", "sha256"), *PLACE_SCHEMA.names]).take(
        pa.array(source_row, mask=source_row < 0)
    )
    columns = {
        "split": pa.array([split.name] * len(split), pa.string()),
        "index": pa.array(split.index(range(len(split)))),
        "path": paths_as_text(own["path"]),
        **{name: own[name] for name in ("key", "offset", "group", "target", "mtime_ns", *split.metadata)},
        **{name: old[name] for name in old.column_names},
    }
    return pa.table({name: columns[name] for name in (*ROW_SCHEMA.names, *split.metadata, *PLACE_SCHEMA.names)})
