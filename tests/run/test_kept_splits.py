"""Splits of a store that a run does not name: they stay, unless it says which of them to drop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import embedx
from embedx import ExtractConfig
from embedx.errors import ConfigError, StoreMismatchError
from embedx.run.extract import extract
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from tests.run.test_metadata import index, inodes
from tests.run.test_update import changes, config, draw, rows


def images(root: Path, split: str, classes: str, count: int, first: int = 0) -> str:
    """So many images in classes of one letter, as a `--data` that names the split."""
    for number in range(first, first + count):
        draw(root / split / classes[number % len(classes)] / f"{number:03}.ppm", number)
    return f"{split}={root / split}"


def begun(tmp_path: Path) -> tuple[ExtractConfig, str, str]:
    """A store of the splits train, of two units, and val, and the `--data` of both."""
    train, val = images(tmp_path, "train", "bd", 20), images(tmp_path, "val", "b", 5, first=100)
    settings = dataclasses.replace(config(tmp_path, tmp_path / "store"), data=(train, val))
    extract(settings)
    return settings, train, val


def test_a_split_is_added_to_those_there_are_and_all_classes_are_numbered_together(tmp_path: Path) -> None:
    settings, train, val = begun(tmp_path)
    before = inodes(settings.out)
    test = images(tmp_path, "test", "ce", 6, first=200)
    alone = dataclasses.replace(settings, data=(test,))
    with pytest.raises(StoreMismatchError, match=r"6 new \(such as 'c/200.ppm'\), 10 relabelled .*, 15 unch.*--update"):
        extract(alone)
    assert inodes(settings.out) == before
    summary = extract(dataclasses.replace(alone, update=True))
    assert summary.kept == ("train", "val") and summary.timings["inputs"] == 6
    assert changes(summary) == {"new": 6, "relabelled": 10, "unchanged": 15}  # d is the third class now
    assert {name: totals.rows for name, totals in summary.totals.items()} == {"train": 20, "val": 5, "test": 6}
    fresh = dataclasses.replace(settings, out=tmp_path / "fresh", data=(train, val, test))
    extract(fresh)
    assert rows(settings.out) == rows(fresh.out) and list(verify(settings.out)) == []
    assert embedx.open(settings.out).splits == ["train", "val", "test"]
    assert embedx.compare(settings.out, fresh.out).overlap["val"].compared == 5
    assert Manifest.read(settings.out).plan.classes == Manifest.read(fresh.out).plan.classes == tuple("bcde")
    for data in ((test,), (val,), (train, val, test)):
        assert extract(dataclasses.replace(settings, data=data)).up_to_date


def test_a_split_that_is_not_named_is_left_alone_whatever_becomes_of_its_inputs(tmp_path: Path) -> None:
    settings, train, _ = begun(tmp_path)
    (tmp_path / "val").rename(tmp_path / "away")
    before = inodes(settings.out)
    only = dataclasses.replace(settings, data=(train,))
    for again in (
        only,
        dataclasses.replace(only, update=True),
        dataclasses.replace(only, retry_rejected=True),
    ):
        summary = extract(again)
        assert summary.up_to_date and summary.kept == ("val",)
    assert inodes(settings.out) == before
    (tmp_path / "train/b/000.ppm").unlink()
    draw(tmp_path / "train/d/new.ppm", 500)
    summary = extract(dataclasses.replace(only, update=True))
    assert changes(summary) == {"new": 1, "gone": 1, "unchanged": 24}
    now = inodes(settings.out)
    assert all(before[name] == now[name] for name in before if "val" in name) and list(verify(settings.out)) == []


def test_a_split_is_dropped_where_it_is_named_and_renamed_without_computing(tmp_path: Path) -> None:
    settings, _, val = begun(tmp_path)
    given: dict[str, Any]
    for given, told in (
        ({"drop_split": ("val",)}, "--drop-split changes a store that is there; give --update too"),
        ({"drop_split": ("vla",), "update": True}, "--drop-split vla: .*/store has the splits train, val"),
        ({"drop_split": ("val",), "update": True}, "--drop-split val: --data names that split too"),
        ({"drop_split": ("val", "train"), "update": True, "data": ()}, "--drop-split leaves .*/store no split"),
        ({"drop_split": ("val",), "update": True, "out": tmp_path / "none"}, "--drop-split val: .*/none has no splits"),
    ):
        with pytest.raises(ConfigError, match=told):
            extract(dataclasses.replace(settings, **given))
    (tmp_path / "val").rename(tmp_path / "validation")
    renamed = (val.replace("val", "validation"),)
    summary = extract(dataclasses.replace(settings, data=renamed, update=True, drop_split=("val",)))
    assert changes(summary) == {"renamed": 5, "unchanged": 20} and summary.timings["inputs"] == 0
    assert embedx.open(settings.out).splits == ["train", "validation"] and summary.kept == ("train",)
    summary = extract(dataclasses.replace(settings, data=(), update=True, drop_split=("train",)))
    assert changes(summary) == {"gone": 20, "unchanged": 5} and summary.timings["inputs"] == 0
    assert set(summary.totals) == {"validation"} and list(verify(settings.out)) == []
    assert {path.name for path in settings.out.iterdir() if path.is_dir()} == {"index", "validation"}
    assert extract(dataclasses.replace(settings, data=renamed)).up_to_date


def test_an_unfinished_store_is_finished_without_the_splits_that_are_whole_and_not_without_others(
    tmp_path: Path,
) -> None:
    settings, train, val = begun(tmp_path)
    whole = inodes(settings.out)
    (settings.out / "index/train-00001.parquet").unlink()  # as a run leaves them that was killed
    manifest = Manifest.read(settings.out)
    dataclasses.replace(manifest, complete=False, totals={}, index={}).write(settings.out)
    told = r"store lacks 4 of the 20 inputs of its split 'train', which --data does not name; name it again"
    for update in (False, True):
        with pytest.raises(ConfigError, match=told):
            extract(dataclasses.replace(settings, data=(val,), update=update))
    summary = extract(dataclasses.replace(settings, data=(train,)))
    assert summary.timings["inputs"] == 4 and summary.kept == ("val",) and summary.changes is None
    now = inodes(settings.out)
    assert now.keys() == whole.keys() and list(verify(settings.out)) == []
    assert {name for name in whole if whole[name] == now[name]} >= {name for name in whole if "val" in name}


def test_rejected_inputs_are_tried_again_only_in_splits_that_are_named(tmp_path: Path) -> None:
    train, val = images(tmp_path, "train", "bd", 6), images(tmp_path, "val", "b", 5, first=100)
    for broken in ("train/b/000.ppm", "val/b/100.ppm"):
        (tmp_path / broken).write_bytes(b"?")
    settings = dataclasses.replace(config(tmp_path, tmp_path / "store", retry_rejected=True), data=(train, val))
    extract(settings)
    before = inodes(settings.out)
    summary = extract(dataclasses.replace(settings, data=(train,)))
    assert changes(summary) == {"retried": 1, "unchanged": 10} and summary.rejected == 2
    now = inodes(settings.out)
    assert {name for name in before if before[name] == now[name]} >= {name for name in before if "val" in name}
    assert sorted(
        key
        for key, status in zip(*index(settings.out).select(["key", "status"]).to_pydict().values(), strict=True)
        if status == "rejected"
    ) == ["b/000.ppm", "b/100.ppm"]
