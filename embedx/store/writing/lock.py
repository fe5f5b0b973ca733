"""One run per store: a lock that dies with its holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from embedx.errors import ConfigError, StoreLockedError, output_error
from embedx.names import LOCK
from embedx.store.format.layout import MANIFEST

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
"""The error numbers by which a file system says that it has no locks of a kind."""


class StoreLock:
    """An exclusive lock on a file in the store; the system releases it when its process ends in any way.

    Args:
        root: The store's folder, which must exist.

    Raises:
        StoreLockedError: If another process holds the lock; the message names that process.
        ConfigError, StoreError: If the file can't be made or locked.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / LOCK
        try:
            self._descriptor = self._take()
        except OSError as error:
            if error.errno in _NO_LOCKS:
                if not os.path.lexists(root / MANIFEST):
                    self.path.unlink(missing_ok=True)
                raise ConfigError(
                    f"--out {root}: the file system there has no locks ({error.strerror}), which keep two runs from "
                    "writing one store; mount it with them (NFS: with a lock daemon, or local_lock=all), or choose a "
                    "folder elsewhere"
                ) from error
            is_store = os.path.lexists(root / MANIFEST)
            raise output_error(root, "can't be locked", error, is_store=is_store) from error

    def release(self) -> None:
        """Releases the lock. The file stays, for the next holder."""
        with contextlib.suppress(OSError):  # the disk may have failed; the holder's name in the file does no harm
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _take(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                _lock(descriptor)
                if self._is_in_place(descriptor):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
                    return descriptor
            except BlockingIOError as error:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise StoreLockedError(
                    f"{self.path.parent} is held by another run (process {holder or 'unknown'}); wait for it to end"
                ) from error
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_in_place(self, descriptor: int) -> bool:
        """Tells whether the locked file still has its name; a file that its last holder removed protects nothing."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False


def _lock(descriptor: int) -> None:
    """Locks a file by flock, or where its file system has none, by the locks of POSIX."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as refusal:
            if refusal.errno == errno.EACCES:  # as some systems say that another process holds it
                raise BlockingIOError from refusal
            raise
