"""Child processes of a program that has processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import pytest

from embedx.errors import ConfigError
from embedx.system.processes import CHILDREN, start_fork_server


def raised_in(method: str, work: Callable[[], Any], *, daemon: bool) -> str:
    """Returns the error that a function raises in another process, in words; nothing if it ends well."""
    context = multiprocessing.get_context(method)
    inbox: Any = context.SimpleQueue()
    process = context.Process(target=report, args=(inbox, work), daemon=daemon)  # type: ignore[attr-defined]
    process.start()
    process.join(60)
    assert process.exitcode == 0, "it hangs"
    return str(inbox.get())


def report(inbox: Any, work: Callable[[], Any]) -> None:
    try:
        work()
        inbox.put("")
    except Exception as error:  # noqa: BLE001  (the test compares it)
        inbox.put(f"{type(error).__name__}: {error}")


def start_an_empty_server() -> None:
    forkserver.set_forkserver_preload([])  # which imports nothing, and so starts at once
    forkserver.ensure_running()


def test_a_process_forked_from_one_with_a_server_starts_another_one() -> None:
    start_fork_server()
    assert raised_in("fork", start_an_empty_server, daemon=False) == ""


def start_a_child() -> None:
    CHILDREN.Process(target=time.sleep, args=(0,)).start()


@pytest.mark.parametrize("work", [start_fork_server, start_a_child])
def test_a_daemonic_process_is_told_that_it_may_start_none(work: Callable[[], None]) -> None:
    error = raised_in("fork", work, daemon=True)
    assert error.startswith(f"{ConfigError.__name__}: this is a daemonic process of multiprocessing")


def test_the_program_s_own_children_of_the_server_take_signals() -> None:
    """The server blocks them for itself and its start, and each child begins with what it blocks."""
    start_fork_server()
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    process.start()
    try:
        process.terminate()
        process.join(20)
        assert process.exitcode == -signal.SIGTERM
    finally:
        process.kill()


def test_a_child_has_the_environment_of_its_parent_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that with which the fork server was started, which lacked keys of buckets that came later."""
    start_fork_server()
    found = []
    for value in ("one", "two"):
        monkeypatch.setenv("EMBEDX_TEST", value)
        own, theirs = CHILDREN.Pipe()
        process = CHILDREN.Process(target=_tell_environment, args=(theirs,))
        process.start()
        found.append(own.recv())
        process.join(30)
    assert found == ["one", "two"]


def _tell_environment(link: Any) -> None:
    link.send(os.environ.get("EMBEDX_TEST"))
