"""The folder of an export: whole or not there, and never in the place of something else."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import embedx
from embedx.errors import ConfigError, StoreError, StoreLockedError
from embedx.vectors.exporting.export_folder import MARK, ExportFolder
from tests.disks import fill, small_disk
from tests.runs import start
from tests.store.builders import write_features
from tests.vectors.exports import build, contents

TEMPORARY = ".out.embedx-export"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 2 MB in 20 shards."""
    rows = torch.randn(10_000, 50, generator=torch.Generator().manual_seed(0))
    out = tmp_path_factory.mktemp("large") / "store"
    return write_features(out, {"train": (rows, [None] * len(rows))}, rows_per_unit=500)


def test_what_is_there_stays_unless_it_is_an_export_that_may_be_replaced(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    embedx.export(store, out)
    before = contents(out)
    with pytest.raises(ConfigError, match="is there already; --overwrite replaces it, or choose another path"):
        embedx.export(store, out, "npy")
    assert contents(out) == before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"other files in it, which --overwrite does not remove: notes\.txt; move"):
        embedx.export(store, out, "npy", overwrite=True)
    assert (out / "notes.txt").read_text() == "mine" and contents(out).items() > before.items()
    (out / "notes.txt").unlink()
    (out / "sub").mkdir()
    with pytest.raises(ConfigError, match="does not remove: sub"):
        embedx.export(store, out, "npy", overwrite=True)
    (out / "sub").rmdir()
    embedx.export(store, out, "npy", overwrite=True)
    assert sorted(contents(out)) == [MARK, "embeddings.npy", "keys.parquet"] and len(list(out.parent.iterdir())) == 1


@pytest.mark.parametrize("mark", [None, "", "[]", '{"kind": "embedx export 1"}', '{"kind": "x", "files": {}}'])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_export_is_never_replaced(
    store: Path, tmp_path: Path, mark: str | None, overwrite: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"1")
    if mark is not None:
        (out / MARK).write_text(mark)
    with pytest.raises(ConfigError, match="is there already"):
        embedx.export(store, out, overwrite=overwrite)
    assert (out / "photo.jpg").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_never_replaced_and_an_empty_folder_and_a_link_are_written_to(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        embedx.export(store, tmp_path / "file", overwrite=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    result = embedx.export(store, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and result.out == tmp_path / "link"
    assert (tmp_path / "there" / "train.parquet").is_file()
    embedx.export(store, tmp_path / "link", "npy", overwrite=True)
    assert (tmp_path / "there" / "embeddings.npy").is_file() and not (tmp_path / "there" / "train.parquet").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "there"]


def test_without_a_system_call_that_exchanges_names_an_export_is_replaced_too(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedx.export(store, tmp_path / "out")
    monkeypatch.setattr("embedx.vectors.exporting.export_folder.exchange", lambda *_: False)
    embedx.export(store, tmp_path / "out", "npy", overwrite=True)
    assert (tmp_path / "out" / "embeddings.npy").is_file() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_a_killed_process_left_aside_comes_back(store: Path, tmp_path: Path) -> None:
    """Where two names can't be exchanged, a kill between the two renames leaves the old one under another name."""
    out = embedx.export(store, tmp_path / "out", progress=False).out
    out.rename(tmp_path / ".out.embedx-replaced")
    with pytest.raises(ConfigError, match="is there already"):
        embedx.export(store, tmp_path / "out", "npy", progress=False)
    assert (out / "train.parquet").is_file() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_comes_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path / "out", overwrite=True)
    with pytest.raises(ConfigError, match="no export of embedx"), folder.written() as temporary:
        (temporary / "a").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        folder.commit({})
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_second_export_to_the_same_place_is_refused_while_the_first_is_at_work(store: Path, tmp_path: Path) -> None:
    (tmp_path / TEMPORARY).mkdir()
    held = os.open(tmp_path / TEMPORARY, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match="another export is writing there"):
            embedx.export(store, tmp_path / "out")
        assert (tmp_path / TEMPORARY).is_dir()
    finally:
        os.close(held)
    embedx.export(store, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "to", ["parquet", "npy", "csv", "faiss", "hf", "lance", "tensorboard", "usearch", "webdataset"]
)
def test_a_full_disk_leaves_nothing(large: Path, store: Path, tmp_path: Path, to: Any) -> None:
    """At the beginning, and in the middle of the vectors: one error, and no file under any name."""
    source, half = (store, 8192) if to == "usearch" else (large, 500_000)
    with small_disk(tmp_path / "disk", "64m") as disk:
        for leave in (0, half):
            ballast = fill(disk, leave)
            with pytest.raises(StoreError, match=r"can't be written \(.*once the cause is gone") as caught:
                embedx.export(source, disk / "out", to)
            assert "\n" not in str(caught.value), caught.value
            assert [path.name for path in disk.iterdir()] == ["ballast"]
            ballast.unlink()
        assert embedx.export(source, disk / "out", to).files


def test_what_a_full_disk_interrupts_leaves_the_old_export(large: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        embedx.export(large, disk / "out", "npy", where="index < 100")
        before = contents(disk / "out")
        ballast = fill(disk, 500_000)
        with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
            embedx.export(large, disk / "out", "npy", overwrite=True)
        ballast.unlink()
        assert contents(disk / "out") == before and [path.name for path in disk.iterdir()] == ["out"]


def wait_for_half(folder: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1_000_000 or path.name == "keys.parquet" for path in folder.glob("*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "to"),
    [
        pytest.param(signal.SIGKILL, "webdataset", marks=pytest.mark.soak),
        pytest.param(signal.SIGINT, "webdataset", marks=pytest.mark.soak),
        (signal.SIGKILL, "usearch"),
    ],
)
def test_a_killed_export_leaves_no_half_and_run_again_gives_the_same_bytes(
    large: Path, tmp_path: Path, number: signal.Signals, to: Any
) -> None:
    process = start("export", large, "--to", to, "--out", tmp_path / "out")
    wait_for_half(tmp_path / TEMPORARY, process)
    if to == "usearch":
        time.sleep(0.2)  # it links 10,000 rows for more than a second
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    names = [path.name for path in tmp_path.iterdir()]
    if number == signal.SIGINT:
        assert process.returncode == 130 and names == [], stderr
        assert "interrupted; nothing is left of it" in stderr
        return
    assert process.returncode == -9 and names == [TEMPORARY]
    for name in ("out", "expected"):
        embedx.export(large, tmp_path / name, to)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


def test_leftovers_of_any_shape_are_removed(store: Path, tmp_path: Path) -> None:
    (tmp_path / TEMPORARY / "data" / "deep").mkdir(parents=True)
    (tmp_path / TEMPORARY / "data" / "x").touch()
    (tmp_path / TEMPORARY / "link").symlink_to(store)
    out = embedx.export(store, tmp_path / "out").out
    assert sorted(contents(out)) == [MARK, "train.parquet", "val.parquet"] and (store / "manifest.json").exists()
    shutil.rmtree(out)
