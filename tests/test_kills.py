"""Runs that are killed at random moments, in any of their processes: the same command then gives the same bytes.

Every run is a real one, on the sample's images, grouped, in two splits, in units of four rows.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import embedx
from embedx import sample
from embedx.errors import EmbedxError
from embedx.store.format.index import read_entry
from embedx.store.format.layout import index_files, journal_files
from embedx.store.reading.kept import count_kept
from embedx.store.reading.verify import verify
from tests.folders import draw_folder
from tests.runs import OFFLINE, SEED, assert_gone, assert_visible_units_are_whole, descendants, digests, run, start

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

VICTIMS = {"main": "", "writer": "embedx-writer", "worker": "embedx-loader"}
CODES = {"main": -9, "writer": 1, "worker": 0}


class Runs:
    """One command and what it gives when nothing disturbs it."""

    def __init__(self, root: Path) -> None:
        self.arguments = ["extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--group-key", "class"]
        self.arguments += ["-b", "4", "--shard-size", "16416", "--data", str(root / "images")]
        self.expected: dict[str, str] = {}
        self.seconds = 0.0

    def undisturbed(self, out: Path) -> None:
        started = time.perf_counter()
        done = run(*self.arguments, "--out", out)
        self.seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
        self.expected = digests(out)

    def committed(self, out: Path) -> dict[str, str]:
        """The digests of the index tables, and of the shards that they name."""
        tables = index_files(out).values()
        named = {str(table.relative_to(out)) for table in tables}
        named.update(shard.path for table in tables for shard in read_entry(table).shards)
        return {path: digest for path, digest in digests(out).items() if path in named}

    def kill_one(self, out: Path, written: Path, chance: random.Random) -> str | None:
        """Kills one process at a random moment; `written` is where the run writes.

        Returns:
            Which one; None if the run had come to its end before.
        """
        victim = chance.choice(list(VICTIMS))
        moment = chance.uniform(0, 1)
        by_units = chance.random() < 0.6  # the rest by time, which hits the start and the end as well
        missing = sum(path.endswith(".parquet") for path in self.expected) - len(index_files(written))
        wanted = len(index_files(written)) + moment * missing
        process = start(*self.arguments, "--out", out)
        started = time.perf_counter()
        while process.poll() is None:
            seconds = time.perf_counter() - started
            if len(index_files(written)) >= wanted if by_units else seconds >= moment * self.seconds:
                break
            time.sleep(0.002)
        family: list[psutil.Process] = []
        struck = False
        while process.poll() is None:  # a worker or the writer may not have started yet
            with contextlib.suppress(psutil.NoSuchProcess):
                family = descendants(process)
                targets = [one for one in family if one.name() == VICTIMS[victim]]
                if victim == "main" or targets:
                    (psutil.Process(process.pid) if victim == "main" else chance.choice(targets)).kill()
                    struck = True
                    break
            time.sleep(0.002)
        stdout, stderr = process.communicate(timeout=60)
        # The process may have come to its end before the blow.
        assert process.returncode in (0, CODES[victim]), (victim, moment, stderr)
        assert "Traceback" not in stderr, (victim, moment, stderr)
        assert (stdout == "") == (process.returncode != 0)
        assert_gone(family)
        return victim if struck and process.returncode == CODES[victim] else None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    draw_folder(root / "images", {"train": 6, "val": 3})
    runs = Runs(root)
    runs.undisturbed(root / "undisturbed")
    return runs


@pytest.mark.parametrize("part", range(6), ids=lambda part: f"seed-{SEED}-{part}")
def test_a_run_that_is_killed_at_random_moments_is_finished_with_the_same_bytes(
    tmp_path: Path, runs: Runs, part: int
) -> None:
    """Ten times in each of the six parts: up to three times on the way to one store."""
    chance = random.Random(f"{SEED}-{part}")
    kills = stores = 0
    while kills < 10:
        stores += 1
        out = tmp_path / f"store-{stores}"
        victims: list[str | None] = []
        while len(victims) < 3 and kills < 10 and digests(out) != runs.expected:
            victims.append(runs.kill_one(out, out, chance))
            kills += victims[-1] is not None
            if (out / "manifest.json").exists() and not embedx.open(out).complete:
                assert_visible_units_are_whole(out)
            assert all(runs.expected[path] == digest for path, digest in runs.committed(out).items()), victims
        done = run(*runs.arguments, "--out", out)
        assert done.returncode == 0, (victims, done.stderr)
        assert digests(out) == runs.expected, victims
        assert list(verify(out)) == []


JOURNAL_SECONDS = 1.0
"""In place of 25, so that twenty kills take minutes and not hours."""
BATCH_SECONDS = 0.25
GRACE_SECONDS = 2.0
"""In place of 5: the time in which rows reach the journal's file."""
SLOW = f"""
import sys
import embedx.store.writing.session
from embedx.__main__ import main
embedx.store.writing.session.JOURNAL_SECONDS = {JOURNAL_SECONDS}
main()
"""


@pytest.mark.timeout(1800)  # most of it is the runs' start
def test_twenty_kills_in_one_unit_cost_seconds_each_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    """SIGKILL goes to all processes of the run at once, as at a power cut or where memory runs out."""
    chance = random.Random(f"{SEED}-unit")
    log, out = tmp_path / "log", tmp_path / "store"
    log.touch()
    settings = {"backbone": "tests.run.stopping:Slow", "data": f"train={sample.IMAGES / 'train'}", "image-size": "8"}
    settings |= {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "batch-size": "1", "workers": "1", "runtime": "eager"}
    command = [
        sys.executable,
        "-c",
        SLOW,
        "extract",
        *(part for key in settings for part in (f"--{key}", settings[key])),
    ]
    environment = os.environ | OFFLINE | {"SLOW_LOG": str(log), "SLOW_SECONDS": str(BATCH_SECONDS)}

    def run_until(seconds: float) -> int:
        """Kills a run so many seconds after its first batch; returns the number of batches that it computed."""
        before = log.stat().st_size
        process = subprocess.Popen([*command, "--out", str(out)], env=environment, start_new_session=True)
        while log.stat().st_size == before:
            assert process.poll() is None
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return log.stat().st_size - before

    kept = 0
    for _ in range(20):
        computed = run_until(chance.uniform(1.5, 4.5))
        before, kept = kept, count_kept(embedx.open(out))
        lost = before + computed - kept
        assert lost <= (JOURNAL_SECONDS + GRACE_SECONDS) / BATCH_SECONDS + 1, (before, computed, kept)
    assert 0 < kept < 224 and not index_files(out)
    environment["SLOW_SECONDS"] = "0"
    done = subprocess.run([*command, "--out", out], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"goes on: {kept} of 224 rows are there" in done.stderr, done.stderr
    undisturbed = tmp_path / "undisturbed"
    assert subprocess.run([*command, "--out", undisturbed], env=environment).returncode == 0
    assert digests(out) == digests(undisturbed) and list(verify(out)) == [] and not journal_files(out)


@contextlib.contextmanager
def reading(out: Path) -> Iterator[list[Exception]]:
    """Opens and reads the store over and over, as another process would; what goes wrong is in the list."""
    wrong: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            # Between the looks of one reading the folder may become another; read at once again, it has to be whole.
            for attempt in range(2):
                try:
                    store = embedx.open(out)
                    assert store.complete and len(store.load("val").keys) == 24
                    break
                except (EmbedxError, AssertionError) as error:
                    if attempt:
                        wrong.append(error)
            done.wait(0.02)

    thread = threading.Thread(target=read)
    thread.start()
    yield wrong
    done.set()
    thread.join()


@pytest.mark.parametrize("kind", ["--overwrite", "--update"])
def test_a_killed_replacement_leaves_one_readable_store_and_is_finished_with_the_same_bytes(
    tmp_path: Path, kind: str
) -> None:
    images = draw_folder(tmp_path / "images", {"train": 6, "val": 3})
    runs, chance = Runs(tmp_path), random.Random(f"{SEED}-{kind}")
    runs.undisturbed(tmp_path / "old")
    for folder in (images / "train").iterdir():
        first, second, *_, last = sorted(folder.iterdir())
        shutil.copyfile(last, first)  # changed
        second.unlink()
        last.rename(folder / "renamed.png")
    runs.arguments += [kind, *(["--max-gone", "100%"] if kind == "--update" else [])]
    shutil.copytree(tmp_path / "old", tmp_path / "undisturbed")
    runs.undisturbed(tmp_path / "undisturbed")
    for number in range(5):
        out = tmp_path / f"store-{number}"
        shutil.copytree(tmp_path / "old", out)
        with reading(out) as wrong:
            victim = runs.kill_one(out, tmp_path / f".store-{number}.embedx-new", chance)
            done = run(*runs.arguments, "--out", out)
        assert wrong == []
        assert done.returncode == 0, (victim, done.stderr)
        assert digests(out) == runs.expected, victim
        assert list(verify(out)) == [] and not list(tmp_path.glob(".store*"))
