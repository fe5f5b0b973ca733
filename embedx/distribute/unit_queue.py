"""Chooses which unit a member computes next. It knows no process and no clock, and what it says is a hint.

A unit may be computed twice, and is committed once; so nothing depends on whether a member that is silent still lives.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Mapping

from embedx.errors import MemberError
from embedx.store.format.layout import Unit

TRIES = 3
"""The number of members that may die at a unit before the run fails."""
_PATIENCE_SECONDS = 300.0
"""The time that a member may be silent before the first row of any."""


@dataclasses.dataclass
class _Member:
    """The account of one member; times are in seconds of one clock."""

    heard: float
    """The time of its last sign of life."""
    busy: float = 0.0
    """The seconds for which it has had units."""
    rows: int = 0
    """The rows that it has computed."""
    units: dict[Unit, None] = dataclasses.field(default_factory=dict)
    """The units that it was given and has not committed."""
    last: Unit | None = None
    """The unit that it was given last."""
    ahead: int = 0
    """The rows that it has computed of these units."""

    @property
    def rate(self) -> float | None:
        """The rows per second; None before the first row."""
        return self.rows / self.busy if self.rows and self.busy else None


class UnitQueue:
    """Hands out units in order, and again if the member that has one died, or is slower than an idle one would be.

    Args:
        units: The number of rows to be computed of each unit, in order.
    """

    def __init__(self, units: Mapping[Unit, int]) -> None:
        self.open = dict(units)
        """The units that are not committed, with their rows."""
        self._waiting: dict[str, deque[Unit]] = {}
        for unit in units:
            self._waiting.setdefault(unit.split, deque()).append(unit)
        self._members: dict[str, _Member] = {}
        self._holders: dict[Unit, dict[str, None]] = {}
        self._losses: dict[Unit, int] = {}

    @property
    def is_done(self) -> bool:
        """True once all units are committed."""
        return not self.open

    def holds(self, member: str) -> list[Unit]:
        """Returns the units that a member was given and has not committed."""
        return list(self._members[member].units)

    def join(self, member: str, now: float) -> None:
        """Adds a member."""
        self._members[member] = _Member(now)

    def take(self, member: str, split: str | None, now: float) -> Unit | None:
        """Gives a member a unit; None if there is none for it now.

        Args:
            member: The member's name.
            split: The split that it goes on with, in order; None if it is idle, and takes any unit, others' too.
            now: The time in seconds.
        """
        self._hear(member, now)
        for queue in self._waiting.values() if split is None else [self._waiting.get(split, deque())]:
            while queue and queue[0] not in self.open:
                queue.popleft()
            if queue and (split is None or not self._goes_back(member, queue[0])):
                return self._give(member, queue.popleft())
        slow = self._slowest(member, now) if split is None else None
        return None if slow is None else self._give(member, slow)

    def advance(self, member: str, rows: int, now: float) -> None:
        """Notes that a member has computed so many further rows."""
        account = self._hear(member, now)
        account.rows += rows
        account.ahead += rows

    def commit(self, member: str, unit: Unit, now: float) -> set[str]:
        """Notes that a unit is committed; this member had it. Returns the other members that are at it too."""
        account = self._hear(member, now)
        if unit in account.units:
            account.ahead = max(0, account.ahead - self.open.get(unit, 0))
        self.open.pop(unit, None)
        holders = set(self._holders.pop(unit, {}))
        for holder in holders:
            self._members[holder].units.pop(unit, None)
        return holders - {member}

    def lose(self, member: str) -> None:
        """Takes back the units of a member that is gone; they are the next ones.

        Raises:
            MemberError: If it is one member too many that has died at a unit.
        """
        account = self._members.pop(member)
        first = next(iter(account.units), None)
        for unit in reversed(account.units):
            holders = self._holders[unit]
            del holders[member]
            self._losses[unit] = self._losses.get(unit, 0) + (unit == first)
            if self._losses[unit] >= TRIES:
                raise MemberError(
                    f"{TRIES} members have died while they computed unit {unit.number} of split {unit.split!r}; what "
                    "is committed stays, and the same command goes on: with fewer --workers or a smaller "
                    "--batch-size, if memory is short"
                )
            if not holders:
                self._waiting[unit.split].appendleft(unit)

    def _hear(self, member: str, now: float) -> _Member:
        account = self._members[member]
        if account.units:
            account.busy += now - account.heard
        account.heard = now
        return account

    def _give(self, member: str, unit: Unit) -> Unit:
        self._members[member].units[unit] = None
        self._members[member].last = unit
        self._holders.setdefault(unit, {})[member] = None
        return unit

    def _goes_back(self, member: str, unit: Unit) -> bool:
        """Tells whether a unit lies before the last one that the member was given in its split."""
        last = self._members[member].last
        return last is not None and last.split == unit.split and unit.number < last.number

    def _slowest(self, idle: str, now: float) -> Unit | None:
        """Returns the unit of another member that will be ready last, if the idle one would be ready before that."""
        rates = [account.rate for account in self._members.values() if account.rate is not None]
        rate = self._members[idle].rate or (statistics.median(rates) if rates else None)
        best, latest = None, 0.0
        for name, account in self._members.items():
            if name == idle or not account.units:
                continue
            last = next(reversed(account.units))
            ready = min(self._seconds_left(self._members[holder], now) for holder in self._holders[last])
            needed = self.open[last] / rate if rate else _PATIENCE_SECONDS
            if idle not in self._holders[last] and ready > max(latest, needed):
                best, latest = last, ready
        return best

    def _seconds_left(self, account: _Member, now: float) -> float:
        """Estimates how long a member still needs; one that is silent is expected to be so for as long again."""
        left = sum(self.open[unit] for unit in account.units) - account.ahead
        silence = now - account.heard
        return max(silence, left / account.rate) if account.rate else silence
