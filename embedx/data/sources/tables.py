"""Tables as sources: one file, or the files that a pattern or a folder names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from embedx.data.reading.files import absolute, is_url
from embedx.data.sources.base import SINGLE_SPLIT, Source
from embedx.data.sources.joined import join
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.data.sources.patterns import is_pattern
from embedx.data.sources.table import OPTIONS, UNIQUE, EmbeddedReader, open_part
from embedx.data.sources.table_file import table_format
from embedx.data.sources.table_parts import Part, by_split, parts_of_pattern
from embedx.errors import ConfigError

_CONNECTIONS = 8
"""The number of remote tables that are read at a time."""


def open_table(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens a table, or the files that a pattern names as one.

    Raises:
        ConfigError: If there are faults, as `open_parts` and `open_part` find them.
    """
    parts = parts_of_pattern(location) if is_pattern(location) else [Part(absolute(location))]
    return open_parts(name, location, parts, options)


def open_parts(name: str | None, location: str, parts: Sequence[Part], options: SourceOptions) -> Mapping[str, Source]:
    """Opens files as one table, with a source per split: a value of the split column, or what files' names tell.

    Files without rows are left out. A name chooses the split of that name; where only files' names tell of splits and
    none has it, it names all of them together.

    Raises:
        ConfigError: If a file can't be opened, their columns differ, they have no rows, or there is no such split.
    """
    chosen = _chosen(name, location, {None: list(parts)} if options.split_column else by_split(parts))
    splits: dict[str, list[tuple[str, Source]]] = {}
    for split, some in chosen.items():
        for part, found in zip(some, _open_all(some, options), strict=True):
            for value, source in found.items():
                splits.setdefault(split if value is None else value, []).append((part.location, source))
    if not splits:
        raise ConfigError(f"--data {location}: none of its {len(parts)} files has rows")
    if options.split_column and name is not None:
        if name not in splits:
            names = ", ".join(splits)
            raise ConfigError(f"--data {name}={location}: {options.split_column!r} names no such split; it has {names}")
        splits = {name: splits[name]}
    _check_columns(location, splits)
    reader = EmbeddedReader(options)
    return {split: join(split, some, reader, UNIQUE) for split, some in splits.items()}


def _chosen(name: str | None, location: str, by_split: Mapping[str | None, list[Part]]) -> Mapping[str, list[Part]]:
    """Returns the parts of the splits that a name, or none, chooses."""
    if name is not None:
        return {name: by_split.get(name) or [part for parts in by_split.values() for part in parts]}
    others = by_split.get(None, [])
    splits = {split: parts for split, parts in by_split.items() if split is not None}
    if splits and others:
        raise ConfigError(
            f"--data {location}: the names of its files tell of the splits {', '.join(splits)}, but that of "
            f"{others[0].location} of none; give it a split, as in NAME={others[0].location}, or all files one, as in "
            f"{SINGLE_SPLIT}={location}"
        )
    return splits or {SINGLE_SPLIT: others}


def _open_all(parts: Sequence[Part], options: SourceOptions) -> list[Mapping[str | None, Source]]:
    faults: list[str] = []

    def attempt(part: Part) -> Mapping[str | None, Source]:
        try:
            return open_part(part, options)
        except ConfigError as error:
            faults.extend(error.faults)
            return {}

    with ThreadPoolExecutor(_CONNECTIONS if is_url(parts[0].location) else 1) as pool:
        opened = list(pool.map(attempt, parts))
    ConfigError.check(sorted(faults))
    return opened


def _check_columns(location: str, splits: Mapping[str, Sequence[tuple[str, Source]]]) -> None:
    for split, ((first, one), *others) in splits.items():
        for other, source in others:
            if differing := sorted(set(one.metadata) ^ set(source.metadata)):
                lacking, having = (first, other) if differing[0] in source.metadata else (other, first)
                raise ConfigError(
                    f"--data {location}: {lacking} has no column {differing[0]!r}, and {having} has one; make the "
                    "columns the same, or, to have nulls there, join the files or patterns of both as "
                    f"--data {split}={first} --data {split}={other}"
                )


KIND = SourceKind(
    lambda location: table_format(location) is not None and not os.path.isdir(location),
    open_table,
    plural="tables",
    options=OPTIONS,
    reader=lambda location, options: EmbeddedReader(options),
)
