"""Index tables: one Parquet file per unit, one row per input; written last, it commits the unit."""

from __future__ import annotations

import collections
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.errors import StoreError
from embedx.names import INDEX
from embedx.recipe import canonical_json
from embedx.store.format.atomic import write_all
from embedx.store.format.layout import Unit, can_be_shard, index_path
from embedx.store.format.no_follow import path_inside, regular_file
from embedx.store.format.shards import FORMAT, ShardEntry
from embedx.store.format.typed_json import fields, parse_json
from embedx.store.untrusted.parquet_size import SLOT_BYTES, Extent, extent, key_values

OK = "ok"
REJECTED = "rejected"

ROW_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("index", pa.int64()),
        ("key", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("group", pa.string()),
        ("target", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""The columns that describe an input; the source's own columns follow them.

`offset` is the input's place in the file at `path`, and null where the input is the whole file. `bytes` and `sha256`
describe the bytes that were read, and `mtime_ns` is the file's modification time when it was listed."""

PLACE_SCHEMA = pa.schema([("shard", pa.string()), ("row", pa.int64())])
"""The columns that locate an input's embedding: the shard's path in the store and the row in it; null if rejected."""

INDEX_SCHEMA = pa.unify_schemas([ROW_SCHEMA, PLACE_SCHEMA])
"""The columns of every index table."""

PARQUET_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "row_group_size": 1 << 20,
    "data_page_size": 1 << 20,
    "dictionary_pagesize_limit": 1 << 20,
    "write_batch_size": 1024,
    "write_statistics": True,
    "use_byte_stream_split": False,
    "column_encoding": None,
    "coerce_timestamps": None,
    "use_deprecated_int96_timestamps": False,
    "use_compliant_nested_type": True,
    "store_schema": True,
    "write_page_index": False,
    "write_page_checksum": False,
}
"""The options of `pyarrow.parquet.write_table` for every index table, whatever a pyarrow's defaults are.

They determine the bytes, and `parquet_size` reads no other kinds of pages and encodings."""

_PACKED: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
_PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}
_METADATA_KEY = b"embedx"
_NEVER_NULL = ("split", "index", "key", "status")
_UNIQUE = ("key", "path", "sha256")
"""The columns in which a dictionary would save nothing."""
_MOST_UNPACKED = 128
"""The largest number of unpacked bytes for each byte of an index table; readers refuse a file with more."""
_LONGEST_STEP = 8192


class UnitEntry(NamedTuple):
    """The description of a unit in the schema metadata of its index table."""

    split: str
    unit: int
    recipe: str
    inputs: int
    rows: int
    rejected: int
    shards: tuple[ShardEntry, ...]


def in_order(rows: pa.Table) -> pa.Table:
    """Returns rows with the columns of ROW_SCHEMA, PLACE_SCHEMA and a source in the order of an index table."""
    of_rows = ROW_SCHEMA.names
    behind = of_rows.index("reason") + 1
    first = [*of_rows[:behind], *PLACE_SCHEMA.names, *of_rows[behind:]]
    return rows.select([*first, *(name for name in rows.column_names if name not in first)])


def as_stored(columns: pa.Table) -> pa.Table:
    """Returns columns as they are read back from an index table: some types change on the way, such as times."""
    if not columns.num_columns:
        return columns
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink, **PARQUET_OPTIONS, **_PLAIN)
    with pq.ParquetFile(pa.BufferReader(sink.getvalue())) as file:
        return pa.Table.from_batches(file.iter_batches(use_threads=False), file.schema_arrow)


def write_index(root: Path, rows: pa.Table, entry: UnitEntry) -> None:
    """Writes a unit's index table, with one row per input; it commits the unit.

    Raises:
        OSError: If the file can't be written.
        StoreError: If it would be written through a link, or readers would refuse it, as an input has no key, or the
            columns are many and nearly empty.
    """
    place = Path(path_inside(root, index_path(Unit(entry.split, entry.unit))))
    metadata = entry._asdict() | {"format": FORMAT, "shards": [shard._asdict() for shard in entry.shards]}
    table = rows.replace_schema_metadata({_METADATA_KEY: canonical_json(metadata)})
    try:
        _check_rows(table, entry.inputs, INDEX_SCHEMA.names)
    except ValueError as error:
        raise StoreError(f"{place}: can't be written, as no reader would take it: {error}") from error
    try:
        data = _encode(table)
    except ValueError as error:
        raise StoreError(f"{place}: no reader would take it ({error}); leave out nearly empty metadata") from error
    write_all([(place, [data])], below=root)


def _encode(table: pa.Table) -> bytes:
    """Returns an index table's file, packed unless readers would take a file that packs so well for an attack."""
    repetitive = [name for name in table.column_names if name not in _UNIQUE]
    for options in ({**_PACKED, "use_dictionary": repetitive}, _PLAIN):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **PARQUET_OPTIONS, **options)
        data: bytes = sink.getvalue().to_pybytes()
        size = _own_extent(table.select(options["use_dictionary"] or []), data)
        try:
            collections.deque(_batches(data, size), maxlen=0)
            return data
        except ValueError as error:
            refusal = error
    raise refusal


def _own_extent(repetitive: pa.Table, data: bytes) -> Extent:
    """Returns how large a file of this process becomes, by pyarrow's account: never less than by `parquet_size`.

    The columns in `repetitive` are those that have a dictionary.
    """
    texts = sum(_text_bytes(column.combine_chunks()) for column in repetitive.columns)
    footer = pq.read_metadata(pa.BufferReader(data))
    most = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for number in range(group.num_columns):
            chunk, leaf = group.column(number), footer.schema.column(number)
            most += chunk.total_uncompressed_size
            most += (group.num_rows + chunk.num_values) * max(SLOT_BYTES, leaf.length or 0)
            if leaf.max_repetition_level > 0 and chunk.has_dictionary_page:  # none has, by these options
                most += chunk.num_values * texts
    return Extent(most, footer.num_row_groups * texts)


def _text_bytes(column: pa.Array) -> int:
    """Returns the bytes of all texts in a column, each counted once."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text_bytes(column.dictionary)
    if pa.types.is_nested(kind):
        is_map, is_struct = pa.types.is_map(kind), pa.types.is_struct(kind)
        parts = [column.keys, column.items] if is_map else column.flatten() if is_struct else [column.values]
        return sum(map(_text_bytes, parts))
    if kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        return pc.sum(pc.binary_length(pc.unique(column))).as_py() or 0
    return 0


def read_entry(path: Path) -> UnitEntry:
    """Reads the description of an index table's unit, from the file's footer alone.

    Raises:
        StoreError: If the file can't be read or is not the index table that its name says.
    """
    file = regular_file(path.parent.parent, f"{INDEX}/{path.name}")
    try:
        with file.open("rb") as opened:
            return _entry(path.name, opened)
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error


def read_index(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads an index table, or some of its columns, and unpacks no more than an honest file of its size can hold.

    Raises:
        StoreError: If the file can't be read or is not the index table that its name says.
    """
    file = regular_file(path.parent.parent, f"{INDEX}/{path.name}")
    try:
        data = file.read_bytes()
        entry = _entry(path.name, io.BytesIO(data))
        table = pa.Table.from_batches(list(_batches(data, extent(data), columns))).combine_chunks()
        _check_rows(table, entry.inputs, INDEX_SCHEMA.names if columns is None else columns)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error
    return table


def _entry(name: str, file: BinaryIO) -> UnitEntry:
    """Returns the description of the unit whose index table has this name; a KeyError or ValueError refuses others."""
    stated = fields(parse_json(key_values(file)[_METADATA_KEY]), {"format": int, **get_type_hints(UnitEntry)})
    if stated.pop("format") != FORMAT:
        raise ValueError(f"this embedx reads format {FORMAT}")
    entry = UnitEntry(**stated)
    unit = Unit(entry.split, entry.unit)
    if index_path(unit) != f"{INDEX}/{name}":
        raise ValueError(f"it belongs to unit {unit.number} of split {unit.split!r:.300}")
    for shard in entry.shards:
        if not can_be_shard(shard.path, unit, shard.group):
            raise ValueError(f"{shard.path!r:.300} can't be the shard of {unit} and group {shard.group!r:.300}")
    if len({shard.path for shard in entry.shards}) < len(entry.shards):
        raise ValueError("it names a shard twice")
    return entry


def _batches(data: bytes, size: Extent, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file, which must not grow too much when they are unpacked, batch by batch."""
    most = _MOST_UNPACKED * len(data)
    if size.most > most:
        raise ValueError(f"{len(data)} bytes claim to unpack to {size.most}, more than {_MOST_UNPACKED} times as many")
    steps = max(1, min(_LONGEST_STEP, most // (size.row + 1)))
    rows = 0
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        for batch in file.iter_batches(steps, columns=columns, use_threads=False):
            most -= batch.get_total_buffer_size()
            if most < 0:
                raise ValueError(f"{len(data)} bytes hold more than {_MOST_UNPACKED} times as many")
            rows += len(batch)
            yield batch
    if not rows:
        raise ValueError("it has no rows")


def _check_rows(table: pa.Table, inputs: int, columns: Sequence[str]) -> None:
    """Raises a ValueError unless the table has so many rows, and columns of these names as an index table has them."""
    if len(table) != inputs:
        raise ValueError(f"it has {len(table)} rows, and says {inputs}")
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("two columns have one name")
    for name in columns:
        kind = INDEX_SCHEMA.field(name).type if name in INDEX_SCHEMA.names else None
        if name not in table.column_names or kind not in (None, table[name].type):
            raise ValueError(f"there is no column {name!r}{f' of {kind}' if kind else ''}")
        if name in _NEVER_NULL and table[name].null_count:
            raise ValueError(f"the column {name!r} has empty places")
    table.validate(full=True)
    if "status" in columns and (found := set(pc.unique(table["status"]).to_pylist()) - {OK, REJECTED}):
        raise ValueError(f"the status {min(found)!r:.60} is neither {OK} nor {REJECTED}")
