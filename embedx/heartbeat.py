"""Says every half minute what a run is doing, so that a log without new lines always means a run that is stuck."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

from embedx.terminal import one_line

_SECONDS = 30.0
_END_SECONDS = 1.0


class Heartbeat:
    """Says what a run is doing: on a terminal in one line that is updated, elsewhere in a new line now and then.

    Args:
        console: The console of stderr; nothing is printed where it is quiet.
        seconds: The time from one line to the next, where there is no terminal.
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
        """Starts the thread that prints the lines, unless the console is quiet or a terminal."""
        self.say("starting")
        if not self.console.quiet and not self.console.is_terminal:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread, and removes the line from a terminal."""
        self.hide()
        self._end.set()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)  # no longer, as it may be stuck in a write

    def say(self, doing: str) -> None:
        """Sets what the run is doing from now on, as in `listing the inputs`."""
        begun = time.monotonic()
        self._line = lambda: f"{doing}: {time.monotonic() - begun:.0f} s so far"
        if self.console.is_terminal and not self.console.quiet:
            if self._status is None:
                self._status = Status("", console=self.console)
                self._status.start()
            self._status.update(Text(one_line(doing)))

    def follow(self, line: Callable[[], str]) -> None:
        """Sets a function that gives the lines from now on, and removes the line from a terminal."""
        self.hide()
        self._line = line

    @contextlib.contextmanager
    def frame(self, title: str) -> Iterator[None]:
        """Prints in a log, not on a terminal, when a run begins, and when it ends with which exit code.

        Args:
            title: The name of the run: the program's version, the command and the store.
        """
        if self.console.is_terminal:
            yield
            return
        self.tell(f"{title}: begins")
        code = 0
        try:
            yield
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            raise
        finally:
            self.tell(f"{title}: ends with exit code {code}")

    def tell(self, line: str) -> None:
        """Prints a line now, in a log with the time of day; the next one follows in `seconds`."""
        self._told = time.monotonic()
        if not self.console.is_terminal:
            line = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {line}"
        self.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def hide(self) -> None:
        """Removes the line from a terminal, so that something else can be printed there."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _beat(self) -> None:
        while not self._end.wait(max(0.0, self._told + self._seconds - time.monotonic())):
            if time.monotonic() - self._told >= self._seconds:
                self.tell(self._line())


SILENT: Final = Heartbeat(Console(quiet=True))
"""A heartbeat that prints nothing."""
