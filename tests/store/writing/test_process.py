"""Faults of the writer process: real processes, real kills, real time limits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from embedx.errors import StoreError, WriterError
from embedx.store.format.index import UnitEntry
from embedx.store.format.layout import Unit, index_files
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.process import WriterProcess
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import EarlierRows, UnitBatch
from embedx.store.writing.units import UnitBuffer
from tests.runs import assert_gone, assert_visible_units_are_whole, memory_of
from tests.store.builders import manifest, unit_batch

pytestmark = pytest.mark.timeout(60)

FIRST = unit_batch(0, 4).tensors


class RaisesMidRun(UnitBuffer):
    def add(self, batch: UnitBatch | EarlierRows) -> None:
        if batch.rows["index"][0].as_py() >= 12:
            raise OSError(28, "No space left on device", "/some/disk")
        super().add(batch)


class RaisesInLastFlush(UnitBuffer):
    def commit(self) -> UnitEntry:
        if self.unit and self.unit.number == 1:
            raise OSError(28, "No space left on device", "/some/disk")
        return super().commit()


class RaisesAtLength(UnitBuffer):
    def commit(self) -> UnitEntry:
        if self.unit and self.unit.number == 1:
            raise RuntimeError("x" * 200_000)
        return super().commit()


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("can't be pickled")
        self.lock = threading.Lock()

    def __reduce__(self) -> str:
        raise TypeError("no")


class RaisesUnpicklable(UnitBuffer):
    def commit(self) -> UnitEntry:
        raise UnpicklableError


class KillsItself(UnitBuffer):
    def add(self, batch: UnitBatch | EarlierRows) -> None:
        if batch.unit.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().add(batch)


class ExitsQuietly(UnitBuffer):
    def add(self, batch: UnitBatch | EarlierRows) -> None:
        if batch.unit.number == 1:
            os._exit(0)
        super().add(batch)


class Slow(UnitBuffer):
    def add(self, batch: UnitBatch | EarlierRows) -> None:
        time.sleep(0.05)
        super().add(batch)


@contextmanager
def store_session(root: Path, inputs: int = 16) -> Iterator[StoreSession]:
    session = StoreSession.begin(root, manifest({"train": inputs}), "resume")
    try:
        yield session
    finally:
        session.close()


def write_all(writer: WriterProcess, inputs: int = 16, batch: int = 4) -> None:
    for start in range(0, inputs, batch):
        writer.put(unit_batch(start, start + batch))
    writer.close()


def assert_ended(*pids: int | None) -> None:
    assert_gone([psutil.Process(pid) for pid in pids if pid is not None and psutil.pid_exists(pid)])


def test_all_that_is_put_is_committed(tmp_path: Path) -> None:
    with store_session(tmp_path / "store", inputs=14) as session:
        writer = WriterProcess(session.terms, FIRST)
        write_all(writer, inputs=12)
        assert_ended(writer.pid)
        assert len(index_files(session.root)) == 2
    with store_session(tmp_path / "store", inputs=14) as session:
        assert session.is_committed(Unit("train", 0))
        assert not session.is_committed(Unit("train", 1))  # half of what was planned for it
        writer = WriterProcess(session.terms, FIRST)
        writer.put(unit_batch(8, 14))
        writer.close()
        session.finish({})
    assert list(verify(tmp_path / "store")) == []


@pytest.mark.parametrize(
    ("fault", "message", "committed"),
    [
        (RaisesMidRun, "No space left on device", 1),
        (RaisesInLastFlush, "No space left on device", 1),
        (RaisesAtLength, r"xxx… \(200,014 characters\)", 1),  # more than the pipe of the report holds
        (RaisesUnpicklable, "can't be pickled", 0),
        (KillsItself, "killed by SIGKILL", 1),
        (ExitsQuietly, "ended with exit code 0", 1),
    ],
)
def test_a_failed_writer_ends_the_run_and_what_is_visible_is_whole(
    tmp_path: Path, fault: type[UnitBuffer], message: str, committed: int
) -> None:
    with store_session(tmp_path / "store") as session:
        writer = WriterProcess(session.terms, FIRST, fault)
        with pytest.raises(WriterError, match=message) as caught:
            write_all(writer)
        writer.abort()
        assert_ended(writer.pid)
        if fault not in (KillsItself, ExitsQuietly):
            assert "Traceback" in caught.value.__notes__[0] and "test_process.py" in caught.value.__notes__[0]
    units = index_files(tmp_path / "store")
    assert len(units) <= committed
    assert_visible_units_are_whole(tmp_path / "store")


def test_batches_larger_than_the_first_arrive_in_parts_and_rows_larger_than_it_do_not(tmp_path: Path) -> None:
    with store_session(tmp_path / "store", inputs=16) as session:
        writer = WriterProcess(session.terms, unit_batch(0, 1).tensors)
        write_all(writer, batch=8)
        session.finish({})
    assert list(verify(tmp_path / "store")) == []
    assert Store.open(tmp_path / "store").load("train").embeddings[:, 0].tolist() == list(range(16))
    with store_session(tmp_path / "wide") as session:
        writer = WriterProcess(session.terms, unit_batch(0, 1).tensors)
        with pytest.raises(StoreError, match="a row has 400 bytes, more than the whole first batch"):
            writer.put(unit_batch(0, 2)._replace(tensors={"embeddings": torch.ones(2, 100)}))
        writer.abort()


def test_what_is_put_may_be_overwritten_at_once(tmp_path: Path) -> None:
    with store_session(tmp_path / "store") as session:
        writer = WriterProcess(session.terms, FIRST, Slow)
        for start in range(0, 16, 4):
            batch = unit_batch(start, start + 4)
            writer.put(batch)
            batch.tensors["embeddings"].fill_(-1)
        writer.close()
        session.finish({})
    assert Store.open(tmp_path / "store").load("train").embeddings[:, 0].tolist() == list(range(16))


def test_abort_drops_the_unit_under_way(tmp_path: Path) -> None:
    with store_session(tmp_path / "store") as session:
        writer = WriterProcess(session.terms, FIRST, Slow)
        for start in range(0, 8, 4):
            writer.put(unit_batch(start, start + 4))
        started = time.monotonic()
        writer.abort()
        writer.abort()
        assert time.monotonic() - started < 5
        assert_ended(writer.pid)
    assert not index_files(tmp_path / "store")


def test_an_item_that_can_not_be_pickled_fails_in_put_and_not_silently(tmp_path: Path) -> None:
    with store_session(tmp_path / "store") as session:
        writer = WriterProcess(session.terms, FIRST)
        with pytest.raises((TypeError, AttributeError)):
            writer.put(unit_batch(0, 4)._replace(rows=threading.Lock()))
        writer.abort()


@pytest.mark.soak
def test_a_slow_disk_costs_time_and_not_memory(tmp_path: Path) -> None:
    """1 MiB per batch and unit, 100 of them: no more than a queue's worth of them is ever in memory."""
    with store_session(tmp_path / "store", inputs=1600) as session:
        terms = session.terms._replace(rows_per_unit=16)
        writer = WriterProcess(terms, {"embeddings": torch.empty(16, 16 * 1024)}, Slow)
        family = [psutil.Process(), psutil.Process(writer.pid)]
        memory = []
        for number in range(100):
            start = number * 16
            batch = unit_batch(start, start + 16)
            unit = batch.unit._replace(number=number)
            tensors = {"embeddings": batch.tensors["embeddings"][:, :1].repeat(1, 16 * 1024)}
            writer.put(batch._replace(unit=unit, tensors=tensors))
            if number % 10 == 9:
                memory.append(memory_of(family))
        writer.close()
    early, late = max(memory[1:5]), max(memory[-4:])
    assert late < early + 24 * 1024**2, [size // 1024**2 for size in memory]
    assert len(index_files(tmp_path / "store")) == 100
