"""Several processes that commit the same unit: every order of their steps, by the real code on a real disk."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedx.store.format import layout
from embedx.store.format.index import read_entry
from embedx.store.format.layout import StoreTerms, Unit, WriterTerms, index_path
from embedx.store.writing import stock
from embedx.store.writing.checks import place_of
from embedx.store.writing.units import UnitBuffer
from tests.store.builders import ROWS_PER_UNIT, unit_batch

UNIT = Unit("train", 0)
RECIPE = "0" * 64


class Attempt:
    """An attempt at the unit in a thread of its own, which stops before each step that others can see.

    One that is never told to go on is a process that was killed, or stopped.
    """

    def __init__(self, root: Path, number: int, other_bytes: bool) -> None:
        self._turn, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.is_over = False
        self._buffer = UnitBuffer(StoreTerms(root, RECIPE, False, ROWS_PER_UNIT, writer=WriterTerms(f"{number:016x}")))
        batch = unit_batch(0, ROWS_PER_UNIT)
        tensors = {name: tensor + number * other_bytes for name, tensor in batch.tensors.items()}
        self._buffer.add(batch._replace(tensors=tensors))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def before_step(self) -> None:
        if threading.current_thread() is self._thread:
            self._stopped.release()
            self._turn.acquire()

    def step(self) -> None:
        self._turn.release()
        self._stopped.acquire()

    def _run(self) -> None:
        self.before_step()
        try:
            self._buffer.commit()
        except BaseException as error:  # noqa: BLE001  (the test raises it)
            self.error = error
        self.is_over = True
        self._stopped.release()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Attempt]:
    """The attempts that are under way; each is stopped before every call by which a name for all comes or goes."""
    under_way: list[Attempt] = []

    def stopping(call: Callable[..., Any]) -> Callable[..., Any]:
        def stop_and_call(*paths: Any, **kwargs: Any) -> Any:
            for attempt in under_way if not layout.is_temporary(os.path.basename(paths[-1])) else ():
                attempt.before_step()
            return call(*paths, **kwargs)

        return stop_and_call

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here is about power cuts
    for name in ("link", "unlink"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))
    return under_way


def orders(steps: list[int]) -> Iterator[tuple[int, ...]]:
    """Yields every order of so many steps of each attempt."""
    if not any(steps):
        yield ()
    for number, left in enumerate(steps):
        if left:
            rest = [count - (each == number) for each, count in enumerate(steps)]
            yield from ((number, *order) for order in orders(rest))


def run_to_the_end(root: Path, attempt: Attempt) -> int:
    """Runs an attempt, and checks the store after each of its steps; returns their number."""
    for count in itertools.count():
        check(root)
        if attempt.is_over:
            assert attempt.error is None
            return count
        attempt.step()
    raise AssertionError


def check(root: Path) -> None:
    """Checks that a committed unit has the shards that its table names, with the bytes that it says."""
    table = root / index_path(UNIT)
    if table.exists():
        for shard in read_entry(table).shards:
            assert hashlib.sha256((root / shard.path).read_bytes()).hexdigest() == shard.sha256


def check_nothing_else(root: Path) -> None:
    """Checks that the unit is committed, and nothing is left beside its files."""
    check(root)
    shards = {shard.path for shard in read_entry(root / index_path(UNIT)).shards}
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files == {index_path(UNIT), *shards}


def most_steps(root: Path, attempts: list[Attempt]) -> int:
    """Returns the largest number of steps that an attempt takes: as the first, or behind another one."""
    root.mkdir()
    counts = []
    for number in range(2):
        attempts[:] = [Attempt(root, number, other_bytes=True)]
        counts.append(run_to_the_end(root, attempts[0]))
    return max(counts)


@pytest.mark.parametrize("other_bytes", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_in_every_order_of_their_steps_one_of_them_commits(
    count: int, other_bytes: bool, tmp_path: Path, attempts: list[Attempt]
) -> None:
    """Of two all orders, of more some; an attempt that is killed is the begin of an order."""
    steps = [most_steps(tmp_path / "counted", attempts)] * count
    drawn = random.Random(count)
    some = ([number for number, left in enumerate(steps) for _ in range(left)] for _ in range(20))
    for place, order in enumerate(orders(steps) if count == 2 else (drawn.sample(one, len(one)) for one in some)):
        root = tmp_path / str(place)
        root.mkdir()
        attempts[:] = [Attempt(root, number, other_bytes) for number in range(count)]
        for number in order:
            if not attempts[number].is_over:
                attempts[number].step()
                check(root)
        for attempt in attempts:
            run_to_the_end(root, attempt)
        check_nothing_else(root)


@pytest.mark.parametrize("others_bytes", [(False, False, False), (False, True, True), (False, False, True)])
def test_one_that_was_stopped_for_as_long_as_the_run_does_no_harm_when_it_goes_on(
    others_bytes: tuple[bool, ...], tmp_path: Path, attempts: list[Attempt]
) -> None:
    """Meanwhile another driver begins, another attempt commits, and the driver clears up."""
    for steps in range(most_steps(tmp_path / "counted", attempts) + 1):
        root = tmp_path / str(steps)
        root.mkdir()
        attempts[:] = [Attempt(root, number, other) for number, other in enumerate(others_bytes)]
        stopped, killed, other = attempts
        for _ in range(steps):
            if not stopped.is_over:
                stopped.step()
        for _ in range(steps // 2):
            if not killed.is_over:
                killed.step()
        committed = layout.index_files(root).keys()
        stock.remove_others(root, committed, {place_of(UNIT)}, is_shared=True)
        other = attempts[2] = Attempt(root, 2, others_bytes[2])
        run_to_the_end(root, other)
        stock.clear_up(root)
        check_nothing_else(root)
        while not stopped.is_over:
            stopped.step()
            check(root)
        check_nothing_else(root)
        assert stopped.error is None or isinstance(stopped.error, FileNotFoundError)  # its temporary file is gone
