"""Tells how much memory a Parquet file takes, before any of it is unpacked.

A few bytes of Parquet can stand for any number of rows and bytes, by zstd, runs of equal values and dictionaries, and
the sums in a file's footer may be false. The headers of the pages tell what is unpacked, and they are read here. The
footer is read here too, as pyarrow ends the process over some damaged ones. Only stores are read so, whose writers pin
their Parquet options (see `index_file.PARQUET_OPTIONS`).

Source: https://github.com/apache/parquet-format (README.md, src/main/thrift/parquet.thrift)
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from embedx.store.untrusted.thrift import BINARY, I32, I64, LIST, STRUCT, Spec, Struct, read_struct

_MAGIC = b"PAR1"
TAIL = 8
"""The number of bytes behind the footer's metadata: their length, and the magic."""
_WRITER = b"parquet-cpp-arrow"
_CODECS = (0, 6)  # none, zstd
_ENCODINGS = (0, 2, 8)  # plain, and the two names of a dictionary's
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_BYTE_ARRAY = 6
_REPEATED = 2
SLOT_BYTES = 16
"""The bytes that a value takes at most besides its characters: its number or offset, and its validity."""
_LENGTH_BYTES = 4
_DEEPEST = 50

_COLUMN: Spec = {
    2: (I32, {}),
    3: (BINARY, {}),
    8: (STRUCT, {}),
    13: (STRUCT, {}),
    16: (STRUCT, {2: (I64, {}), 3: (I64, {})}),
    17: (STRUCT, {2: (I32, {})}),
}
_GROUP: Spec = {1: (STRUCT, {3: (STRUCT, _COLUMN)}), 4: (STRUCT, {})}
_FOOTER: Spec = {2: (STRUCT, {}), 4: (STRUCT, _GROUP), 5: (STRUCT, {}), 7: (STRUCT, {})}
_CHUNK_FIELDS = frozenset({2, 3, 4, 5, 6, 7})
"""The fields that a column chunk may have; those for another file's path and for ciphers are not among them."""


class Extent(NamedTuple):
    """The size of a file when it is unpacked."""

    most: int
    """The number of bytes, where a text in a dictionary counts once, however often it occurs in the rows."""
    row: int
    """The largest number of bytes that the texts from dictionaries can have in one row."""


class _Leaf(NamedTuple):
    """A column, as the schema describes it."""

    type: int
    width: int
    """The number of bytes that a value takes, besides its characters."""
    repeated: bool
    """True if a row can have several values."""


def extent(data: bytes) -> Extent:
    """Returns how large the Parquet file with these bytes becomes.

    Raises:
        ValueError: If embedx writes no such files, or the file's parts contradict each other.
    """
    footer = _parse(footer_bytes(io.BytesIO(data)))
    elements = iter(footer.get(2, LIST))
    leaves = list(_leaves(elements))
    if next(elements, None) is not None:
        raise ValueError("its schema has no end")
    most = row = rows = 0
    for group in footer.get(4, LIST):
        group_rows, chunks = group.get(3, I64), group.get(1, LIST)
        if group_rows < 0 or len(chunks) != len(leaves):
            raise ValueError(f"it has {len(chunks)} columns of {group_rows} rows, but the schema has {len(leaves)}")
        rows += group_rows
        for leaf, chunk in zip(leaves, chunks, strict=True):
            values = size = longest = 0
            for kind, page_values, page_size in _pages(data, leaf, chunk):
                size += page_size
                if kind == _DATA_PAGE:
                    values += page_values
                elif leaf.type == _BYTE_ARRAY:
                    longest = max(longest, page_size - _LENGTH_BYTES * page_values)
            if values != chunk.get(3, STRUCT).get(5, I64) or not (leaf.repeated or values == group_rows):
                raise ValueError(f"a column has {values} values in {group_rows} rows")
            most += size + (group_rows + values) * leaf.width + (values * longest if leaf.repeated else 0)
            row += 0 if leaf.repeated else longest
    if rows != footer.get(3, I64):
        raise ValueError(f"it has {rows} rows, and says {footer.get(3, I64)}")
    return Extent(most, row)


def footer_bytes(file: BinaryIO) -> bytes:
    """Reads the footer of a Parquet file, to the end of the file, and no more of the file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    file.seek(footer_start(size, file.read(TAIL)))
    return file.read()


def footer_start(size: int, tail: bytes | bytearray) -> int:
    """Returns the place of the footer in a Parquet file of this size, whose last bytes are `tail`."""
    start = size - TAIL - int.from_bytes(tail[: -len(_MAGIC)], "little")
    if not tail.endswith(_MAGIC) or start < 0:
        raise ValueError("it is no Parquet file, or cut off")
    return start


def key_values(footer: bytes) -> dict[bytes, bytes]:
    """Returns the key-value metadata in the footer of a Parquet file."""
    entries = _parse(footer).get(5, LIST, [])
    return {entry.get(1, BINARY): entry.get(2, BINARY, b"") for entry in entries}


def _parse(data: bytes) -> Struct:
    footer = read_struct(io.BytesIO(data[:-TAIL]), _FOOTER)
    if not footer.get(6, BINARY).startswith(_WRITER):
        raise ValueError(f"it was written by {footer.get(6, BINARY)!r:.60}")
    return footer


def _leaves(elements: Iterator[Struct], repeated: bool = False, depth: int = 0) -> Iterator[_Leaf]:
    """Yields the columns of the next node of a schema, a tree whose nodes are listed parents first."""
    element = next(elements, None)
    if element is None:
        raise ValueError("its schema is cut off")
    children = element.get(5, I32, 0)
    repeated = repeated or element.get(3, I32, 0) == _REPEATED
    if (1 in element.fields) == (children > 0) or depth > _DEEPEST:
        raise ValueError("its schema is no tree")
    if 1 in element.fields:
        yield _Leaf(element.get(1, I32), max(SLOT_BYTES, element.get(2, I32, 0)), repeated)
    for _ in range(children):
        yield from _leaves(elements, repeated, depth + 1)


def _pages(data: bytes, leaf: _Leaf, chunk: Struct) -> Iterator[tuple[int, int, int]]:
    """Yields the pages of a column chunk, as Arrow finds them: kind, number of values, and size when unpacked."""
    column = chunk.get(3, STRUCT)
    if not chunk.fields.keys() <= _CHUNK_FIELDS or column.get(4, I32) not in _CODECS or column.get(1, I32) != leaf.type:
        raise ValueError("a column is not of the kinds that embedx writes")
    at = column.get(9, I64)
    dictionary = column.get(11, I64, 0)
    if 0 < dictionary < at:
        at = dictionary
    end = at + column.get(7, I64)
    if not 0 < at <= end <= len(data):
        raise ValueError("a column is not in the file")
    file = io.BytesIO(data)
    while at < end:
        file.seek(at)
        header = read_struct(file, {})
        kind, size, packed = (header.get(number, I32) for number in (1, 2, 3))
        described = header.get(7 if kind == _DICTIONARY_PAGE else 5, STRUCT)
        values = described.get(1, I32)
        if kind not in (_DATA_PAGE, _DICTIONARY_PAGE) or described.get(2, I32) not in _ENCODINGS:
            raise ValueError("a page is not of the kinds that embedx writes")
        at = file.tell() + packed
        if min(size, values, packed) < 0 or at > end:
            raise ValueError("a page is not in its column")
        yield kind, values, size
