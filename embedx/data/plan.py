"""The plan: the samples of every split in a fixed order (by group, then source order), cut into units."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.arrow import replaced, spell, unify
from embedx.data.reading.files import FileReader
from embedx.data.sources.base import COMMON_SCHEMA, TARGET, Reader, Source, as_text, repeated, texts_without_credentials
from embedx.data.sources.written import WRITTEN, written_text
from embedx.errors import ConfigError, unknown
from embedx.names import RESERVED_COLUMNS

PLAN_COLUMNS = (*COMMON_SCHEMA.names, "group", TARGET)
"""The columns of a split's plan; the source's own metadata columns follow."""

_CHUNK = 1 << 20
"""The number of rows that are converted to text at a time."""
_TAKEN = RESERVED_COLUMNS.union(PLAN_COLUMNS)


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """The samples of one split, in the order in which they are embedded."""

    name: str
    table: pa.Table
    """A row per sample, with PLAN_COLUMNS and then the source's metadata."""
    reader: Reader = dataclasses.field(default_factory=FileReader)
    positions: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """The `index` [N] of each sample in the store, which tells its unit; None if that is its row in `table`."""
    kept: Mapping[str, Any] | None = None
    """The entry in the manifest of a split that stays as an earlier run stored it; None for one that was listed."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def metadata(self) -> tuple[str, ...]:
        """The names of the source's own columns."""
        return tuple(self.table.column_names[len(PLAN_COLUMNS) :])

    def index(self, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns the `index` in the store of these rows of the table."""
        own = np.asarray(rows, np.int64)
        return own if self.positions is None else self.positions[own]

    def unit_rows(self, rows_per_unit: int) -> list[range]:
        """Cuts the samples into units; unit i holds the samples of the i-th range."""
        return [range(start, min(start + rows_per_unit, len(self))) for start in range(0, len(self), rows_per_unit)]

    def inputs_per_group(self) -> dict[str | None, int]:
        """Counts the samples of each group, in plan order."""
        counts = self.table.group_by("group", use_threads=False).aggregate([([], "count_all")])
        return dict(zip(counts["group"].to_pylist(), counts["count_all"].to_pylist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Returns the split's entry in the manifest, which differs if anything differs that the index stores."""
        if self.kept is not None:
            return dict(self.kept)
        return {
            "inputs": len(self),
            "names_sha256": _digest(self.table.select(["key", "group", "target"])),
            "sizes_and_times_sha256": _digest(self.table.select(["size", "mtime_ns"])),
            "places_sha256": _typed_digest(_without_credentials(self.table.select(["path", "offset"]), ["path"])),
            "metadata_sha256": _typed_digest(self.table.select(self.metadata)),
        }

    def with_targets(self, target: pa.Array) -> SplitPlan:
        """Returns the same split with other targets [N] int64."""
        table = self.table.set_column(self.table.schema.get_field_index(TARGET), TARGET, target)
        split = dataclasses.replace(self, table=table)
        if self.kept is None or target.equals(self.table[TARGET].combine_chunks()):
            return split
        names = _digest(table.select(["key", "group", "target"]))
        return dataclasses.replace(split, kept={**self.kept, "names_sha256": names})


@dataclasses.dataclass(frozen=True)
class Plan:
    """The samples of every split."""

    splits: dict[str, SplitPlan]
    classes: list[str]
    """The class names; a class's position is its target. Empty where the sources give numbers, or no targets."""
    group_key: str | None
    notices: tuple[str, ...] = ()
    """How the sources were read, where the user may not expect it."""

    @property
    def inputs(self) -> int:
        """The number of samples that were listed, without those of splits that stay as they are."""
        return sum(len(split) for split in self.splits.values() if split.kept is None)

    def to_json(self, rows_per_unit: int) -> dict[str, Any]:
        """Returns the plan's entry in the manifest."""
        return {
            "group_key": self.group_key,
            "rows_per_unit": rows_per_unit,
            "classes": self.classes,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
        }


def build_plan(sources: Mapping[str, Source], group_key: str | None) -> Plan:
    """Lists and orders the samples of every split.

    A class name becomes its position among the sorted names of all splits together, so that a class has one number
    (torchvision's ImageFolder rule, over all splits); a target that is a number stays. The groups are the values of the
    metadata column `group_key`.

    Raises:
        ConfigError: If a source is empty, the group key is not among the metadata or not a plain value, metadata can't
            be stored, a key occurs twice, or targets are names in one split and numbers in another.
    """
    faults: list[str] = []
    tables: dict[str, pa.Table] = {}
    for split, source in sources.items():
        if group_key is not None and group_key not in source.metadata:
            faults.append(unknown("--group-key", group_key, source.metadata, hint=f"(split {split!r})"))
        if clashing := sorted(_TAKEN.intersection(source.metadata)):
            faults.append(
                f"split {split!r}: columns can't be named {', '.join(clashing)}, as the index table has its own "
                "of that name; rename them, or give their role, such as --split-column split"
            )
            continue
        try:
            tables[split] = _without_credentials(source.scan())
        except ConfigError as error:
            faults += error.faults
            continue
        faults += _unstorable(tables[split].select(source.metadata), split, group_key)
        faults += _repeated_keys(tables[split], split, source.advice)
    ConfigError.check(faults)
    tables = _of_one_type(tables, {name for source in sources.values() for name in source.metadata}, group_key)
    tables, classes = _with_class_names(tables)
    splits = {split: _plan_split(split, source, tables[split], classes, group_key) for split, source in sources.items()}
    notices = dict.fromkeys(notice for source in sources.values() for notice in source.notices)
    return Plan(splits, classes, group_key, tuple(notices))


def _of_one_type(tables: Mapping[str, pa.Table], names: Iterable[str], group_key: str | None) -> dict[str, pa.Table]:
    """Makes columns of metadata text, as it is written: the groups', and those without a common type over all splits.

    Groups keep a guessed type if that spells them as they are written.
    """
    splits = dict(tables)
    for split, table in tables.items():
        for name in names:
            is_text = name == group_key or (name in table.column_names and pa.types.is_string(table[name].type))
            if is_text and name + WRITTEN in table.column_names:
                splits[split] = replaced(splits[split], name, written_text(table, name))
    return dict(zip(splits, unify(list(splits.values()), sorted(names), written_text), strict=True))


def _with_class_names(tables: Mapping[str, pa.Table]) -> tuple[dict[str, pa.Table], list[str]]:
    """Returns the tables with targets that are names in all splits or in none, and the sorted names.

    Numbers are names if some are written as no number is, such as `007`, or if all are names in other splits.

    Raises:
        ConfigError: If targets are names in one split, and numbers in another.
    """
    found = dict(tables)
    numbered = [split for split, table in found.items() if pa.types.is_integer(table[TARGET].type)]
    texts = {split: written_text(found[split], TARGET) for split in numbered}
    if not any(TARGET + WRITTEN in found[split].column_names for split in numbered):
        names = _names(table[TARGET] for split, table in found.items() if split not in numbered)
        for split in numbered if names else ():
            if not names.issuperset(_names([texts[split]])):
                raise ConfigError(
                    f"targets are numbers in split {split!r}, and names such as {min(names)!r} in another"
                )
        texts = texts if names else {}
    for split, text in texts.items():
        found[split] = replaced(found[split], TARGET, text)
    return found, sorted(_names(table[TARGET] for table in found.values()))


def _names(targets: Iterable[pa.ChunkedArray]) -> set[str]:
    """Returns the class names in the columns of targets that are names."""
    texts = (pc.unique(column).to_pylist() for column in targets if pa.types.is_string(column.type))
    return {name for column in texts for name in column if name is not None}


def _without_credentials(table: pa.Table, names: Iterable[str] | None = None) -> pa.Table:
    """Returns the table with the URLs in some columns, or else in all columns of text, as stores have them."""
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)] if names is None else names
    for name in texts:
        table = replaced(table, name, texts_without_credentials(table[name]))
    return table


def _repeated_keys(table: pa.Table, split: str, advice: str) -> list[str]:
    """Returns a message that names the keys which occur more than once, if there are any."""
    twice = repeated(table["key"])
    if not twice:
        return []
    paths = pc.unique(table.filter(pc.equal(table["key"], twice[0]))["path"]).to_pylist()
    places = " and ".join(map(as_text, paths[:2]))
    return [f"split {split!r}: {len(twice)} keys occur more than once, such as {twice[0]!r} of {places}; {advice}"]


def _unstorable(metadata: pa.Table, split: str, group_key: str | None) -> list[str]:
    """Returns a message per column of metadata that Parquet can't store, and for a group key that is no plain value."""
    faults = []
    for field in metadata.schema:
        if not _is_storable(field):
            faults.append(
                f"split {split!r}: the column {field.name!r} is {field.type}, which an index table can't hold; make it "
                "text, or leave it out"
            )
        if field.name == group_key and pa.types.is_nested(field.type):
            faults.append(f"--group-key {group_key}: split {split!r} has values of type {field.type}; give plain ones")
    return faults


@functools.lru_cache
def _is_storable(field: pa.Field) -> bool:
    """Tells whether Parquet can store a column of this name and type, which thousands of splits may have."""
    try:
        pq.write_table(pa.schema([field]).empty_table(), pa.MockOutputStream())
    except pa.ArrowException:
        return False
    return True


def _plan_split(
    split: str, source: Source, table: pa.Table, classes: Sequence[str], group_key: str | None
) -> SplitPlan:
    target = table[TARGET]
    if pa.types.is_string(target.type):
        target = pc.index_in(target, pa.array(classes, pa.string()))
    group = spell(table[group_key]) if group_key else pa.nulls(len(table), pa.string())
    table = table.drop(TARGET).append_column("group", group).append_column(TARGET, target.cast(pa.int64()))
    order = pc.sort_indices(table, sort_keys=[("group", "ascending")]) if group_key else None
    table = table.take(order) if order is not None else table
    table = table.select([*PLAN_COLUMNS, *source.metadata]).combine_chunks()
    return SplitPlan(split, table, source.reader)


def _digest(table: pa.Table) -> str:
    """Returns the sha256 of a table's values, whatever its chunks: per column the values' lengths, then their text."""
    digest = hashlib.sha256()
    for name in table.column_names:
        batches = table.select([name]).to_batches(_CHUNK)
        once = (pc.fill_null(batch.column(0).cast(pa.large_string()), "\0") for batch in 2 * batches)
        texts = 2 * [next(once)] if len(batches) == 1 else once  # one, as each of thousands of splits has
        for number, text in enumerate(texts):
            digest.update(_content(pc.binary_length(text) if number < len(batches) else text))
    return digest.hexdigest()


def _typed_digest(table: pa.Table) -> str:
    """Returns the sha256 of columns of any type: of their names, types and values, as Parquet has them."""
    digest = hashlib.sha256()
    for start in range(0, len(table) if table.num_columns else 0, _CHUNK):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(start, _CHUNK), sink, compression="none", use_dictionary=False)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _content(array: pa.Array) -> memoryview | bytes:
    """Returns the bytes of an array's numbers or texts, one after the other."""
    own = pa.concat_arrays([array])  # a copied array starts at offset 0; what lies behind its last value is padding
    data = own.buffers()[-1]
    if data is None:
        return b""
    length = pc.sum(pc.binary_length(own)).as_py() if own.type == pa.large_string() else own.nbytes
    return memoryview(data)[: length or 0]
