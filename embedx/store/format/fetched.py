"""The amount of data that is fetched from buckets."""

from __future__ import annotations

import threading
from typing import NamedTuple


class Fetched(NamedTuple):
    """The amount of data that was fetched from a bucket."""

    bytes: int
    """The bytes of files; answers about them, such as listings, are not counted."""
    requests: int
    """The number of requests, each counted once, however often it had to be tried."""


class Tally:
    """Counts what several threads fetch.

    Args:
        whole: The tally that counts this one's too; None for none.
    """

    def __init__(self, whole: Tally | None = None) -> None:
        self._whole = whole
        self._lock = threading.Lock()
        self._bytes = self._requests = 0

    def add(self, bytes: int = 0, requests: int = 1) -> None:
        """Counts requests and the bytes of files that they have brought."""
        with self._lock:
            self._bytes += bytes
            self._requests += requests
        if self._whole is not None:
            self._whole.add(bytes, requests)

    def sum(self) -> Fetched:
        """Returns all that was counted."""
        with self._lock:
            return Fetched(self._bytes, self._requests)

    def clear(self) -> None:
        """Begins to count anew."""
        with self._lock:
            self._bytes = self._requests = 0


OF_ALL_STORES = Tally()
"""The tally of this process."""
