"""The choices that one member makes for all by its first batches, while the others wait: precision and runtime."""

from __future__ import annotations

import time
from collections.abc import Callable

from embedx.distribute.messages import Settled
from embedx.distribute.timings import MemberTimings
from embedx.models.runtimes import trial
from embedx.run.job import Job
from embedx.store.writing.session import StoreSession

_PATIENCE_SECONDS = 300.0
"""The time after which another member tries too, as the one that does may be stopped."""


class Settling:
    """Lets members begin once nothing is open any more; the first one that is ready settles what is.

    Args:
        job: The run, of which something may be open.
        session: The store, whose recipe is stated anew.
        timings: The timings, to which what was measured is added.
        try_out: Has a member settle what is open.
        begin: Lets a member begin.
    """

    def __init__(
        self,
        job: Job,
        session: StoreSession,
        timings: MemberTimings,
        try_out: Callable[[str], None],
        begin: Callable[[str], None],
    ) -> None:
        self._session, self._timings, self._try_out, self._begin = session, timings, try_out, begin
        is_long = job.plan.inputs >= trial.SHORTEST_RUN * job.batch_size
        self._is_open = job.may_take_bf16 or bool(job.rivals and is_long)
        self._waiting: list[str] = []
        """The members that are ready; the first one tries."""
        self._asked = 0.0
        """The time at which it was asked to."""

    def add(self, name: str) -> None:
        """Takes a member that is ready."""
        if not self._is_open:
            self._begin(name)
            return
        self._waiting.append(name)
        if len(self._waiting) == 1:
            self._ask_first()

    def lose(self, name: str) -> None:
        """Leaves out a member that is gone; if it was trying, the next one does."""
        if name in self._waiting:
            was_trying = self._waiting[0] == name
            self._waiting.remove(name)
            if was_trying and self._waiting:
                self._ask_first()

    def look(self) -> None:
        """Has the next member try too, if there is one and the first one takes very long."""
        if len(self._waiting) > 1 and time.monotonic() - self._asked > _PATIENCE_SECONDS:
            self._waiting.append(self._waiting.pop(0))
            self._ask_first()

    def _ask_first(self) -> None:
        self._asked = time.monotonic()
        self._try_out(self._waiting[0])

    def on_settled(self, name: str, found: Settled, now: float) -> None:
        """States in the recipe what the first member to answer has found, and lets all begin."""
        if not self._is_open:
            return
        session = self._session
        recipe = session.manifest.recipe.replacing(precision=found.precision, runtime=found.runtime)
        session.set_recipe(recipe, found.environment)
        self._timings.further = found.measured
        self._is_open = False
        for each in self._waiting:
            self._begin(each)
        self._waiting.clear()
