"""The temporary folder of a run: removed at its end, and by the next run where it was killed."""

from __future__ import annotations

import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HOLD = """
import multiprocessing, os, sys, time
from embedx.system.processes import start_fork_server
from embedx.system.temporary import run_folder
if "without-locks" in sys.argv:
    import errno, fcntl
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")
    fcntl.flock = refuse
if "serve" in sys.argv:
    start_fork_server()
    semaphore = multiprocessing.get_context("forkserver").Semaphore()
    open(f"/dev/shm/pym-{os.getpid()}-abcdefgh", "x")  # as where it is killed while it makes room for a semaphore
print(run_folder(), flush=True)
if "wait" in sys.argv:
    time.sleep(60)
"""


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_the_next_run_removes_what_killed_runs_left_and_nothing_else(short: Path) -> None:
    with begin(short, "serve", "wait") as killed, begin(short, "wait") as alone, begin(short, "wait") as going_on:
        runs = (killed, alone, going_on)
        folders = [Path(str(process.stdout and process.stdout.readline()).strip()) for process in runs]
        (short / "embedx-run-results").mkdir()  # somebody's own
        (short / "pymp-other").mkdir()
        (short / "embedx-run-00000000").mkdir()  # of a run that was killed before it locked its folder
        os.killpg(killed.pid, signal.SIGKILL)
        alone.kill()
        killed.wait()
        shared = glob.glob(f"/dev/shm/*-{killed.pid}-*")
        alone.wait()
        assert all(folder.is_dir() for folder in folders)
        assert [path.is_socket() for path in folders[0].glob("pymp-*/*")] == [True]
        with begin(short) as last:
            assert last.wait() == 0
        assert {path.name for path in short.iterdir()} == {folders[2].name, "embedx-run-results", "pymp-other"}
        assert len(shared) > 1 and not any(map(os.path.exists, shared))
        going_on.kill()


def test_a_run_that_can_t_lock_is_not_taken_for_a_killed_one(short: Path) -> None:
    with begin(short, "without-locks", "wait") as run:
        folder = Path(str(run.stdout and run.stdout.readline()).strip())
        with begin(short) as other:
            assert other.wait() == 0
        assert [*short.iterdir()] == [folder]
        run.kill()


def test_a_long_path_of_temporary_files_is_no_hindrance(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    with begin(long, "serve") as ran:
        said = ran.communicate()[0]
    assert re.fullmatch(r"/tmp/embedx-run-\w+\n", said)  # and no traceback of multiprocessing's
    assert not os.path.exists(said.strip()) and list(long.iterdir()) == []
