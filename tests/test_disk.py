"""Disks that refuse: a run ends with 1, the cause and the path; once the cause is gone, the same command finishes it.

The disks, permissions and limits are real. The longer matrix is for `make soak`.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from embedx import sample
from embedx.config import ExtractConfig
from embedx.errors import ConfigError, StoreError
from embedx.store.format.index import read_entry
from embedx.store.format.layout import index_files
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from embedx.store.writing.session import StoreSession
from tests.disks import PERMISSION_COUNTS, fill, mounted, remount, small_disk
from tests.runs import EMBEDX, OFFLINE, SEED, assert_gone, descendants, digests, run, start, wait_for_units
from tests.store.builders import build_store, commit, manifest, unit_batch

EXTRACT = [
    "extract",
    "--backbone",
    sample.BACKBONE,
    "--weights",
    "sample",
    "--group-key",
    "class",
    "-j",
    "1",
    "-b",
    "4",
]
ARGUMENTS = [*EXTRACT, "--data", str(sample.IMAGES / "val"), "--shard-size", "16416"]
"""Twenty units of four rows."""


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with what `"$@"` stands for: the arguments of the run."""
    return subprocess.run(
        ["bash", "-c", command, "bash", *EMBEDX, *ARGUMENTS],
        capture_output=True,
        text=True,
        env=os.environ | OFFLINE,
        timeout=110,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written with nowhere to talk to, which disturbs nothing."""
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    assert shell(f'"$@" --out {out} 2>/dev/full <&- >&-').returncode == 0
    assert list(verify(out)) == []
    return out


@pytest.fixture(scope="module")
def undisturbed(store: Path) -> dict[str, str]:
    return digests(store)


def assert_refused(done: subprocess.CompletedProcess[str], cause: str, path: Path) -> None:
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert cause in done.stderr and str(path).strip(".") in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "fault of embedx" not in done.stderr, done.stderr


def assert_finished(out: Path, expected: dict[str, str]) -> None:
    done = run(*ARGUMENTS, "--out", out)
    assert done.returncode == 0, done.stderr
    assert digests(out) == expected and list(verify(out)) == []


@pytest.mark.soak
def test_a_run_fills_the_disk_and_is_finished_when_there_is_room(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with small_disk(tmp_path / "disk") as disk:
        ballast = fill(disk, leave=150_000)
        assert_refused(run(*ARGUMENTS, "--out", disk / "store"), "No space left on device", disk / "store")
        committed = digests(disk / "store")
        assert index_files(disk / "store") and committed.items() < undisturbed.items()
        ballast.unlink()
        assert_finished(disk / "store", undisturbed)


def refused(out: Path, mode: str = "resume", cause: str = "") -> StoreError:
    """What a session that is begun in this process raises."""
    with pytest.raises(StoreError, match=cause) as caught:
        StoreSession.begin(out, manifest({"train": 16}), mode)
    assert str(out) in str(caught.value)
    return caught.value


def test_what_the_machine_refuses_is_no_fault_of_usage(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        build_store(disk / "store", inputs=16)
        before = digests(disk / "store")
        ballast = fill(disk)
        refused(disk / "store", "overwrite", "No space left on device")
        with pytest.raises((StoreError, OSError), match="No space left on device"):
            StoreSession.begin(disk / "new", manifest({"train": 16}), "resume")
        ballast.unlink()
        remount(disk, "ro")
        refused(disk / "store", cause="can't be locked .Read-only file system")
        refused(disk / "other", cause="can't be made .Read-only file system")
        for out in (disk / "store", disk / "other"):
            assert ExtractConfig(backbone="resnet18", out=out).faults() == []
        remount(disk, "rw")
        assert digests(disk / "store") == before
        StoreSession.begin(disk / "new", manifest({"train": 16}), "resume").close()


def test_what_is_committed_is_kept_where_it_can_t_be_read_for_want_of_file_descriptors(tmp_path: Path) -> None:
    out = build_store(tmp_path / "store", inputs=16)
    Manifest.read(out)
    before = digests(out)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))  # those between may be taken, all of them
    for allowed in range(lowest, highest + 32):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
        try:
            StoreSession.begin(out, manifest({"train": 16}), "resume").close()
            break
        except (OSError, StoreError) as error:
            assert "Too many open files" in str(error) and not isinstance(error, ConfigError)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    else:
        pytest.fail("descriptors were never enough")
    assert allowed > lowest and digests(out) == before


@pytest.mark.parametrize("removed", ["train", "index", "."])
def test_a_folder_that_is_removed_under_the_run_is_noticed(tmp_path: Path, removed: str) -> None:
    out = tmp_path / "store"
    session = StoreSession.begin(out, manifest({"train": 16}), "resume")
    commit(session, unit_batch(0, 8))
    shutil.rmtree(out / removed)
    if removed == ".":
        with pytest.raises(FileNotFoundError, match=str(out)):
            commit(session, unit_batch(8, 16))
        assert not out.exists()
    else:
        commit(session, unit_batch(8, 16))
    with pytest.raises((StoreError, OSError), match=str(out)):
        session.finish({})
    session.close()
    again = StoreSession.begin(out, manifest({"train": 16}), "resume")
    for unit, first in ((0, 0), (1, 8)):
        if not any(read_entry(path).unit == unit for path in index_files(out).values()):
            commit(again, unit_batch(first, first + 8))
    again.finish({})
    again.close()
    assert list(verify(out)) == []


def test_a_result_that_can_t_be_printed_is_told(store: Path) -> None:
    full = shell(f'"$@" --out {store} >/dev/full')
    assert_refused(full, "stdout can't be written (No space left on device)", Path("stdout"))
    assert shell(f'"$@" --out {store} <&- >&- 2>&-').returncode == 0
    told = shell(f'"$1" "$2" "$3" info {store} >/dev/full')
    assert_refused(told, "stdout can't be written (No space left on device)", Path("stdout"))


# The matrix.

soak = pytest.mark.soak


def cut_short(out: Path) -> None:
    """Leaves a store with a third of its units, as a run that was killed."""
    process = start(*ARGUMENTS, "--out", out)
    wait_for_units(out, 6, process)
    process.kill()
    process.communicate()


@soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [SEED])
def test_a_disk_that_is_full_at_any_moment(tmp_path: Path, undisturbed: dict[str, str], seed: int) -> None:
    """From the folder itself, by way of a shard and an index table, up to the last manifest."""
    chance = random.Random(seed)
    with small_disk(tmp_path / "disk") as disk:
        assert_finished(disk / "store", undisturbed)
        needed = shutil.disk_usage(disk).used
        shutil.rmtree(disk / "store")
        for leave in (0, 12_288, chance.randrange(needed), chance.randrange(needed), needed - 4096):
            ballast = fill(disk, leave)
            assert_refused(run(*ARGUMENTS, "--out", disk / "store"), "No space left on device", disk / "store")
            if (disk / "store/manifest.json").exists():
                assert not Manifest.read(disk / "store").complete
            ballast.unlink()
            assert_finished(disk / "store", undisturbed)
            shutil.rmtree(disk / "store")


@soak
@pytest.mark.timeout(300)
def test_a_disk_that_turns_read_only_under_the_run(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """As ext4 does after an error."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 * 1024**2)
    if subprocess.run(["mkfs.ext4", "-q", str(image)], check=False).returncode != 0:
        pytest.skip("no ext4 can be made here")
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
        out = disk / "store"
        process = start(*ARGUMENTS, "--out", out)
        wait_for_units(out, 2, process)
        family = descendants(process)
        remount(disk, "abort")
        stdout, stderr = process.communicate(timeout=60)
        done = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
        assert_refused(done, "put error" if "Input/output error" in stderr else "Read-only file system", out)
        assert_gone(family)
        assert_refused(run(*ARGUMENTS, "--out", out), "Read-only file system", out)
    (tmp_path / "disk").rmdir()
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
        assert_finished(disk / "store", undisturbed)


@soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("folder", [".", "index", "all"])
@pytest.mark.parametrize("change", ["removed", "forbidden"])
def test_a_folder_that_goes_under_the_run(
    tmp_path: Path, undisturbed: dict[str, str], folder: str, change: str
) -> None:
    out = tmp_path / "store"
    command = [*(PERMISSION_COUNTS if change == "forbidden" else []), *EMBEDX, *ARGUMENTS, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_units(out, 2, process)
    main = psutil.Process(process.pid)
    family = descendants(process)
    for one in (main, *family):
        one.suspend()
    place = out / folder
    if change == "removed":
        shutil.rmtree(place)
    else:
        place.chmod(0o500)
    for one in (*family, main):
        one.resume()
    stdout, stderr = process.communicate(timeout=110)
    cause = "Permission denied" if change == "forbidden" else ""
    assert_refused(subprocess.CompletedProcess([], process.returncode, stdout, stderr), cause, out)
    assert_gone(family)
    if change == "forbidden":
        again = subprocess.run(command, capture_output=True, text=True, timeout=110)
        assert_refused(again, cause, out)
        place.chmod(0o700)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["store"])
    assert_finished(out, undisturbed)


@soak
@pytest.mark.timeout(900)
def test_few_file_descriptors_end_a_run_with_advice_or_do(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    out = tmp_path / "store"
    for limit in (16, 24, 59, 60):

        def lower(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 40), limit))

        done = run(*ARGUMENTS, "--out", out, preexec_fn=lower)
        if limit < 60:
            assert_refused(done, "Too many open files", Path())
        else:
            assert done.returncode == 0, done.stderr
            assert digests(out) == undisturbed


@soak
@pytest.mark.timeout(300)
def test_a_folder_for_temporary_files_that_is_missing_or_full(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    done = run(*ARGUMENTS, "--out", tmp_path / "missing", env={"TMPDIR": str(tmp_path / "none")})
    assert done.returncode == 0, done.stderr
    with small_disk(tmp_path / "disk", "1m") as disk:
        ballast = fill(disk)
        full = run(*ARGUMENTS, "--out", tmp_path / "full", env={"TMPDIR": str(disk)})
        if full.returncode != 0:
            assert_refused(full, "No space left on device", disk)
        ballast.unlink()
        assert_finished(tmp_path / "full", undisturbed)
