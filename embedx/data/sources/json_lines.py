"""JSON objects, one a line, as a table: typed where the values of a column have one type, and text where they don't."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.json

from embedx.arrow import plain
from embedx.data.sources.written import differing

_LARGEST_BLOCK = 2**31 - 1
_DEEPEST = 200
"""The levels of arrays and objects above which no line is read; pyarrow crashes at some tens of thousands of them."""
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one without an end goes on to the end, as in a parser
_AS_WRITTEN = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)


def parse_json_lines(content: bytes, names: Collection[str] = ()) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    """Parses JSON objects, one a line in UTF-8, into a table.

    A column whose values have no common type is text: strings as they are, all else as JSON.

    Args:
        content: The bytes of all lines.
        names: The columns whose fractions are wanted as they are written, such as `2.50`.

    Returns:
        The table, and the texts that values have in the lines, by column, where they differ (see `written.WRITTEN`).

    Raises:
        pa.ArrowInvalid: If a line is malformed; the message ends in the number of the row.
    """
    for row, line in enumerate(_lines(content)):
        try:
            check_depth(line)
        except ValueError as error:
            raise pa.ArrowInvalid(f"{error} in row {row}") from error
    table, texts = _parsed(content, names)
    return plain(table), texts


def check_depth(content: bytes) -> None:
    """Checks that JSON is nested no deeper than its parsers can bear, some of which crash.

    Raises:
        ValueError: If it is.
    """
    if len(content) <= _DEEPEST or content.count(b"[") + content.count(b"{") <= _DEEPEST:
        return
    depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _TEXTS.sub(b"", content)):
        depth += 1 if bracket in b"[{" else -1
        if depth > _DEEPEST:
            raise ValueError("values are nested too deeply to be read")


def _parsed(content: bytes, names: Collection[str]) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    try:
        table = _read(content)
    except pa.ArrowInvalid as error:
        table = _with_mixed_as_text(content, error)
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]  # strings in the file
    texts = dict(zip(times, _read(content, times).select(times).columns, strict=True)) if times else {}
    for name in names:
        if name in table.column_names and pa.types.is_floating(table[name].type):
            texts[name] = pa.chunked_array([_texts(content, name)])
    return table, differing(texts, table)


def _read(content: bytes, strings: Collection[str] = ()) -> pa.Table:
    """Reads all columns, or these columns of strings alone."""
    schema = pa.schema([(name, pa.string()) for name in strings])
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore" if strings else "infer")
    try:
        return pa.json.read_json(pa.BufferReader(content), parse_options=options)
    except pa.ArrowInvalid:
        # Parsed again as one block, because pyarrow counts rows within a block.
        whole = pa.json.ReadOptions(block_size=min(len(content) + 1, _LARGEST_BLOCK), use_threads=False)
        return pa.json.read_json(pa.BufferReader(content), read_options=whole, parse_options=options)


def _with_mixed_as_text(content: bytes, error: pa.ArrowInvalid) -> pa.Table:
    """Reads column by column what can't be read at once; raises the error if lines are no JSON objects."""
    try:
        rows = [json.loads(line) for line in _lines(content)]
    except ValueError:
        raise error from None
    if not all(isinstance(row, dict) for row in rows):
        raise error
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = "".join(json.dumps({name: row.get(name)}) + "\n" for row in rows)
        try:
            columns[name] = _read(values.encode())[name]
        except pa.ArrowInvalid:
            columns[name] = pa.chunked_array([_texts(content, name)])
    return pa.table(columns)


def _texts(content: bytes, name: str) -> pa.Array:
    texts = []
    for line in _lines(content):
        value: Any = _AS_WRITTEN.decode(line.decode()).get(name)
        if value is not None and not isinstance(value, str):
            value = json.dumps(json.loads(line)[name], ensure_ascii=False)
        texts.append(value and value.encode("utf-8", "backslashreplace").decode())  # half a surrogate pair is no text
    return pa.array(texts, pa.string())


def _lines(content: bytes) -> Iterator[bytes]:
    return (line for line in content.split(b"\n") if line.strip())
