"""A copy on this machine of those parts of an object in a bucket that were wanted so far."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from embedx.errors import StoreError

Range: TypeAlias = tuple[int, int]
"""The place of the first byte, and that behind the last one."""

REQUEST_BYTES = 256 * 1024
"""The bytes that cost as much as one more request: 50 ms of a link with 5 MB/s."""
_PIECE = 16 * 1024**2
"""The bytes that are fetched by one request, and so the memory that one takes."""
_AT_ONCE = 8


class ObjectCopy:
    """A file without a name, which ends with the process, of an object's size; it has the bytes that were brought.

    Libraries map it, as they would map the object's file; the other bytes are zeros and take no room. Rows may be asked
    for a few at a time: once their requests have cost as much as the whole object would, the whole is fetched.

    Args:
        size: The number of bytes of the object.
        fetch: The function that reads the bytes from one place up to another from the bucket.

    Raises:
        StoreError: If the disk of the temporary folder has no room; by `bring` too.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._fetch = fetch
        self._lock = threading.Lock()
        self._there: list[Range] = []
        """The ranges that were brought, in order, none of which touch."""
        self._spent = 0
        try:
            with tempfile.TemporaryFile(prefix="embedx-", buffering=0) as file:
                os.truncate(file.fileno(), size)
                self.descriptor = os.dup(file.fileno())
        except OSError as error:
            raise _no_room(error) from error
        weakref.finalize(self, os.close, self.descriptor)

    @property
    def held(self) -> int:
        """The number of bytes that were brought."""
        return sum(stop - start for start, stop in self._there)

    def bring(self, ranges: Iterable[Range] | None = None) -> None:
        """Fetches the parts of these ranges that are not there yet; None stands for the whole object."""
        ranges = None if ranges is None else list(ranges)  # before the lock, as its making may read
        with self._lock:
            missing = list(_lacking(_merged(ranges or [], REQUEST_BYTES), self._there))
            self._spent += sum(stop - start + REQUEST_BYTES for start, stop in missing)
            if ranges is None or (missing and self._spent >= self.size):
                missing = list(_lacking([(0, self.size)], self._there))
            pieces = [(at, min(at + _PIECE, stop)) for start, stop in missing for at in range(start, stop, _PIECE)]
            if len(missing) > 1:
                with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as threads:
                    list(threads.map(self._bring_piece, pieces))
            else:
                list(map(self._bring_piece, pieces))
            self._there = _merged([*self._there, *missing])

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a range, and fetches those that are not there yet."""
        self.bring([(start, stop)])
        return os.pread(self.descriptor, stop - start, start)

    def _bring_piece(self, piece: Range) -> None:
        data = memoryview(self._fetch(*piece))
        at = piece[0]
        while data:
            try:
                written = os.pwrite(self.descriptor, data, at)
            except OSError as error:
                raise _no_room(error) from error
            data, at = data[written:], at + written


def _no_room(error: OSError) -> StoreError:
    return StoreError(
        f"{tempfile.gettempdir()}: no copy of a part of the store can be kept there ({error.strerror}); set TMPDIR to "
        "a folder with more room"
    )


def _merged(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """Returns ranges in order, of which those that are no farther apart than this are one."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _lacking(wanted: Iterable[Range], there: Iterable[Range]) -> Iterator[Range]:
    """Yields the parts of ranges that others, in order, don't cover."""
    for start, stop in wanted:
        for begin, end in there:
            if begin >= stop:
                break
            if end > start:
                if begin > start:
                    yield start, begin
                start = max(start, end)
        if start < stop:
            yield start, stop
