"""The plan: the samples of every split in a fixed order (by group, then source order), cut into units."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.sources import COMMON_SCHEMA, Source
from embedx.errors import ConfigError, unknown

PLAN_COLUMNS = (*COMMON_SCHEMA.names, "group", "target")
"""Columns of a split's plan; the source's own metadata columns follow."""


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """The samples of one split, in the order in which they are embedded."""

    name: str
    table: pa.Table
    """PLAN_COLUMNS, then the source's metadata; row i of it is the sample of index i."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def metadata(self) -> tuple[str, ...]:
        """Names of the source's own columns."""
        return tuple(self.table.column_names[len(PLAN_COLUMNS) :])

    def unit_rows(self, rows_per_unit: int) -> list[range]:
        """The units: unit i holds the samples of the i-th range."""
        return [range(start, min(start + rows_per_unit, len(self))) for start in range(0, len(self), rows_per_unit)]

    def inputs_per_group(self) -> dict[str | None, int]:
        """How many samples each group has, in plan order."""
        counts = self.table.group_by("group", use_threads=False).aggregate([([], "count_all")])
        return dict(zip(counts["group"].to_pylist(), counts["count_all"].to_pylist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """What identifies this plan in the manifest: another one has other units."""
        return {
            "inputs": len(self),
            "names_sha256": _digest(self.table.select(["key", "group", "target"])),
            "sizes_and_times_sha256": _digest(self.table.select(["size", "mtime_ns"])),
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """The samples of every split."""

    splits: dict[str, SplitPlan]
    classes: list[str]
    """Class names; a class's position is its target."""
    group_key: str | None

    def to_json(self, rows_per_unit: int) -> dict[str, Any]:
        """The plan's entry in the manifest."""
        return {
            "group_key": self.group_key,
            "rows_per_unit": rows_per_unit,
            "classes": self.classes,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
        }


def build_plan(sources: Mapping[str, Source], group_key: str | None) -> Plan:
    """Lists and orders the samples of every split.

    The target is the class's position among the sorted class names of all splits taken together, so that a
    class has one number (torchvision's ImageFolder rule, over all splits).

    Raises:
        ConfigError: If a source is empty, the group key is not among the metadata, or a key is there twice.
    """
    faults: list[str] = []
    tables: dict[str, pa.Table] = {}
    for split, source in sources.items():
        if group_key is not None and group_key not in source.metadata:
            faults.append(unknown("--group-key", group_key, source.metadata, hint=f"(split {split!r})"))
        try:
            tables[split] = source.scan()
        except ConfigError as error:
            faults += error.faults
            continue
        if twice := _repeated(tables[split]["key"]):
            faults.append(f"split {split!r}: {len(twice)} keys stand there twice, such as {twice[0]!r}; rename those")
    ConfigError.check(faults)
    classes = sorted({name for table in tables.values() for name in _values(table, "class") if name is not None})
    splits = {split: _plan_split(split, table, classes, group_key) for split, table in tables.items()}
    return Plan(splits, classes, group_key)


def rows_per_unit(shard_size: int, row_bytes: int, batch_size: int) -> int:
    """As many whole batches as make a shard of about `shard_size` bytes; at least one."""
    return max(1, shard_size // (row_bytes * batch_size)) * batch_size


def _plan_split(split: str, table: pa.Table, classes: Sequence[str], group_key: str | None) -> SplitPlan:
    target = (
        pc.index_in(table["class"], pa.array(classes, pa.string())).cast(pa.int64())
        if "class" in table.column_names
        else pa.nulls(len(table), pa.int64())
    )
    group = table[group_key].cast(pa.string()) if group_key else pa.nulls(len(table), pa.string())
    metadata = table.column_names[len(COMMON_SCHEMA) :]
    table = table.append_column("group", group).append_column("target", target)
    order = pc.sort_indices(table, sort_keys=[("group", "ascending")]) if group_key else None
    table = table.take(order) if order is not None else table
    return SplitPlan(split, table.select([*PLAN_COLUMNS, *metadata]).combine_chunks())


def _repeated(column: pa.ChunkedArray) -> list[str]:
    if pc.count_distinct(column).as_py() == len(column):
        return []
    counts = pc.value_counts(column)
    return list(counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist())


def _values(table: pa.Table, column: str) -> list[str | None]:
    return list(pc.unique(table[column]).to_pylist()) if column in table.column_names else []


def _digest(table: pa.Table) -> str:
    """Sha256 of a table's values, whatever its chunks: per column the values' lengths, then their text."""
    digest = hashlib.sha256()
    for column in table.columns:
        values = pc.fill_null(column.cast(pa.large_string()), "\0")
        for array in (pc.binary_length(values), values):
            for chunk in array.chunks:
                # A copied array starts at offset 0; what lies behind its last value is padding.
                own = pa.concat_arrays([chunk])
                data = own.buffers()[-1]
                if data is not None:
                    length = pc.sum(pc.binary_length(own)).as_py() if own.type == pa.large_string() else own.nbytes
                    digest.update(memoryview(data)[: length or 0])
    return digest.hexdigest()
