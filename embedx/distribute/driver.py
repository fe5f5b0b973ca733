"""The driver of a run by several members: it hands out units, shows the progress, and finishes the store.

Who works on what is a hint, and the commit of a unit decides: so a member that is silent, or dead, costs time at most.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from embedx.callbacks.progress import ProgressBar
from embedx.callbacks.rejected import check_unavailable
from embedx.distribute.member_link import Engine, MemberLink, wait_for
from embedx.distribute.messages import (
    Ask,
    Begin,
    Committed,
    End,
    Failed,
    NoneNow,
    Order,
    Progress,
    Ready,
    RoundOver,
    Said,
    Settled,
    Setup,
    TryOut,
)
from embedx.distribute.plan_files import write_plan
from embedx.distribute.settling import Settling
from embedx.distribute.timings import MemberTimings
from embedx.distribute.unit_queue import UnitQueue
from embedx.errors import MemberError, StoreMismatchError
from embedx.heartbeat import Heartbeat
from embedx.run.compute import Work, rejected_inputs, run_over, tell_kept, warn_of_space, writer_for
from embedx.run.job import Job
from embedx.run.same_bits import check_hardware, environments_of, threads_of
from embedx.run.take_up import take_up
from embedx.store.format.contents import StoredRecipe
from embedx.store.format.differences import difference_text, leaves_that_differ
from embedx.store.format.index import read_entry
from embedx.store.format.layout import Unit, index_files, index_path, is_there, journal_files
from embedx.store.writing.checks import place_of
from embedx.store.writing.session import StoreSession
from embedx.values import Allowed

_LOOK_SECONDS = 1.0
"""The time after which members that are idle are looked at again."""
_END_SECONDS = 3.0
"""The time that members have, after the run is given up, to bring their unit under way to disk."""


def compute_by(engine: Engine, job: Job, session: StoreSession, work: Work, heartbeat: Heartbeat) -> None:
    """Has members compute the missing units, and finishes the store."""
    torch.cuda.empty_cache()  # of the search for a batch size
    driver = _Driver(engine, job, session, work, heartbeat)
    if work.inputs:
        warn_of_space(job, session, work, heartbeat.console)
        driver.run()
    rejected = rejected_inputs(job, heartbeat.tell)
    run_over(job, nn.Identity(), {}, [driver.timings, writer_for(job, session, [], rejected)])


class _Driver:
    def __init__(self, engine: Engine, job: Job, session: StoreSession, work: Work, heartbeat: Heartbeat) -> None:
        self._engine, self._job, self._session, self._work = engine, job, session, work
        self._heartbeat = heartbeat
        self._rows = {unit: rows for unit, rows in work.missing.items() if len(rows)}
        self._queue = UnitQueue({unit: len(rows) for unit, rows in self._rows.items()})
        self._lost = Counter(rejected=0, unavailable=0)
        """The numbers of inputs without a row so far."""
        self._overtaken: set[str] = set()
        """The members that were at a unit which another one has committed meanwhile."""
        self._idle: dict[str, None] = {}
        self._busy: set[str] = set()
        """The members that are in a round."""
        self._links: dict[str, MemberLink] = {}
        """The connections to the members that are known to live."""
        self._threads = threads_of(session) or torch.get_num_threads()
        self._known: set[str] = set()
        """The members that have built their model."""
        self._environments: list[Mapping[str, Any]] = [*environments_of(session)] if job.config.same_hardware else []
        self._said: set[str] = set()
        self.timings = MemberTimings()
        self._settling = Settling(job, session, self.timings, self._try_out, self._begin)
        self._left = dict(work.inputs)
        self._bar = ProgressBar(heartbeat, work.inputs, lambda: self._lost)
        self._looked = 0.0
        """The time at which the idle members were looked at last."""
        self._handlers: dict[type, Callable[[str, Any, float], None]] = {
            Ready: self._on_ready,
            Settled: self._settling.on_settled,
            Ask: self._on_ask,
            Committed: self._on_committed,
            Progress: self._on_progress,
            RoundOver: self._on_round_over,
            Said: self._on_said,
            Failed: self._on_failed,
        }

    def run(self) -> None:
        """Hands out the units until all are committed."""
        heartbeat, job = self._heartbeat, self._job
        heartbeat.say("waiting for the first member")
        retried = self._work.retried
        setup = Setup(
            job.config,
            write_plan(self._session.root, self._work.plan),
            self._session.root,
            {name: list(rows) for name, rows in retried.items()},
            job.precision,
            job.batch_size,
            job.runtimes[0],
            heartbeat.verbose,
            socket.gethostname(),
        )
        try:
            self._engine.start(job, setup)
            while not self._queue.is_done:
                self._step(_LOOK_SECONDS)
            end = time.monotonic() + _LOOK_SECONDS
            while self._busy and (left := end - time.monotonic()) > 0:  # for their timings
                self._step(left)
            self._bar.finish()
            self._stop(is_complete=True)
        except BaseException:
            self._bar.teardown()  # before what is told below it
            self._stop(is_complete=False)
            tell_kept(self._work, self._rows_on_disk(), heartbeat.console)
            raise
        finally:
            self._engine.close()

    def _step(self, seconds: float) -> None:
        """Waits at most so long for messages of members, and answers them."""
        self._links = dict(self._engine.links())
        for name, link in wait_for(self._links, seconds):
            self._receive(name, link)
        self._settling.look()
        if self._idle and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            for name in list(self._idle):
                self._offer(name)

    def _receive(self, name: str, link: MemberLink) -> None:
        try:
            message = link.recv()
        except (EOFError, OSError):
            self._lose(name)
        else:
            self._handlers[type(message)](name, message, time.monotonic())

    def _on_ready(self, name: str, ready: Ready, now: float) -> None:
        """Takes a member that has built its model; it builds another one if precision or runtime are others."""
        store = self._session.manifest.recipe
        recipe = StoredRecipe.from_json(dict(ready.recipe)).replacing(precision=store.precision, runtime=store.runtime)
        if not self.timings.has_begun:
            self.timings.begin()
            self._bar.start()
        if differing := list(leaves_that_differ("", store.to_json(), recipe.to_json())):
            texts = "; ".join(difference_text(*one) for one in differing)
            raise StoreMismatchError(
                f"the member {name} would compute other rows than the store has (store → member): {texts}; give all "
                "members the same weights, and machines on which they run alike"
            )
        if self._job.config.same_hardware:
            check_hardware(self._environments, ready.environment)
            self._environments.append(ready.environment)
        self._settling.add(name)

    def _begin(self, name: str) -> None:
        self._known.add(name)
        self._queue.join(name, time.monotonic())
        self._send(name, Begin(self._session.terms, self._session.manifest, self._threads))

    def _try_out(self, name: str) -> None:
        job, (unit, rows) = self._job, next(iter(self._rows.items()))
        batches = math.ceil(sum(self._work.inputs.values()) / (job.batch_size * len(self._links)))
        self._send(name, TryOut(unit.split, rows, batches, job.rivals, job.may_take_bf16))

    def _on_ask(self, name: str, ask: Ask, now: float) -> None:
        if ask.split is None:
            self._idle[name] = None
            self._offer(name)
        else:
            unit = self._queue.take(name, ask.split, now)
            self._send(name, NoneNow() if unit is None else self._order(unit))

    def _on_committed(self, name: str, committed: Committed, now: float) -> None:
        self._overtaken |= self._queue.commit(name, committed.unit, now)
        self._session.earlier.take(committed.unit)  # else they would be written once more at the end

    def _on_progress(self, name: str, progress: Progress, now: float) -> None:
        self.timings.note_rows()
        self._queue.advance(name, progress.inputs, now)
        self._lost.update(rejected=progress.rejected, unavailable=progress.unavailable)
        inputs = min(progress.inputs, self._left[progress.split])  # some are computed twice
        self._left[progress.split] -= inputs
        if inputs:
            self._bar.advance(progress.split, inputs)
        allowed = Allowed(self._job.config.max_unavailable, self._job.plan.inputs)
        check_unavailable(self._lost["unavailable"], allowed, progress.example)

    def _on_round_over(self, name: str, over: RoundOver, now: float) -> None:
        self._busy.discard(name)
        self._overtaken.discard(name)
        self.timings.add(name, over.timings)

    def _on_said(self, name: str, said: Said, now: float) -> None:
        if said.is_detail:
            self._heartbeat.detail(said.text)
        elif said.text not in self._said:  # as all members say the same of the model
            self._said.add(said.text)
            self._heartbeat.console.print(said.text, style=said.style, markup=False, soft_wrap=True)

    def _on_failed(self, name: str, failed: Failed, now: float) -> None:
        if name not in self._overtaken:  # else the other one may have taken away what this one was reading
            raise failed.error

    def _offer(self, name: str) -> None:
        """Gives an idle member a unit, if there is one for it."""
        unit = self._queue.take(name, None, time.monotonic())
        if unit is not None:
            del self._idle[name]
            self._busy.add(name)
            self._send(name, self._order(unit))

    def _order(self, unit: Unit) -> Order:
        return Order(unit, self._rows[unit], self._session.earlier.of(unit))

    def _send(self, name: str, message: Any) -> None:
        self._links[name].send(message)  # one that is gone drops it

    def _lose(self, name: str) -> None:
        """Has the units of a member that is gone computed by others, and another one start in its place."""
        self._idle.pop(name, None)
        self._busy.discard(name)
        self._overtaken.discard(name)
        self._settling.lose(name)
        if name in self._known:
            for unit in self._queue.holds(name):
                if self._is_committed(unit):
                    self._on_committed(name, Committed(unit), time.monotonic())
                else:
                    self._take_up(unit)
            self._queue.lose(name)
            self._known.discard(name)
            self._looked = 0.0
        del self._links[name]
        how = self._engine.replace(name)
        self._heartbeat.console.print(f"the member {name} {how}; its units go to others", markup=False, soft_wrap=True)
        if not self._engine.links() and not self._engine.awaits_others:
            raise MemberError(f"no member is left: the last one, {name}, {how}; the same command goes on")

    def _take_up(self, unit: Unit) -> None:
        """Spares the rows of a unit that are in the journal of the member that is gone."""
        missing, console = {unit: self._rows[unit]}, self._heartbeat.console
        left = take_up(self._session, self._work.plan, missing, console, retry_rejected=False)
        self._rows[unit] = left[unit]
        self._queue.open[unit] = len(left[unit])

    def _is_committed(self, unit: Unit) -> bool:
        root, path = self._session.root, index_path(unit)
        return is_there(root, path) and read_entry(root / path).recipe == self._session.manifest.fingerprint

    def _rows_on_disk(self) -> int:
        """Counts the rows of this run that are committed or journalled, once the members have ended."""
        total = sum(self._work.inputs.values())
        journals = journal_files(self._session.root)
        for unit in [unit for unit in self._queue.open if place_of(unit) in journals]:
            self._take_up(unit)
        committed = index_files(self._session.root)
        return total - sum(len(self._rows[unit]) for unit in self._queue.open if place_of(unit) not in committed)

    def _stop(self, *, is_complete: bool) -> None:
        """Ends the members; where the run is given up, they bring their units under way to disk first."""
        for link in self._links.values():
            link.send(End(is_complete))
        end = time.monotonic() + _END_SECONDS
        while not is_complete and self._links and (left := end - time.monotonic()) > 0:
            for name, link in wait_for(self._links, left):
                self._hear_last(name, link)

    def _hear_last(self, name: str, link: MemberLink) -> None:
        try:
            message = link.recv()
        except (EOFError, OSError):
            del self._links[name]
            self._engine.forget(name)
            return
        if isinstance(message, Committed):
            self._on_committed(name, message, time.monotonic())
