"""A store that is held open, wherever its files are, and the files in it.

An update puts another store in this one's place, and removes the old one. Who holds a store stays with one of the two.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from embedx.errors import StoreError, StoreReplacedError
from embedx.paths import StorePath
from embedx.store.format.fetched import Fetched

_HASHED_AT_ONCE = 4 * 1024**2
"""The bytes that are hashed without Python's lock; where another thread holds that, each part waits for it."""


class StoreFolder(abc.ABC):
    """A store that is held open until it is closed or no longer used."""

    is_remote = False
    """True if each read is a request, so that several should be under way at once."""
    fetched: Fetched | None = None
    """The amount that was fetched so far; None for a folder of this machine."""
    path: StorePath
    """The place, for messages."""
    manifest_sha256: str | None = None
    """The sha256 of the manifest that was read; a store with another one is another store."""
    close: Callable[[], object]
    """Closes the store; files of it that are open stay so."""

    def __truediv__(self, relative: str) -> StoreFile:
        return StoreFile(self, relative)

    def __str__(self) -> str:
        return str(self.path)

    def read(self, relative: str) -> bytes:
        """Reads a file; errors as by `open_file`."""
        with self.open_file(relative) as file:
            return file.read()

    def fault(self, message: str) -> StoreError:
        """Returns the error for files that are gone or don't go together: this, or that the store was replaced."""
        if self.is_current():
            return StoreError(message)
        return StoreReplacedError(f"{self.path} was replaced while it was being read; open it again")

    @abc.abstractmethod
    def is_current(self) -> bool:
        """Tells whether the store still stands in its place, with the same manifest."""

    @abc.abstractmethod
    def open_file(self, relative: str) -> BinaryIO:
        """Opens a file for reading at any position.

        Raises:
            StoreReplacedError: If it is gone, as the store was replaced.
            StoreError: If it can't be read, is no regular file, or is behind a link.
        """

    @abc.abstractmethod
    def size_of(self, relative: str) -> int:
        """Returns a file's number of bytes; errors as by `open_file`."""

    @abc.abstractmethod
    def has(self, relative: str) -> bool:
        """Tells whether there is such a file, or a link in its place."""

    @abc.abstractmethod
    def files(self, relative: str = ".") -> list[str]:
        """Returns the names of all but the folders in a folder of the store; none if there is no such folder."""

    @abc.abstractmethod
    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Yields each folder of the store that is no link, by its path in the store, and the names of its files."""

    def learn_sizes(self, relatives: Iterable[str]) -> None:
        """Asks for the sizes of files that are wanted soon, if all at once costs less than one by one."""
        return

    def bring(self, opened: BinaryIO) -> None:
        """Brings all of an open file to this machine, where it will be read in full."""
        return

    @abc.abstractmethod
    def path_of(self, relative: str, opened: BinaryIO) -> contextlib.AbstractContextManager[str]:
        """Returns a context with a path on this machine by which a library can open a file that is open here."""


class StoreFile(NamedTuple):
    """A file in a store."""

    folder: StoreFolder
    relative: str
    """The path in the store."""

    @property
    def name(self) -> str:
        """The name in its folder."""
        return os.path.basename(self.relative)

    def __str__(self) -> str:
        return str(self.folder.path / self.relative)

    def read(self) -> bytes:
        """Reads the file; errors as by `StoreFolder.open_file`."""
        return self.folder.read(self.relative)

    def open(self) -> BinaryIO:
        """Opens the file for reading at any position; errors as by `StoreFolder.open_file`."""
        return self.folder.open_file(self.relative)

    def size(self) -> int:
        """Returns the number of bytes; errors as by `open`."""
        return self.folder.size_of(self.relative)

    def sha256(self) -> str:
        """Returns the sha256 of its bytes, as hexadecimal digits; errors as by `open`."""
        with self.open() as file:
            self.folder.bring(file)
            return sha256_of(file)

    def path_of(self, opened: BinaryIO) -> contextlib.AbstractContextManager[str]:
        """Returns a context with a path by which a library can open the same file, as long as it is open here."""
        return self.folder.path_of(self.relative, opened)


def sha256_of(opened: BinaryIO) -> str:
    """Returns the sha256 of an open file's bytes, from where it stands, as hexadecimal digits."""
    digest, part = hashlib.sha256(), memoryview(bytearray(_HASHED_AT_ONCE))
    while size := opened.readinto(part):  # type: ignore[attr-defined]  # as all but text files have it
        digest.update(part[:size])
    return digest.hexdigest()
