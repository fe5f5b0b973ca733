"""The file systems of folders, as Linux tells them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def mounts() -> dict[Path, str]:
    """Returns the mount points, with the types of their file systems; none where the system does not tell them."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            place, _, facts = line.partition(b" - ")
            name = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), place.split()[4])
            found[Path(os.fsdecode(name))] = facts.split()[0].decode()
    return found


def file_system_of(folder: Path) -> str:
    """Returns the type of a folder's file system, such as `ext4`; `unknown` if the system does not tell."""
    known = mounts()
    return next((known[place] for place in (folder, *folder.parents) if place in known), "unknown")
