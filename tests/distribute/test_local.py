"""Runs by several members on this machine: whatever happens to them, the bytes are those of one process."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

import embedx
from embedx.config import ExtractConfig
from embedx.distribute.devices import resolve_devices
from embedx.distribute.local import member_names
from embedx.errors import ConfigError
from embedx.store.format.layout import index_files
from tests.distribute.members import UNITS, assert_finished, contents, wait_for_members
from tests.runs import SEED, assert_gone, assert_visible_units_are_whole, descendants, run, start, wait_for_units

pytestmark = pytest.mark.timeout(300)


def test_members_have_the_names_of_their_devices_with_a_number_where_these_recur() -> None:
    assert member_names(["cuda:0", "cuda:1"]) == {"cuda:0": "cuda:0", "cuda:1": "cuda:1"}
    assert list(member_names(["cpu", "cpu"])) == ["cpu#0", "cpu#1"]


def test_two_members_give_the_bytes_of_one_process(
    tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "store"
    process = start(*arguments, "--out", out, "--devices", "cpu,cpu")
    stderr = assert_finished(process, out, expected)
    assert "on 2 members: cpu#0" in stderr
    assert "up to date: 144 rows" in run(*arguments, "--out", out, "--devices", "cpu,cpu").stderr
    units = embedx.open(out).units.values()
    assert {unit.environment["threads"] for unit in units if unit.environment} == {1}


@pytest.mark.soak
def test_a_store_that_one_process_began_is_finished_by_three_though_one_dies_and_one_stops(
    tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "store"
    process = start(*arguments, "--out", out)
    wait_for_units(out, 3, process)
    process.kill()
    process.communicate()
    begun = len(index_files(out))
    process = start(*arguments, "--out", out, "--devices", "cpu,cpu,cpu")
    wait_for_units(out, begun + 2, process)
    dying, stopping, _ = wait_for_members(process, 3)
    stopping.suspend()
    dying.kill()
    stderr = assert_finished(process, out, expected)
    assert "was killed by SIGKILL, and another one starts in its place; its units go to others" in stderr
    assert f"of {UNITS * 4} rows are there" in stderr


@pytest.mark.soak
def test_where_the_driver_is_killed_its_members_go_and_the_same_command_goes_on(
    tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    out = tmp_path / "store"
    process = start(*arguments, "--out", out, "--devices", "cpu,cpu")
    wait_for_units(out, 3, process)
    family = descendants(process)
    process.kill()
    process.communicate()
    assert_gone(family, 10)
    assert_visible_units_are_whole(out)
    assert_finished(start(*arguments, "--out", out), out, expected)


@pytest.mark.soak
def test_an_interrupt_keeps_what_is_computed(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "store"
    process = start(*arguments, "--out", out, "--devices", "cpu,cpu")
    wait_for_units(out, 3, process)
    family = descendants(process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and stdout == ""
    assert "error: interrupted; the same command goes on from what is kept" in stderr
    assert "of 144 rows are kept" in stderr and "Traceback" not in stderr
    assert_gone(family)
    assert_visible_units_are_whole(out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": "cpu,cuda:7"}, "--devices cuda:7: torch sees"),
        ({"devices": "cpu,tpu"}, "--devices 'tpu' is none of"),
        ({"devices": "cpu,cpu", "device": "cpu"}, "--device cpu and --devices cpu,cpu: give one of them"),
    ],
)
def test_devices_that_can_t_be_used_together_are_told(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_devices(ExtractConfig(backbone="resnet18", out=tmp_path, **settings))
    assert message in str(caught.value)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(6), ids=lambda part: f"seed-{SEED}-{part}")
def test_whatever_is_killed_or_stopped_at_random_moments_the_bytes_are_the_same(
    part: int, tmp_path: Path, arguments: list[str], expected: dict[str, str]
) -> None:
    """Ten strikes in each of the six parts, of members, of what they have started, and of the driver."""
    chance = random.Random(f"{SEED}-members-{part}")
    strikes = stores = 0
    while strikes < 10:
        stores += 1
        out = tmp_path / f"store-{stores}"
        while strikes < 10 and (not out.exists() or contents(out) != expected):
            devices = ",".join(["cpu"] * chance.randint(2, 3))
            process = start(*arguments, "--out", out, "--devices", devices)
            missing = UNITS - len(index_files(out))
            wanted = len(index_files(out)) + chance.uniform(0, 0.8) * missing
            while process.poll() is None and len(index_files(out)) < wanted:
                time.sleep(0.01)
            family = []
            with contextlib.suppress(psutil.NoSuchProcess):
                family = descendants(process)
                driver = psutil.Process(process.pid)
                kind = chance.choice(["driver", "embedx-member", "embedx-member", "embedx-writer", "embedx-loader"])
                targets = [driver] if kind == "driver" else [one for one in family if one.name() == kind]
                if targets:
                    target = chance.choice(targets)
                    target.suspend() if kind == "embedx-member" and chance.random() < 0.5 else target.kill()
                    strikes += 1
            stderr = process.communicate(timeout=250)[1]
            assert "Traceback" not in stderr, stderr
            assert process.returncode in (0, -9), (kind, stderr)
            assert_gone(family, 15)
            if process.returncode != 0:
                assert_visible_units_are_whole(out)
        assert_finished(start(*arguments, "--out", out, "--devices", "cpu,cpu"), out, expected)
