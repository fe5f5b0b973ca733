"""Running embedx as a user does, and looking at what it leaves behind."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from embedx.store.format.layout import index_files
from embedx.store.reading.verify import verify

SEED = 20261121
"""Of all that is random in the soak tests; told at their start."""

EMBEDX = [sys.executable, "-m", "embedx"]
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
"""Makes every download fail at once: nothing listens on the discard port."""


def run(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EMBEDX, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | OFFLINE | (env or {}),
        timeout=110,
        **options,
    )


def start(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts a run that can be interrupted, even where these tests run in the background and ignore SIGINT."""
    return subprocess.Popen(
        [*EMBEDX, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | OFFLINE | (env or {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def written(console: Console) -> str:
    """All that a console with a `StringIO` has written."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def memory_of(processes: Iterable[psutil.Process]) -> int:
    """Bytes that these processes hold together; libraries' files, which they share with strangers, do not count."""
    texts = [Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in processes if process.is_running()]
    return 1024 * sum(int(size) for text in texts for size in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", text, re.M))


def wait_for_units(store: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Waits until so many units are committed; the process must still be running then."""
    while len(index_files(store)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def writer_of(process: subprocess.Popen[str]) -> psutil.Process:
    (writer,) = (child for child in descendants(process) if child.name() == "embedx-writer")
    return writer


def assert_gone(processes: Sequence[psutil.Process], seconds: float = 5.0) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def assert_visible_units_are_whole(store: Path) -> None:
    """An unfinished store has that fault alone, and files that no reader sees."""
    unfinished, *faults = verify(store)
    assert "not complete" in unfinished
    assert [fault for fault in faults if "no index table names it" not in fault] == []


def digests(store: Path) -> dict[str, str]:
    """Sha256 of every shard and index table."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.suffix in (".safetensors", ".parquet")
    }
