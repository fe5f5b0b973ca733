"""Runs by several members, watched from outside."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import psutil

from embedx import sample
from embedx.names import CHECK_TIMES, LOCK
from embedx.store.format.index import read_index
from embedx.store.reading.verify import verify
from tests.runs import assert_gone, descendants

EXTRACT = ["extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--group-key", "class"]
UNITS = 36
ROWS = 144


def contents(store: Path) -> dict[str, str]:
    """The sha256 of every shard, and of every index table's rows; its metadata has the hardware, and the threads."""
    shards = {path: path.read_bytes() for path in store.rglob("*.safetensors")}
    tables = {path: repr(read_index(path).to_pylist()).encode() for path in store.rglob("*.parquet")}
    return {str(path.relative_to(store)): hashlib.sha256(data).hexdigest() for path, data in (shards | tables).items()}


def members_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in descendants(process) if child.name() == "embedx-member"]


def wait_for_members(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    while len(found := members_of(process)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


def assert_finished(process: subprocess.Popen[str], out: Path, expected: dict[str, str]) -> str:
    """Checks that a run ends well, and leaves nothing but the store; returns what it said."""
    family = descendants(process)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert stdout == f"{out}/manifest.json\n"
    assert "Traceback" not in stderr, stderr
    assert_gone(family)
    assert contents(out) == expected
    assert list(verify(out)) == []
    assert {path.name for path in out.rglob(".*")} <= {LOCK, CHECK_TIMES}
    return stderr
