"""The benchmarks run, and count what they should; what they measure is not for tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


def printed(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, SCRIPTS / script, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_rates_are_measured_and_the_bound_follows_from_two_of_them() -> None:
    settings = ["--backbone", "shufflenet_v2_x0_5", "--runtime", "eager", "--images", "400", "--rounds", "1", "--json"]
    found = json.loads(printed("bench.py", "measure", *settings).splitlines()[-1])
    rates, ratios, (one,) = found["images_per_second"], found["ratios"], found["rounds"]
    a, b, c, d, whole, e, by_hand = rates.values()
    assert min(rates.values()) > 0 and one["embedx"]["runtime"] == found["runtime"] == "eager"
    assert c == pytest.approx(1 / (1 / a + 1 / b)) or c == min(a, b)
    assert list(ratios.values()) == pytest.approx([d / c, d / e, whole / by_hand])
    assert whole < d and found["seconds_to_first_batch"] > 0


def test_a_ratio_that_is_missed_is_told_and_ends_the_benchmark_with_1(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import bench
rates = {{"steady": 10.0, "whole": 5.0, "first_batch": 1.0}}
round = {{"forward": rates, "loading": rates, "embedx": {{**rates, "steady": 4.0}}, "by hand": rates}}
bench._report("resnet50", "fp32", "eager", [round], as_json=True, check=True)
"""
    done = subprocess.run([sys.executable, "-c", f"{code}"], capture_output=True, text=True)
    assert "d / c is 0.80, and 0.93 was to be reached" in done.stderr and "Exit" in done.stderr
    assert json.loads(done.stdout)["ratios"]["d / e"] == 0.4


@pytest.mark.parametrize(
    ("command", "counts"),
    [
        ("plan", ("1200",)),
        ("table", ("1200",)),
        ("rerun", ("1200",)),
        ("memory", ("1200",)),
        ("groups", ("--count", "1000")),
    ],
)
def test_scale_is_measured(tmp_path: Path, command: str, counts: tuple[str, ...]) -> None:
    table = printed("bench_scale.py", command, *counts, "--folder", tmp_path)
    assert re.search(r"\b1,[02]00\b", table) and list(tmp_path.iterdir()) == []
