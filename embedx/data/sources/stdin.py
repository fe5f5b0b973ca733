"""Paths on stdin, as `find` prints them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import pyarrow as pa

from embedx.data.reading.files import FileReader, check_urls, is_url
from embedx.data.sources.base import SINGLE_SPLIT, Source, as_text, samples_table, sizes_and_times
from embedx.data.sources.encodings import without_mark
from embedx.data.sources.kinds import SourceKind, SourceOptions
from embedx.errors import ConfigError
from embedx.paths import path_of_file_url

STDIN = "-"


def open_stdin(name: str | None, location: str, options: SourceOptions) -> Mapping[str, Source]:
    r"""Reads the paths or URLs, one per line; with `--null` each ends in a NUL byte, and can hold any other byte.

    A line may end in `\r\n`, and the list begin with a byte-order mark. Empty
    lines are left out. Relative paths begin in the current folder. The key is the path
    as given. Metadata: `parent`, the path without its last part, null if it has only one.

    Raises:
        ConfigError: If there are no paths, stdin is a terminal, the paths end in NUL without `--null`, or the scheme
            of a URL can't be read.
    """
    paths = paths_on_stdin("--data -", "embedx extract --data -", null=options.null)
    located = [_located(path) for path in paths]
    check_urls(map(as_text, located))
    return {name or SINGLE_SPLIT: Source(("parent",), FileReader(), lambda: _scan(paths, located))}


def paths_on_stdin(flag: str, command: str, *, null: bool | None) -> list[bytes]:
    """Reads the paths or URLs on stdin, but for empty ones.

    Args:
        flag: The words of the command line that name stdin, for messages.
        command: The command that reads them, for messages.
        null: Whether each ends in a NUL byte, and not in a line end; None tells it by whether there is one.

    Raises:
        ConfigError: If there are none, stdin is a terminal, or they end in NUL and should not.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(f"{flag}: stdin is no list of paths; pipe one in, as in find … | {command}")
    content = sys.stdin.buffer.read()
    if not null:
        content = _unmarked(content, flag)
    if null is None:
        null = b"\0" in content
    if null:
        paths = content.split(b"\0")
    elif b"\0" in content:
        raise ConfigError(f"{flag}: the paths on stdin end in NUL; add --null")
    else:
        paths = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    if not any(paths):
        raise ConfigError(f"{flag}: there are no paths on stdin; does the command that lists them find any?")
    return [path for path in paths if path]


def _unmarked(content: bytes, flag: str) -> bytes:
    try:
        return without_mark(content)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag}: the list is not the {error.encoding} text that its first bytes say") from error


def _located(path: bytes) -> bytes:
    """Returns a path as it is, or that of a `file:` URL."""
    if path[:7].lower() != b"file://":
        return path
    try:
        return os.fsencode(path_of_file_url(os.fsdecode(path)))
    except ValueError as error:
        raise ConfigError(f"--data -: {error}") from error


def _scan(paths: list[bytes], located: list[bytes]) -> pa.Table:
    here = os.getcwdb()
    whole = [path if is_url(path) else os.path.join(here, path) for path in located]
    sizes, times = sizes_and_times(pa.chunked_array([pa.array(whole, pa.binary())]))
    columns = {
        "key": [as_text(path) for path in paths],
        "path": whole,
        "size": sizes,
        "mtime_ns": times,
        "parent": [as_text(os.path.dirname(path)) or None for path in paths],
    }
    return samples_table(columns, pa.null())


KIND = SourceKind(
    lambda location: location == STDIN, open_stdin, plural="paths on stdin", options=frozenset({"null"}), once=True
)
