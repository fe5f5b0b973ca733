"""Columns of any Arrow type: as an index table can hold them, as text, and in one type over several tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def plain(table: pa.Table) -> pa.Table:
    """Returns a table in types that every reader knows: no views, dictionaries or run-ends, no struct without fields.

    A struct without fields becomes null, as it holds no value.
    """
    columns = [_plain_column(column) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_run_end_encoded(kind):
        decoded = [pc.run_end_decode(chunk) for chunk in column.chunks]
        return _plain_column(pa.chunked_array(decoded, kind.value_type))
    if (wanted := _plain_type(kind)) == kind:
        return column
    if _is_beyond_casts(kind):
        return pa.chunked_array([pa.array([_without_empty(value) for value in column.to_pylist()], wanted)])
    return column.cast(wanted)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pa.string() if types.is_string_view(kind) else pa.binary()
    if types.is_struct(kind):
        fields = [field.with_type(_plain_type(field.type)) for field in kind]
        return pa.struct(fields) if fields else pa.null()
    if types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field), keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(_plain_field(kind.value_field))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(_plain_field(kind.value_field))
    return kind


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain_type(field.type))


def _is_beyond_casts(kind: pa.DataType) -> bool:
    """Tells whether a type is, or holds, a struct without fields, or a view of lists, which Arrow casts wrongly."""
    types = pa.types
    if not types.is_nested(kind):
        return False
    parts = [kind.field(number).type for number in range(kind.num_fields)]
    return not parts or types.is_list_view(kind) or types.is_large_list_view(kind) or any(map(_is_beyond_casts, parts))


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_empty(part) for name, part in value.items()} or None
    return type(value)(map(_without_empty, value)) if isinstance(value, (list, tuple)) else value


def spell(column: pa.ChunkedArray) -> pa.ChunkedArray:
    r"""Returns the values as text: numbers and times as Arrow writes them, lists and structs as JSON.

    Bytes are taken for UTF-8; those that are not become `\xNN`.
    """
    if not pa.types.is_nested(column.type) and not isinstance(column.type, pa.BaseExtensionType):
        try:
            return column.cast(pa.string())
        except pa.ArrowException:  # bytes that aren't UTF-8, or a type that has no such cast
            pass
    texts = [None if value is None else _text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return json.dumps(value, ensure_ascii=False, default=_text) if isinstance(value, (dict, list)) else str(value)


def unify(
    tables: Sequence[pa.Table],
    names: Iterable[str],
    text_of: Callable[[pa.Table, str], pa.ChunkedArray] = lambda table, name: spell(table[name]),
) -> list[pa.Table]:
    """Returns the tables with those of these columns as text that have no common type over all tables.

    There is one if no value changes by it: for whole numbers and fractions, for structs with more and with fewer
    fields. `text_of` returns the text of a table's column.
    """
    tables = list(tables)
    for name in names:
        parts = [table.select([name]) for table in tables if name in table.column_names]
        if len({part.schema.field(0).type for part in parts}) < 2 or _fit_together(parts):
            continue
        for number, table in enumerate(tables):
            if name in table.column_names:
                tables[number] = replaced(table, name, text_of(table, name))
    return tables


def replaced(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    """Returns the table with another column of this name, in the same place."""
    return table.set_column(table.column_names.index(name), name, column)


def _fit_together(parts: Sequence[pa.Table]) -> bool:
    try:
        pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenates tables; a column that some lack is null there, and one without a common type is text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        names = dict.fromkeys(name for table in tables for name in table.column_names)
        return pa.concat_tables(unify(tables, names), promote_options="permissive")
