"""Units that take long: what is on disk before they are committed. Real processes, real kills, real full disks."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch

from embedx.errors import WriterError
from embedx.store.format.index import PLACE_SCHEMA
from embedx.store.format.journal import records
from embedx.store.format.layout import StoreTerms, Unit, index_files, journal_files, journal_path
from embedx.store.reading.kept import count_kept
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.process import WriterProcess
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_journal import UnitJournal
from embedx.store.writing.unit_rows import JournalledRows, UnitBatch
from embedx.store.writing.units import UnitBuffer
from tests.runs import digests
from tests.store.builders import ROWS_PER_UNIT, build_store, manifest, unit_batch

pytestmark = pytest.mark.timeout(60)
UNIT = Unit("train", 0)


def terms(root: Path, seconds: float | None = 0.0) -> StoreTerms:
    return StoreTerms(root, "r", True, ROWS_PER_UNIT, None, seconds)


def journalled(root: Path, start: int, stop: int) -> JournalledRows:
    """The first rows of the unit, which are also the first ones in its journal."""
    rows = unit_batch(start, stop).rows
    places = pa.table([pa.nulls(len(rows), pa.string()), pa.array(range(len(rows)), pa.int64())], schema=PLACE_SCHEMA)
    return JournalledRows(UNIT, rows, root / journal_path(UNIT), places)


def keys(root: Path, recipe: str = "r") -> list[str]:
    found = records(root / journal_path(UNIT), UNIT, recipe)
    return [key for record in found for key in record.rows["key"].to_pylist()]


def names(start: int, stop: int) -> list[str]:
    return [f"key-{row}" for row in range(start, stop)]


def put(buffer: UnitBuffer, start: int, stop: int, age: float = 0.0) -> None:
    buffer.add(unit_batch(start, stop)._replace(computed_at=time.monotonic() - age))


def test_rows_are_due_once_the_oldest_of_them_has_its_age(tmp_path: Path) -> None:
    buffer = UnitBuffer(terms(tmp_path, 30.0))
    assert buffer.seconds_left is None
    put(buffer, 0, 2, age=12)
    put(buffer, 2, 4)
    assert buffer.seconds_left == pytest.approx(18, abs=1)
    buffer.save()
    assert buffer.seconds_left is None and keys(tmp_path) == names(0, 4)
    put(buffer, 4, 6, age=1)
    assert buffer.seconds_left == pytest.approx(29, abs=1)
    put(buffer, 6, 8)
    buffer.save()  # the unit is full, so that it need not be written twice
    assert not journal_files(tmp_path) and len(index_files(tmp_path)) == 1


def test_a_journal_goes_on_behind_its_last_whole_record_and_the_unit_has_the_same_bytes(tmp_path: Path) -> None:
    build_store(tmp_path / "expected", inputs=8, rejected=())
    root = tmp_path / "store"
    root.mkdir()
    buffer = UnitBuffer(terms(root))
    for start in (0, 2):
        put(buffer, start, start + 2)
        buffer.save()
    path = root / journal_path(UNIT)
    path.write_bytes(path.read_bytes()[:-1])
    assert keys(root) == names(0, 2)
    buffer = UnitBuffer(terms(root))
    buffer.add(journalled(root, 0, 2))
    put(buffer, 2, 5)
    buffer.save()
    assert keys(root) == names(0, 5)
    buffer = UnitBuffer(terms(root))
    buffer.add(journalled(root, 0, 5))
    put(buffer, 5, 8)
    stored = Store.open(tmp_path / "expected").manifest
    buffer.terms = buffer.terms._replace(recipe=stored.fingerprint, about=stored.about)
    buffer.commit()
    assert digests(root) == digests(tmp_path / "expected")
    assert not journal_files(root)


def test_a_journal_that_is_not_taken_up_is_begun_anew(tmp_path: Path) -> None:
    for _ in range(2):
        buffer = UnitBuffer(terms(tmp_path))
        put(buffer, 3, 6)
        buffer.save()
    assert keys(tmp_path) == names(3, 6)


def test_large_units_are_cut_into_records_that_take_little_memory(tmp_path: Path) -> None:
    batch = unit_batch(0, 8)
    tensors = {"embeddings": torch.ones(8, 4 * 1024**2)}  # 16 MiB a row
    UnitJournal(terms(tmp_path), UNIT).append(tensors, batch.rows)
    assert [len(record.rows) for record in records(tmp_path / journal_path(UNIT), UNIT, "r")] == [2, 2, 2, 2]


FULL = """
import resource, signal, sys
from pathlib import Path
from embedx.store.writing.units import UnitBuffer
from tests.store.writing.test_unit_journal import put, terms
buffer = UnitBuffer(terms(Path(sys.argv[1])))
put(buffer, 0, 2)
buffer.save()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
put(buffer, 2, 8 - 1)
buffer.save()
"""


def test_a_disk_that_is_full_fails_the_writer_and_the_journal_keeps_its_whole_records(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError: [Errno 27] File too large" in done.stderr, done.stderr
    assert keys(tmp_path) == names(0, 2)
    assert (tmp_path / journal_path(UNIT)).stat().st_size < 3000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


def wait_for_rows(root: Path, count: int, recipe: str) -> None:
    while not journal_files(root) or len(keys(root, recipe)) < count:
        time.sleep(0.01)


def test_a_killed_writer_loses_no_row_that_is_old_and_the_next_run_takes_the_others(tmp_path: Path) -> None:
    root = tmp_path / "store"
    session = StoreSession.begin(root, manifest({"train": 8}), "resume")
    assert session.terms.journal_seconds == 25.0
    recipe = session.terms.recipe
    writer = WriterProcess(session.terms._replace(journal_seconds=0.1), unit_batch(0, 4).tensors)
    writer.put(unit_batch(0, 3, rejected=(2,)))
    wait_for_rows(root, 3, recipe)  # nothing else arrives, and they go to disk nevertheless
    writer.put(unit_batch(3, 5))
    wait_for_rows(root, 5, recipe)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    with pytest.raises(WriterError, match=r"killed by SIGKILL.*what it brought to disk stays"):
        writer.close()
    session.close()
    assert [fault for fault in verify(root) if "not complete" not in fault] == []
    store = Store.open(root)
    assert count_kept(store) == 5 and len(store.index()) == 0

    session = StoreSession.begin(root, manifest({"train": 8}), "resume")
    rows = pa.concat_tables([unit_batch(0, 3, rejected=(2,)).rows, unit_batch(3, 5).rows])
    session.earlier.computed[UNIT] = [journalled(root, 0, 5)._replace(rows=rows)]
    writer = WriterProcess(session.terms, unit_batch(0, 4).tensors)
    for earlier in session.earlier.take(UNIT):
        writer.put_earlier(earlier)
    writer.put(unit_batch(5, 8))
    writer.close()
    session.finish({})
    session.close()
    assert digests(root) == digests(build_store(tmp_path / "expected", inputs=8, rejected=(2,)))
    assert not journal_files(root) and list(verify(root)) == []


def test_a_quick_unit_is_never_journalled_and_an_interrupted_one_is_at_its_end(tmp_path: Path) -> None:
    """SIGTERM goes to all processes of a run where a service or a batch system stops it."""
    root = tmp_path / "store"
    session = StoreSession.begin(root, manifest({"train": 20}), "resume")
    writer = WriterProcess(session.terms, unit_batch(0, 4).tensors)
    for start in range(0, 12, 4):
        writer.put(unit_batch(start, start + 4))
    while len(index_files(root)) < 1:
        time.sleep(0.01)
    assert not journal_files(root)
    server = psutil.Process(writer.pid).parent()
    assert server is not None
    for process in (psutil.Process(writer.pid), server):
        process.terminate()
    assert writer.save() == 12
    assert list(journal_files(root)) == [("train", 1)]
    session.close()
    assert count_kept(Store.open(root)) == 12


def test_a_session_without_a_plan_has_no_journal(tmp_path: Path) -> None:
    plain = manifest({})
    session = StoreSession.begin(tmp_path / "store", plain, "create")
    assert session.terms.journal_seconds is None
    buffer = UnitBuffer(session.terms)
    buffer.add(UnitBatch(*unit_batch(0, 2)[:3], computed_at=-1e9))
    buffer.save()
    assert buffer.seconds_left is None and not journal_files(session.root)
    session.close()
