"""The Parquet files of index tables: packed with pinned options, and unpacked within what an honest file can hold."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.store.format.seal import encode_sealed
from embedx.store.untrusted.parquet_size import SLOT_BYTES, Extent, extent

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
    "write_page_checksum": True,
}
"""The options of `seal.encode_sealed` for every index table, whatever a pyarrow's defaults are.

They determine the bytes, and `parquet_size` reads no other kinds of pages and encodings."""

_PACKED: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
_PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}
_UNIQUE = ("key", "path", "sha256")
"""The columns in which a dictionary would save nothing."""
_MOST_UNPACKED = 128
"""The largest number of unpacked bytes for each byte of an index table; readers refuse a file with more."""
_LONGEST_STEP = 8192


def as_stored(columns: pa.Table) -> pa.Table:
    """Returns columns as they are read back from an index table: some types change on the way, such as times."""
    if not columns.num_columns:
        return columns
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink, **PARQUET_OPTIONS, **_PLAIN)
    with pq.ParquetFile(pa.BufferReader(sink.getvalue())) as file:
        return pa.Table.from_batches(file.iter_batches(use_threads=False), file.schema_arrow)


def encode(table: pa.Table) -> bytes:
    """Returns an index table's file, packed unless readers would take a file that packs so well for an attack."""
    repetitive = [name for name in table.column_names if name not in _UNIQUE]
    for options in ({**_PACKED, "use_dictionary": repetitive}, _PLAIN):
        data = encode_sealed(table, **PARQUET_OPTIONS, **options)
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


def unpack(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the rows of an index table's file, or some of its columns; a ValueError refuses files of other kinds."""
    return pa.Table.from_batches(list(_batches(data, extent(data), columns))).combine_chunks()


def _batches(data: bytes, size: Extent, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file, which must not grow too much when they are unpacked, batch by batch."""
    most = _MOST_UNPACKED * len(data)
    if size.most > most:
        raise ValueError(f"{len(data)} bytes claim to unpack to {size.most}, more than {_MOST_UNPACKED} times as many")
    steps = max(1, min(_LONGEST_STEP, most // (size.row + 1)))
    rows = 0
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        for batch in file.iter_batches(steps, columns=columns, use_threads=False):
            most -= batch.get_total_buffer_size()
            if most < 0:
                raise ValueError(f"{len(data)} bytes hold more than {_MOST_UNPACKED} times as many")
            rows += len(batch)
            yield batch
    if not rows:
        raise ValueError("it has no rows")
