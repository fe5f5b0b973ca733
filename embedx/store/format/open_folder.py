"""A store's folder that is held open, and the files below it, which are opened from there and by no link.

An update writes another store beside this one, exchanges the two folders, and removes the old one. Who holds the folder
stays with one of the two, whereas a path leads now to the one and then to the other. A link could have any file of the
machine read as a part of a stranger's store; only the store's own folder may be one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from embedx.errors import NotAStoreError, StoreError, StoreReplacedError
from embedx.names import MANIFEST

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_GONE = frozenset({errno.ENOENT, errno.ESTALE})
"""The error numbers of a file that is not there, or no longer."""
_HASHED_AT_ONCE = 4 * 1024**2
"""The bytes that are hashed without Python's lock; where another thread holds that, each part waits for it."""
_MAYBE_A_LINK = frozenset({errno.ELOOP, errno.ENOTDIR})
"""The error numbers of a link where none is followed."""


_DESCRIPTORS = "/dev/fd"
"""The folder in which each open file of this process has a path, its descriptor's number."""


class StoreFolder:
    """A store's folder, held open until it is closed or no longer used.

    Args:
        path: The path of the folder, which may be a link.

    Raises:
        NotAStoreError: If there is no such folder.
        StoreError: If it can't be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest_sha256: str | None = None
        """The sha256 of the manifest that was read; a store with another one is another store."""
        self._place = os.path.abspath(path)  # the working directory may change
        try:
            self._descriptor = os.open(path, _FOLDER)
        except (FileNotFoundError, NotADirectoryError) as error:
            absence = "it is a file" if self.path.exists() else "there is no such folder"
            raise NotAStoreError(
                f"{path} is not a store: {absence}; give the folder that `embedx extract` wrote"
            ) from error
        except ValueError as error:
            raise NotAStoreError(f"{str(path)!r} is not a store: no path has a NUL byte") from error
        except OSError as error:
            raise StoreError(f"{path}: can't be read ({error.strerror})") from error
        self.close = weakref.finalize(self, os.close, self._descriptor)
        """Closes the folder; files of it that are open stay so."""

    def __truediv__(self, relative: str) -> StoreFile:
        return StoreFile(self, relative)

    def read(self, relative: str) -> bytes:
        """Reads a file; errors as by `StoreFile.open`."""
        with (self / relative).open() as file:
            return file.read()

    def is_current(self) -> bool:
        """Tells whether the folder still stands in its place, with the same manifest."""
        try:
            if not os.path.samestat(os.stat(self._place), os.fstat(self._descriptor)):
                return False
            if self.manifest_sha256 is None:
                return True
            with open(self._open(MANIFEST, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.manifest_sha256
        except (OSError, StoreError):
            return False

    def fault(self, message: str) -> StoreError:
        """Returns the error for files that are gone or don't go together: this, or that the store was replaced."""
        if self.is_current():
            return StoreError(message)
        return StoreReplacedError(f"{self.path} was replaced while it was being read; open it again")

    def files(self, relative: str = ".") -> list[str]:
        """Returns the names of all but the folders in a folder of the store; none if there is no such folder."""
        names: list[str] = []
        try:
            with contextlib.ExitStack() as opened:
                folder = self._open(relative, _FOLDER)
                opened.callback(os.close, folder)
                with os.scandir(folder) as entries:
                    names += (entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StoreError(f"{self.path / relative}: can't be read ({error.strerror})") from error
        if not self.is_current():  # as some may have been removed already
            raise self.fault("")
        return names

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Yields each folder below this one that is no link, by its path in the store, and the names of its files."""
        for folder, folders, names, _ in os.fwalk(".", dir_fd=self._held()):
            folders.sort()
            yield os.path.normpath(folder), sorted(names)

    def _held(self) -> int:
        if not self.close.alive:
            raise StoreError(f"{self.path}: the store was closed; open it again")
        return self._descriptor

    def _open(self, relative: str, flags: int) -> int:
        """Opens a file or folder from here, one part of its path after the other; a StoreError refuses links."""
        *folders, last = relative.split("/")
        at = self._held()
        with contextlib.ExitStack() as opened:
            for number, folder in enumerate(folders):
                at = self._step(at, folder, _FOLDER, "/".join(folders[: number + 1]))
                opened.callback(os.close, at)
            return self._step(at, last, flags, relative)

    def _step(self, at: int, name: str, flags: int, relative: str) -> int:
        try:
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
        except OSError as error:
            if error.errno in _MAYBE_A_LINK and stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                raise StoreError(
                    f"{self.path / relative} is a link, and links in a store are not followed; replace it with the "
                    "file that it leads to"
                ) from error
            raise


class StoreFile(NamedTuple):
    """A file in a store."""

    folder: StoreFolder
    relative: str
    """The path in the store."""

    @classmethod
    def of(cls, path: Path | StoreFile, depth: int = 0) -> StoreFile:
        """Returns a file at a path, whose store is so many folders above that of the file."""
        if isinstance(path, StoreFile):
            return path
        return StoreFolder(path.parents[depth]) / "/".join(path.parts[-depth - 1 :])

    @property
    def name(self) -> str:
        """The name in its folder."""
        return os.path.basename(self.relative)

    def __str__(self) -> str:
        return str(self.folder.path / self.relative)

    def read(self) -> bytes:
        """Reads the file; errors as by `open`."""
        with self.open() as file:
            return file.read()

    def open(self) -> BufferedReader:
        """Opens the file for reading.

        Raises:
            StoreReplacedError: If it is gone, as the store was replaced.
            StoreError: If it can't be read, is no regular file, or is behind a link.
        """
        try:  # not waiting for the other end of a pipe
            descriptor = self.folder._open(self.relative, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            message = f"{self}: can't be read ({error.strerror})"
            raise (self.folder.fault(message) if error.errno in _GONE else StoreError(message)) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreError(f"{self} is not a regular file")
        return os.fdopen(descriptor, "rb")

    def size(self) -> int:
        """Returns the number of bytes; errors as by `open`."""
        with self.open() as file:
            return os.fstat(file.fileno()).st_size

    def sha256(self) -> str:
        """Returns the sha256 of its bytes, as hexadecimal digits; errors as by `open`."""
        with self.open() as file:
            return sha256_of(file)

    @contextlib.contextmanager
    def path_of(self, opened: BufferedReader) -> Iterator[str]:
        """Yields a path by which a library can open the same file, as long as it is open here."""
        own = os.fstat(opened.fileno())
        path = f"{_DESCRIPTORS}/{opened.fileno()}"
        if not _is_file(path, own):  # a system without such a folder
            path = os.path.join(self.folder._place, self.relative)
        yield path
        if not _is_file(path, own):
            raise self.folder.fault(f"{self} was replaced while it was being opened; try again")


def sha256_of(opened: BufferedReader) -> str:
    """Returns the sha256 of an open file's bytes, from where it stands, as hexadecimal digits."""
    digest, part = hashlib.sha256(), memoryview(bytearray(_HASHED_AT_ONCE))
    while size := opened.readinto(part):
        digest.update(part[:size])
    return digest.hexdigest()


def _is_file(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False
