"""Disks that fail a system call on some files, by a preloaded library, as a network's disk does that is away."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")


def failing(folder: Path, call: str, name: str, number: int, **when: object) -> dict[str, str]:
    """The environment of processes in which a call fails; skips the test where there is no C compiler.

    Args:
        folder: Where the library is built.
        call: `open` or `read`.
        name: A part of the names of the files.
        number: The error's number.
        when: `TIMES` or `WHILE`, as the library takes them.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = folder / "failing_calls.so"
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    settings = {"LD_PRELOAD": library, "FAIL_CALL": call, "FAIL_NAME": name, "FAIL_ERRNO": number}
    return {key: str(value) for key, value in (settings | {f"FAIL_{key}": one for key, one in when.items()}).items()}
