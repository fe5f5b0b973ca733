"""Patterns that name several files: `shard-{000000..000009}.tar`, `{a,b}.npy`, `parts/**/*.parquet`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from embedx.data.reading.files import is_url, plain_name
from embedx.data.sources.base import as_text
from embedx.errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")

_WILDCARDS = r"[*\[]"
"""The wildcards of URLs, in which `?` begins the query."""
_MOST_FILES = 100_000


def expand_braces(pattern: str) -> Iterator[str]:
    """Expands braces as a shell does: ranges of numbers such as `{000..010}`, and lists such as `{a,b}`."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    for choice in _choices(braces[1]):
        for rest in expand_braces(pattern[braces.end() :]):
            yield pattern[: braces.start()] + choice + rest


def is_pattern(location: str) -> bool:
    """Tells whether a location has braces or wildcards, and is no file or folder of that very name."""
    magic = _BRACES.search(location) or re.search(_WILDCARDS if is_url(location) else r"[*?\[]", plain_name(location))
    return magic is not None and not os.path.exists(location)


def first_file(location: str) -> str:
    """Returns the first file that a pattern names, as far as its kind tells, or else the location itself."""
    if not is_pattern(location):
        return location
    first = next(expand_braces(location))
    kind_is_open = not re.fullmatch(r"\.\w+", os.path.splitext(plain_name(first))[1])
    return next(iter(_matches(first)), first) if kind_is_open else first


def fixed_folder(pattern: str) -> str:
    """Returns the folder of a pattern's files, as far down as its parts have neither braces nor wildcards."""
    fixed = re.split(r"[*\[{]" if is_url(pattern) else r"[*?\[{]", pattern, maxsplit=1)[0]
    return os.path.dirname(fixed)


def find_files(location: str) -> list[str]:
    """Returns the files that a location names: itself, or its braces expanded in order and its wildcards by name.

    Raises:
        ConfigError: If there is no such file, one that the braces name is missing, or one is named twice.
    """
    if os.path.isfile(location):
        return [location]
    found: dict[str, None] = {}
    for pattern in expand_braces(location):
        matches = _matches(pattern)
        if not matches:
            one = "such file" if pattern == location else f"file {pattern}"
            raise ConfigError(f"--data {location}: there is no {one}; check the names of the folder and of the files")
        if twice := found.keys() & matches:
            raise ConfigError(f"--data {location}: {min(twice)} is named twice; name it once")
        found |= dict.fromkeys(matches)
        if len(found) > _MOST_FILES:
            raise ConfigError(f"--data {location}: names more than {_MOST_FILES} files; give fewer, or larger ones")
    return list(found)


def _matches(pattern: str) -> list[str]:
    """Returns the files of a pattern without braces; a URL without wildcards is not looked up."""
    if not is_url(pattern):
        try:
            return [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        except RecursionError as error:
            raise ConfigError(
                f"--data {pattern}: folders are nested too deeply for **; name the folder, and --include"
            ) from error
    if not re.search(_WILDCARDS, plain_name(pattern)):
        return [pattern]
    from embedx.system import remote

    try:
        return remote.find(pattern)
    except OSError as error:
        raise ConfigError(f"--data {pattern}: can't be listed ({error.strerror})") from error


def short_names(paths: list[str]) -> list[str]:
    """Returns each file's name below the folder that all of them share."""
    plain = [plain_name(path) for path in paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in plain])
    return [as_text(os.fsencode(os.path.relpath(path, folder))) for path in plain]


def _choices(braces: str) -> Iterator[str]:
    first, dots, last = braces.partition("..")
    if not dots or "," in braces:
        yield from braces.split(",")
        return
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) and first != "0" else 0
    down = int(last) < int(first)
    for number in range(int(first), int(last) + (-1 if down else 1), -1 if down else 1):
        yield f"{number:0{width}d}"
