"""Reads Thrift's compact protocol, the format of Parquet's headers, as far as they need it.

Arrow has its own reading of two fields with one number, a number beyond its type, or a list of another type. Bytes that
can be read in two ways are refused here with a ValueError, so that both readers read the same.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

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
        """Returns the value of a field, which must have this type; without a default it must be there."""
        found, value = self.fields.get(number, (kind, default))
        if found != kind or value is None:
            raise ValueError(f"a header has no field {number} of type {kind}")
        return value


def read_struct(file: BinaryIO, spec: Spec, depth: int = 0) -> Struct:
    """Reads the struct that begins at the file's position, inside of `depth` other structs and lists."""
    fields: dict[int, tuple[int, Any]] = {}
    number = 0
    while head := _byte(file):
        number = number + (head >> 4) if head >> 4 else _number(file, 16)
        if number in fields or not 0 < number <= _LAST_FIELD:
            raise ValueError(f"a header has the field {number} out of place")
        kind = head & 15
        # The type of a boolean is its value.
        fields[number] = kind, True if kind in BOOLEANS else _value(file, kind, spec.get(number), depth)
    return Struct(fields)


def _value(file: BinaryIO, kind: int, known: tuple[int, Spec] | None, depth: int) -> Any:
    if kind in _BITS:
        return _number(file, _BITS[kind])
    if kind == BINARY:
        return _bytes(file, _varint(file, 32))
    if kind == DOUBLE:
        return _bytes(file, 8)
    if kind in (BYTE, *BOOLEANS):  # booleans in a list
        return _byte(file)
    if depth == _DEEPEST:
        raise ValueError("a header is nested too deeply")
    if kind == STRUCT:
        return read_struct(file, known[1] if known else {}, depth + 1)
    if kind in (LIST, SET):
        return _list(file, known, depth)
    raise ValueError(f"a header has a field of type {kind}")


def _list(file: BinaryIO, known: tuple[int, Spec] | None, depth: int) -> list[Any]:
    head = _byte(file)
    length, kind = head >> 4, head & 15
    if length == 15:
        length = _varint(file, 32)
    if known and kind != known[0]:
        raise ValueError(f"a header has a list of type {kind}, not {known[0]}")
    return [_value(file, kind, known, depth + 1) for _ in range(length)]


def _number(file: BinaryIO, bits: int) -> int:
    number = _varint(file, bits)
    return (number >> 1) ^ -(number & 1)


def _varint(file: BinaryIO, bits: int) -> int:
    number = 0
    for place in range(_LONGEST_VARINT):
        byte = _byte(file)
        number |= (byte & 127) << 7 * place
        if byte < 128 and number >> bits == 0:
            return number
        if byte < 128:
            break
    raise ValueError(f"a header has a number beyond {bits} bits")


def _byte(file: BinaryIO) -> int:
    return _bytes(file, 1)[0]


def _bytes(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ValueError("a header is cut off")
    return data
