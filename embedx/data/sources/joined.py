"""Several sources that are one split, and tables of samples whose columns differ."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from embedx.arrow import spell
from embedx.data.sources.base import TARGET, Reader, Source
from embedx.errors import ConfigError


def join(split: str, parts: Sequence[tuple[str, Source]], reader: Reader, advice: str) -> Source:
    """Joins the sources of a split, each given with its location, in this order.

    Metadata: the columns of all of them, null in the rows of a source that lacks one.

    Args:
        split: The split's name.
        parts: The locations and sources.
        reader: A reader of the inputs of them all.
        advice: The way out where keys occur more than once.
    """
    if len(parts) == 1:
        return parts[0][1]
    metadata = dict.fromkeys(name for _, source in parts for name in source.metadata)
    options = frozenset[str]().union(*(source.options for _, source in parts))
    notices: list[str] = []
    return Source(tuple(metadata), reader, partial(_scan, split, parts, notices), advice, options, notices)


def _scan(split: str, parts: Sequence[tuple[str, Source]], notices: list[str]) -> pa.Table:
    tables, faults = [], []
    for location, source in parts:
        try:
            tables.append((location, source.scan()))
        except ConfigError as error:
            faults += error.faults
    ConfigError.check(faults)
    notices[:] = dict.fromkeys(notice for _, source in parts for notice in source.notices)
    return concatenate(f"split {split!r}", tables)


def concatenate(where: str, tables: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """Concatenates tables, each given with its location, and fills columns that some lack with nulls.

    Columns whose types differ get the type that holds the values of all, or else, unless they are targets, are text.

    Raises:
        ConfigError: If there is no such type; the message begins with `where`.
    """
    names = dict.fromkeys(name for _, table in tables for name in table.column_names)
    faults: list[str] = []
    columns = {}
    for name in names:
        given = [table[name] if name in table.column_names else pa.nulls(len(table)) for _, table in tables]
        try:
            columns[name] = _of_one_type(given, or_text=name != TARGET)
        except pa.ArrowException:
            pairs = zip(tables, given, strict=True)
            kinds = {str(column.type): location for (location, _), column in pairs if column.null_count < len(column)}
            differing = " and ".join(f"{kind} in {location}" for kind, location in [*kinds.items()][:2])
            faults.append(f"{where}: the column {name!r} is {differing}; give all the same type")
    ConfigError.check(faults)
    return pa.table({name: pa.chunked_array(chunks) for name, chunks in columns.items()})


def _of_one_type(columns: Sequence[pa.ChunkedArray | pa.Array], *, or_text: bool) -> list[pa.Array]:
    """Casts columns to one type, and returns the chunks; raises an ArrowException if there is none for all."""
    kinds = dict.fromkeys(column.type for column in columns if column.null_count < len(column)) or [columns[0].type]
    try:
        common = pa.unify_schemas([pa.schema([("", kind)]) for kind in kinds], promote_options="permissive").field(0)
        return _cast(columns, common.type)
    except pa.ArrowException:
        if not or_text:
            raise
    return [
        chunk for column in columns for chunk in spell(pa.chunked_array(getattr(column, "chunks", [column]))).chunks
    ]


def _cast(columns: Sequence[pa.ChunkedArray | pa.Array], kind: pa.DataType) -> list[pa.Array]:
    given = [
        pa.nulls(len(column), kind) if column.null_count == len(column) else column.cast(kind) for column in columns
    ]
    return [chunk for column in given for chunk in getattr(column, "chunks", [column])]
