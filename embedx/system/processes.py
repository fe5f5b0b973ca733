"""Child processes: they start from a fork server, ignore Ctrl-C, and never outlive their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from embedx.errors import ConfigError
from embedx.system.main_module import main_left_out
from embedx.system.temporary import sockets_in_run_folder
from embedx.terminal import guard_stderr


class Child(ForkServerProcess):
    """A child process with the environment of its parent that does not import the caller's `__main__`."""

    def start(self) -> None:
        """Starts the process.

        Raises:
            ConfigError: If it is given something that `__main__` defines, or this process may not start any.
        """
        _check_may_start()
        self._environment = dict(os.environ)
        with main_left_out():
            super().start()

    def run(self) -> None:
        """Runs the target, which would have the environment variables with which the fork server was started."""
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Children(ForkServerContext):
    """multiprocessing's own context, but for the processes."""

    Process = Child


CHILDREN: Final = _Children()
"""The context of all children, which fork from a server that has imported torch, and done nothing else.

A plain fork would copy the locks of this process's threads, and its CUDA context; a spawn would import torch in every
child. The server's own threads (allocators' helpers that the imports start) hold no lock while it waits for orders."""


def start_fork_server() -> None:
    """Starts the server from which all children fork; it imports their modules while the caller goes on.

    Call it before importing torch, so that the two imports run side by side.

    Raises:
        ConfigError: If this process may not start any.
    """
    _check_may_start()
    multiprocessing.set_forkserver_preload(["embedx.run.preload"])
    # The server ignores SIGINT once it has imported; until then a Ctrl-C, which goes to all of a terminal's processes,
    # would end it with a traceback, and a SIGTERM that goes to all of them would end it, and the exit codes of its
    # children be lost. A signal blocked here stays blocked in the server, and reaches this process later.
    _start_tracker()  # first, as its start unblocks the signals that it has blocked for itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        with sockets_in_run_folder():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def share_fork_server() -> None:
    """Lets this child process start its own children from the server that it comes from.

    Without it multiprocessing starts another server, which imports torch anew; so it does where the server asks for a
    key that this process has not got, as that of Python 3.14.
    """
    server: Any = getattr(forkserver, "_forkserver", None)
    is_from_it = getattr(server, "_forkserver_address", None) and getattr(server, "_forkserver_pid", None) is None
    if is_from_it and getattr(server, "_forkserver_authkey", True):
        server.ensure_running = resource_tracker.ensure_running


def _check_may_start() -> None:
    """Checks that multiprocessing lets this process start others."""
    if multiprocessing.current_process().daemon:
        raise ConfigError(
            "this is a daemonic process of multiprocessing, as those of a Pool are, which may not start processes, and "
            "embedx has to; use concurrent.futures.ProcessPoolExecutor, or Process(…, daemon=False)"
        )


def _forget_server() -> None:
    """Forgets the fork server of the process that this one is forked from: only its parent can ask whether it lives."""
    server: Any = getattr(forkserver, "_forkserver", None)
    if getattr(server, "_forkserver_pid", None) is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


os.register_at_fork(after_in_child=_forget_server)


def server_killed_by() -> str | None:
    """Returns the name of the signal that has killed the fork server; None if none has, or it is not known.

    The exit codes of its children are lost with it.
    """
    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if pid is None:
        return None
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, OSError):  # macOS has no waitid
        return None
    return signal.Signals(ended.si_status).name if ended and ended.si_code == os.CLD_KILLED else None


def _start_tracker() -> None:
    """Starts multiprocessing's resource tracker, which removes a killed process's semaphores, without its warnings."""
    sys.warnoptions.append("ignore")  # a child's options are made of these
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def abandon(process: BaseProcess) -> None:
    """Kills a child process, and forgets it if it does not end, since it waits for a dead file system.

    Otherwise this process would wait for it at its own end.
    """
    if not process.is_alive():
        return
    process.kill()
    process.join(1)
    if process.exitcode is None:
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # there is no other way


def tie_to_parent(name: str, patience: float = 0.0) -> None:
    """Makes this child process ignore SIGINT and end by itself when its parent is gone.

    Args:
        name: The name that `ps` and `top` show; at most 15 characters, on Linux only.
        patience: The seconds that it then has to bring what it computed to disk.

    A thread waits on the parent's sentinel, so that the child ends even while it is blocked in a read,
    and also where a fork server is its parent to the system. Ending at once is safe: the child's files become visible
    by a rename, whole or not at all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # which the fork server has blocked
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    guard_stderr()
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("tie_to_parent() is for child processes; this one has no parent")

    def watch() -> None:
        connection.wait([parent.sentinel])
        time.sleep(patience)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
