"""What every child process of embedx does: leave Ctrl-C to its parent, and never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection


def tie_to_parent() -> None:
    """Makes this child process ignore SIGINT and end by itself, at once, when its parent is gone.

    A thread waits on the parent's sentinel, so that the child ends even while it is blocked in a read,
    and also where it was forked from a fork server, whose death would say nothing of the real parent.
    Ending at once is safe: whatever the child writes becomes visible by a rename, whole or not at all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("tie_to_parent() is for child processes; this one has no parent")

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
