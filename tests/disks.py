"""Real disks that fill up, turn read-only or lose a permission."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PERMISSION_COUNTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
"""In front of a command: has files' modes count for root as well."""


@contextlib.contextmanager
def mounted(place: Path, *arguments: str | Path) -> Iterator[Path]:
    """Mounts a file system; skips the test where that is not allowed."""
    place.mkdir()
    done = subprocess.run(["mount", *map(str, arguments), str(place)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def small_disk(place: Path, size: str = "4m") -> contextlib.AbstractContextManager[Path]:
    """A file system of its own, in memory."""
    return mounted(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fills a disk but for so many bytes; returns the file that does it."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, shutil.disk_usage(disk).free - leave)))
    return ballast
