"""The seal of an index table: two digests in the footer of its Parquet file, by which any flipped bit is noticed.

    body     the row groups, from the start of the file to the footer
    footer   its metadata, in which the key `embedx.seal` has the sha256 of the body, a space and the sha256 of the
             footer itself, the digits of the latter taken as zeros; to the end of the file

So the footer, which describes the unit, is checked without reading the rows.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedx.store.untrusted.parquet_size import TAIL, footer_start

KEY = b"embedx.seal"
_BLANK = b"0" * 64
_VALUE = re.compile(rb"([0-9a-f]{64}) ([0-9a-f]{64})")
_PLACE = KEY + b"\x18\x81\x01"
"""The key in the footer, and in front of the value the type and the length that Thrift gives a string of 129 bytes."""


def encode_sealed(table: pa.Table, *, row_group_size: int, **options: Any) -> bytes:
    """Returns a Parquet file with a table, sealed; `options` are those of `pyarrow.parquet.ParquetWriter`."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        writer.add_key_value_metadata({KEY: _BLANK + b" " + _BLANK})
    data = bytearray(sink.getvalue())
    start = footer_start(len(data), data[-TAIL:])
    body_at = data.rindex(_PLACE + _BLANK, start) + len(_PLACE)
    footer_at = body_at + len(_BLANK) + 1
    data[body_at : footer_at - 1] = _sha256(memoryview(data)[:start])
    data[footer_at : footer_at + len(_BLANK)] = _sha256(memoryview(data)[start:])
    return bytes(data)


def check_seal(value: bytes | None, footer: bytes, body: bytes | memoryview | None, *, is_sealed: bool) -> None:
    """Checks the seal of an index table; those that an older embedx has written have none.

    Args:
        value: The seal in the footer; None if there is none.
        footer: The footer, to the end of the file.
        body: The bytes before the footer; None leaves them unchecked.
        is_sealed: True if the table's description says that it is sealed.

    Raises:
        ValueError: If the bytes are others than were written.
    """
    if value is None and not is_sealed:
        return
    found = _VALUE.fullmatch(value or b"")
    if found is None or not is_sealed:
        raise ValueError("its seal is damaged")
    if _sha256(footer.replace(found[2], _BLANK)) != found[2] or (body is not None and _sha256(body) != found[1]):
        raise ValueError("its sha256 is not the one in its seal; the file was damaged")


def _sha256(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
