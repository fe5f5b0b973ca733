"""What a run is doing, told as long as it lasts: a log that stands still must not look like a run that does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_SECONDS = 30.0
_END_SECONDS = 1.0


class Heartbeat:
    """Tells what is being done: on a terminal in a line that stays, elsewhere in a new line now and then.

    Args:
        console: Where to; on stderr. A quiet one gets nothing.
        seconds: From one line to the next, where there is no terminal.
    """

    def __init__(self, console: Console, seconds: float = _SECONDS) -> None:
        self.console = console
        self._seconds = seconds
        self._line: Callable[[], str] = str
        self._status: Status | None = None
        self._told = time.monotonic()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begins to tell."""
        self.say("starting")
        if not self.console.quiet and not self.console.is_terminal:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, and leaves a terminal as it was."""
        self.hide()
        self._end.set()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)  # and no longer, should it be stuck in a write

    def say(self, doing: str) -> None:
        """States what is being done from now on, as in `listing the inputs`."""
        begun = time.monotonic()
        self._line = lambda: f"{doing}: {time.monotonic() - begun:.0f} s so far"
        if self.console.is_terminal and not self.console.quiet:
            if self._status is None:
                self._status = Status("", console=self.console)
                self._status.start()
            self._status.update(escape(doing))

    def follow(self, line: Callable[[], str]) -> None:
        """States where to ask, from now on, for the line to tell."""
        self.hide()
        self._line = line

    def tell(self, line: str) -> None:
        """Prints a line at once; the next one follows as long after it as after any."""
        self._told = time.monotonic()
        self.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def hide(self) -> None:
        """Makes room on a terminal for something else."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _beat(self) -> None:
        while not self._end.wait(max(0.0, self._told + self._seconds - time.monotonic())):
            if time.monotonic() - self._told >= self._seconds:
                self.tell(self._line())


SILENT: Final = Heartbeat(Console(quiet=True))
"""Tells nothing."""
