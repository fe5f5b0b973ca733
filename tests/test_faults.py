"""Whole runs that are killed, interrupted or run into a wall, and what the same command makes of it afterwards.

Every run is a real one, on the sample with units of four rows, so that 76 units are committed one by one.
"""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from embedx import sample
from embedx.store.layout import index_files
from embedx.store.verify import verify
from tests.runs import (
    assert_gone,
    assert_visible_units_are_whole,
    descendants,
    digests,
    run,
    start,
    wait_for_units,
    writer_of,
)

EXTRACT = ["extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--group-key", "class", "-b", "4"]
UNITS_OF_FOUR = ["--shard-size", "16416"]  # 4 rows of 1024 float32 numbers and an index


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    done = run(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    assert done.returncode == 0, done.stderr
    return digests(out)


def kill_main(process) -> None:
    process.kill()


def kill_writer(process) -> None:
    writer_of(process).kill()


def interrupt(process) -> None:
    process.send_signal(signal.SIGINT)


def terminate(process) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("strike", "exit_code", "message"),
    [
        (kill_main, -signal.SIGKILL, ""),
        (kill_writer, 1, "killed by SIGKILL"),
        (interrupt, 130, "interrupted; what is committed stays"),
        (terminate, 143, "terminated; what is committed stays"),
    ],
)
def test_a_run_that_is_struck_ends_leaves_nothing_half_and_is_finished_by_the_same_command(
    tmp_path: Path, undisturbed: dict[str, str], strike: Callable, exit_code: int, message: str
) -> None:
    out = tmp_path / "store"
    process = start(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    wait_for_units(out, 5, process)
    family = descendants(process)
    assert len(family) >= 3  # the writer, the fork server, a worker
    strike(process)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == exit_code, stderr
    assert stdout == "" and message in stderr and "Traceback" not in stderr
    assert_gone(family)
    assert_visible_units_are_whole(out)
    assert 5 <= len(index_files(out)) < 76

    done = run(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    assert done.returncode == 0, done.stderr
    assert digests(out) == undisturbed and list(verify(out)) == []


def test_a_file_where_a_folder_must_go_fails_the_run_with_its_cause(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """The writer raises mid-run: the split's folder is no longer one."""
    out = tmp_path / "store"
    process = start(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    wait_for_units(out, 5, process)
    family = descendants(process)
    (out / "train").rename(tmp_path / "taken")
    (out / "train").touch()
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 1 and stdout == ""
    assert "the writer process failed" in stderr and str(out / "train") in stderr and "Traceback" not in stderr
    assert_gone(family)
    (out / "train").unlink()
    (tmp_path / "taken").rename(out / "train")
    assert run(*EXTRACT, *UNITS_OF_FOUR, "--out", out).returncode == 0
    assert digests(out) == undisturbed


def test_a_disk_that_is_full_at_the_last_flush_fails_the_run(tmp_path: Path) -> None:
    """The only unit of train is 228 rows of 4 KiB; a limit of 800 kB on any file's size stands for a full disk."""
    out = tmp_path / "store"
    arguments = [*EXTRACT[:5], "-b", "4", "--data", f"train={sample.IMAGES / 'train'}", "--out", str(out)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))

    done = run(*arguments, preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert "File too large" in done.stderr and "the writer process failed" in done.stderr
    assert_visible_units_are_whole(out)
    assert not index_files(out)
    assert run(*arguments).returncode == 0
    assert list(verify(out)) == []


def test_a_second_run_on_the_same_store_is_turned_away(tmp_path: Path) -> None:
    out = tmp_path / "store"
    process = start(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    wait_for_units(out, 1, process)
    writer = writer_of(process)
    writer.suspend()  # so that the first run is still there when the second comes
    second = run(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    assert second.returncode == 75 and f"process {process.pid} " in second.stderr, second.stderr
    writer.resume()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_resnet50_as_typed_with_torchvision_s_weights_in_the_cache(tmp_path: Path) -> None:
    import torch
    from torchvision import models

    torch.manual_seed(0)
    cached = tmp_path / "cache" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    cached.parent.mkdir(parents=True)
    torch.save(models.resnet50().state_dict(), cached)
    environment = {"TORCH_HOME": str(tmp_path / "cache")}
    done = run("extract", "--backbone", "resnet50", "--out", "dir", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "dir/manifest.json\n"), done.stderr
    assert list(verify(tmp_path / "dir")) == []
    recipe = json.loads((tmp_path / "dir/manifest.json").read_text())["recipe"]
    assert recipe["weights"]["name"] == "ResNet50_Weights.IMAGENET1K_V2"
    assert recipe["weights"]["sha256"] == hashlib.sha256(cached.read_bytes()).hexdigest()


def test_resnet50_without_cache_or_network_says_what_to_do(tmp_path: Path) -> None:
    environment = {"TORCH_HOME": str(tmp_path / "cache")}
    done = run("extract", "--backbone", "resnet50", "--out", "dir", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    for part in ("ResNet50_Weights.IMAGENET1K_V2", "--checkpoint", "--weights random", f"{tmp_path}/cache/hub"):
        assert part in done.stderr.replace("\n", ""), done.stderr
    assert not (tmp_path / "dir").exists()


def test_a_disk_that_stands_still_stops_the_run_and_its_memory(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """The writer is stopped, as by a disk that hangs: all the others run into its queue, and wait there."""
    out = tmp_path / "store"
    process = start(*EXTRACT, *UNITS_OF_FOUR, "--out", out)
    wait_for_units(out, 5, process)
    family = [psutil.Process(process.pid), *descendants(process)]
    writer = writer_of(process)
    writer.suspend()
    memory = []
    for _ in range(12):
        time.sleep(0.5)
        memory.append(sum(member.memory_full_info().pss for member in family if member.is_running()))
    waiting = len(index_files(out))
    assert max(memory[4:]) - min(memory[4:]) < 16 * 1024**2, [size // 1024**2 for size in memory]
    assert waiting < 40 and process.poll() is None
    writer.resume()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert digests(out) == undisturbed
