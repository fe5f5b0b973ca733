"""JSON that anybody may have written, parsed into values of the stated types, or refused with a ValueError."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterable, Set
from typing import Any, TypeVar

_DEEPEST = 50
_LARGEST = 2**63 - 1
_SHORT = 60

T = TypeVar("T")


def parse_json(data: bytes | str) -> Any:
    """Parses JSON as its standard has it: no key twice in an object, no NaN, and no more than 50 levels.

    Raises:
        ValueError: If the data is no such JSON.
    """
    try:
        value = json.loads(data, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(value, 0)
    return value


def typed(value: Any, kind: Any, name: str = "it") -> Any:
    """Converts parsed JSON to the type that an annotation states: an object to a NamedTuple, an array to a tuple.

    Args:
        value: The result of `parse_json`, or a part of it.
        kind: A NamedTuple, or a type that may stand in one: str, bool, int (from 0 to 2⁶³ - 1), float, None, Any, a
            class with `from_json(value, name)`, a Literal, and dict, list, tuple of them, or one of them or None.
        name: The name of the value in the error.

    Raises:
        ValueError: If the value has another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (origin is typing.Literal and value in arguments):
        return value
    if hasattr(kind, "from_json"):
        return kind.from_json(value, name)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (other,) = (argument for argument in arguments if argument is not types.NoneType)
        return typed(value, other, name)
    if origin is dict and isinstance(value, dict):
        return {key: typed(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        return origin(typed(item, arguments[0], f"{name}[{position}]") for position, item in enumerate(value))
    if hasattr(kind, "_fields") and isinstance(value, dict):
        defaults = kind._field_defaults.keys()
        return kind(**fields(value, typing.get_type_hints(kind), name, optional=defaults))
    if kind is float and type(value) in (int, float):
        return value
    if type(value) is kind and (kind is not int or 0 <= value <= _LARGEST):
        return value
    raise ValueError(f"{name} is {_short(value)}, which is no {getattr(kind, '__name__', kind)}")


def fields(value: Any, kinds: dict[str, Any], name: str = "it", *, optional: Set[str] = frozenset()) -> dict[str, Any]:
    """Returns the entries of an object, which must have those in `kinds`, each of its type, and no others.

    Those in `optional` may be missing.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_short(value)}, which is no object")
    if not kinds.keys() - optional <= value.keys() <= kinds.keys():
        raise ValueError(f"{name} has {_names(value)}, and must have {_names(kinds)}")
    return {key: typed(value[key], kind, key) for key, kind in kinds.items() if key in value}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError(f"a key is there twice among {_names(entries)}")
    return entries


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_short(text)} is no finite number")
    return number


def _check_depth(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)


def _names(names: Iterable[str]) -> str:
    return _short(", ".join(names)) if names else "nothing"


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"
