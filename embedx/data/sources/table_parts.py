"""The files of a table that has several: how patterns and folders name them, their splits and their partitions."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from embedx.data.reading.files import absolute, plain_name
from embedx.data.sources.patterns import find_files, fixed_folder
from embedx.data.sources.table_file import table_format
from embedx.errors import ConfigError

_WORDS = "train|training|validation|valid|val|dev|test|testing|eval|evaluation"
_WORD = re.compile(rf"(?:^|[-._ \d])({_WORDS})(?=$|[-._ \d])", re.IGNORECASE)
_SAVED = re.compile(r"(?:(?:.*/)?([^/]+)/)?data-\d{5}-of-\d{5}\.arrow")
"""The names of the files that `save_to_disk` of Hugging Face's datasets writes; other Arrow files are its caches."""
_SHARD = re.compile(r"(?:.*/)?(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\b[^/]*|(?:.*/)?([^/=]+)/\d{4}\.parquet")
"""The names of the Hugging Face hub's own shards: `train-00000-of-00002.parquet`, `train/0000.parquet`."""
_LAKES = {"Delta": "_delta_log/*", "Hudi": ".hoodie/*", "Iceberg": "metadata/*.metadata.json"}
"""The signs of formats in which a log says which files are the table."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class Part(NamedTuple):
    """One file of a table."""

    location: str
    """The absolute path, or URL."""
    name: str = ""
    """The path below the folder that is the table; empty if the file is all of it."""
    partitions: Mapping[str, str | int | None] = {}
    """The columns that its folders' names give, as `year=2024` does."""


def parts_of_pattern(pattern: str) -> list[Part]:
    """Returns the files that a pattern names, without those that `parts_of_folder` leaves out.

    Raises:
        ConfigError: If there are none.
    """
    folder = absolute(fixed_folder(pattern))
    found = [(path, _below(folder, path)) for path in map(absolute, find_files(pattern))]
    return _with_partitions(_visible(found) or found)


def parts_of_folder(location: str, files: Iterable[tuple[str, str]]) -> list[Part]:
    """Returns the parts of the table that a folder is, given the locations of tables in it and their paths below it.

    Files and folders whose names begin with `_` or `.` are left out, as all that read and write such folders do.

    Raises:
        ConfigError: If the tables are of several formats.
    """
    visible = _visible(files)
    saved = [(found, name) for found, name in visible if _SAVED.fullmatch(name)]
    visible = saved or visible
    counts = Counter(str(table_format(name)) for _, name in visible)
    if len(counts) > 1:
        held = " and ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        raise ConfigError(
            f"--data {location} holds tables of several formats ({held}); name those that you mean by a pattern, such "
            f"as {location.rstrip('/')}/**/*{counts.most_common(1)[0][0]}"
        )
    return _with_partitions(visible)


def check_lake(location: str, exists: Callable[[str], bool]) -> None:
    """Checks that a folder is no table with a log of the files that count; others may be left of earlier versions.

    Args:
        location: The folder, for the message.
        exists: A function that tells whether a pattern below the folder matches anything.

    Raises:
        ConfigError: If it is one.
    """
    for format, pattern in _LAKES.items():
        if exists(pattern):
            raise ConfigError(
                f"--data {location} is a table of the format {format}, whose log says which of its files count; "
                "write the table to a folder of plain Parquet, or name files by a pattern, such as "
                f"{location.rstrip('/')}/**/*.parquet"
            )


def by_split(parts: Sequence[Part]) -> dict[str | None, list[Part]]:
    """Returns the parts of each split that files' names tell, by the Hugging Face hub's rules; None is for the others.

    The names of the hub's own shards count first, then folders' names with a word such as `train`, then files' names.
    """
    rules = (_split_of_shards, _split_of_folders, _split_of_files)
    splits = next((found for rule in rules if any(found := rule(parts))), [None] * len(parts))
    grouped: dict[str | None, list[Part]] = {}
    for split, part in zip(splits, parts, strict=True):
        grouped.setdefault(split, []).append(part)
    return grouped


def _split_of_shards(parts: Sequence[Part]) -> list[str | None]:
    matches = [_SAVED.fullmatch(part.name) or _SHARD.fullmatch(part.name) for part in parts]
    splits = [match and next(filter(None, match.groups()), None) for match in matches]
    return splits if any(split and _WORD.fullmatch(split) for split in splits) else []


def _split_of_folders(parts: Sequence[Part]) -> list[str | None]:
    return [next((word[1] for word in map(_WORD.search, part.name.split("/")[:-1]) if word), None) for part in parts]


def _split_of_files(parts: Sequence[Part]) -> list[str | None]:
    words = [_WORD.search(os.path.basename(part.name)) for part in parts]
    return [word and word[1] for word in words]


def _with_partitions(files: Sequence[tuple[str, str]]) -> list[Part]:
    """Returns the parts; a partition whose values are all written as numbers are is one of numbers."""
    texts = [_partitions(name) for _, name in files]
    values: dict[str, set[str]] = {}
    for partitions in texts:
        for key, value in partitions.items():
            values.setdefault(key, set()).add(value)
    numbers = {key for key, found in values.items() if all(map(_is_number, found - {_NO_VALUE}))}
    return [
        Part(
            location,
            name,
            {
                key: None if value == _NO_VALUE else int(value) if key in numbers else value
                for key, value in partitions.items()
            },
        )
        for (location, name), partitions in zip(files, texts, strict=True)
    ]


def _partitions(name: str) -> dict[str, str]:
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return {unquote(key): unquote(value) for key, equals, value in pairs if key and equals}


def _is_number(text: str) -> bool:
    return re.fullmatch(r"0|-?[1-9]\d{0,17}", text) is not None


def _visible(files: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(location, name) for location, name in files if not any(map(_is_hidden, name.split("/")))]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) and "=" not in name


def _below(folder: str, location: str) -> str:
    whole, begin = plain_name(location), plain_name(folder).rstrip("/") + "/"
    return whole.removeprefix(begin) if whole.startswith(begin) else os.path.basename(whole)
