"""An object in a bucket as a stream of bytes, whose ranges are fetched where they are read."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable

from embedx.store.format.object_copy import ObjectCopy


class ObjectStream(io.RawIOBase):
    """A file in a bucket, open for reading at any position.

    Args:
        relative: The path in the store.
        size: The number of bytes.
        read: The function that returns the bytes from one place up to another.
    """

    def __init__(self, relative: str, size: int, read: Callable[[str, int, int], bytes]) -> None:
        self.relative = relative
        self.copy: ObjectCopy | None = None
        """The copy on this machine, from which it is read where there is one."""
        self._size, self._fetch = size, read
        self._at = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to another position, and returns it."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """Returns the position."""
        return self._at

    def fileno(self) -> int:
        """Returns the descriptor of the copy, which stands where this does; an OSError refuses one without a copy."""
        if self.copy is None:
            raise OSError(errno.EBADF, "it has no copy on this machine")
        os.lseek(self.copy.descriptor, self._at, os.SEEK_SET)
        return self.copy.descriptor

    def readall(self) -> bytes:
        """Returns all from the position on, by one request."""
        return self._read(self._size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads up to so many bytes, and returns their number."""
        part = self._read(min(self._size, self._at + len(buffer)))
        buffer[: len(part)] = part
        return len(part)

    def _read(self, stop: int) -> bytes:
        if self._at >= stop:
            return b""
        part = self.copy.read(self._at, stop) if self.copy else self._fetch(self.relative, self._at, stop)
        self._at += len(part)
        return part
