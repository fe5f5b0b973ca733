"""Reads Thrift's compact protocol, the format of Parquet's headers, as far as they need it.

Arrow has its own reading of two fields with one number, a number beyond its type, or a list of another type. Bytes that
can be read in two ways are refused here, so that both readers read the same.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any, NamedTuple

BOOLEANS = (1, 2)
BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 3, 4, 5, 6, 7, 8, 9, 10, 12

Spec = dict[int, tuple[int, "Spec"]]
"""The fields of a struct that are structs, or lists of a known type: the type of the elements, and their own fields."""

_BITS = {I16: 16, I32: 32, I64: 64}
_DEEPEST = 20
_LAST_FIELD = 2**15 - 1
_LONGEST_VARINT = 10


class Struct(NamedTuple):
    """A struct, as (type, value) by the number of the field."""

    fields: dict[int, tuple[int, Any]]

    def get(self, number: int, kind: int, default: Any = None) -> Any:
        """Returns a field's value, or the default if the struct lacks the field.

        Args:
            number: The number of the field.
            kind: The type that the field must have.
            default: The value of a field that is missing; None makes the field necessary.

        Raises:
            ValueError: If the field has another type, or is missing and necessary.
        """
        found, value = self.fields.get(number, (kind, default))
        if found != kind or value is None:
            raise ValueError(f"a header has no field {number} of type {kind}")
        return value


def read_struct(data: bytes, at: int, spec: Spec, depth: int = 0) -> tuple[Struct, int]:
    """Reads a struct.

    Args:
        data: The bytes of a file or of a header.
        at: The position at which the struct begins.
        spec: The known types of the struct's lists and structs.
        depth: The number of structs and lists around it.

    Returns:
        The struct, and the position behind it.

    Raises:
        ValueError: If no struct begins there, or one that could be read in another way too.
    """
    fields: dict[int, tuple[int, Any]] = {}
    number = 0
    while True:
        head, at = _byte(data, at)
        if head == 0:
            return Struct(fields), at
        if head >> 4:
            number += head >> 4
        else:
            number, at = _number(data, at, 16)
        if number in fields or not 0 < number <= _LAST_FIELD:
            raise ValueError(f"a header has the field {number} out of place")
        kind = head & 15
        if kind in BOOLEANS:  # its type is its value
            fields[number] = kind, True
        else:
            value, at = _value(data, at, kind, spec.get(number), depth)
            fields[number] = kind, value


def _value(data: bytes, at: int, kind: int, known: tuple[int, Spec] | None, depth: int) -> tuple[Any, int]:
    if kind in _BITS:
        return _number(data, at, _BITS[kind])
    if kind == BINARY:
        length, at = _varint(data, at, 32)
        return _bytes(data, at, length)
    if kind == DOUBLE:
        return _bytes(data, at, 8)
    if kind in (BYTE, *BOOLEANS):  # booleans in a list
        return _byte(data, at)
    if depth == _DEEPEST:
        raise ValueError("a header is nested too deeply")
    if kind == STRUCT:
        return read_struct(data, at, known[1] if known else {}, depth + 1)
    if kind in (LIST, SET):
        return _list(data, at, known, depth)
    raise ValueError(f"a header has a field of type {kind}")


def _list(data: bytes, at: int, known: tuple[int, Spec] | None, depth: int) -> tuple[list[Any], int]:
    head, at = _byte(data, at)
    length, kind = head >> 4, head & 15
    if length == 15:
        length, at = _varint(data, at, 32)
    if known and kind != known[0]:
        raise ValueError(f"a header has a list of type {kind}, not {known[0]}")
    values = []
    for _ in range(length):
        value, at = _value(data, at, kind, known, depth + 1)
        values.append(value)
    return values, at


def _number(data: bytes, at: int, bits: int) -> tuple[int, int]:
    number, at = _varint(data, at, bits)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int, bits: int) -> tuple[int, int]:
    number = 0
    for place in range(_LONGEST_VARINT):
        byte, at = _byte(data, at)
        number |= (byte & 127) << 7 * place
        if byte < 128 and number >> bits == 0:
            return number, at
        if byte < 128:
            break
    raise ValueError(f"a header has a number beyond {bits} bits")


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("a header is cut off")
    return data[at], at + 1


def _bytes(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if at + length > len(data):
        raise ValueError("a header is cut off")
    return data[at : at + length], at + length
