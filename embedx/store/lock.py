"""One run per store: a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from embedx.errors import StoreLockedError
from embedx.store.layout import LOCK


class StoreLock:
    """An exclusive `flock` on a file in the store; the system releases it when the holder ends, however.

    Raises:
        StoreLockedError: If another process holds it; the message names that process.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / LOCK
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 100, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise StoreLockedError(
                f"{root} is held by another run (process {holder or 'unknown'}); wait for it to end"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def release(self) -> None:
        """Lets go of the store. The file stays: removing it would let two runs lock two files of one name."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1
