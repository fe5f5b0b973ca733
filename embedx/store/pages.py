"""What a Parquet file will take in memory, told before any of it is unpacked.

A few bytes of Parquet can stand for any number of rows and bytes: zstd, runs of equal values and dictionaries see to
that, and the sums in a file's footer are only what its writer says they are. What is unpacked follows from the headers
of its pages, which are read here.

Source: https://github.com/apache/parquet-format (README.md, src/main/thrift/parquet.thrift), and Thrift's compact
protocol, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_WRITER = "parquet-cpp-arrow"
_CODECS = ("ZSTD", "UNCOMPRESSED")
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_SLOT_BYTES = 16
"""More than what a value takes beside its characters: number or offset, and validity."""
_LENGTH_BYTES = 4
_DEEPEST = 20


class Extent(NamedTuple):
    """How large a file becomes when it is unpacked."""

    most: int
    """Bytes; more only by what texts grow that stand in a dictionary once and in the rows often."""
    row: int
    """The bytes that one row's texts from dictionaries can have."""


class _Page(NamedTuple):
    kind: int
    encoding: int
    values: int
    size: int
    """Unpacked."""


def extent(data: bytes, metadata: Any) -> Extent:
    """How large the file with these contents becomes.

    Args:
        data: The whole file.
        metadata: Its footer, a `pyarrow.parquet.FileMetaData`.

    Raises:
        ValueError: If it has not the form in which embedx writes, or its parts contradict each other.
    """
    if not (metadata.created_by or "").startswith(_WRITER):
        raise ValueError(f"it was written by {metadata.created_by!r:.60}")
    most = row = rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        for column in range(group.num_columns):
            described = metadata.schema.column(column)
            width = max(_SLOT_BYTES, described.length or 0)
            repeated = described.max_repetition_level > 0
            values = size = longest = 0
            for page in _pages(data, group.column(column)):
                size += page.size
                if page.kind == _DATA_PAGE:
                    values += page.values
                elif described.physical_type == "BYTE_ARRAY":
                    longest = max(longest, page.size - _LENGTH_BYTES * page.values)
            if values != group.column(column).num_values or not (repeated or values == group.num_rows):
                raise ValueError(f"the column {described.path!r:.60} has {values} values in {group.num_rows} rows")
            most += size + (group.num_rows + values) * width + (values * longest if repeated else 0)
            row += 0 if repeated else longest
    if rows != metadata.num_rows:
        raise ValueError(f"it has {rows} rows, and says {metadata.num_rows}")
    return Extent(most, row)


def _pages(data: bytes, column: Any) -> Iterator[_Page]:
    """The pages of a column chunk, as Arrow finds them."""
    if column.file_path or column.compression not in _CODECS:
        raise ValueError(f"a column is compressed by {column.compression}, or in the file {column.file_path!r:.60}")
    at = column.data_page_offset
    if column.dictionary_page_offset and 0 < column.dictionary_page_offset < at:
        at = column.dictionary_page_offset
    end = at + column.total_compressed_size
    if not 0 < at <= end <= len(data):
        raise ValueError("a column is not in the file")
    while at < end:
        header, at = _struct(data, at, 0)
        try:
            kind, size, packed = header[1], header[2], header[3]
            described = header[7 if kind == _DICTIONARY_PAGE else 5]
            page = _Page(kind, described[2], described[1], size)
        except (KeyError, TypeError) as error:
            raise ValueError("a page is not of the kinds that embedx writes") from error
        encodings = (_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY)
        if page.kind not in (_DATA_PAGE, _DICTIONARY_PAGE) or page.encoding not in encodings:
            raise ValueError("a page is not of the kinds that embedx writes")
        at += packed
        if min(page.size, page.values, packed) < 0 or at > end:
            raise ValueError("a page is not in its column")
        yield page


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, by field number, and where it ends; only its numbers and structs."""
    if depth > _DEEPEST:
        raise ValueError("a page's header is nested too deep")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head, at = _byte(data, at)
        if head == 0:
            return fields, at
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(data, at, head & 15, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # a boolean is its type
        return kind == 1, at
    if kind == 3:
        return _byte(data, at)
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise ValueError("a page's header has a list or a map, as none has")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte, at = _byte(data, at)
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("a page's header has a number beyond 64 bits")


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("a page's header is cut off")
    return data[at], at + 1
