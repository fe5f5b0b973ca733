"""Runs of embedx with `calls.c` before libc: what is made to fail in them, and what they leave behind."""

from __future__ import annotations

import atexit
import errno
import functools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[2]
KINDS = ["open", "read", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "mmap", "flock", "ftruncate",
         "close", "stat", "list"]  # fmt: skip
ROLES = ["main", "writer", "worker", "server"]
_STATE_BYTES = 4 * len(KINDS) * len(ROLES) + 512
_NAMESPACE = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
"""Gives a process a /dev/shm of its own, which goes with it."""
_SECONDS = 90.0
"""The longest time of a run of seconds, on a machine that has much else to do."""
_ERRORS = {
    "open": "EIO ENOSPC EACCES EMFILE ENFILE ENOMEM EINTR ESTALE EDQUOT EROFS",
    "read": "EIO EINTR ESTALE ENOMEM",
    "write": "EIO ENOSPC EDQUOT EINTR ESTALE EFBIG",
    "fsync": "EIO ENOSPC EDQUOT ESTALE",
    "rename": "EIO ENOSPC EACCES EDQUOT ESTALE EROFS",
    "link": "EIO ENOSPC EACCES EMLINK EPERM EDQUOT",
    "unlink": "EIO EACCES ESTALE EROFS EBUSY",
    "mkdir": "EIO ENOSPC EACCES EDQUOT EMLINK",
    "rmdir": "EIO EACCES EBUSY",
    "mmap": "ENOMEM EACCES EAGAIN EIO",
    "flock": "EINTR ENOLCK EIO ESTALE",
    "ftruncate": "EIO ENOSPC EDQUOT",
    "close": "EIO ENOSPC EDQUOT",
    "stat": "EIO EACCES ESTALE ENOMEM",
    "list": "EIO EACCES ESTALE ENOMEM",
}


@functools.cache
def library() -> Path:
    """Compiles the library that is preloaded; skips the test where nothing can be compiled or preloaded."""
    if sys.platform != "linux" or not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("a library to be preloaded can't be compiled here: there is no cc, or no Linux")
    folder = tempfile.mkdtemp(prefix="embedx-calls-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / "calls.so"
    arguments = ["-O1", "-shared", "-fPIC", "-o", str(target), str(Path(__file__).with_name("calls.c")), "-ldl"]
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"calls.c can't be compiled here: {done.stderr}")
    return target


class Fault(NamedTuple):
    """A call that shall not go well."""

    kind: str
    role: str
    number: int
    """The first call of this kind that is struck, from 1."""
    mode: str
    """once, sticky (that call and all later ones), short (half of what is asked for) or kill (SIGKILL)"""
    errno: int

    @classmethod
    def draw(cls, chance: random.Random, calls: dict[tuple[str, str], int]) -> Self:
        """Draws one among the calls that an undisturbed run makes: first the kind, so that rare ones are hit too."""
        kind = chance.choice(sorted({kind for kind, _ in calls}))
        role = chance.choice(sorted(role for each, role in calls if each == kind))
        modes = ["once"] * 5 + ["sticky"] * 2 + ["kill"] * 2 + ["short"] * 2 * (kind in ("read", "write"))
        mode = chance.choice(modes)
        errors = [getattr(errno, name) for name in _ERRORS[kind].split() if (mode, name) != ("sticky", "EINTR")]
        return cls(kind, role, chance.randint(1, calls[kind, role]), mode, chance.choice(errors))

    def __str__(self) -> str:
        return f"{self.kind} {self.role} {self.number} {self.mode} {self.errno}"


class Done(NamedTuple):
    """A run that has ended."""

    code: int
    stdout: str
    stderr: str
    hung: bool
    """True if it had to be killed after its time."""
    struck: str
    """The path of the last call that was struck; empty if none was."""
    calls: dict[tuple[str, str], int]
    """The number of calls by kind and role, where there were some."""
    left: list[str]
    """The processes that were still there seconds after its end."""


class Launcher:
    """A process that runs embedx over and over (see launcher.py), or starts it anew.

    Args:
        folder: A new folder for what the runs share.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.temporary = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))  # sockets' paths have to be short
        self._state = folder / "state"
        self._environment = {
            "LD_PRELOAD": str(library()),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "SOAK_STATE": str(self._state),
        }
        probe = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
        self._namespace = _NAMESPACE if probe.returncode == 0 else []
        environment = {name: text for name, text in os.environ.items() if not name.startswith("SOAK_")}
        environment |= {"LD_PRELOAD": str(library()), "PYTHONPATH": str(ROOT)}
        command = [*self._namespace, sys.executable, str(Path(__file__).with_name("launcher.py"))]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, cwd=ROOT
        )
        self._answers = b""
        assert self._answer("ready", 300) == 0

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()
        shutil.rmtree(self.temporary)

    def _answer(self, name: str, seconds: float) -> int | None:
        """The number on the launcher's next line, which must be of this name; None if none comes in time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._answers:
            ready, _, _ = select.select([descriptor], [], [], max(0, until - time.monotonic()))
            if not ready:
                return None
            read = os.read(descriptor, 4096)
            assert read, f"the launcher has ended: {(self._folder / 'log').read_text()}"
            self._answers += read
        line, _, self._answers = self._answers.partition(b"\n")
        said, number = line.decode().split()
        assert said == name
        return int(number)

    def run(self, arguments: list[str], environment: dict[str, str], fault: Fault | None = None) -> Done:
        """Runs embedx in a fork; the environment has SOAK_PATHS, the folders whose files' calls may be struck."""
        environment = self._prepare(environment, fault)
        stdout, stderr = self._folder / "stdout", self._folder / "stderr"
        order = {"arguments": arguments, "folder": str(self._folder), "environment": environment}
        order |= {"stdout": str(stdout), "stderr": str(stderr)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        pid = self._answer("pid", 60)
        assert pid is not None
        code = self._answer("code", _SECONDS)
        hung = code is None
        if hung:
            for process in _session(pid):
                process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            _kill(pid)
            code = self._answer("code", 30)
            assert code is not None
        return self._done(pid, code or 0, stdout.read_text(), stderr.read_text(), hung)

    def start_anew(self, arguments: list[str], environment: dict[str, str], fault: Fault | None = None) -> Done:
        """Runs embedx as a user does."""
        environment = os.environ | self._prepare(environment, fault)
        process = subprocess.Popen(
            [*self._namespace, sys.executable, "-m", "embedx", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=2 * _SECONDS)
            hung = False
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            stdout, stderr = process.communicate()
            hung = True
        return self._done(process.pid, process.returncode, stdout, stderr, hung)

    def shared_memory(self) -> list[Path]:
        """The files in the runs' /dev/shm; none where they have to share it with all others."""
        return list(Path(f"/proc/{self._process.pid}/root/dev/shm").iterdir()) if self._namespace else []

    def _prepare(self, environment: dict[str, str], fault: Fault | None) -> dict[str, str]:
        self._state.write_bytes(bytes(_STATE_BYTES))
        paths = f"{environment['SOAK_PATHS']}:{self.temporary}:/dev/shm"
        own = {"SOAK_PATHS": paths, "SOAK_FAULT": "" if fault is None else str(fault)}
        return self._environment | environment | own

    def _done(self, pid: int, code: int, stdout: str, stderr: str, hung: bool) -> Done:
        until = time.monotonic() + 8
        while (left := _session(pid)) and time.monotonic() < until:
            time.sleep(0.02)
        names = [f"{process.pid} {process.name()}" for process in left if process.is_running()]
        _kill(pid)
        state = self._state.read_bytes()
        calls, struck = np.frombuffer(state[:-512], np.uint32).tolist(), state[-512:].partition(b"\0")[0].decode()
        pairs = [(kind, role) for role in ROLES for kind in KINDS]
        counted = {pair: number for pair, number in zip(pairs, calls, strict=True) if number}
        return Done(code, stdout, stderr, hung, struck, counted, names)


def _session(leader: int) -> list[psutil.Process]:
    """The processes of a session that live; each run has one of its own."""
    assert leader > 1 and leader != os.getsid(0)
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _kill(leader: int) -> None:
    for process in _session(leader):
        process.kill()


def files_below(folder: Path) -> Iterator[str]:
    """The files and folders below a folder, as relative paths."""
    for path in sorted(folder.rglob("*")):
        yield path.relative_to(folder).as_posix()
