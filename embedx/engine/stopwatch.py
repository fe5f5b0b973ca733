"""Where the time of a loop goes."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds, by what they were spent on; it runs from the beginning."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Books the time since the last lap under this name."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
