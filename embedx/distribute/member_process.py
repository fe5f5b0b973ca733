"""The process of a member, as what starts it sees it: light, so that it can be imported where nothing is computed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version

from embedx.distribute.rendezvous import Hello, Meeting, call_driver
from embedx.errors import MemberError
from embedx.system.machine import cores
from embedx.system.processes import CHILDREN, Child, share_fork_server, start_fork_server, tie_to_parent

PATIENCE_SECONDS = 5.0
"""The time that a member has, once its driver is gone, to bring its unit under way to disk."""
_TOLD_TO_END = (0, 128 + signal.SIGTERM)
"""The exit codes of a member that the driver has told to end, the latter while it was importing."""
RESTARTS = 3
"""The number of times that another member is started in place of one that died."""


def share(given: int | None, count: int, number: int, sharers: int = 1) -> int:
    """Returns the part of the threads, or the workers, of a process that one of its members gets.

    Args:
        given: The number for all its members; None is one for each core, of which several processes may have a share.
        count: The number of its members.
        number: The number of this member among them.
        sharers: The number of processes on this machine that start members.
    """
    if given == 0:
        return 0
    is_bound = sharers > 1 and cores() * sharers <= (os.cpu_count() or 1)  # the launcher has given each its own
    total = given or max(1, cores() // (1 if is_bound else sharers))
    return max(1, total // count + (number < total % count))


def become_member() -> None:
    """Prepares a child process."""
    tie_to_parent("embedx-member", PATIENCE_SECONDS)
    share_fork_server()


def run_members(meeting: Meeting, hellos: Sequence[Hello]) -> None:
    """Runs members until all have ended; in place of one that died another one is started, three times at most."""
    running = [(_start(meeting, hello), hello) for hello in hellos]
    restarts = 0
    while running:
        process, hello = running.pop(0)
        process.join()
        if process.exitcode not in _TOLD_TO_END and restarts < RESTARTS:
            restarts += 1
            running.append((_start(meeting, hello), hello))


def _start(meeting: Meeting, hello: Hello) -> Child:
    process = CHILDREN.Process(target=_call_and_serve, args=(meeting, hello), name=f"embedx-member-{hello.device}")
    process.start()
    return process


def _call_and_serve(meeting: Meeting, hello: Hello) -> None:
    """Runs in the child."""
    become_member()
    from embedx.distribute.member import serve

    try:
        link = call_driver(meeting)
        link.send(hello)
    except (MemberError, OSError) as error:
        sys.exit(f"error: {error}")
    serve(link)


def run_in_actor(meeting: Meeting, folder: str, device: str, threads: int, workers: int) -> None:
    """Runs a member of a Ray actor to its end; another one takes its place if it dies, three times at most.

    Args:
        meeting: The way to the driver.
        folder: The driver's working directory, where relative paths start.
        device: The device, as this process sees it.
        threads: The member's threads.
        workers: The member's workers.

    Raises:
        MemberError: If the driver can't be reached.
    """
    os.environ.pop("OMP_NUM_THREADS", None)  # by Ray; the threads are stated
    with contextlib.suppress(OSError):  # where it is not there, the member says what it does not see
        os.chdir(folder)
    call_driver(meeting).close()  # so that the driver is told if it can't be
    start_fork_server()
    run_members(meeting, [Hello(version("embedx"), socket.gethostname(), device, threads, workers)])
