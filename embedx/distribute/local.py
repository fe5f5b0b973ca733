"""Members on this machine: a child process for each device."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from embedx.distribute.member_link import MemberLink
from embedx.distribute.member_process import RESTARTS, become_member, share
from embedx.distribute.messages import Setup
from embedx.run.job import Job
from embedx.system.processes import CHILDREN, Child, abandon


class _Seat(NamedTuple):
    """The place of a member."""

    device: str
    process: Child
    link: MemberLink


class LocalMembers:
    """A child process for each device, each with its share of the machine's cores.

    Args:
        devices: The devices; one that is named twice has two members.
        sharers: The number of processes on this machine that start members, each with its share of the cores.
    """

    awaits_others = False

    def __init__(self, devices: Sequence[str], sharers: int = 1) -> None:
        self._devices, self._sharers = member_names(devices), sharers
        self._seats: dict[str, _Seat] = {}
        self._restarts = dict.fromkeys(self._devices, 0)
        self._setups: dict[str, Setup] = {}

    def start(self, job: Job, setup: Setup) -> None:
        """Starts the members."""
        count = len(self._devices)
        for number, (name, device) in enumerate(self._devices.items()):
            workers = share(job.config.workers, count, number, self._sharers)
            threads = share(job.config.threads, count, number, self._sharers)
            config = dataclasses.replace(setup.config, device=device, workers=workers, threads=threads)
            self._setups[name] = setup._replace(config=config)
            self._start(name)

    def links(self) -> Mapping[str, MemberLink]:
        """Returns the connections to the members that live."""
        return {name: seat.link for name, seat in self._seats.items()}

    def replace(self, name: str) -> str:
        """Starts another member in place of one that is gone, at most three times; returns how it ended."""
        seat = self._seats.pop(name)
        seat.link.close()
        seat.process.join(1)
        code = seat.process.exitcode or 0
        if seat.process.exitcode is None:
            abandon(seat.process)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._restarts[name] < RESTARTS:
            self._restarts[name] += 1
            self._start(name)
            return f"{how}, and another one starts in its place"
        return how

    def forget(self, name: str) -> None:
        """Takes leave of a member that has ended."""
        self._seats.pop(name).link.close()

    def close(self) -> None:
        """Ends the members at once."""
        for seat in self._seats.values():
            seat.link.close()
            abandon(seat.process)
        self._seats.clear()

    def _start(self, name: str) -> None:
        own, theirs = CHILDREN.Pipe()
        process = CHILDREN.Process(target=_serve, args=(theirs,), name=f"embedx-member-{name}")
        process.start()
        theirs.close()
        link = MemberLink(own)
        link.send(self._setups[name])
        self._seats[name] = _Seat(self._devices[name], process, link)


def member_names(devices: Sequence[str]) -> dict[str, str]:
    """Returns the device of each member by the member's name, which has a number where devices recur."""
    names = {}
    for number, device in enumerate(devices):
        name = device if devices.count(device) == 1 else f"{device}#{devices[:number].count(device)}"
        names[name] = device
    return names


def _serve(link: Connection) -> None:
    """Runs in the child."""
    become_member()
    from embedx.distribute.member import serve

    serve(link)
