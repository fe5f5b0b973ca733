"""The manual's commands and programs, run as they stand there."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import embedx
from embedx.cli.app import run
from embedx.cli.help import TOPICS
from tests.docs.pages import ROOT, Reader, Step, blocks, steps, without_rates

STEPS = [step for topic in TOPICS for step in steps(topic)]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_step_of_the_manual_does_what_it_shows(step: Step, reader: Callable[[str], Reader]) -> None:
    place = reader(step.page)
    seen = place.follow(step)
    if step.shown:
        assert without_rates(seen) == without_rates(step.shown)
    if step.text.startswith("embedx extract") and "--dry-run" not in step.text:
        out = shlex.split(step.text)[shlex.split(step.text).index("--out") + 1]
        out = out if "://" in out else str(place.folder / out)
        assert list(embedx.verify(out)) == [] and embedx.open(out).complete


def test_recomputed_rows_are_equal(reader: Callable[[str], Reader]) -> None:
    """Not to the bit, as this process may compute in another number of threads than that which wrote them."""
    (step,) = (step for step in STEPS if "--recompute 20" in step.text)
    seen = reader("verify").follow(step)
    assert re.search(r"20 rows recomputed: largest difference \S+ \(allowed 0.0001\)", seen), seen


def test_the_plotted_matrix_is_the_one_in_scripts(reader: Callable[[str], Reader]) -> None:
    (step,) = (step for step in STEPS if "--plot" in step.text)
    reader("probe").follow(step)
    shown, drawn = (
        np.asarray(Image.open(each / "confusion.png")) for each in (ROOT / "scripts", reader("probe").folder)
    )
    assert shown.shape == drawn.shape
    assert np.abs(shown.astype(int) - drawn).mean() < 2  # another version of the font's renderer may draw it otherwise


def test_the_crontab_s_command_runs_and_then_finds_nothing_to_do(
    reader: Callable[[str], Reader], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ((_, line),), ((_, settings),) = blocks("unattended", "crontab"), blocks("unattended", "toml")
    schedule = r"(?:[\d*,/-]+ +){5}"
    match = re.fullmatch(rf"{schedule}cd /srv/photos && /opt/embedx/bin/(.*) >>runs\.jsonl 2>>runs\.log\n", line)
    assert match is not None and "%" not in line
    folder = reader("unattended").folder
    (folder / "embedx.toml").write_text(settings)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [*shlex.split(match[1]), "--workers", "0"])
    for up_to_date in (False, True):
        assert run() == 0
        assert json.loads(capfd.readouterr().out)["up_to_date"] is up_to_date


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    (_, service), (_, timer) = blocks("unattended", "ini")
    service = service.replace("/opt/embedx/bin/embedx", sys.executable)
    for name, text in (("embedx.service", service), ("embedx.timer", timer)):
        (tmp_path / name).write_text(text)
        configparser.ConfigParser(interpolation=None).read_string(text)
    if shutil.which("systemd-analyze"):
        files = [str(tmp_path / name) for name in ("embedx.service", "embedx.timer")]
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
