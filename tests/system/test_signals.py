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
        mutex = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

main()
"""
"""A command that waits in Python code, or for ever in C code that lets other threads run."""


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


KINDS = [(2, "python", False), (2, "C", False), (2, "C", True), (15, "python", False), (15, "C", False)]
"""The signal, where the command waits, and whether the signal is sent twice."""


def test_a_signal_ends_a_command_within_five_seconds_and_a_second_one_at_once() -> None:
    """All side by side, as most of them wait."""
    processes = [begin(how) for _, how, _ in KINDS]
    wait_until_busy(*processes)
    assert not any(descendants(process) for process in processes)
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
    for process, kind in zip(processes, KINDS, strict=True):
        number, how, twice = kind
        took = seconds[process.pid]
        _, stderr = process.communicate()
        assert process.returncode == 128 + number, (kind, stderr)
        assert stderr == f"error: {'interrupted' if number == 2 else 'terminated'}\n", kind
        assert took < (2.5 if twice or how == "python" else 6), (kind, took)  # of a machine with other things to do


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
        if self.calls == 6 and os.path.exists("block"):
            open("blocked", "w").close()
            mutex = ctypes.create_string_buffer(64)
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
        return images.flatten(1)
"""


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_run_in_a_long_forward_pass_is_ended_and_finished_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "blocking.py").write_text(FACTORY)
    arguments: list[str | Path]
    arguments = ["extract", "--backbone", "blocking:Blocking", "--data", sample.IMAGES / "val", "-b", "8"]
    arguments += ["--shard-size", "6000"]  # units of eight rows
    assert run(*arguments, "--out", "undisturbed", cwd=tmp_path).returncode == 0
    (tmp_path / "block").touch()
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
        assert process.returncode == 128 + number, stderr
        assert "Traceback" not in stderr and "semaphore" not in stderr
        assert_gone(family)
    (tmp_path / "block").unlink()
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
        while not handles(process, signal.SIGTERM):
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


def handles(process: subprocess.Popen[str], number: int) -> bool:
    """Tells by what the kernel knows whether the process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def _session(pid: int) -> int | None:
    try:
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else os.getsid(pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


INTERRUPTED = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path, target=None):
        if name == "torch.nn":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
import embedx
try:
    embedx.embed
except KeyboardInterrupt:
    print("interrupted", embedx.embed.__name__, signal.getsignal(signal.SIGINT).__name__)
"""


def test_ctrl_c_in_a_program_waits_for_the_import_of_torch() -> None:
    """Which can't be imported again in that process, or kernel, once its import was interrupted."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("interrupted embed default_int_handler\n", "")


@pytest.mark.parametrize(("first", "said"), [("", "error: terminated\n"), ("signals.end_without_a_word()", "")])
def test_a_member_leaves_it_to_its_driver_to_say_that_it_was_told_to_end(first: str, said: str) -> None:
    """Also where it is importing, and ends at once."""
    code = f"from embedx.system import signals\n{first}\nsignals.report(15)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == said
