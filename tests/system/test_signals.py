"""SIGINT and SIGTERM, sent to real processes that are busy with all sorts of things."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from embedx import sample
from embedx.store.format.layout import index_files
from tests.runs import OFFLINE, SEED, assert_gone, descendants, digests, run, start

BUSY = """
import ctypes, time
from embedx.__main__ import main
from embedx.cli.app import app

@app.command("busy")
def busy(how: str) -> None:
    print("busy", flush=True)
    if how.startswith("python"):
        time.sleep(60 if how == "python" else 1)
    else:
        c = ctypes.CDLL(None) if how == "lock free" else ctypes.PyDLL(None)
        mutex = ctypes.create_string_buffer(64)
        c.pthread_mutex_lock(mutex)
        c.pthread_mutex_lock(mutex)

main()
"""
"""A command more, which waits in Python's code, or without end in C code, that lets other threads run or doesn't."""


def begin(how: str, sigint: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUSY, "busy", how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
    )


def wait_until_busy(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
    time.sleep(0.3)


KINDS = [
    *((2, "python", False), (2, "lock free", False), (2, "lock free", True), (2, "lock held", False)),
    *((2, "lock held", True), (15, "python", False), (15, "lock free", False), (9, "lock free", False)),
]


def test_a_signal_ends_a_command_within_five_seconds_and_a_second_one_at_once() -> None:
    """All side by side, as most of them wait."""
    processes = [begin(how) for _, how, _ in KINDS]
    wait_until_busy(*processes)
    families = [descendants(process) for process in processes]
    assert [[one.name() for one in family] for family in families] == [["embedx-guard"]] * len(KINDS)
    sent = time.monotonic()
    for process, (number, *_) in zip(processes, KINDS, strict=True):
        process.send_signal(number)
    time.sleep(0.3)
    for process, (number, _, twice) in zip(processes, KINDS, strict=True):
        if twice:
            process.send_signal(number)
    seconds: dict[int, float] = {}
    while len(seconds) < len(processes):
        for process in processes:
            if process.pid not in seconds and process.poll() is not None:
                seconds[process.pid] = time.monotonic() - sent
        assert time.monotonic() - sent < 20
        time.sleep(0.01)
    for process, kind, family in zip(processes, KINDS, families, strict=True):
        number, how, twice = kind
        took = seconds[process.pid]
        _, stderr = process.communicate()
        if how == "lock held" or number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL and stderr == "", (kind, stderr)
        else:
            assert process.returncode == 128 + number, (kind, stderr)
            assert stderr == f"error: {'interrupted' if number == 2 else 'terminated'}\n", kind
        assert took < (2.5 if twice or how == "python" else 6), (kind, took)  # of a machine with other things to do
        assert_gone(family)


def test_a_sigint_that_the_caller_ignores_stays_ignored() -> None:
    process = begin("python, shortly", signal.SIG_IGN)
    wait_until_busy(process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "") and process.returncode == 0


FACTORY = """
import ctypes, os
from torch import nn

class Blocking(nn.Module):
    preprocessing = {"resize": 8, "crop": 8, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        for how, library in (("lock free", ctypes.CDLL(None)), ("lock held", ctypes.PyDLL(None))):
            if self.calls == 6 and os.path.exists(how):
                open("blocked", "w").close()
                mutex = ctypes.create_string_buffer(64)
                library.pthread_mutex_lock(mutex)
                library.pthread_mutex_lock(mutex)
        return images.flatten(1)
"""


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["lock free", "lock held"])
def test_a_run_in_a_long_forward_pass_is_ended_and_finished_with_the_same_bytes(tmp_path: Path, how: str) -> None:
    (tmp_path / "blocking.py").write_text(FACTORY)
    arguments = ["extract", "--backbone", "blocking:Blocking", "--data", sample.IMAGES / "val", "-b", "8"]
    arguments += ["--shard-size", "6000"]  # units of eight rows
    assert run(*arguments, "--out", "undisturbed", cwd=tmp_path).returncode == 0
    (tmp_path / how).touch()
    for number, twice in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        process = start(*map(str, arguments), "--out", "store", cwd=tmp_path)
        while not ((tmp_path / "blocked").exists() and index_files(tmp_path / "store")):
            assert process.poll() is None
            time.sleep(0.02)
        (tmp_path / "blocked").unlink()
        family = descendants(process)
        sent = time.monotonic()
        process.send_signal(number)
        if twice:
            time.sleep(0.1)
            process.send_signal(number)
        process.wait(20)
        assert time.monotonic() - sent < (2 if twice else 5.5)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in ((128 + number,) if how == "lock free" else (-9, 128 + number)), stderr
        assert "Traceback" not in stderr and "semaphore" not in stderr
        assert_gone(family)
    (tmp_path / how).unlink()
    assert run(*arguments, "--out", "store", cwd=tmp_path).returncode == 0
    assert digests(tmp_path / "store") == digests(tmp_path / "undisturbed")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [SEED])
def test_a_run_that_is_struck_in_its_first_moments_leaves_nothing_behind(tmp_path: Path, seed: int) -> None:
    """At random times in its first three seconds, alone or with all its group, as by Ctrl-C on a terminal."""
    chance = random.Random(seed)
    for attempt in range(12):
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        grouped, moment = chance.random() < 0.5, chance.uniform(0, 3)
        command = [sys.executable, "-m", "embedx", "extract", "--backbone", sample.BACKBONE, "--weights", "sample"]
        process = subprocess.Popen(
            [*command, "-b", "4", "--out", str(tmp_path / str(attempt))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | OFFLINE,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not any(one.name() == "embedx-guard" for one in descendants(process)):
            time.sleep(0.002)  # the interpreter itself is still starting
        time.sleep(moment)
        family = descendants(process)
        sent = time.monotonic()
        (os.killpg if grouped else os.kill)(process.pid, number)
        process.wait(20)
        took = time.monotonic() - sent
        _, stderr = process.communicate(timeout=60)
        case = (attempt, number, grouped, moment, stderr)
        assert process.returncode in ({-9} if number == signal.SIGKILL else {128 + number, 0}), case
        assert "Traceback" not in stderr and took < 5.5, case
        assert_gone(family, 15)
        assert [one for one in psutil.pids() if _session(one) == process.pid] == [], case


def _session(pid: int) -> int | None:
    try:
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else os.getsid(pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
