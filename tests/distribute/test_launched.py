"""Runs by the processes of a launcher: torchrun's own, and processes with the variables that srun sets."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from embedx import sample
from embedx.store.format.layout import index_files
from tests.distribute.members import ROWS, assert_finished
from tests.docs.pages import blocks
from tests.runs import OFFLINE, assert_gone, assert_visible_units_are_whole, descendants, start, wait_for_units

pytestmark = pytest.mark.timeout(300)


def step(number: int, count: int) -> dict[str, str]:
    """The variables of one task of a Slurm step on one machine."""
    common = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1"}
    return {**common, "SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}


def start_step(arguments: Sequence[str | Path], count: int) -> list[subprocess.Popen[str]]:
    """Starts the tasks, as srun does, the driver last."""
    numbers = range(count - 1, -1, -1)
    found = [start(*arguments, env=step(number, count)) for number in numbers]
    return found[::-1]


@pytest.mark.soak
def test_torchrun_gives_the_bytes_of_one_process(
    tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    """By the manual's line, on one machine."""
    ((_, line), *_) = blocks("devices", "bash")
    launcher = re.search(r"torchrun(.*)--rdzv-backend", line.replace("\\\n", " "))
    assert launcher is not None
    options = launcher[1].replace("--nnodes 2", "--standalone").replace("--nproc-per-node 8", "--nproc-per-node 2")
    out = tmp_path / "store"
    command = [sys.executable, "-m", "torch.distributed.run", *options.split(), "--no-python", sys.executable, "-m"]
    process = subprocess.Popen(
        [*command, "embedx", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | OFFLINE,
    )
    stderr = assert_finished(process, out, expected)
    assert re.search(rf"{ROWS} rows, 0 rejected, .* on 2 members: cpu", stderr)


@pytest.mark.soak
def test_the_tasks_of_a_step_share_the_work_and_the_driver_alone_prints(
    tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "store"
    driver, *others = start_step([*arguments, "--out", out], 3)
    wait_for_units(out, 1, driver)
    assert stat.S_IMODE(next(tmp_path.glob(".store.embedx-job-*")).stat().st_mode) == 0o600
    stderr = assert_finished(driver, out, expected)
    assert "on 3 members:" in stderr
    for other in others:
        stdout, stderr = other.communicate(timeout=30)
        assert (other.returncode, stdout) == (0, ""), stderr
    driver, other = start_step([*arguments, "--out", out], 2)
    assert "up to date: 144 rows" in driver.communicate(timeout=60)[1]
    assert other.communicate(timeout=60)[0] == "" and other.returncode == 0


@pytest.mark.soak
def test_where_a_task_dies_the_others_go_on_and_where_the_driver_dies_they_end(
    tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "store"
    driver, dying, other = start_step([*arguments, "--out", out], 3)
    wait_for_units(out, 2, driver)
    family = descendants(dying)
    dying.kill()
    for process in family:
        process.kill()
    dying.communicate()
    wait_for_units(out, len(index_files(out)) + 2, driver)
    family = descendants(driver)
    driver.kill()
    driver.communicate()
    stderr = other.communicate(timeout=60)[1]
    assert other.returncode == 1 and "error: the driver (rank 0) of this job has failed or is gone" in stderr
    assert_gone(family, 15)
    assert_visible_units_are_whole(out)
    assert_finished(start(*arguments, "--out", out), out, expected)


@pytest.mark.soak
def test_what_is_wrong_is_told_once_by_the_driver(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "store"
    driver, other = start_step([*arguments, "--out", out, "--layer", "nowhere"], 2)
    stdout, stderr = driver.communicate(timeout=100)
    assert (driver.returncode, stdout) == (2, "") and "nowhere" in stderr
    assert other.communicate(timeout=100)[0] == "" and other.returncode == 1
    assert not out.exists()


@pytest.mark.soak
def test_a_machine_with_other_weights_is_refused(tmp_path: Path) -> None:
    homes = [tmp_path / "home 0", tmp_path / "home 1"]
    for seed, home in enumerate(homes):
        torch.manual_seed(seed)
        name = Path(get_model_weights(sample.BACKBONE).DEFAULT.url).name
        (home / "hub/checkpoints").mkdir(parents=True)
        torch.save(get_model(sample.BACKBONE).state_dict(), home / "hub/checkpoints" / name)
    call = ["extract", "--backbone", sample.BACKBONE, "--out", str(tmp_path / "store")]
    found = [start(*call, env=step(number, 2) | {"TORCH_HOME": str(home)}) for number, home in enumerate(homes)]
    stderr = found[0].communicate(timeout=100)[1]
    assert found[0].returncode == 2, stderr
    assert re.search(r"error: the member \S+ would compute other rows than the store has .*weights\.sha256: ", stderr)
    assert found[1].wait(100) == 1
    found[1].communicate()
