"""A stopwatch that books a loop's time by purpose."""

from __future__ import annotations

import time


class Stopwatch:
    """Sums up seconds by the name of their purpose; it runs from the moment it is made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to this name's seconds."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
