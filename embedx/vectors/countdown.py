"""The progress of long work in words: how much is done, and how long the rest takes."""

from __future__ import annotations

import time
from typing import Any

from embedx.heartbeat import Heartbeat

_BAR = 24
_PAUSE = 0.2
_LONG_SECONDS = 10.0
"""The time from which on an estimate is worth a line."""


class Countdown:
    """Shows a bar on a terminal, and elsewhere a line now and then.

    Args:
        heartbeat: The receiver of progress.
        doing: The name of the work, as in `comparing 100,000 rows`.
        total: The amount of the work, in any unit.
    """

    def __init__(self, heartbeat: Heartbeat, doing: str, total: float) -> None:
        self._heartbeat, self._doing, self._total = heartbeat, doing, total
        self._done, self._begun, self._shown = 0.0, time.monotonic(), 0.0
        if not heartbeat.is_bar:
            heartbeat.follow(lambda: f"{doing}: {self._text()}", self._facts)

    def estimate(self, seconds: float) -> None:
        """Prints a line that tells how long all of the work is expected to take, if that is long."""
        if seconds >= _LONG_SECONDS and self._heartbeat.form != "json":
            self._heartbeat.tell(f"{self._doing}: takes about {duration_text(seconds)}")

    def add(self, amount: float) -> None:
        """Counts work that is done."""
        self._done += amount
        now = time.monotonic()
        if self._heartbeat.is_bar and now - self._shown >= _PAUSE:
            self._shown = now
            filled = int(_BAR * self._share)
            self._heartbeat.say(f"{self._doing} {'━' * filled}{'─' * (_BAR - filled)} {self._text()}")

    @property
    def _share(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 1.0

    @property
    def _left(self) -> float | None:
        """The seconds that the rest takes; None before anything is done."""
        passed = time.monotonic() - self._begun
        return passed * (1 / self._share - 1) if self._done else None

    def _text(self) -> str:
        left = self._left
        return f"{self._share:.0%}" if left is None else f"{self._share:.0%}, {duration_text(left)} left"

    def _facts(self) -> dict[str, Any]:
        left = self._left
        return {"state": self._doing, "share": self._share, "seconds_left": None if left is None else round(left, 1)}


def duration_text(seconds: float) -> str:
    """Returns a time in words, such as `8 s`, `3 min` or `1 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
