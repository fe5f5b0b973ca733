"""Says every half minute what a run is doing, so that a log without new lines always means a run that is stuck.

To a program that watches it says so every second, as one JSON object a line.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

from embedx.terminal import one_line
from embedx.values import ProgressForm

_SECONDS = 30.0
_JSON_SECONDS = 1.0
_END_SECONDS = 1.0


class Heartbeat:
    """Says what a run is doing: on a terminal in one line that is updated, elsewhere in a new line now and then.

    Args:
        console: The console of stderr; nothing is printed where it is quiet.
        seconds: The time from one line to the next, where there is no terminal; None takes the form's own.
        form: The form of what is said: `auto` is a line that is updated on a terminal and plain lines elsewhere.
        verbose: True says details too.
    """

    def __init__(
        self, console: Console, seconds: float | None = None, *, form: ProgressForm = "auto", verbose: bool = False
    ) -> None:
        self.console = console
        self.verbose = verbose
        self.form = form
        self.is_bar = form == "auto" and console.is_terminal
        """True if a line, or a bar, is updated on a terminal."""
        self._seconds = seconds or (_JSON_SECONDS if form == "json" else _SECONDS)
        self._line: Callable[[], str] = str
        self._facts: Callable[[], dict[str, Any]] = dict
        self._status: Status | None = None
        self._told = time.monotonic()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Starts the thread that prints the lines, unless the console is quiet or shows a line that is updated."""
        self.say("starting")
        if not self.console.quiet and not self.is_bar:
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
        self._facts = lambda: {"state": doing, "seconds": round(time.monotonic() - begun, 1)}
        if self.is_bar and not self.console.quiet:
            if self._status is None:
                self._status = Status("", console=self.console)
                self._status.start()
            self._status.update(Text(one_line(doing)))

    def follow(self, line: Callable[[], str], facts: Callable[[], dict[str, Any]] = dict) -> None:
        """Sets the functions that give the lines from now on, and their facts as JSON; removes a terminal's line."""
        self.hide()
        self._line, self._facts = line, facts

    @contextlib.contextmanager
    def frame(self, title: str) -> Iterator[None]:
        """Prints in a log, not on a terminal, when a run begins, and when it ends with which exit code.

        Args:
            title: The name of the run: the program's version, the command and the store.
        """
        if self.is_bar:
            yield
            return
        self._mark(f"{title}: begins", "begin", title=title)
        code = 0
        try:
            yield
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            raise
        finally:
            self._mark(f"{title}: ends with exit code {code}", "end", exit_code=code)

    def _mark(self, line: str, event: str, **facts: Any) -> None:
        if self.form == "json":
            self._emit(event, **facts)
        else:
            self.tell(line)

    def beat(self) -> None:
        """Says now what the run is doing."""
        if self.form == "json":
            self._told = time.monotonic()
            self._emit("progress", **self._facts())
        else:
            self.tell(self._line())

    def detail(self, line: str) -> None:
        """Prints a line that only a verbose run has."""
        if self.verbose:
            self.tell(line)

    def _emit(self, event: str, **facts: Any) -> None:
        if not self.console.quiet:
            self.console.out(event_line(event, **facts), highlight=False)

    def tell(self, line: str) -> None:
        """Prints a line now, in a log with the time of day; the next one follows in `seconds`."""
        self._told = time.monotonic()
        if self.form != "json" and not self.is_bar:
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
                self.beat()


def event_line(event: str, **facts: Any) -> str:
    """Returns one JSON object in a line: its event, the time in UTC, and facts."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"event": event, "time": now, **facts})


SILENT: Final = Heartbeat(Console(quiet=True))
"""A heartbeat that prints nothing."""
