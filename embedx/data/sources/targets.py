"""The target of each row, taken from a column: class names as strings, or whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedx.data.sources.written import as_written
from embedx.errors import ConfigError

TARGET_COLUMNS = ("target", "label")
"""The columns that are tried for the target, in this order, where `--target-column` names none."""

_LARGEST_EXACT = 2**53
_ADVICE = "give a column of class names or whole numbers by --target-column"


class Target(NamedTuple):
    """The targets of a source, by the column that has them."""

    name: str | None
    """The column's name; None if no column has targets."""
    column: pa.ChunkedArray
    """Class names as strings, numbers as int64, or nulls."""
    written: pa.ChunkedArray | None = None
    """The texts of the numbers that are not spelled as Arrow does, such as `007`; None if all are."""
    notices: tuple[str, ...] = ()
    """Why columns of the usual names have none, for the user."""

    @property
    def has_names(self) -> bool:
        """True if the targets are class names, or numbers that are written as names are."""
        return self.written is not None or bool(pa.types.is_string(self.column.type))


def find_target(
    location: str,
    columns: Mapping[str, pa.ChunkedArray],
    written: Mapping[str, pa.ChunkedArray],
    usual: Sequence[str] = TARGET_COLUMNS,
    given: str | None = None,
) -> Target:
    """Returns the targets of the column that `--target-column` names, or else of the first usual one that has any.

    Args:
        location: The source, for messages.
        columns: The columns of the source, at least one.
        written: The texts of guessed values, by column (see `written.differing`).
        usual: The names that are tried in this order.
        given: The column named by the user.

    Raises:
        ConfigError: If the column named by the user has neither names nor whole numbers.
    """
    notices: list[str] = []
    for name in [given] if given is not None else [name for name in usual if name in columns]:
        found = _as_target(name, columns[name], written.get(name))
        if found is not None:
            return found._replace(notices=tuple(notices))
        kind = columns[name].type
        fault = f"{kind} with fractions" if _is_number(kind) else str(kind)
        if given is not None:
            raise ConfigError(
                f"--data {location}: --target-column {name!r} is {fault}; give one of class names or whole numbers"
            )
        notices.append(f"{location}: the column {name!r} is {fault}, and no target; {_ADVICE}")
    return Target(None, pa.chunked_array([pa.nulls(len(next(iter(columns.values()))))]), notices=tuple(notices))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _as_target(name: str, column: pa.ChunkedArray, written: pa.ChunkedArray | None) -> Target | None:
    """Returns names, dates and true or false as strings, and whole numbers as int64; None for a column of others."""
    kind = column.type
    if pa.types.is_null(kind):
        return Target(name, column.cast(pa.int64()))
    if pa.types.is_integer(kind):
        try:
            numbers = column.cast(pa.int64())
        except pa.ArrowInvalid:  # beyond 63 bits
            return Target(name, as_written(column, written))
        if written is not None:  # an empty place may be written as NA
            written = pc.if_else(pc.is_valid(column), written, None)
        return Target(name, numbers, written if written is not None and written.null_count < len(written) else None)
    if _is_number(kind):
        return _whole_numbers(name, column, written)
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        return None
    return Target(name, as_written(column, written))


def _whole_numbers(name: str, column: pa.ChunkedArray, written: pa.ChunkedArray | None) -> Target | None:
    """Returns numbers without a fraction as int64, if all texts are of one form such as `1.0`, or else as the texts."""
    values = column.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), None, values)
    if not pc.all(pc.equal(values, pc.floor(values))).as_py():
        return None
    if not pc.all(pc.less(pc.abs(values), _LARGEST_EXACT)).as_py():
        return Target(name, as_written(column, written))
    numbers = values.cast(pa.int64())
    forms = (
        None if written is None else pc.equal(written, pc.binary_join_element_wise(numbers.cast(pa.string()), ".0", ""))
    )
    if forms is None or pc.all(pc.fill_null(forms, False).filter(pc.is_valid(numbers))).as_py():
        return Target(name, numbers)
    return Target(name, as_written(column, written))
