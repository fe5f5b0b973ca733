"""Index tables: one Parquet file per unit, one row per input; written last, it commits the unit."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.errors import StoreError
from embedx.names import INDEX, MANIFEST
from embedx.recipe import canonical_json
from embedx.store.format.index_file import encode, unpack
from embedx.store.format.layout import StoreRoot, Unit, can_be_shard, index_path
from embedx.store.format.open_folder import stored_file
from embedx.store.format.seal import KEY, check_seal
from embedx.store.format.shards import FORMAT, ShardEntry
from embedx.store.format.storage import LocalStorage, storage_of
from embedx.store.format.store_folder import StoreFile
from embedx.store.format.typed_json import fields, parse_json
from embedx.store.untrusted.parquet_size import footer_bytes, key_values

OK = "ok"
REJECTED = "rejected"
"""The status of an input whose bytes, or place, give no embedding."""
UNAVAILABLE = "unavailable"
"""The status of an input that the machine or the network did not give; every later run tries it again."""
STATUSES = (OK, REJECTED, UNAVAILABLE)

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
"""The columns that locate an input's embedding: the shard's path in the store and the row in it; null without one."""

INDEX_SCHEMA = pa.unify_schemas([ROW_SCHEMA, PLACE_SCHEMA])
"""The columns of every index table."""

INPUT_COLUMNS = ("key", "path", "offset", "group", "target", "bytes", "mtime_ns", "sha256")
"""The columns that tell where inputs are, and what they were when they were read."""

_METADATA_KEY = b"embedx"
_ABOUT_KEY = b"embedx.store"
_SEALED = "sealed"
"""The entry of the description that says that the table has a seal, so that it can't be lost unnoticed."""
_NEVER_NULL = ("split", "index", "key", "status")


class UnitEntry(NamedTuple):
    """The description of a unit in the schema metadata of its index table."""

    split: str
    unit: int
    recipe: str
    inputs: int
    rows: int
    rejected: int
    shards: tuple[ShardEntry, ...]
    unavailable: int = 0
    environment: dict[str, Any] | None = None
    """The versions and the hardware that computed the unit; None if they aren't known.

    This entry and the one above are left out of the file where they have their defaults."""


def in_order(rows: pa.Table) -> pa.Table:
    """Returns rows with the columns of ROW_SCHEMA, PLACE_SCHEMA and a source in the order of an index table."""
    of_rows = ROW_SCHEMA.names
    behind = of_rows.index("reason") + 1
    first = [*of_rows[:behind], *PLACE_SCHEMA.names, *of_rows[behind:]]
    return rows.select([*first, *(name for name in rows.column_names if name not in first)])


def write_index(
    root: StoreRoot, rows: pa.Table, entry: UnitEntry, about: str | None = None, token: str | None = None
) -> bool:
    """Writes a unit's index table, with one row per input; it commits the unit.

    Args:
        root: The folder of the store.
        rows: The rows, with the columns of INDEX_SCHEMA and the source's own.
        entry: The description of the unit.
        about: The terms of the whole store, `Manifest.about`, from which its manifest can be written anew.
        token: The name of this process among several that write the store; None if it is the only one.

    Returns:
        False if another process has committed the unit; nothing is changed then.

    Raises:
        OSError: If the file can't be written.
        StoreError: If it would be written through a link, or readers would refuse it, as an input has no key, or the
            columns are many and nearly empty.
    """
    place = index_path(Unit(entry.split, entry.unit))
    shards = [shard._asdict() for shard in entry.shards]
    metadata = entry._asdict() | {"format": FORMAT, _SEALED: True, "shards": shards}
    for name, default in UnitEntry._field_defaults.items():
        if metadata[name] == default:
            del metadata[name]
    described = {_METADATA_KEY: canonical_json(metadata)} | ({_ABOUT_KEY: about} if about else {})
    table = rows.replace_schema_metadata(described)
    try:
        _check_rows(table, entry.inputs, INDEX_SCHEMA.names)
    except ValueError as error:
        raise StoreError(f"{root / place}: can't be written, as no reader would take it: {error}") from error
    try:
        data = encode(table)
    except ValueError as error:
        raise StoreError(
            f"{root / place}: no reader would take it ({error}); leave out nearly empty metadata"
        ) from error
    storage = storage_of(root, token)
    if isinstance(storage, LocalStorage) and token is None:  # it may be there already, for rows in the older order
        storage.put(place, [data])
        return True
    return storage.put_new(place, [data])


def read_entry(path: Path | StoreFile) -> UnitEntry:
    """Reads the description of an index table's unit, from the file's footer alone, whose seal it checks.

    Raises:
        StoreError: If the file can't be read, is damaged or is not the index table that its name says.
    """
    table = stored_file(path, depth=1)
    with table.open() as opened:
        try:
            return _described(table.name, footer_bytes(opened))[0]
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(f"{table}: not a readable index table ({error})") from error


def read_column_names(path: Path | StoreFile) -> list[str]:
    """Reads the names of an index table's columns, from the file's footer alone, whose seal it checks.

    Raises:
        StoreError: If the file can't be read, is damaged or is not the index table that its name says.
    """
    table = stored_file(path, depth=1)
    with table.open() as opened:
        try:
            footer = footer_bytes(opened)
            _described(table.name, footer)
            return list(pq.read_schema(pa.BufferReader(footer)).names)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{table}: not a readable index table ({error})") from error


def read_about(path: Path | StoreFile) -> Any:
    """Reads the terms of the whole store from an index table, as JSON; None in one that is not sealed or has none.

    Raises:
        StoreError: If the file can't be read, is damaged or is not the index table that its name says.
    """
    table = stored_file(path, depth=1)
    try:
        footer = footer_bytes(io.BytesIO(table.read()))
        about = key_values(footer).get(_ABOUT_KEY)
        return parse_json(about) if about is not None and _described(table.name, footer)[1] else None
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{table}: not a readable index table ({error})") from error


def read_index(path: Path | StoreFile, columns: Sequence[str] | None = None, *, sha256: str | None = None) -> pa.Table:
    """Reads an index table, or some of its columns, and unpacks no more than an honest file of its size can hold.

    Args:
        path: The index table.
        columns: The names of the columns to read; None for all.
        sha256: The sha256 that the file must have; None if nobody knows it.

    Raises:
        StoreReplacedError: If the store was replaced meanwhile.
        StoreError: If the file can't be read or is not the index table that its name says.
    """
    file = stored_file(path, depth=1)
    try:
        data = file.read()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise file.folder.fault(f"{file}: the sha256 is not the one in {MANIFEST}; the file was changed")
        return _rows(file.name, data, columns)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error


def read_whole(path: Path | StoreFile) -> tuple[UnitEntry, str]:
    """Reads all of an index table and checks it, as it is by its seal; of an older embedx it has to be unpacked.

    Returns:
        The description of its unit, and the file's sha256.

    Raises:
        StoreError: If the file can't be read, is damaged or is not the index table that its name says.
    """
    file = stored_file(path, depth=1)
    try:
        data = file.read()
        entry, is_sealed = _described(file.name, footer_bytes(io.BytesIO(data)), data)
        if not is_sealed:
            _rows(file.name, data)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a readable index table ({error})") from error
    return entry, hashlib.sha256(data).hexdigest()


def _rows(name: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Unpacks the index table with these bytes, whose file has this name."""
    entry, _ = _described(name, footer_bytes(io.BytesIO(data)), data)
    table = unpack(data, columns)
    _check_rows(table, entry.inputs, INDEX_SCHEMA.names if columns is None else columns)
    return table


def _described(name: str, footer: bytes, data: bytes | None = None) -> tuple[UnitEntry, bool]:
    """Returns the description of the unit whose index table has this name, and whether the table is sealed.

    A KeyError or ValueError refuses others. Of a seal, the footer's part is checked, and with `data` all of it.
    """
    values = key_values(footer)
    kinds = {"format": int, _SEALED: bool, **get_type_hints(UnitEntry)}
    stated = fields(parse_json(values[_METADATA_KEY]), kinds, optional={_SEALED, *UnitEntry._field_defaults})
    is_sealed = stated.pop(_SEALED, False)
    body = None if data is None else memoryview(data)[: -len(footer)]
    check_seal(values.get(KEY), footer, body, is_sealed=is_sealed)
    if stated.pop("format") != FORMAT:
        raise ValueError(f"this embedx reads format {FORMAT}")
    entry = UnitEntry(**stated)
    unit = Unit(entry.split, entry.unit)
    if index_path(unit) != f"{INDEX}/{name}":
        raise ValueError(f"it belongs to unit {unit.number} of split {unit.split!r:.300}")
    for shard in entry.shards:
        if not can_be_shard(shard.path, unit, shard.group, shard.sha256):
            raise ValueError(f"{shard.path!r:.300} can't be the shard of {unit} and group {shard.group!r:.300}")
    if len({shard.path for shard in entry.shards}) < len(entry.shards):
        raise ValueError("it names a shard twice")
    return entry, is_sealed


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
    if "status" in columns and (found := set(pc.unique(table["status"]).to_pylist()) - {*STATUSES}):
        raise ValueError(f"the status {min(found)!r:.60} is none of {', '.join(STATUSES)}")
