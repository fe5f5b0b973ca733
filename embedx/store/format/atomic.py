"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from embedx.store.format.layout import TEMPORARY_SUFFIX


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment, power cuts included, it is whole or not there.

    Raises:
        OSError: If any step fails; the temporary file is removed then.
    """
    write_all([(path, [data])], below=path.parent)


def write_all(
    files: Iterable[tuple[str | Path, Sequence[bytes | memoryview]]], below: Path, *, many: bool = False
) -> None:
    """Writes files so that at any moment, power cuts included, each is whole or not there.

    The order is: temporary names in the files' own folders, which are made, all brought to disk, renames, and those
    brought to disk.

    Args:
        files: Where to, and what, in parts.
        below: A folder that is there, with all of these in it.
        many: Whether they are so many that bringing the whole file system to disk, once, is quicker than each of them.

    Raises:
        OSError: If any step fails; the temporary files are removed then.
    """
    written: dict[str, str] = {}
    folders: dict[str, None] = {}
    many = many and _sync_file_system(below)
    try:
        for path, parts in files:
            folder, name = os.path.dirname(path) or os.curdir, os.path.basename(path)
            if folder not in folders:
                folders |= dict.fromkeys([*_make(folder, below), folder])
            temporary = os.path.join(folder, f".{name}{TEMPORARY_SUFFIX}")
            written[temporary] = os.fspath(path)
            with _named(path), _new_file(temporary) as file:  # whose closing writes too
                file.writelines(parts)
                file.flush()
                if not many:
                    os.fsync(file.fileno())
        if many:
            _sync_file_system(below)
        while written:
            temporary = next(iter(written))
            os.replace(temporary, written[temporary])
            del written[temporary]
    except BaseException:
        for temporary in written:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise
    if many:
        _sync_file_system(below)
    else:
        for folder in folders:
            sync_folder(folder)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file that is never written to again a second name; where the file system can't, a copy of it.

    Raises:
        OSError: If neither can be done.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK):
            raise
        write_atomic(target, source.read_bytes())


def make_folder(path: Path, below: Path | None = None) -> None:
    """Makes a folder and its parents, each one's entry in its own parent brought to disk.

    Args:
        path: The folder.
        below: The parent that has to be there already, so that a store that was removed is not made anew.

    Raises:
        OSError: If it can't be made.
    """
    for parent in _make(os.fspath(path), below):
        sync_folder(parent)


def _make(folder: str, below: Path | None) -> list[str]:
    """Makes a folder and its parents; returns the folders in which one was made."""
    if below is not None and folder == os.fspath(below):
        os.stat(folder)
        return []
    parent = os.path.dirname(folder) or os.curdir
    made: list[str] = []
    try:
        try:
            os.mkdir(folder)
        except FileNotFoundError:
            made = _make(parent, below)
            os.mkdir(folder)
    except OSError:
        if not os.path.isdir(folder):
            raise
        return made
    return [*made, parent]


def _new_file(path: str) -> BinaryIO:
    """Opens a file to be written, in place of one of an interrupted run, or of a link laid there to be followed."""
    try:
        return open(path, "xb")
    except FileExistsError:
        os.unlink(path)
        return open(path, "xb")


def _sync_file_system(path: Path) -> bool:
    """Brings all of a file system to disk, by Linux's `syncfs`; False where there is none.

    Raises:
        OSError: If something of it could not be written.
    """
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)
    return True


def sync_folder(path: str | Path) -> None:
    """Brings a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Has an error name the file, which the system doesn't where it was written to by its descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
