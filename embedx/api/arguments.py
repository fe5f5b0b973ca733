"""Settings as Python programs give them: by the fields' names, in Python's types or as the command's texts."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from embedx.errors import ConfigError, unknown
from embedx.paths import BucketPath

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


def config_of(settings: Mapping[str, Any], kind: type[C]) -> C:
    """Makes the configuration of a command from its settings; one that is left out has the command's default.

    Args:
        settings: The settings, by the names of the configuration's fields.
        kind: The dataclass of the configuration.

    Raises:
        ConfigError: If a name is unknown, or a value is not of its setting's type; it names them all.
    """
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    return kind(**values_of(settings, kind, required))


def values_of(
    settings: Mapping[str, Any], kind: type[DataclassInstance], required: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the values of these settings as a command's configuration has them.

    Raises:
        ConfigError: If a name is unknown, or missing, or a value is not of its setting's type; it names them all.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    faults = [unknown("setting", name, fields) for name in settings if name not in fields]
    faults += [f"the setting {name} is missing" for name in required if name not in settings]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in fields.keys() & settings.keys():
        try:
            values[name] = _value(fields[name], hints[name], settings[name])
        except ValueError as error:
            faults.append(f"{name}: {error}")
    ConfigError.check(sorted(faults))
    return values


def specs_of(data: Any) -> tuple[str, ...]:
    """Returns the values of `--data` for inputs that are a path, several, or a dict of them by split; None has none.

    Raises:
        ConfigError: If they are something else, or there are none, or a split has a name that can't be.
    """
    if data is None:
        return ()
    if isinstance(data, Mapping) and data:
        odd = [name for name in data if not isinstance(name, str) or not name or set(name) & set("/:?=")]
        ConfigError.check([f"data: a split can't be named {name!r}; choose another name" for name in odd])
        return tuple(f"{name}={location}" for name, given in data.items() for location in _locations(given))
    return _locations(data)


def _locations(data: Any) -> tuple[str, ...]:
    locations = [data] if isinstance(data, str | os.PathLike) else data
    if isinstance(locations, list | tuple | Mapping) and not locations:
        raise ConfigError(f"data has an empty {_type_of(data)}, and so no inputs; leave it out for the bundled sample")
    if not (isinstance(locations, list | tuple) and all(isinstance(one, str | os.PathLike) for one in locations)):
        raise ConfigError(
            f"data is of type {_type_of(data)}; give a path, pattern or URL, a list of them, or a dict of splits. For "
            "images in memory there is embedx.embed"
        )
    return tuple(os.fspath(location) for location in locations)


def _type_of(value: Any) -> str:
    own = [value, *value[:1]] if isinstance(value, list | tuple) else [value]
    return " of ".join(type(each).__name__ for each in own)


def _value(field: dataclasses.Field[Any], hint: Any, given: Any) -> Any:
    """Returns a setting's value, converted as the command line does where it is a text."""
    if isinstance(given, Mapping) and field.name == "backbone_arg":
        return tuple(f"{name}={json.dumps(value)}" for name, value in given.items())
    if "parser" in field.metadata and given is not None and not isinstance(given, bool):
        return field.metadata["parser"](given)
    return _typed(given, hint, is_path="path" in field.metadata)


def _typed(given: Any, hint: Any, *, is_path: bool) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if given is None and types.NoneType in parts:
            return None
        (hint,) = (part for part in parts if part not in (types.NoneType, BucketPath))
        return _typed(given, hint, is_path=is_path)
    if origin is Literal and given in parts:
        return given
    if origin is tuple and (texts := _texts(given)) is not None:
        return texts
    if hint is bool and isinstance(given, bool):
        return given
    if hint in (int, float) and not isinstance(given, bool | str):
        try:
            return operator.index(given) if hint is int else float(given)
        except TypeError:
            pass
    if hint in (str, Path) and isinstance(given, str | os.PathLike | BucketPath if is_path else str):
        return given
    if hint is str and isinstance(given, os.PathLike):  # of a value that may be a path, as that of `map`
        return os.fspath(given)
    raise ValueError(f"{given!r} is not what it takes; give {_words(hint)}")


def _texts(given: Any) -> tuple[str, ...] | None:
    several = [given] if isinstance(given, str | os.PathLike) else given
    if isinstance(several, Sequence) and all(isinstance(one, str | os.PathLike) for one in several):
        return tuple(os.fspath(one) for one in several)
    return None


def _words(hint: Any) -> str:
    """Returns a type in words."""
    if typing.get_origin(hint) is Literal:
        *others, last = map(repr, typing.get_args(hint))
        return f"{', '.join(others)} or {last}"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return names.get(hint, "a list of texts")
