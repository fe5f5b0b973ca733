"""Patterns that name several files: `shard-{000000..000009}.tar`, `{a,b}.npy`, `features/*.npy`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from embedx.data.reading.files import is_url, plain_name
from embedx.data.sources.base import as_text
from embedx.errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")

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
            raise ConfigError(f"--data {location}: there is no {one}")
        if twice := found.keys() & matches:
            raise ConfigError(f"--data {location}: {min(twice)} is named twice; name it once")
        found |= dict.fromkeys(matches)
        if len(found) > _MOST_FILES:
            raise ConfigError(f"--data {location}: names more than {_MOST_FILES} files; give fewer, or larger ones")
    return list(found)


def _matches(pattern: str) -> list[str]:
    """Returns the files of a pattern without braces; a URL without wildcards is not looked up."""
    if not is_url(pattern):
        return [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
    if not re.search(r"[*\[]", plain_name(pattern)):
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
