"""A run of two hours in a log, with all of its times a 120th: it says each time where it is, and stays as it began."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.run.test_update import SIDE, draw

PERIOD, BEATS, BATCH = 0.25, 240, 8
FACTORY = f"""
import time
from torch import nn

class Slow(nn.Flatten):
    def forward(self, images):
        time.sleep({PERIOD})
        return super().forward(images)

def build():
    return Slow()
"""
PROGRAM = f"""
import embedx.__main__, embedx.heartbeat
embedx.heartbeat.Heartbeat.__init__.__defaults__ = ({PERIOD},)
embedx.__main__.main()
"""


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_hours_are_told_line_by_line_and_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(FACTORY)
    for number in range(BATCH * BEATS):
        draw(tmp_path / "images" / f"{number:04d}.ppm", number)
    command = [sys.executable, "-c", PROGRAM, "extract", "--backbone=slow:build", f"--image-size={SIDE}", "--mean=0.5"]
    command += ["--std=0.5", f"--batch-size={BATCH}", "--device=cpu", "-j1", f"--out={tmp_path / 'store'}"]
    command += [f"--data=all={tmp_path / 'images'}"]
    samples = []
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}, stderr=stderr
        ) as run,
    ):
        process = psutil.Process(run.pid)
        while run.poll() is None:
            if re.search(r"all: [1-9]", log.read_text()):  # the loop is under way
                samples.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
            time.sleep(PERIOD)
    lines = log.read_text().splitlines()
    assert run.returncode == 0, lines[-3:]
    done = [int(match[1]) for line in lines if (match := re.search(r" all: (\d+) of 1920", line))]
    assert len(done) > 0.9 * BEATS and done == sorted(done) and done[-1] == BATCH * BEATS, (len(done), lines[-5:])
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines if " of 1920" in line)
    third = len(samples) // 3
    middle, late = ([statistics.median(column) for column in zip(*part, strict=True)] for part in (
        samples[third : 2 * third], samples[2 * third : -4]
    ))  # fmt: skip
    assert late[0] < 1.02 * middle[0] and late[1:] == middle[1:], (middle, late)
