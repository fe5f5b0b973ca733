"""Final names that several processes give at the same time: each is given once, and never to another file.

A file is written under a temporary name of its process's own, and then linked to its final name, which fails where that
is taken. File systems without links have Linux's `renameat2(RENAME_NOREPLACE)`, or neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import filecmp
import hashlib
import os
import secrets
from pathlib import Path

from embedx.errors import ConfigError, StoreError
from embedx.store.format.layout import TEMPORARY_SUFFIX, other_shard_path
from embedx.system.mounts import file_system_of

_TOKEN_BYTES = 8
_AT_WORKING_DIRECTORY = -100
_NO_REPLACE = 1
_EXCHANGE = 2
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
"""The error numbers by which a file system says that it has no hard links."""
_NO_SUCH_OPERATION = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""The error numbers by which one says that it has not got a way of renaming."""


def new_token() -> str:
    """Returns the name of a process among those that write a store: hex digits that no other one has."""
    return secrets.token_hex(_TOKEN_BYTES)


def create(temporary: str, path: str) -> bool:
    """Gives a temporary file its final name, and removes the temporary one; returns False if the name is taken.

    The temporary file is then still there.

    Raises:
        OSError: If neither can be told.
    """
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        if not _is_linked(temporary, path):
            return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return _rename(temporary, path)
        if not _is_linked(temporary, path):
            raise
    os.unlink(temporary)
    return True


def create_once(temporary: str, path: str) -> tuple[str, bool]:
    """Gives a temporary file its final name, or removes it where the name is taken; returns the path, and which."""
    if is_new := create(temporary, path):
        return path, is_new
    os.unlink(temporary)
    return path, is_new


def create_shard(temporary: str, path: str) -> tuple[str, bool]:
    """Gives a shard its final name; returns the path that has these bytes then, and whether this call made it.

    A shard of the same bytes that is there is taken; beside one of other bytes this one gets `other_shard_path`.
    """
    with open(temporary, "rb") as file:
        places = (path, other_shard_path(path, hashlib.file_digest(file, "sha256").hexdigest()))
    for place in places:
        if create(temporary, place):
            return place, True
        if filecmp.cmp(temporary, place, shallow=False):
            os.unlink(temporary)
            return place, False
    raise StoreError(f"{places[1]} has other bytes than its name says; delete it")


def check_creation(folder: Path, token: str) -> None:
    """Checks that several processes can write a store here.

    Args:
        folder: The store's folder.
        token: The token of this process.

    Raises:
        ConfigError: If the file system has no way of giving a name that fails where the name is taken.
    """
    names = [folder / f".{number}.{token}{TEMPORARY_SUFFIX}" for number in range(2)]
    temporary, final = map(os.fspath, names)
    try:
        for path in names:
            path.touch()
        is_refused = not create(temporary, final)
        os.unlink(final)
        is_given = create(temporary, final)
    except OSError:
        is_refused = is_given = False
    finally:
        for path in names:
            path.unlink(missing_ok=True)
    if not (is_refused and is_given):
        raise ConfigError(
            f"--out {folder}: its file system ({file_system_of(folder)}) can neither link a file nor rename it without "
            "replacing another one, so that several processes can't write there; use one device, or another folder"
        )


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; returns False where that is not possible."""
    try:
        return _renameat2(os.fspath(one), os.fspath(other), _EXCHANGE)
    except OSError:
        return False


def _is_linked(temporary: str, path: str) -> bool:
    """Tells whether the link was made, though an error was reported, as NFS does when it has sent a call twice."""
    with contextlib.suppress(OSError):
        return os.stat(temporary).st_nlink > 1 and os.path.samefile(temporary, path)
    return False


def _rename(temporary: str, path: str) -> bool:
    try:
        done = _renameat2(temporary, path, _NO_REPLACE)
    except FileExistsError:
        return False
    if not done:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), path)
    return True


def _renameat2(one: str, other: str, flags: int) -> bool:
    """Renames by Linux's `renameat2`; returns False where machine or file system has no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_WORKING_DIRECTORY, os.fsencode(one), _AT_WORKING_DIRECTORY, os.fsencode(other), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_SUCH_OPERATION:
        return False
    raise OSError(number, os.strerror(number), other)
