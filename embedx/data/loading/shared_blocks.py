"""Blocks of files behind URLs, such as tars, that the workers of this machine share: each is fetched once.

A worker gets every so many batches of a file whose inputs are small, and would ask for a small part each time. It takes
the whole block instead, and leaves it in the run's temporary folder for the others, who need what lies between.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple, Self

from embedx.system.temporary import run_folder

BLOCK = 8 << 20
"""The bytes of a block."""
_KEPT = 8
"""The number of blocks that are kept for those workers who are behind, besides some for each worker."""
_PER_WORKER = 2
_NAME = "blocks"
_HEAD = 8
"""The bytes in front of a block, which hold its length; they are written last."""


class SharedBlocks(NamedTuple):
    """The blocks in a folder; picklable.

    At most so many are kept: 8 MiB for each of two a worker, and 64 MiB.
    """

    folder: str | None
    """The folder; None is one of this process's own."""
    workers: int

    @classmethod
    def of(cls, workers: int) -> Self:
        """Makes a place for the blocks of so many workers."""
        return cls(os.path.join(run_folder(), _NAME) if workers else None, workers)

    def read(self, url: str, start: int, end: int) -> bytes | None:
        """Returns bytes of a file, and fewer where it ends; None if they can't be had."""
        pieces = []
        for number in range(start // BLOCK, -(-end // BLOCK)):
            first = number * BLOCK
            try:
                pieces.append(self._part(url, number, max(0, start - first), min(BLOCK, end - first)))
            except OSError:  # of the server, or of the folder
                return None
        return b"".join(pieces)

    def _part(self, url: str, number: int, begin: int, end: int) -> bytes:
        name = f"{hashlib.sha256(url.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}-{number}"
        folder = self.folder or os.path.join(run_folder(), _NAME)
        with _locked(folder, name) as file:
            size = int.from_bytes(os.pread(file, _HEAD, 0), "little")
            if size:
                return os.pread(file, min(end, size) - begin, _HEAD + begin)
            data = _fetched(url, number)
            with contextlib.suppress(OSError):  # where the disk is full, the others fetch it too
                os.pwrite(file, data, _HEAD)
                if os.fstat(file).st_size == _HEAD + len(data):
                    os.pwrite(file, len(data).to_bytes(_HEAD, "little"), 0)
        with contextlib.suppress(OSError):  # another worker removes the same
            by_age = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime_ns)
            for entry in by_age[: -(_KEPT + _PER_WORKER * self.workers)]:
                os.unlink(entry.path)
        return data[begin:end]


@contextlib.contextmanager
def _locked(folder: str, name: str) -> Iterator[int]:
    """Opens a block's file once no other worker is fetching it; the lock ends with the process."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    file = os.open(os.path.join(folder, name), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _fetched(url: str, number: int) -> bytes:
    from embedx.system import remote

    return remote.read(url, number * BLOCK, BLOCK)
