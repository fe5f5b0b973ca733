"""The memory of the workers' decoding: each has a share, and an image that needs more has its turn alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import NamedTuple, Self

from embedx.system.machine import available_memory
from embedx.system.temporary import run_folder

_PART = 0.5
"""The part of the memory free at the start that all shares together have; the rest is for the image with a turn."""


class Turns(NamedTuple):
    """The memory that workers may take at the same time; picklable."""

    share: float = float("inf")
    """The bytes that a worker may take at any time."""
    lock: str | None = None
    """The file that is locked by the worker whose turn it is; the lock ends with its process."""

    @classmethod
    def of(cls, workers: int) -> Self:
        """Divides the memory that is free now among so many workers; a single one needs no turn."""
        if workers < 1:
            return cls()
        return cls(_PART * available_memory() / workers, os.path.join(run_folder(), "decoding"))

    @contextlib.contextmanager
    def take(self, needed: int) -> Iterator[None]:
        """Waits until no other worker decodes an image beyond its share, and holds them up within the context.

        Raises:
            MemoryError: If memory is too short for the image even so.
        """
        if self.lock is None:
            yield
            return
        file = os.open(self.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if needed > available_memory():
                raise MemoryError(f"{needed} bytes")
            yield
        finally:
            os.close(file)
