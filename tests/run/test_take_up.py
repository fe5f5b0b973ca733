"""Runs that end in the middle of a unit: what the next one computes, and that it ends with the same bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import embedx
from embedx import ExtractConfig
from embedx.cli import info
from embedx.errors import ConfigError, Interrupted, StoreMismatchError
from embedx.heartbeat import Heartbeat
from embedx.run.extract import extract
from embedx.store.format.layout import index_files, journal_files, staging_folder
from embedx.store.reading.verify import verify
from tests.run import stopping
from tests.run.test_update import config as config_of
from tests.run.test_update import draw, folder, rows
from tests.runs import digests

COUNT = 45
"""The inputs: units of 16 rows, in batches of eight."""
REJECTED = 18
"""The place of the broken one in the plan: in the second unit."""


def config(root: Path, out: Path, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {"data": (f"train={root / 'train'}",), "backbone": "tests.run.stopping:Stopping"}
    return dataclasses.replace(config_of(root, out), **defaults | settings)


def files(root: Path) -> list[Path]:
    """The inputs in the order of the plan."""
    return sorted((root / "train").rglob("*.ppm"))


def interrupt(settings: ExtractConfig, batch: int) -> str:
    """What a run says that is interrupted at this batch."""
    said = io.StringIO()
    stopping.stop_at = batch
    with pytest.raises(Interrupted):
        extract(settings, Heartbeat(Console(file=said, width=200)))
    return said.getvalue()


def finish(settings: ExtractConfig) -> tuple[int, str]:
    """The number of inputs that a run computes, and what it says."""
    said = io.StringIO()
    timings = extract(settings, Heartbeat(Console(file=said, width=200))).timings
    return int(timings["inputs"]), said.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = folder(tmp_path / "images", 60)
    assert len(files(root)) == COUNT
    files(root)[REJECTED].write_bytes(b"P6 8 8 255\n")
    return root


def test_the_rows_of_a_unit_under_way_are_kept_and_told_and_not_computed_again(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    assert "24 of 45 rows are kept" in interrupt(config(images, out), 3)
    assert list(index_files(out)) == [("train", 0)] and list(journal_files(out)) == [("train", 1)]
    info.command(out)
    assert "no, 24 of 45: run the same" in capsys.readouterr().out
    info.command(out, as_json=True)
    assert json.loads(capsys.readouterr().out)["kept"] == {"inputs": 24, "of": 45}
    assert [fault for fault in verify(out) if "not complete" not in fault] == []
    assert len(embedx.open(out).load("train")) == 16

    said = interrupt(config(images, out), 0)  # nothing is lost by one that computes nothing
    assert "goes on: 24 of 45 rows are there" in said and "24 of 45 rows are kept" not in said
    said = interrupt(config(images, out), 2)
    assert "goes on: 24 of 45 rows are there" in said and "40 of 45 rows are kept" in said
    computed, said = finish(config(images, out))
    assert computed == 5 and "goes on: 40 of 45 rows are there" in said
    assert not journal_files(out)

    extract(config(images, tmp_path / "fresh"))
    assert digests(out) == digests(tmp_path / "fresh")
    assert embedx.open(out).index()["status"].to_pylist().count("rejected") == 1
    info.command(out, as_json=True)
    assert json.loads(capsys.readouterr().out)["kept"] is None


def test_a_unit_that_was_journalled_to_its_end_is_committed_and_nothing_is_computed(
    tmp_path: Path, images: Path
) -> None:
    """The last unit is full with less than the rows of a unit, so that the writer can't tell that it is."""
    out = tmp_path / "store"
    interrupt(config(images, out, batch_size=4, shard_size=2**24), 5)
    settings = config(images, out, batch_size=4, shard_size=2**24)
    for path in files(images)[20:]:
        path.unlink()
    computed, said = finish(settings)
    assert computed == 0 and "goes on: 20 of 20 rows are there" in said
    extract(config(images, tmp_path / "fresh", batch_size=4, shard_size=2**24))
    assert digests(out) == digests(tmp_path / "fresh") and list(verify(out)) == []


def nothing(root: Path) -> None:
    pass


def change_one(root: Path) -> None:
    draw(files(root)[3], 4711)
    os.utime(files(root)[3], ns=(1, 1))


def add_the_first(root: Path) -> None:
    draw(root / "train/class-0/00000-first.ppm", 4712)


def remove_the_first(root: Path) -> None:
    files(root)[0].unlink()


def move_all(root: Path) -> None:
    (root / "train").rename(root / "moved")
    (root / "train").symlink_to(root / "moved")


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (nothing, 45 - 8),
        (change_one, 45 - 7),
        (add_the_first, 46 - 8),
        (remove_the_first, 44 - 7),
        (move_all, 45 - 8),
    ],
)
def test_rows_are_taken_up_as_far_as_their_inputs_are_as_they_were(
    tmp_path: Path, images: Path, change: Callable[[Path], None], computed: int
) -> None:
    """Where nothing is committed, a run may have other inputs; rows are found by their keys, wherever they are now."""
    out = tmp_path / "store"
    interrupt(config(images, out), 1)
    change(images)
    assert not index_files(out)
    assert finish(config(images, out))[0] == computed
    extract(config(images, tmp_path / "fresh"))
    assert digests(out) == digests(tmp_path / "fresh")
    assert list(verify(out)) == []


def test_an_update_takes_the_rows_of_the_store_that_was_not_finished_and_its_own(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "store"
    interrupt(config(images, out), 3)
    add_the_first(images)
    with pytest.raises(StoreMismatchError, match="--update"):
        extract(config(images, out))
    settings = config(images, out, update=True)
    interrupt(settings, 2)
    assert list(journal_files(staging_folder(out))) and list(journal_files(out))
    computed, said = finish(settings)
    assert computed == 46 - 16 - 8 - 2 * 8 and "goes on: 40 of 46 rows are there" in said
    extract(config(images, tmp_path / "fresh"))
    assert {key: value[0] for key, value in rows(out).items()} == {
        key: value[0] for key, value in rows(tmp_path / "fresh").items()
    }
    assert list(verify(out)) == [] and not journal_files(out)


def test_an_update_of_other_inputs_takes_the_rows_of_an_interrupted_one(tmp_path: Path, images: Path) -> None:
    """Of its unit, which is set aside, and of its journal, as far as the rows are in the same unit again."""
    out = tmp_path / "store"
    extract(config(images, out))
    for number in range(11):  # three have room in the last unit, eight are in a new one
        draw(images / f"train/class-0/00000-{number:02d}.ppm", 4711 + number)
    interrupt(config(images, out, update=True), 1)
    assert list(journal_files(staging_folder(out))) == [("train", 3)]
    files(images)[30].unlink()  # the first has its place, so that one moves from the new unit into the last
    assert finish(config(images, out, update=True))[0] == 11 - 8 + 1
    extract(config(images, tmp_path / "fresh"))
    assert {key: value[0] for key, value in rows(out).items()} == {
        key: value[0] for key, value in rows(tmp_path / "fresh").items()
    }
    assert list(verify(out)) == [] and [path for path in tmp_path.iterdir() if "embedx-left" in path.name] == []


def test_an_overwrite_takes_up_its_own_rows_and_none_of_the_store_that_it_replaces(
    tmp_path: Path, images: Path
) -> None:
    out = tmp_path / "store"
    interrupt(config(images, out), 3)
    settings = config(images, out, overwrite=True)
    assert "24 of 45 rows are kept" in interrupt(settings, 3)
    computed, said = finish(settings)
    assert computed == 45 - 24 and "goes on: 24 of 45" in said
    extract(config(images, tmp_path / "fresh"))
    assert digests(out) == digests(tmp_path / "fresh") and list(verify(out)) == []


def test_rejected_rows_are_taken_up_unless_they_are_to_be_tried_again(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "store"
    interrupt(config(images, out), 3)
    assert finish(config(images, out, retry_rejected=True))[0] == 45 - 24 + 1
    extract(config(images, tmp_path / "fresh"))
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_damaged_journal_is_told_and_what_it_had_is_computed_again(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "store"
    interrupt(config(images, out), 3)
    ((path,),) = journal_files(out).values()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    computed, said = finish(config(images, out))
    assert computed == 45 - 16 and str(path) in said and "its sha256 is wrong" in said, said
    extract(config(images, tmp_path / "fresh"))
    assert digests(out) == digests(tmp_path / "fresh")


def test_another_recipe_is_refused_as_it_is_where_a_unit_is_committed(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "store"
    interrupt(config(images, out), 1)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(StoreMismatchError, match=r"recipe.dtype: float32 → float16"):
        extract(config(images, out, dtype="float16"))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_rows_of_a_split_that_no_run_names_any_more_stay_where_only_a_journal_has_them(
    tmp_path: Path, images: Path
) -> None:
    """Neither a run of another split nor one of other inputs begins the store anew."""
    out, both = tmp_path / "store", (f"train={images / 'train'}", f"val={images / 'val'}")
    interrupt(config(images, out, data=both[:1]), 1)
    told = "store lacks 45 of the 45 inputs of its split 'train', which --data does not name"
    with pytest.raises(ConfigError, match=told):
        extract(config(images, out, data=both[1:]))
    told = r"where 8 rows of split 'train' are computed \(such as 'class-0/00003.ppm'\): name those again"
    with pytest.raises(ConfigError, match=told):
        extract(config(images, out, data=(f"train={folder(tmp_path / 'others', 4) / 'val'}",)))
    assert finish(config(images, out, data=both[:1]))[0] == 45 - 8
    interrupt(config(images, tmp_path / "two", data=both), 7)  # train is whole, and val journalled
    with pytest.raises(ConfigError, match="lacks 15 of the 15 inputs of its split 'val'"):
        extract(config(images, tmp_path / "two", data=both[:1]))
    assert finish(config(images, tmp_path / "two", data=both))[0] == 15 - 8


def test_the_rows_of_an_interrupted_update_of_one_split_outlive_that_of_another(tmp_path: Path, images: Path) -> None:
    out, named = tmp_path / "store", {name: f"{name}={images / name}" for name in ("train", "val")}
    extract(config(images, out, data=(named["train"],)))
    interrupt(config(images, out, data=(named["val"],), update=True), 1)
    draw(images / "train/class-0/00000-first.ppm", 4712)
    assert finish(config(images, out, data=(named["train"],), update=True))[0] == 1
    assert [path.name for path in tmp_path.glob(".*")] == [".store.embedx-left-1"]
    computed, said = finish(config(images, out, data=(named["val"],), update=True))
    assert computed == 15 - 8 and "goes on: 54 of 61 rows are there" in said
    assert list(verify(out)) == [] and not list(tmp_path.glob(".*"))
