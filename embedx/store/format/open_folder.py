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
from typing import BinaryIO

from embedx.errors import NotAStoreError, StoreError
from embedx.names import MANIFEST
from embedx.paths import BucketPath, StorePath, store_path
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.format.store_folder import StoreFile, StoreFolder

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_GONE = frozenset({errno.ENOENT, errno.ESTALE})
"""The error numbers of a file that is not there, or no longer."""
_MAYBE_A_LINK = frozenset({errno.ELOOP, errno.ENOTDIR})
"""The error numbers of a link where none is followed."""


_DESCRIPTORS = "/dev/fd"
"""The folder in which each open file of this process has a path, its descriptor's number."""


class LocalFolder(StoreFolder):
    """A store's folder, held open until it is closed or no longer used.

    Args:
        path: The path of the folder, which may be a link.

    Raises:
        NotAStoreError: If there is no such folder.
        StoreError: If it can't be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path: Path = Path(path)
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
        self.close: weakref.finalize[..., LocalFolder] = weakref.finalize(self, os.close, self._descriptor)

    def open_file(self, relative: str) -> BufferedReader:
        """Opens a regular file behind no link."""
        try:  # not waiting for the other end of a pipe
            descriptor = self._open(relative, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            message = f"{self / relative}: can't be read ({error.strerror})"
            raise (self.fault(message) if error.errno in _GONE else StoreError(message)) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreError(f"{self / relative} is not a regular file")
        return os.fdopen(descriptor, "rb")

    def size_of(self, relative: str) -> int:
        """Returns a file's number of bytes."""
        with self.open_file(relative) as file:
            return os.fstat(file.fileno()).st_size

    def has(self, relative: str) -> bool:
        """Tells whether there is such a file, or a link in its place."""
        return os.path.lexists(self.path / relative)

    @contextlib.contextmanager
    def path_of(self, relative: str, opened: BinaryIO) -> Iterator[str]:
        """Yields a path by which a library can open the same file, as long as it is open here."""
        own = os.fstat(opened.fileno())
        path = f"{_DESCRIPTORS}/{opened.fileno()}"
        if not _is_file(path, own):  # a system without such a folder
            path = os.path.join(self._place, relative)
        yield path
        if not _is_file(path, own):
            raise self.fault(f"{self / relative} was replaced while it was being opened; try again")

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


def _is_file(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False


def open_folder(place: str | StorePath | StoreFolder) -> StoreFolder:
    """Holds the store at a place open; one that is held open already is returned as it is.

    Raises:
        NotAStoreError: If there is no such folder.
        StoreError: If it can't be opened.
        ConfigError: If it is in a bucket of a kind that is unknown, or needs a package that is not installed.
    """
    if isinstance(place, StoreFolder):
        return place
    if isinstance(place, str):
        try:
            place = store_path(place)
        except ValueError as error:
            raise NotAStoreError(f"{place!r} is not a store: {error}") from error
    if not isinstance(place, BucketPath):
        return LocalFolder(place)
    from embedx.system.remote import check_schemes  # takes long, and only buckets need it

    check_schemes({place.url.partition("://")[0]: place.url})
    return ObjectFolder(place)


def stored_file(path: Path | StoreFile, depth: int = 0) -> StoreFile:
    """Returns a file at a path, whose store is so many folders above that of the file."""
    if isinstance(path, StoreFile):
        return path
    return LocalFolder(path.parents[depth]) / "/".join(path.parts[-depth - 1 :])
