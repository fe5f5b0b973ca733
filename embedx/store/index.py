"""Index tables: one Parquet file per unit, one row per input; written last, it commits the unit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from embedx.config import canonical_json
from embedx.errors import StoreError
from embedx.store.files import make_folder, write_atomic
from embedx.store.layout import Unit, index_path
from embedx.store.shards import FORMAT, ShardEntry

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

_METADATA_KEY = b"embedx"


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
    """
    metadata = entry._asdict() | {"format": FORMAT, "shards": [shard._asdict() for shard in entry.shards]}
    table = rows.replace_schema_metadata({_METADATA_KEY: canonical_json(metadata)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=True)
    path = root / index_path(Unit(entry.split, entry.unit))
    make_folder(path.parent)
    write_atomic(path, sink.getvalue().to_pybytes())


def read_entry(path: Path) -> UnitEntry:
    """Reads what an index table says of its unit, from the file's footer alone.

    Raises:
        StoreError: If the file can't be read or is not an index table of this format.
    """
    try:
        metadata: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {})[_METADATA_KEY])
        if metadata.pop("format") != FORMAT:
            raise ValueError(f"this embedx reads format {FORMAT}")
        shards = tuple(ShardEntry(**shard) for shard in metadata.pop("shards"))
        return UnitEntry(**metadata, shards=shards)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error


def read_index(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads an index table, or some of its columns.

    Raises:
        StoreError: If the file can't be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=list(columns) if columns is not None else None)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error
