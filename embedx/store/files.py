"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from embedx.store.layout import TEMPORARY_SUFFIX


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment, power cuts included, it is whole or not there.

    The order is: temporary name in the same folder, fsync, rename, fsync of the folder.

    Raises:
        OSError: If any step fails; the temporary file is removed then.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        temporary.unlink(missing_ok=True)  # of an interrupted run, or a link laid there to be written through
        with temporary.open("xb") as file, _named(path):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


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
    if path.is_dir():
        return
    if path == below:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    make_folder(path.parent, below)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Brings a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Has an error name the file, which the system doesn't where it was written to by its descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
