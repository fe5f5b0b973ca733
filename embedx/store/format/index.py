"""Index tables: one Parquet file per unit, one row per input; written last, it commits the unit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.errors import StoreError
from embedx.names import INDEX
from embedx.recipe import canonical_json
from embedx.store.format.atomic import write_all
from embedx.store.format.layout import Unit, can_be_shard, index_path
from embedx.store.format.shards import FORMAT, ShardEntry
from embedx.store.untrusted.parquet_size import extent, key_values
from embedx.store.untrusted.parsing import fields, parse_json
from embedx.store.writing.links import inside, plain_file

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
"""The columns of every input's row; the source's own columns follow them.

`offset` is where in the file at `path` the input is, null where it is all of it; `bytes` and `sha256` are of what was
read, and `mtime_ns` is when the file was last written to, by its own clock, as it was listed."""

PLACE_SCHEMA = pa.schema([("shard", pa.string()), ("row", pa.int64())])
"""Where an input's embedding stands: the shard's path in the store, and the row in it; null if rejected."""

INDEX_SCHEMA = pa.unify_schemas([ROW_SCHEMA, PLACE_SCHEMA])
"""The columns that every index table has."""

_METADATA_KEY = b"embedx"
_NEVER_NULL = ("split", "index", "key", "status")
_UNIQUE = ("key", "path", "sha256")
_MOST_UNPACKED = 128
"""Bytes that a byte of an index table may stand for: embedx writes it so, and reads no other."""
_LONGEST_STEP = 8192


class UnitEntry(NamedTuple):
    """What an index table's schema metadata says of its unit."""

    split: str
    unit: int
    recipe: str
    inputs: int
    rows: int
    rejected: int
    shards: tuple[ShardEntry, ...]


def write_index(root: Path, rows: pa.Table, entry: UnitEntry) -> None:
    """Writes a unit's index table; from here on the unit exists.

    Raises:
        OSError: If it can't be written.
        StoreError: If it would be written through a link, or no reader would take it: an input has no key, or the
            columns are many and nearly empty.
    """
    place = Path(inside(root, index_path(Unit(entry.split, entry.unit))))
    metadata = entry._asdict() | {"format": FORMAT, "shards": [shard._asdict() for shard in entry.shards]}
    table = rows.replace_schema_metadata({_METADATA_KEY: canonical_json(metadata)})
    try:
        _check_rows(table, entry.inputs, INDEX_SCHEMA.names)
    except ValueError as error:
        raise StoreError(f"{place}: can't be written, as no reader would take it: {error}") from error
    # What packs so well that it can't be told from an attack is written as it is.
    repetitive = [name for name in table.column_names if name not in _UNIQUE]
    for options in (
        {"compression": "zstd", "use_dictionary": repetitive},
        {"compression": "none", "use_dictionary": False},
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, store_schema=True, **options)
        data = sink.getvalue().to_pybytes()
        try:
            for _ in _batches(data):
                pass
            break
        except ValueError as error:
            refusal = error
    else:
        raise StoreError(f"{place}: no reader would take it ({refusal}); leave out metadata that is nearly nothing")
    write_all([(place, [data])], below=root)


def read_entry(path: Path) -> UnitEntry:
    """Reads what an index table says of its unit, from the file's footer alone.

    Args:
        path: Of the index table, in its store.

    Raises:
        StoreError: If the file can't be read or is not the index table that its name says.
    """
    file = plain_file(path.parent.parent, f"{INDEX}/{path.name}")
    try:
        with file.open("rb") as opened:
            return _entry(path.name, opened)
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error


def read_index(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads an index table, or some of its columns, unpacking no more than so large a file can honestly hold.

    Args:
        path: Of the index table, in its store.
        columns: Those to read; None for all.

    Raises:
        StoreError: If the file can't be read or is not the index table that its name says.
    """
    file = plain_file(path.parent.parent, f"{INDEX}/{path.name}")
    try:
        data = file.read_bytes()
        entry = _entry(path.name, io.BytesIO(data))
        table = pa.Table.from_batches(list(_batches(data, columns))).combine_chunks()
        _check_rows(table, entry.inputs, INDEX_SCHEMA.names if columns is None else columns)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error
    return table


def _entry(name: str, file: BinaryIO) -> UnitEntry:
    """What the index table of that name says of its unit; a KeyError or ValueError if it is none."""
    metadata = parse_json(key_values(file)[_METADATA_KEY])
    stated = fields(metadata, {"format": int, **get_type_hints(UnitEntry)})
    if stated.pop("format") != FORMAT:
        raise ValueError(f"this embedx reads format {FORMAT}")
    entry = UnitEntry(**stated)
    unit = Unit(entry.split, entry.unit)
    if index_path(unit) != f"{INDEX}/{name}":
        raise ValueError(f"it is that of {unit}")
    for shard in entry.shards:
        if not can_be_shard(shard.path, unit, shard.group):
            raise ValueError(
                f"its shard {shard.path!r:.300} is not where that of {unit} and {shard.group!r:.300} can be"
            )
    if len({shard.path for shard in entry.shards}) < len(entry.shards):
        raise ValueError("two of its shards are one")
    return entry


def _batches(data: bytes, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, at least one; a ValueError if it is larger than such a file of embedx's can be."""
    most = _MOST_UNPACKED * len(data)
    unpacked = extent(data)
    if unpacked.most > most:
        raise ValueError(f"{len(data)} bytes say that they hold {unpacked.most}, which is too much to be true")
    steps = max(1, min(_LONGEST_STEP, most // (unpacked.row + 1)))
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
    """Raises a ValueError if these can't be those columns of the rows of so many inputs."""
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
