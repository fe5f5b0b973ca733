"""A clock that jumps by a day, forth and back, each second of a run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedx import sample

pytestmark = pytest.mark.soak


def test_a_clock_that_jumps_changes_neither_rows_nor_timeouts(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path / "clock.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, Path(__file__).with_name("clock.c"), "-ldl"], check=True
    )
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(300):
        shutil.copy(next(sample.IMAGES.rglob("*.jpg")), inputs / f"{number}.jpg")
    command = [sys.executable, "-m", "embedx", "extract", "--backbone", "shufflenet_v2_x0_5", "--weights", "sample"]
    command += ["-j", "2", "-b", "2", "--timeout", "60", "--data", str(inputs)]
    digests, said = [], []
    for name, environment in (("plain", {}), ("jumping", {"LD_PRELOAD": str(library)})):
        out = tmp_path / name
        given = [*command, "--out", str(out)]
        ran = subprocess.run(given, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert re.search(r"300 rows, 0 rejected, in \d+\.\d s", ran.stderr), ran.stderr
        said.append(ran.stderr)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*/*.safetensors"))])
    assert digests[0] == digests[1] and digests[0]
    days = set(re.findall(r"(?m)^\d{4}-\d\d-(\d\d)", said[1]))
    assert days and days != set(re.findall(r"(?m)^\d{4}-\d\d-(\d\d)", said[0]))  # the clock was indeed another
