"""Reads the bytes of inputs from files and URLs."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from typing import BinaryIO
from urllib.parse import unquote

from embedx.credentials import credentials_hidden
from embedx.paths import is_url as is_url

_HTTP = re.compile(r"https?://", re.IGNORECASE)


class RejectedInputError(Exception):
    """An input gives no embedding; the message is the reason that the index table shows, without credentials."""

    def __init__(self, reason: str) -> None:
        super().__init__(credentials_hidden(reason))


class FileReader:
    """Reads whole files, or parts of them."""

    def read(self, path: bytes, offset: int | None = None, size: int | None = None) -> bytes:
        """Reads a regular file or a URL: `size` bytes from `offset` on, or everything if `offset` is None.

        Raises:
            RejectedInputError: If it can't be read, or is not a regular file (a FIFO would never end).
        """
        try:
            data = _read_url(path, offset, size) if b"://" in path and is_url(path) else _read_file(path, offset, size)
        except OSError as error:
            raise RejectedInputError(f"can't be read: {error.strerror}") from error
        if offset is not None and len(data) != size:
            raise RejectedInputError(f"the file ends after {len(data)} of the input's {size} bytes")
        return data


def check_urls(locations: Iterable[str]) -> None:
    """Checks that the schemes of all URLs among the locations can be read.

    Raises:
        ConfigError: If some can't; the message names them and what to do.
    """
    first = {url.partition("://")[0]: url for url in locations if is_url(url)}
    if first:
        from embedx.system import remote

        remote.check_schemes(first)


def absolute(location: str) -> str:
    """Returns a path as an absolute one, and a URL as it is."""
    return location if is_url(location) else os.path.abspath(location)


def plain_name(location: str) -> str:
    """Returns the name that tells a location's kind: of an http(s) URL without query, fragment and `%` escapes."""
    return unquote(re.split("[?#]", location, maxsplit=1)[0]) if _HTTP.match(location) else location


def open_file(location: str, *, in_parts: bool = False) -> BinaryIO:
    """Opens a file or URL that holds inputs for reading at any position.

    Raises:
        OSError: If it can't be opened, or its server can't send ranges although inputs will be read `in_parts`.
    """
    if not is_url(location):
        return open(location, "rb")
    from embedx.system import remote

    return remote.open_url(location, in_parts=in_parts)


def _read_file(path: bytes, offset: int | None, size: int | None) -> bytes:
    # Without blocking: opening a FIFO that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RejectedInputError("not a regular file")
        return file.read() if offset is None else os.pread(descriptor, size or 0, offset)


def _read_url(url: bytes, offset: int | None, size: int | None) -> bytes:
    from embedx.system import remote

    return remote.read(os.fsdecode(url), offset, size)
