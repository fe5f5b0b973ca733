"""SIGINT and SIGTERM end the command within seconds, whatever it is doing; a second one ends it at once.

The first signal raises `Interrupted` in the main thread, so that the run unwinds. Python raises it only between two of
its own instructions, and a call into C++ may take a minute. So the C handler also writes the signal's number into a
pipe (Python's wake-up descriptor), and a thread reads it: at a second signal, or four seconds after the first, the
thread ends the process, with the exit code of the first.

Ending a run at once is safe: what it commits it renames, whole or not at all, and children go when their parent does.
Only C code that holds the interpreter's lock keeps the thread from running; SIGKILL ends that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from embedx.errors import Interrupted

_PATIENCE_SECONDS = 4.0
"""The time that the run has to unwind after the first signal."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

advice = ""
"""The end of the message about a signal: how to continue."""
form: Callable[[str], str] = str
"""The form of that message's line."""

_reported = threading.Lock()


def install() -> None:
    """Lets SIGINT and SIGTERM end this process; call it first of all.

    A signal that the caller of this process has ignored, as a shell does with SIGINT for its background jobs, stays
    ignored.
    """
    numbers, numbers_end = os.pipe()
    os.set_blocking(numbers_end, False)
    signal.set_wakeup_fd(numbers_end, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(numbers,), name="signal-watch", daemon=True).start()
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, raise_interrupted)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Lets a Ctrl-C in a program wait for the context's end: torch can't be imported again after half an import."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    frames: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: frames.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for frame in frames[:1]:
        before(signal.SIGINT, frame)


def let_end(code: int) -> None:
    """Makes every further signal end the process at once with this exit code, as the command's work is done."""
    for number in _WORDS:
        if signal.getsignal(number) is raise_interrupted:
            signal.signal(number, lambda *_: os._exit(code))
    signal.set_wakeup_fd(-1)


def report(number: int) -> None:
    """Says on stderr, once, that a signal ended the command; from any thread, whatever locks the others hold."""
    if _reported.acquire(blocking=False):
        begin = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # clears the line, shows the cursor that a bar hides
        with contextlib.suppress(OSError):
            line = form(f"error: {_WORDS[signal.Signals(number)]}{advice}")
            os.write(2, f"{begin}{line}\n".encode())


def end_without_a_word() -> None:
    """Leaves it to this process's parent to say that a signal has ended it."""
    _reported.acquire(blocking=False)


def raise_interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """Raises `Interrupted`, as the handler of a signal; further ones are then left to the thread that watches."""
    if _is_importing(frame):
        _end(number)
    for each in _WORDS:
        if signal.getsignal(each) is raise_interrupted:
            signal.signal(each, lambda *_: None)  # the run unwinds already; the watcher takes the next signal
    raise Interrupted(number)


def _is_importing(frame: FrameType | None) -> bool:
    """Tells whether a module is being imported: an extension's start in C++ aborts at a Python exception."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _watch(numbers: int) -> None:
    """Ends the process at the second signal, or when the time to unwind is over."""
    while (first := os.read(numbers, 1)[0]) not in _WORDS:
        pass  # SIGCHLD, say, for which torch has a handler
    end = time.monotonic() + _PATIENCE_SECONDS
    while (left := end - time.monotonic()) > 0 and select.select([numbers], [], [], left)[0]:
        if os.read(numbers, 1)[0] in _WORDS:
            break
    _end(first)


def _end(number: int) -> NoReturn:
    report(number)
    os._exit(128 + number)
