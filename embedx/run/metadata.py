"""Compares a source's own columns with the stored ones, to the bit: NaN is like NaN, and -0.0 is not like 0.0.

Shapes: N inputs of a split's plan, R rows of any column, M items of all lists in a column together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.store.format.index_file import as_stored

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BITS = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
"""The type of integers that has the bits of a type of floats."""
_LONGEST = 40


class _Column(NamedTuple):
    """A column of R inputs, as it is now and as it is stored; None where there is no such column."""

    name: str
    inputs: Positions
    """[R] the inputs, as rows of the plan in order."""
    now: pa.Array | None
    then: pa.Array | None

    @property
    def has_other_type(self) -> bool:
        """True if the column has another type, or is new or gone."""
        return self.now is None or self.then is None or self.now.type != self.then.type

    def differing(self) -> Flags:
        """Returns [R], True where the column differs: in every row if it has another type."""
        return np.ones(len(self.inputs), np.bool_) if self.has_other_type else differ(self.now, self.then)

    def describe(self, row: int) -> str:
        """Returns the difference of the R inputs' `row`-th in words."""
        if self.now is None or self.then is None:
            return f"the column {self.name} is {'gone' if self.now is None else 'new'}"
        if self.has_other_type:
            return f"the column {self.name} is {self.now.type} now, and was {self.then.type}"
        return f"{self.name}: {_short(self.then[row])} → {_short(self.now[row])}"


@dataclasses.dataclass(frozen=True)
class MetadataDifferences:
    """The differences of a split's metadata from the stored ones."""

    rows: Flags
    """[N] True where a column differs."""
    columns: Sequence[_Column] = ()

    def describe(self, row: int) -> str:
        """Returns the first difference of an input in words, such as `label: cat → bat`; empty if there is none."""
        for column in self.columns:
            place = int(np.searchsorted(column.inputs, row))
            if column.inputs[place : place + 1].tolist() == [row] and column.differing()[place]:
                return column.describe(place)
        return ""


def compare_metadata(now: pa.Table, units: Sequence[pa.Table], slot: Positions) -> MetadataDifferences:
    """Compares metadata with what the units of a split have stored, in values, types and names of columns.

    Args:
        now: The metadata [N].
        units: The metadata of each unit, in order; the columns of two units may differ.
        slot: The stored row [N] of each input, counted over all units; -1 for none, which does not differ.
    """
    now = as_stored(now)
    columns: list[_Column] = []
    start = 0
    for schema, alike in groupby(units, lambda unit: unit.schema.remove_metadata()):
        then = pa.concat_tables(unit.cast(schema) for unit in alike)
        inputs = np.flatnonzero((slot >= start) & (slot < start + len(then)))
        for name in dict.fromkeys([*now.column_names, *schema.names]) if len(inputs) else ():
            columns.append(_Column(name, inputs, _part(now, name, inputs), _part(then, name, slot[inputs] - start)))
        start += len(then)
    differing = np.zeros(len(slot), np.bool_)
    for column in columns:
        differing[column.inputs[column.differing()]] = True
    return MetadataDifferences(differing, columns)


def _part(table: pa.Table, name: str, rows: Positions) -> pa.Array | None:
    return table[name].take(pa.array(rows)).combine_chunks() if name in table.column_names else None


def _short(value: pa.Scalar) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def differ(one: pa.Array, other: pa.Array) -> Flags:
    """Returns [R], True where the values of two columns of one type differ."""
    kind = one.type
    if pa.types.is_dictionary(kind):
        return differ(one.dictionary_decode(), other.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        return differ(one.storage, other.storage)
    if kind in (pa.string_view(), pa.binary_view()):
        return differ(one.cast(pa.large_binary()), other.cast(pa.large_binary()))
    nulls = one.is_null().to_numpy(zero_copy_only=False), other.is_null().to_numpy(zero_copy_only=False)
    differing: Flags = nulls[0] != nulls[1]
    rows = np.flatnonzero(~(nulls[0] | nulls[1]))
    if len(rows):
        differing[rows] = _values_differ(one.take(pa.array(rows)), other.take(pa.array(rows)))
    return differing


def _values_differ(one: pa.Array, other: pa.Array) -> Flags:
    """Returns [R], True where values differ of which none is null."""
    kind = one.type
    if pa.types.is_struct(kind):
        parts = [differ(one.field(number), other.field(number)) for number in range(kind.num_fields)]
        return np.any(parts, axis=0) if parts else np.zeros(len(one), bool)
    if pa.types.is_map(kind):
        return _lists_differ(_as_list(one), _as_list(other))
    if pa.types.is_nested(kind):
        return _lists_differ(one, other)
    if pa.types.is_floating(kind):
        one, other = one.view(_BITS[kind.bit_width]), other.view(_BITS[kind.bit_width])
    unequal: Flags = pc.not_equal(one, other).to_numpy(zero_copy_only=False)
    return unequal


def _as_list(maps: Any) -> pa.Array:
    """Returns maps as lists of keys and items."""
    return pa.ListArray.from_arrays(maps.offsets, pa.StructArray.from_arrays([maps.keys, maps.items], ["key", "item"]))


def _lists_differ(one: pa.Array, other: pa.Array) -> Flags:
    """Returns [R], True where lists differ, in length or in an item [M]."""
    lengths = [pc.list_value_length(each).to_numpy() for each in (one, other)]
    differing: Flags = lengths[0] != lengths[1]
    alike = np.flatnonzero(~differing)
    items = differ(*(each.take(pa.array(alike)).flatten() for each in (one, other)))
    differing[np.repeat(alike, lengths[0][alike])[items]] = True
    return differing
