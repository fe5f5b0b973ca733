"""The parts of a store's objects that were fetched, kept on this machine within bounds.

Index tables, and shards that are small, are kept in memory; large shards are copied to the disk of the temporary
folder, as far as they were wanted (see `ObjectCopy`).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

from embedx.store.format.object_copy import REQUEST_BYTES, ObjectCopy

_TAIL = 64 * 1024
"""The bytes at a file's end that are fetched at once; an index table's footer is there."""
_MEMORY = 64 * 1024**2
"""The bytes that are kept in memory."""
_MOST_DISK = 16 * 1024**3
_MOST_COPIES = 128
"""The copies that are kept, as each takes a file descriptor."""


class ObjectCache:
    """The parts of one store's objects, none of which changes as long as it has its name.

    Args:
        fetch: The function that reads the bytes of a file, by its path in the store, from one place up to another.
        size_of: The function that returns a file's number of bytes.
    """

    def __init__(self, fetch: Callable[[str, int, int], bytes], size_of: Callable[[str], int]) -> None:
        self._fetch, self._size_of = fetch, size_of
        self._lock = threading.Lock()
        self._ends: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        """The end of each file, and the place at which it begins."""
        self._copies: OrderedDict[str, ObjectCopy] = OrderedDict()

    def read(self, relative: str, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` up to `stop` of a file; an end of it is kept in memory."""
        size = self._size_of(relative)
        with self._lock:
            begin, data = self._ends.get(relative, (size, b""))
            if data:
                self._ends.move_to_end(relative)
        if start < begin:
            if stop < min(begin, size - _TAIL):
                return self._fetch(relative, start, stop)
            first = max(0, min(start, size - _TAIL))
            begin, data = first, self._fetch(relative, first, begin) + data
            self._keep(relative, begin, data)
        return data[start - begin : stop - begin]

    def copy(self, relative: str) -> ObjectCopy:
        """Returns the copy of a file, which has the parts that were wanted so far; all of one that is small."""
        size = self._size_of(relative)
        if size <= REQUEST_BYTES:
            copy = ObjectCopy(size, lambda start, stop: self.read(relative, start, stop))
            copy.bring()
            return copy
        with self._lock:
            copy = self._copies.get(relative) or ObjectCopy(size, lambda *place: self._fetch(relative, *place))
            self._copies[relative] = copy
            self._copies.move_to_end(relative)
            held = sum(each.held for each in self._copies.values())
            while len(self._copies) > 1 and (held > self._disk or len(self._copies) > _MOST_COPIES):
                held -= self._copies.popitem(last=False)[1].held
        return copy

    def forget(self, relative: str) -> None:
        """Lets go of a file that is written or removed."""
        with self._lock:
            self._ends.pop(relative, None)
            self._copies.pop(relative, None)

    def _keep(self, relative: str, begin: int, data: bytes) -> None:
        with self._lock:
            self._ends[relative] = (begin, data)
            self._ends.move_to_end(relative)
            held = sum(len(data) for _, data in self._ends.values())
            while held > _MEMORY:
                held -= len(self._ends.popitem(last=False)[1][1])

    @cached_property
    def _disk(self) -> int:
        """The bytes of copies that are kept: at most half of the room that the temporary folder has."""
        return min(_MOST_DISK, shutil.disk_usage(tempfile.gettempdir()).free // 2)
