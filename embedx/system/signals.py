"""SIGINT and SIGTERM end the command within seconds, whatever it is doing; a second one ends it at once.

The first raises `Interrupted` in the main thread, so that the run unwinds. That waits for the call under way, which may
be a minute of C++, so two others look after it:

    any signal ── wakeup fd, written by the C handler ──▶ guard, a process of its own: it waits for a second signal or
                                                           for four seconds
                   ◀── order to end ── watcher, a thread: ends the process with the exit code it should have
                   ◀── SIGKILL half a second later, where C code holds the interpreter's lock and the thread can't run

Ending a run at once is safe: what it commits it renames, whole or not at all, and children go when their parent does.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from embedx.errors import Interrupted

_PATIENCE_SECONDS = 4.0
"""From the first signal to the order to end."""
_GRACE_SECONDS = 0.5
"""From the order to end to SIGKILL."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

advice = ""
"""What the message of the end adds: how to go on."""

_reported = threading.Lock()


def install() -> int:
    """Lets SIGINT and SIGTERM end this process; call it first of all, while there is only one thread.

    A signal that the caller of this process has ignored, as a shell does with SIGINT for its background jobs and
    `nohup` with SIGHUP, stays ignored.

    Returns:
        The guard's process id.
    """
    signals, signals_end = os.pipe()
    orders, orders_end = os.pipe()
    parent = os.getpid()
    if (guard := os.fork()) == 0:
        os.close(signals_end)
        _guard(parent, signals, orders_end)
    os.close(signals)
    os.close(orders_end)
    os.set_blocking(signals_end, False)
    signal.set_wakeup_fd(signals_end, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(orders,), name="signal-watch", daemon=True).start()
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    return guard


def let_end(code: int, guard: int) -> None:
    """From now on a signal ends the process at once, with this exit code: nothing is left to do but to end."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(code)

    for number in _WORDS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, end)
    signal.set_wakeup_fd(-1)
    with contextlib.suppress(OSError):
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)


def report(number: int) -> None:
    """Says on stderr, once, that a signal ended the command; from any thread, whatever locks the others hold."""
    if _reported.acquire(blocking=False):
        begin = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # clears the line, shows the cursor that a bar hides
        with contextlib.suppress(OSError):
            os.write(2, f"{begin}error: {_WORDS[signal.Signals(number)]}{advice}\n".encode())


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    if _is_importing(frame):
        report(number)
        os._exit(128 + number)
    for each in _WORDS:
        if signal.getsignal(each) is _interrupt:
            signal.signal(each, _leave_to_guard)
    raise Interrupted(number)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: the start of an extension in C++ lets no exception through, and aborts."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave_to_guard(number: int, frame: FrameType | None) -> None:
    """The run unwinds already; another exception would only disturb that."""


def _watch(orders: int) -> None:
    if order := os.read(orders, 1):
        report(order[0])
        os._exit(128 + order[0])


def _guard(parent: int, signals: int, orders: int) -> NoReturn:
    """The guard's main function: ends when the parent does, by the pipe's end."""
    try:
        for number in _WORDS:  # which may be sent to the whole group of processes
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("embedx-guard")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        if first := _next_signal(signals, math.inf):
            _next_signal(signals, _PATIENCE_SECONDS)
            os.write(orders, bytes([first]))
            _next_signal(signals, _GRACE_SECONDS)
            if os.getppid() == parent:
                os.kill(parent, signal.SIGKILL)
    finally:
        os._exit(0)


def _next_signal(signals: int, seconds: float) -> int | None:
    """The next of the two signals' numbers; None if there is none in this time, or the parent is gone."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([signals], [], [], None if left == math.inf else left)[0]:
            number = os.read(signals, 1)
            if not number or number[0] in _WORDS:  # and not SIGCHLD, say, for which torch has a handler
                return number[0] if number else None
    return None
