"""One process of a run is killed for want of memory, by a control group that holds it alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from embedx.store.reading.verify import verify
from tests.runs import assert_gone, assert_visible_units_are_whole, descendants, digests, run, start

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

IMAGES = 30
LIMIT = 8 * 1024**2
"""Bytes; an image has 12 million when it is decoded, and a unit of the writer's 24 million."""


@contextlib.contextmanager
def memory_group(name: str) -> Iterator[Path]:
    """A control group whose processes are killed beyond LIMIT; skips the test where there can be none."""
    root = Path("/sys/fs/cgroup")
    is_old = (root / "memory").is_dir()
    group = (root / "memory" if is_old else root) / f"embedx-soak-{os.getpid()}-{name}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if is_old else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group for memory can be made here: {error}")
    try:
        yield group
    finally:
        for _ in range(100):  # until its last process has gone
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def kills(group: Path) -> int:
    """The number of processes that were killed for this group's limit."""
    old, new = group / "memory.oom_control", group / "memory.events"
    lines = (old if old.exists() else new).read_text().splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of one colour, 2000 x 2000, and rows of 768 KiB: the image itself, 256 x 256."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        Image.new("RGB", (2000, 2000), (number, 2 * number, 3 * number)).save(folder / f"{number:02}.png")
    arguments = ["extract", "--backbone", "torch.nn:Flatten", "--image-size", "256", "--resize", "256", "-b", "4"]
    return [*arguments, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "-j", "1", "--data", f"all={folder}"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    done = run(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return digests(out)


def confine(process: subprocess.Popen[str], name: str, group: Path) -> list[psutil.Process]:
    """Moves the run's first child of this name into the group; returns the run's children."""
    while True:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(psutil.NoSuchProcess):
            family = descendants(process)
            if found := [child.pid for child in family if child.name() == name]:
                (group / "cgroup.procs").write_text(str(found[0]))
                return family
        time.sleep(0.005)


def test_a_writer_that_is_killed_for_want_of_memory_ends_the_run_by_name(
    tmp_path: Path, arguments: list[str], undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "store"
    with memory_group("writer") as group:
        process = start(*arguments, "--out", out)
        family = confine(process, "embedx-writer", group)
        stdout, stderr = process.communicate(timeout=200)
        assert kills(group) == 1
    assert process.returncode == 1 and stdout == "", stderr
    assert "killed by SIGKILL" in stderr and "memory" in stderr and "Traceback" not in stderr, stderr
    assert_gone(family)
    assert_visible_units_are_whole(out)
    done = run(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert digests(out) == undisturbed and list(verify(out)) == []


def test_a_worker_that_is_killed_for_want_of_memory_costs_no_input(
    tmp_path: Path, arguments: list[str], undisturbed: dict[str, str]
) -> None:
    """Another takes its place, which has memory: each image is tried again."""
    out = tmp_path / "store"
    with memory_group("worker") as group:
        process = start(*arguments, "--out", out)
        family = confine(process, "embedx-loader", group)
        _, stderr = process.communicate(timeout=200)
        assert kills(group) == 1
    assert process.returncode == 0 and f"{IMAGES} rows, 0 rejected" in stderr, stderr
    assert_gone(family)
    assert digests(out) == undisturbed and list(verify(out)) == []
