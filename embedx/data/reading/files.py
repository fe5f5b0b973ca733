"""Reads the bytes of inputs from files and URLs."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from typing import BinaryIO
from urllib.parse import unquote

from embedx.credentials import credentials_hidden
from embedx.paths import is_url as is_url
from embedx.values import MAX_BYTES, too_large

_PIECE = 1 << 16
"""The bytes that are asked for where a file should have ended."""
_HTTP = re.compile(r"https?://", re.IGNORECASE)


class RejectedInputError(Exception):
    """An input gives no embedding; the message is the reason that the index table shows, without credentials."""

    def __init__(self, reason: str) -> None:
        super().__init__(credentials_hidden(reason))


class FileReader:
    """Reads whole files, or parts of them."""

    def read(self, path: bytes, offset: int | None = None, size: int | None = None, most: int = MAX_BYTES) -> bytes:
        """Reads a regular file or a URL: `size` bytes from `offset` on, or everything if `offset` is None.

        Raises:
            RejectedInputError: If it can't be read, has more than `most` bytes, or is not a regular file (a FIFO would
                never end).
        """
        if offset is not None and (size or 0) > most:
            raise RejectedInputError(too_large(most))
        read_bytes = _read_url if b"://" in path and is_url(path) else _read_file
        try:
            data = read_bytes(path, offset, size, most)
        except OSError as error:
            reason = str(error.strerror)
            raise RejectedInputError(reason if reason == too_large(most) else f"can't be read: {reason}") from error
        if offset is not None and len(data) != size:
            raise RejectedInputError(f"the file ends after {len(data)} of the input's {size} bytes")
        return data

    def is_range(self, path: bytes, offset: int | None) -> bool:
        """Tells whether `read` returns the bytes of a file, or of a part of it, as they are."""
        return True


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


def _read_file(path: bytes, offset: int | None, size: int | None, most: int) -> bytes:
    try:
        # Without blocking: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV) and not os.path.isfile(path):  # a socket, or no device
            raise RejectedInputError("not a regular file") from None
        raise
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise RejectedInputError("not a regular file")
        if offset is not None:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return _read_up_to(descriptor, size or 0, size or 0)
        data = _read_up_to(descriptor, info.st_size, most + 1) if info.st_size <= most else None
    finally:
        os.close(descriptor)
    if data is None or len(data) > most:
        raise RejectedInputError(too_large(most))
    return data


def _read_up_to(descriptor: int, expected: int, most: int) -> bytes:
    """Reads to the file's end, wherever that is by now, or `most` bytes."""
    pieces: list[bytes] = []
    count = 0
    while piece := os.read(descriptor, min(max(expected + 1 - count, _PIECE), most - count)):
        pieces.append(piece)
        count += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_url(url: bytes, offset: int | None, size: int | None, most: int) -> bytes:
    from embedx.system import remote

    return remote.read(os.fsdecode(url), offset, size, most)
