"""Processes: how children start, leave Ctrl-C to their parent and never outlive it; how memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import resource
import signal
import sys
import threading
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

START_METHOD: Final = "forkserver"
"""Children fork from a server that has imported torch once for all of them, and done nothing else.

A plain fork would copy the locks of this process's threads, and its CUDA context; a spawn would import torch in every
child. The server's own threads (allocators' helpers that the imports start) hold no lock while it waits for orders."""


def start_fork_server() -> None:
    """Starts the server from which all children fork; it imports what they need while the caller goes on.

    Call it before importing torch, so that the two imports run side by side.
    """
    multiprocessing.set_forkserver_preload(["embedx.fork_server"])
    # The server ignores SIGINT once it has imported; until then a Ctrl-C, which goes to all of a terminal's processes,
    # would end it with a traceback. What is blocked here stays so in the server, and reaches this process afterwards.
    _start_tracker()  # first, as its start unblocks what it has blocked for itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Starts what removes the semaphores of a process that was ended at once, and has it do so without a warning."""
    sys.warnoptions.append("ignore")  # a child's options are made of these
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def allow_files(count: int) -> None:
    """Lets this process and its children open as many files as the system allows them.

    Args:
        count: How many they need.

    Raises:
        OSError: If they may not open so many: short of them, batches on their way from process to process get lost.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < count:
        advice = f"this run may need {count}, and the limit is {most}; raise it, or give fewer --workers"
        raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}: {advice}")
    with contextlib.suppress(OSError, ValueError):  # macOS states a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cores() -> int:
    """Cores that this process may use, by its affinity and by the limits of its container; rounded up."""
    from loky import cpu_count  # type: ignore[import-untyped]

    return int(cpu_count())


def keep_large_blocks() -> None:
    """Has glibc keep large blocks when they are freed; elsewhere nothing is done.

    Given back, as it does by itself, they come again page by page: a third of the time of a ResNet-50 on two cores
    was seen to go into that.
    """
    _set_malloc(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def return_large_blocks() -> None:
    """Has glibc give every large block back when it is freed; elsewhere nothing is done.

    Left to itself it raises its threshold with each block, serves them from the heap, and the heap grows by
    fragments: about a shard per unit, as was seen in the writer with shards of 1 MiB.
    """
    _set_malloc(mmap_threshold=1 << 18, trim_threshold=1 << 18)


def _set_malloc(*, mmap_threshold: int, trim_threshold: int) -> None:
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, mmap_threshold)
        mallopt(m_trim_threshold, trim_threshold)


def abandon(process: BaseProcess) -> None:
    """Kills a child process, and forgets one that even so does not end, as it waits for a dead file system.

    Else this process would wait for it when it ends itself.
    """
    if not process.is_alive():
        return
    process.kill()
    process.join(1)
    if process.exitcode is None:
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # there is no other way


def tie_to_parent(name: str) -> None:
    """Makes this child process ignore SIGINT and end by itself, at once, when its parent is gone.

    Args:
        name: What `ps` and `top` show; at most 15 characters, on Linux only.

    A thread waits on the parent's sentinel, so that the child ends even while it is blocked in a read,
    and also where it was forked from a fork server, whose death would say nothing of the real parent.
    Ending at once is safe: whatever the child writes becomes visible by a rename, whole or not at all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("tie_to_parent() is for child processes; this one has no parent")

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
