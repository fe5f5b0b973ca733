"""A condition in SQL on the columns of the index, as DuckDB understands it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from embedx.errors import ConfigError


def matching_rows(table: pa.Table, condition: str) -> pa.Array:
    """Returns a mask [N] bool of the rows of a table that meet a condition; where it gives NULL it is not met.

    Args:
        table: The rows, with the columns that a condition may name.
        condition: An expression that could stand behind WHERE, such as `group = 'cat' and bytes > 10000`. It sees this
            table alone: no file, and no network. A column's name may also be a word of SQL, as `group` is.

    Raises:
        ConfigError: If it is no such expression, or names a column that is not there.
    """
    import duckdb  # takes 50 ms

    settings: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "python_enable_replacements": False,
    }
    rows = _named(table, condition)
    with duckdb.connect(config=settings) as connection:
        number = "row of " + "".join(table.column_names)  # the name of no column
        numbered = rows.append_column(number, pa.array(np.arange(len(table))))
        try:
            relation = connection.from_arrow(numbered).filter(_with_quoted_columns(condition, table.column_names))
            (found,) = relation.select(duckdb.ColumnExpression(number)).fetchnumpy().values()
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"--where {condition}: {reason}; give a condition on the columns {', '.join(table.column_names)}, such "
                "as \"key like '%cat%'\""
            ) from error
    mask = np.zeros(len(table), dtype=bool)
    mask[found] = True
    return pa.array(mask)


def _named(table: pa.Table, condition: str) -> pa.Table:
    """Returns the columns that a condition may name, in types that DuckDB knows.

    Raises:
        ConfigError: If two of them are the same to SQL, which does not tell upper from lower case.
    """
    names = [name for name in table.column_names if name.lower() in condition.lower()]
    if twins := [name for name in names if [each.lower() for each in names].count(name.lower()) > 1]:
        raise ConfigError(f"--where {condition}: SQL can't tell the columns {' and '.join(twins)} apart")
    rows = table.select(names)
    for name in names:
        kind = table.schema.field(name).type
        if pa.types.is_float16(kind):
            rows = rows.set_column(names.index(name), name, table[name].cast(pa.float32()))
        elif pa.types.is_decimal256(kind):
            rows = rows.set_column(names.index(name), name, table[name].cast(pa.float64()))
    return rows


def _with_quoted_columns(condition: str, columns: list[str]) -> str:
    """Quotes the names of columns that SQL would take for its own words."""
    import duckdb

    data = condition.encode()
    tokens = duckdb.tokenize(condition)
    if not tokens:
        raise ConfigError("--where is empty; give a condition, such as \"group = 'cat'\", or leave it out")
    names = {name.lower() for name in columns}
    ends = [*(start for start, _ in tokens[1:]), len(data)]
    parts = [data[: tokens[0][0]]]
    for (start, kind), end in zip(tokens, ends, strict=True):
        part = data[start:end]
        word = part.rstrip()
        if kind == duckdb.token_type.keyword and word.decode().lower() in names:
            part = b'"' + word.lower() + b'"' + part[len(word) :]
        parts.append(part)
    return b"".join(parts).decode()
