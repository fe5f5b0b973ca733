"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from embedx.errors import StoreError
from embedx.store.format.layout import TEMPORARY_SUFFIX

_NO_SUCH_OPERATION = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""The error numbers by which a file system says that it has not got an operation at all."""


def write_atomic(path: Path, data: bytes) -> None:
    """Writes one file as `write_all` does."""
    write_all([(path, [data])], below=path.parent)


def replace(temporary: str, path: str) -> tuple[str, bool]:
    """Gives a temporary file its final name; returns that name, and True as this call made it."""
    os.replace(temporary, path)
    return path, True


def write_all(
    files: Iterable[tuple[str | Path, Sequence[bytes | memoryview]]],
    below: Path,
    *,
    many: bool = False,
    token: str | None = None,
    name: Callable[[str, str], tuple[str, bool]] = replace,
) -> list[tuple[str, bool]]:
    """Writes files so that at any moment, power cuts included, each is whole or not there.

    The steps are: make the folders, write the files under temporary names in them, sync the files, rename them, sync
    the folders.

    Args:
        files: The path and the contents, in parts, of each file.
        below: A folder that exists and has all of these files in it.
        many: True if the files are so many that one sync of the whole file system is quicker than one of each file.
        token: The name of this process among several that write the same files; None if it is the only one.
        name: The function that gives a temporary file its final name.

    Returns:
        What `name` has returned of each file: its path, and whether this call has made it.

    Raises:
        OSError: If any step fails; the temporary files are removed then.
    """
    written: dict[str, str] = {}
    folders: dict[str, None] = {}
    named: list[tuple[str, bool]] = []
    many = many and _sync_file_system(below)
    try:
        for path, parts in files:
            folder, own = os.path.dirname(path) or os.curdir, f".{token}" if token else ""
            if folder not in folders:
                folders |= dict.fromkeys([*_make(folder, below), folder])
            temporary = os.path.join(folder, f".{os.path.basename(path)}{own}{TEMPORARY_SUFFIX}")
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
            named.append(name(temporary, written[temporary]))
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
    return named


def link_or_copy(source: Path, target: Path, sha256: Callable[[], str]) -> None:
    """Gives a file that is never written again a second name, or copies it where the file system has no links.

    Args:
        source: The path of the file.
        target: The path of the second name, or of the copy.
        sha256: The function that returns the right sha256 of a copy.

    Raises:
        StoreError: If a copy has another sha256.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK):
            raise
        data = source.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256():
            raise StoreError(
                f"{source} is damaged (its sha256 is another); run the same command again with --verify-kept, which "
                "computes its rows again"
            ) from None
        write_atomic(target, data)


def make_folder(path: Path, below: Path | None = None) -> None:
    """Makes a folder and its parents, and syncs the folders in which one was made.

    The folder `below` must exist already, so that a store that was removed meanwhile is not made anew.
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
    """Opens a new file; one that an interrupted run left there, or a link that somebody laid there, is removed."""
    try:
        return open(path, "xb")
    except FileExistsError:
        os.unlink(path)
        return open(path, "xb")


def _sync_file_system(path: Path) -> bool:
    """Syncs a whole file system by Linux's `syncfs`; returns False where the machine has no such call."""
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return False
    with _open_folder(path) as descriptor:
        if syncfs(descriptor) != 0:
            if ctypes.get_errno() in _NO_SUCH_OPERATION:
                return False
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return True


def sync_folder(path: str | Path) -> None:
    """Syncs the entries of a folder, where its file system can: some network and user-space ones can't."""
    with _open_folder(path) as descriptor, _named(path):
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SUCH_OPERATION:
                raise


@contextlib.contextmanager
def _open_folder(path: str | Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Adds the file's name to an OSError, as the system knows only its descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
