"""Whole runs that are killed, interrupted or run into a wall, and what the same command makes of it afterwards.

Every run is a real one, on the sample's images, in units of four rows that are committed one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from embedx import sample
from embedx.store.format.layout import index_files
from embedx.store.reading.verify import verify
from tests.runs import (
    assert_gone,
    assert_visible_units_are_whole,
    descendants,
    digests,
    memory_of,
    run,
    start,
    wait_for_units,
    writer_of,
)

pytestmark = pytest.mark.timeout(300)
EXTRACT = ["extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--group-key", "class"]
UNITS = 36


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of the sample's images, twelve of each class for train and six for val."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 12), ("val", 6)):
        for folder in (sample.IMAGES / split).iterdir():
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                (root / split / folder.name / image.name).symlink_to(image)
    return root


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """Units of four rows: of 1024 float32 numbers and an index each."""
    return [*EXTRACT, "--data", str(images), "-b", "4", "--shard-size", "16416"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    done = run(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(index_files(out)) == UNITS
    return digests(out)


def kill_main(process: subprocess.Popen[str]) -> None:
    process.kill()


def kill_writer(process: subprocess.Popen[str]) -> None:
    writer_of(process).kill()


def kill_loader(process: subprocess.Popen[str]) -> None:
    next(child for child in descendants(process) if child.name() == "embedx-loader").kill()


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


MAIN = (kill_main, -signal.SIGKILL, "")
WRITER = (kill_writer, 1, "killed by SIGKILL")
INTERRUPT = (interrupt, 130, "interrupted; the same command goes on from what is kept")
LOADER = (kill_loader, 0, "144 rows, 0 rejected")  # another takes its place


@pytest.mark.parametrize(
    "strikes",
    [pytest.param(each, marks=pytest.mark.soak) for each in ([MAIN, LOADER], [WRITER, INTERRUPT, LOADER])],
    ids=len,
)
def test_a_run_that_is_struck_again_and_again_is_finished_with_the_same_bytes(
    tmp_path: Path, arguments: list[str], undisturbed: dict[str, str], strikes: list[Any]
) -> None:
    """Each strike hits the run that goes on from where the last one ended; the last does not end it."""
    out = tmp_path / "store"
    for strike, exit_code, message in strikes:
        before = len(index_files(out))
        process = start(*arguments, "--out", out)
        wait_for_units(out, before + 2, process)
        main = psutil.Process(process.pid)
        main.suspend()  # so that the run can't end before it is struck
        family = descendants(process)
        assert len(family) >= 3  # the writer, the fork server, a loader
        strike(process)
        with contextlib.suppress(psutil.NoSuchProcess):
            main.resume()
        stdout, stderr = process.communicate(timeout=20)
        assert process.returncode == exit_code, (strike, stderr)
        assert message in stderr and "Traceback" not in stderr, (strike, stderr)
        assert_gone(family)
        if exit_code != 0:
            assert stdout == ""
            assert_visible_units_are_whole(out)
            assert before + 2 <= len(index_files(out)) < UNITS
    assert digests(out) == undisturbed and list(verify(out)) == []


def test_a_program_that_watches_hears_of_a_signal_before_the_end(tmp_path: Path, arguments: list[str]) -> None:
    process = start(*arguments, "--out", tmp_path / "store", "--progress", "json")
    wait_for_units(tmp_path / "store", 2, process)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=20)[1]
    *_, message, end = map(json.loads, stderr.splitlines())
    assert message["text"] == "error: interrupted; the same command goes on from what is kept"
    assert (end["event"], end["exit_code"]) == ("end", 130)


@pytest.mark.soak
def test_a_run_that_is_suspended_for_longer_than_the_timeout_rejects_nothing(
    tmp_path: Path, arguments: list[str], undisturbed: dict[str, str]
) -> None:
    """As by a laptop that sleeps, or by `kill -STOP` of the whole group."""
    out = tmp_path / "store"
    process = start(*arguments, "--timeout", "2", "--out", out, start_new_session=True)
    wait_for_units(out, 2, process)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.killpg(process.pid, signal.SIGCONT)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 0 and "144 rows, 0 rejected" in stderr
    assert digests(out) == undisturbed


@pytest.mark.soak
def test_a_file_in_the_way_fails_the_run_with_its_cause(
    tmp_path: Path, arguments: list[str], undisturbed: dict[str, str]
) -> None:
    """The writer raises mid-run: the split's folder is no longer one."""
    out = tmp_path / "store"
    process = start(*arguments, "--out", out)
    wait_for_units(out, 2, process)
    family = descendants(process)
    (out / "train").rename(tmp_path / "taken")
    (out / "train").touch()
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 1 and stdout == ""
    assert "the writer process failed" in stderr and str(out / "train") in stderr and "Traceback" not in stderr
    assert_gone(family)
    (out / "train").unlink()
    (tmp_path / "taken").rename(out / "train")
    assert run(*arguments, "--out", out).returncode == 0
    assert digests(out) == undisturbed


@pytest.mark.soak
def test_a_disk_that_is_full_at_the_last_flush_fails_the_run(tmp_path: Path) -> None:
    """The only unit is 224 rows of 4 KiB; a limit of 800 kB on any file's size stands for a full disk."""
    out = tmp_path / "store"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))

    train = f"train={sample.IMAGES / 'train'}"
    done = run(*EXTRACT[:-2], "-b", "4", "--data", train, "--out", out, preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert "File too large" in done.stderr and "the writer process failed" in done.stderr
    assert_visible_units_are_whole(out)
    assert not index_files(out)


@pytest.mark.soak
def test_a_disk_that_stands_still_stops_the_run_and_its_memory_and_a_second_run_is_turned_away(
    tmp_path: Path, arguments: list[str], undisturbed: dict[str, str]
) -> None:
    """The writer is stopped, as by a disk that hangs: all the others run into its queue, and wait there."""
    out = tmp_path / "store"
    process = start(*arguments, "--out", out)
    wait_for_units(out, 2, process)
    family = [psutil.Process(process.pid), *descendants(process)]
    writer = writer_of(process)
    writer.suspend()
    time.sleep(1)
    memory = []
    for _ in range(12):
        time.sleep(0.25)
        memory.append(memory_of(family))
    assert abs(statistics.median(memory[6:]) - statistics.median(memory[:6])) < 8 * 1024**2, memory
    assert len(index_files(out)) < UNITS and process.poll() is None
    second = run(*arguments, "--out", out)
    assert second.returncode == 75 and f"process {process.pid} " in second.stderr, second.stderr
    writer.resume()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert digests(out) == undisturbed
