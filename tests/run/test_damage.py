"""Stores with damaged files: no run gives damage a fresh checksum; the rows are computed again, and that is told."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from embedx import ExtractConfig
from embedx.cli.output import STDERR
from embedx.errors import ConfigError, StoreError, StoreMismatchError, WriterError
from embedx.heartbeat import Heartbeat
from embedx.names import CHECK_TIMES
from embedx.run.extract import extract
from embedx.run.summary import Summary
from embedx.run.up_to_date import look_for_work
from embedx.store.format.index import read_entry
from embedx.store.format.layout import index_files, staging_folder
from embedx.store.reading.verify import verify
from embedx.store.writing import unit_checks
from tests.run import test_take_up as take_up
from tests.run.test_update import config, draw, folder, rows

SHARD = "train/shard-00000.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images in `images`, and in `store` their embeddings: two units of train and one of val."""
    root = tmp_path_factory.mktemp("made")
    extract(config(folder(root / "images", 30), root / "store", group_key=None))
    return root


@pytest.fixture
def settings(tmp_path: Path, made: Path) -> ExtractConfig:
    shutil.copytree(made / "store", tmp_path / "store")
    shutil.copytree(made / "images", tmp_path / "images")
    return config(made / "images", tmp_path / "store", group_key=None)


def damage(path: Path, *, days: float = 0) -> None:
    """Flips a bit of the last number, and lets the file be so many days old."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    seconds = time.time() - days * 86_400
    os.utime(path, (seconds, seconds))


def run(settings: ExtractConfig, capsys: pytest.CaptureFixture[str]) -> tuple[Summary, str]:
    """Runs as the command does: the fast path first."""
    heartbeat = Heartbeat(STDERR)
    summary, plan = look_for_work(settings, heartbeat)
    return summary or extract(settings, heartbeat, plan), capsys.readouterr().err


def assert_told(said: str, path: Path, count: int) -> None:
    text = (
        f"{path} is damaged (its sha256 is not the one in its index table); the {count} rows of its unit are computed"
    )
    assert text in said.replace("\n", " ")


@pytest.mark.parametrize("number", [0, 1])
def test_an_update_does_not_take_damaged_rows_for_good(
    tmp_path: Path, made: Path, settings: ExtractConfig, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One more input goes to the last unit: rows of its first shard stay, and the other unit is linked unread."""
    shutil.copytree(made / "images", tmp_path / "more")
    draw(tmp_path / "more/train/class-0/99999.ppm", 4711)
    settings = dataclasses.replace(settings, data=(str(tmp_path / "more"),), update=True, verify_kept=number == 0)
    shard = settings.out / f"train/shard-{number:05d}.safetensors"
    damage(shard)
    unit_checks.write_times(settings.out, {"index/val-00000.parquet": 5.0})
    summary, said = run(settings, capsys)
    assert unit_checks._read_times(settings.out).keys() >= {"index/val-00000.parquet"}
    assert not summary.up_to_date
    assert_told(said, shard, read_entry(index_files(settings.out)["train", number]).inputs - number)
    fresh = dataclasses.replace(settings, out=tmp_path / "fresh", update=False)
    extract(fresh)
    assert list(verify(settings.out)) == [] == list(verify(fresh.out))
    assert rows(settings.out) == rows(fresh.out)


@pytest.mark.parametrize("flag", [True, False])
def test_a_plain_rerun_reads_the_shards_on_demand_or_once_in_a_month(
    settings: ExtractConfig, flag: bool, capsys: pytest.CaptureFixture[str], made: Path
) -> None:
    shard = settings.out / SHARD
    assert run(settings, capsys)[0].up_to_date and not (settings.out / CHECK_TIMES).exists()
    damage(shard, days=0 if flag else 31)
    (settings.out / CHECK_TIMES).write_text("damaged too")
    summary, said = run(dataclasses.replace(settings, verify_kept=flag), capsys)
    assert not summary.up_to_date
    assert_told(said, shard, 16)
    assert shard.read_bytes() == (made / "store" / SHARD).read_bytes() and list(verify(settings.out)) == []
    before = (settings.out / "manifest.json").read_bytes()
    assert run(settings, capsys)[0].up_to_date and (settings.out / "manifest.json").read_bytes() == before


def test_a_young_shard_is_not_read_and_a_run_reads_no_more_than_its_share(
    settings: ExtractConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest unit is read first; the next run reads the next one, and times go on in the store's file."""
    damage(settings.out / SHARD, days=29)
    assert run(settings, capsys)[0].up_to_date
    monkeypatch.setattr(unit_checks, "BYTES_PER_RUN", 1)
    for path, days in (("val/shard-00000.safetensors", 50), ("train/shard-00001.safetensors", 40), (SHARD, 35)):
        seconds = time.time() - days * 86_400
        os.utime(settings.out / path, (seconds, seconds))
    for count in (1, 2):
        assert run(settings, capsys)[0].up_to_date
        assert len(unit_checks._read_times(settings.out)) == count
    summary, said = run(settings, capsys)
    assert not summary.up_to_date
    assert_told(said, settings.out / SHARD, 16)


@pytest.mark.parametrize("name", ["val/shard-00000.safetensors", "index/val-00000.parquet"])
def test_a_split_that_stays_and_is_damaged_has_to_be_named(
    settings: ExtractConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = bytearray((settings.out / name).read_bytes())
    data[len(data) // 4] ^= 1
    (settings.out / name).write_bytes(data)
    only = dataclasses.replace(settings, data=(f"train={tmp_path / 'images/train'}",), update=True, verify_kept=True)
    draw(tmp_path / "images/train/class-0/99999.ppm", 4711)
    with pytest.raises(ConfigError, match=r"lacks 8 of the 8 inputs of its split 'val'.* --data val=SOURCE") as error:
        run(only, capsys)
    assert name in str(error.value) + capsys.readouterr().err.replace("\n", "")


def test_a_copy_of_a_damaged_shard_is_refused_where_there_are_no_links(
    settings: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the message advises computes its rows again."""

    def link(*args: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    damage(settings.out / SHARD)
    draw(tmp_path / "images/val/class-0/99999.ppm", 4711)
    changed = dataclasses.replace(settings, data=(str(tmp_path / "images"),), update=True)
    with pytest.raises(StoreError, match=r"is damaged.*--verify-kept"):
        extract(changed)
    extract(dataclasses.replace(changed, verify_kept=True))
    assert list(verify(settings.out)) == []


def test_the_writer_checks_what_it_takes_over_once_more(
    settings: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damage comes after the look of the main process, which finds it at the next try."""
    draw(tmp_path / "images/train/class-0/99999.ppm", 4711)
    changed = dataclasses.replace(settings, data=(str(tmp_path / "images"),), update=True)
    shard = settings.out / "train/shard-00001.safetensors"
    damage(shard)
    monkeypatch.setattr(unit_checks.UnitChecks, "damaged_shards", lambda *_: set())
    with pytest.raises(WriterError, match=r"shard-00001\.safetensors: the sha256 is not the one"):
        extract(changed)
    monkeypatch.undo()
    extract(changed)
    assert list(verify(settings.out)) == []


def test_an_update_that_would_drop_much_of_a_split_is_refused(tmp_path: Path, settings: ExtractConfig) -> None:
    """As where a disk below the folder is not mounted; the advice is followed to the letter."""
    shutil.rmtree(tmp_path / "images/train/class-1")
    less = dataclasses.replace(settings, data=(str(tmp_path / "images"),), update=True, max_gone=0.1)
    before = {path: path.read_bytes() for path in settings.out.rglob("*.*") if path.is_file()}
    with pytest.raises(StoreMismatchError, match=r"7 of the 22 inputs of split 'train' are gone .*--max-gone 32%"):
        extract(less)
    assert {path: path.read_bytes() for path in settings.out.rglob("*.*") if path.is_file()} == before
    assert not list(tmp_path.glob(".store*"))
    with pytest.raises(StoreMismatchError, match="are gone"):
        extract(dataclasses.replace(less, max_gone=0.31))
    summary = extract(dataclasses.replace(less, max_gone=0.32))
    assert summary.changes is not None and summary.changes["gone"] == 7


def test_rows_of_an_interrupted_update_that_was_set_aside_are_checked(tmp_path: Path) -> None:
    """Three new rows stood in the unit that it had written, and five in its journal, which has checksums of its own."""
    images, out = folder(tmp_path / "images", 60), tmp_path / "store"
    extract(take_up.config(images, out))
    for number in range(11):
        draw(images / f"train/class-0/00000-{number:02d}.ppm", 4711 + number)
    take_up.interrupt(take_up.config(images, out, update=True), 1)
    shards = list(staging_folder(out).glob("train/*/shard-00002.safetensors"))
    for shard in shards:
        damage(shard)
    take_up.files(images)[30].unlink()
    computed, said = take_up.finish(take_up.config(images, out, update=True))
    assert computed == 11 - 8 + 1 + 3
    assert "embedx-left-1/train/" in said and "is damaged (its sha256 is not the one in its index table)" in said
    extract(take_up.config(images, tmp_path / "fresh"))
    values, fresh = ({key: row[0] for key, row in rows(store).items()} for store in (out, tmp_path / "fresh"))
    assert values == fresh and list(verify(out)) == []


@pytest.mark.parametrize("days", [0, 31])
def test_damage_in_a_store_that_was_updated_is_computed_again_in_its_place(
    settings: ExtractConfig, tmp_path: Path, days: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its units are no longer told by the inputs' places in the plan: here two are gone, and one has come."""
    pictures = sorted((tmp_path / "images/train").rglob("*.ppm"))
    for picture in pictures[1:3]:
        picture.unlink()
    draw(tmp_path / "images/train/class-0/00000.ppm", 4711)
    settings = dataclasses.replace(settings, data=(str(tmp_path / "images"),), update=True)
    assert not run(settings, capsys)[0].up_to_date
    damage(settings.out / SHARD, days=days)
    summary, said = run(dataclasses.replace(settings, update=False, verify_kept=not days), capsys)
    assert not summary.up_to_date
    assert_told(said, settings.out / SHARD, read_entry(index_files(settings.out)["train", 0]).inputs)
    assert list(verify(settings.out)) == []
    fresh = dataclasses.replace(settings, out=tmp_path / "fresh", update=False)
    extract(fresh)
    assert rows(settings.out) == rows(fresh.out)


def test_a_shard_that_no_longer_says_whose_it_is_leaves_nothing(
    settings: ExtractConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The damage is in the header; in the one store the table that names the shard goes first, in the other both."""
    for place, update in ((SHARD, False), ("val/shard-00000.safetensors", True)):
        data = bytearray((settings.out / place).read_bytes())
        data[20] ^= 1
        (settings.out / place).write_bytes(data)
        if update:
            (settings.out / "index/val-00000.parquet").write_bytes(b"")
            draw(tmp_path / "images/train/class-0/99999.ppm", 4711)
        named = dataclasses.replace(settings, data=(str(tmp_path / "images"),), verify_kept=True, update=update)
        assert not run(named, capsys)[0].up_to_date
        assert list(verify(settings.out)) == []
        assert {path.name for path in tmp_path.iterdir()} == {"images", "store"}


def test_a_unit_that_was_put_back_from_an_older_store_is_computed_again(
    settings: ExtractConfig, tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is whole in itself; another unit has lost its shard, so that the manifest is written anew."""
    draw(min((tmp_path / "images/train").rglob("*.ppm")), 4711)
    settings = dataclasses.replace(settings, data=(str(tmp_path / "images"),))
    extract(dataclasses.replace(settings, overwrite=True))
    before = rows(settings.out)
    for path in (SHARD, "index/train-00000.parquet"):
        shutil.copy2(made / "store" / path, Path(str(settings.out / path)))
    (settings.out / "val/shard-00000.safetensors").unlink()
    assert "the sha256 is not the one in manifest.json" in next(iter(verify(settings.out)))
    run(settings, capsys)
    assert rows(settings.out) == before and list(verify(settings.out)) == []
