"""What the machine or the network fails to give is no verdict on an input: it is tried again, and then unavailable."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedx.data.decoding.batch_rows import NoDecoder
from embedx.data.decoding.features import FeatureDecoder
from embedx.data.loading import circumstances
from embedx.data.loading.batches import Batches
from embedx.data.loading.orders import Order, Orders
from embedx.data.reading.files import FileReader
from embedx.system import remote
from tests.failing_calls import failing
from tests.servers import HttpServer

PASSING = "EMFILE,ENFILE,ENOMEM,EIO,ESTALE,ENETDOWN,ETIMEDOUT,EAGAIN,ENODEV,ENXIO,ENOTCONN,ECONNRESET"
VERDICTS = "ENOENT,EACCES,ENOTDIR,ELOOP,ENAMETOOLONG,EISDIR"


def load(location: str | Path, size: int | None = None) -> tuple[str | None, bool]:
    """The reason of an input, and whether it is unavailable."""
    batch = Batches(FileReader(), NoDecoder(), 1)[Order(0, str(location).encode(), None, size)]
    return batch["reasons"][0], batch["unavailable"][0]


SCRIPT = """
import errno, os, resource, sys, threading
from embedx.data.loading import circumstances
from tests.data.loading.test_circumstances import load

path = sys.argv[1]
def fails(call, name, times):
    os.environ.update(FAIL_CALL=call, FAIL_ERRNO=str(getattr(errno, name)), FAIL_TIMES=str(times), FAIL_NAME="input")
delays, circumstances._DELAYS = circumstances._DELAYS, (0, 0)
failed = 0
for call in ("open", "read"):
    for name in sys.argv[2].split(","):  # the library counts all failures of the process
        fails(call, name, failed + 1)
        assert load(path) == (None, False), name
        fails(call, name, failed + 4)
        assert load(path) == (f"can't be read: {os.strerror(getattr(errno, name))}", True), name
        failed += 4
for name in sys.argv[3].split(","):
    fails("open", name, failed + 1)
    assert load(path) == (f"can't be read: {os.strerror(getattr(errno, name))}", False), name
    failed += 1
fails("open", "ENOENT", failed + 3)
assert load(path, 5) == ("can't be read: No such file or directory", True)  # it was there when it was listed

os.environ["FAIL_NAME"] = "nothing"
circumstances._DELAYS = delays
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
threading.Timer(0.6, resource.setrlimit, (resource.RLIMIT_NOFILE, (soft, hard))).start()
assert load(path) == (None, False)
"""


def test_an_error_of_the_machine_is_tried_again_and_is_no_reject(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"bytes")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "input", PASSING, VERDICTS],
        env={**os.environ, **failing(tmp_path, "open", "nothing", errno.EIO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("failures", "reason", "is_unavailable", "requests"),
    [
        ([503] * 9, "503 Service Unavailable, at each of 4 attempts", True, 4),
        ([429, 0, 500], None, False, 4),
        ([401], "no access (401 Unauthorized)", True, 1),
        ([403], "no access (403 Forbidden)", False, 1),
        ([404], "not found", False, 1),
        ([400], "400 Bad Request", False, 1),
    ],
)
def test_a_server_s_answer_is_a_verdict_where_it_speaks_of_the_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failures: list[int],
    reason: str | None,
    is_unavailable: bool,
    requests: int,
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    (tmp_path / "input").write_bytes(b"bytes")
    server = HttpServer(tmp_path)
    with server as url:
        server.failures = failures
        assert load(f"{url}/input") == (reason and f"can't be read: {reason}", is_unavailable)
        assert len(server.requests) == requests


def test_where_all_is_unavailable_for_long_nobody_waits_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(circumstances, "_LONG_ROW", 3)
    monkeypatch.setattr("time.sleep", slept.append)
    batches = Batches(FileReader(), NoDecoder(), 6)
    gone = Orders.listed([Order(row, str(tmp_path / "gone").encode(), None, 1) for row in range(6)])
    assert batches.__getitems__(gone)["unavailable"] == [True] * 6
    assert slept == [0.4, 1.2] * 3


def test_a_file_of_features_that_can_not_be_opened_is_unavailable_and_a_damaged_one_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.zeros(3, np.float32))
    (tmp_path / "bad.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    batches = Batches(FileReader(), FeatureDecoder((3,)), 2)
    orders = [Order(row, str(tmp_path / name).encode(), None, 1) for row, name in enumerate(("bad.npy", "gone.npy"))]
    assert batches.__getitems__(Orders.listed(orders))["unavailable"] == [False, True]
