"""Members that a launcher, such as torchrun or srun, has started beside the driver, on this machine and on others."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from embedx.distribute.local import LocalMembers
from embedx.distribute.member_link import MemberLink
from embedx.distribute.member_process import run_members, share
from embedx.distribute.messages import Setup
from embedx.distribute.ranks import Rank
from embedx.distribute.rendezvous import Hello, Reception, check_version, find_driver
from embedx.paths import StorePath
from embedx.run.job import Job

_LAST_WORD_SECONDS = 10.0
"""The time that a process waits for the driver's word of how the run ended, once its members are gone."""


class Newcomers:
    """Members that come over the network.

    Args:
        reception: The way in for them.
    """

    def __init__(self, reception: Reception) -> None:
        self.links: dict[str, MemberLink] = {}
        """The connections to those that live, by their names."""
        self._reception = reception
        self._count = 0

    def greet(self, setup: Setup) -> None:
        """Takes those that have come meanwhile, and gives each what it has to know.

        Raises:
            ConfigError: If one runs another version of embedx.
        """
        for hello, link in self._reception.arrivals():
            check_version(hello, version("embedx"))
            config = dataclasses.replace(
                setup.config, device=hello.device, threads=hello.threads, workers=hello.workers
            )
            self._count += 1
            name = f"{hello.host}:{hello.device}#{self._count}"
            self.links[name] = MemberLink(link)
            self.links[name].send(setup._replace(config=config))

    def forget(self, name: str) -> None:
        """Takes leave of one that is gone."""
        self.links.pop(name).close()

    def close(self) -> None:
        """Ends the connections; the members then end too."""
        for name in list(self.links):
            self.forget(name)


class LaunchedMembers:
    """The members of the driver's own process, and those of the other processes of its launcher.

    Args:
        local: The members on this machine that the driver starts itself.
        reception: The way in for the others.
    """

    awaits_others = False

    def __init__(self, local: LocalMembers, reception: Reception) -> None:
        self._local, self._others = local, Newcomers(reception)
        self._setup: Setup | None = None

    def start(self, job: Job, setup: Setup) -> None:
        """Starts those of this process; the others come by themselves."""
        self._setup = setup
        self._local.start(job, setup)

    def links(self) -> Mapping[str, MemberLink]:
        """Returns the connections to all members; greets those that have come meanwhile."""
        if self._setup is not None:
            self._others.greet(self._setup)
        return {**self._local.links(), **self._others.links}

    def replace(self, name: str) -> str:
        """Starts another one in this process; elsewhere the launcher's process does that."""
        if name not in self._others.links:
            return self._local.replace(name)
        self.forget(name)
        return "is gone"

    def forget(self, name: str) -> None:
        """Takes leave of a member that has ended."""
        (self._others if name in self._others.links else self._local).forget(name)

    def close(self) -> None:
        """Ends the members of this process, and the connections to the others, which then end too."""
        self._others.close()
        self._local.close()


def join(
    out: StorePath,
    rank: Rank,
    devices: Sequence[str],
    threads: int | None,
    workers: int | None,
    tell: Callable[[str], None],
) -> bool:
    """Has this process's members compute what the driver of the same job hands out.

    Args:
        out: The folder of the store.
        rank: The place of this process.
        devices: The devices of its members.
        threads: The threads of all of them together; None is one for each core.
        workers: The workers of all of them together; None is one for each core.
        tell: The function that is told what this process waits for.

    Returns:
        True if the run ended well.

    Raises:
        MemberError: If there is no driver.
    """
    meeting = find_driver(out, rank.job, tell)
    if meeting.ended is None:
        tell(f"computing for the driver on {meeting.host}")
        sharers = rank.local_count
        run_members(meeting, [hello(devices, number, threads, workers, sharers) for number in range(len(devices))])
        end = time.monotonic() + _LAST_WORD_SECONDS
        while (meeting := find_driver(out, rank.job, tell)).ended is None and time.monotonic() < end:
            time.sleep(0.2)
    return meeting.ended in (0, 3)


def hello(devices: Sequence[str], number: int, threads: int | None, workers: int | None, sharers: int) -> Hello:
    """Returns the first message of a member of this process.

    Args:
        devices: The devices of this process's members.
        number: The number of this one.
        threads: The threads of all of them together; None is one for each core.
        workers: The workers of all of them together; None is one for each core.
        sharers: The number of processes on this machine that run members.
    """
    shares = (share(given, len(devices), number, sharers) for given in (threads, workers))
    return Hello(version("embedx"), socket.gethostname(), devices[number], *shares)
