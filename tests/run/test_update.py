"""Stores whose inputs change: what is told, what is computed, and what readers see."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedx
from embedx import ExtractConfig, sample
from embedx.errors import ConfigError, StoreMismatchError
from embedx.run.extract import extract
from embedx.run.summary import Summary
from embedx.run.up_to_date import look_for_work
from embedx.store.format.index import read_entry, read_index, write_index
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from tests.runs import digests

SIDE = 8


def draw(path: Path, color: int) -> None:
    """An image of one colour, as PPM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = bytes((color % 256, color // 256 % 256, 77)) * (SIDE * SIDE)
    path.write_bytes(b"P6 %d %d 255\n" % (SIDE, SIDE) + pixels)


def folder(root: Path, count: int) -> Path:
    """So many images in two splits and three classes, no two alike."""
    for number in range(count):
        draw(root / ("val" if number % 4 == 0 else "train") / f"class-{number % 3}" / f"{number:05d}.ppm", number)
    return root


def config(root: Path, out: Path, **settings: Any) -> ExtractConfig:
    """The backbone is the image itself, in units of 16 rows."""
    defaults: dict[str, Any] = {
        "backbone": "torch.nn:Flatten",
        "image_size": SIDE,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "batch_size": 8,
        "workers": 0,
        "group_key": "class",
        "max_gone": 1.0,
        "shard_size": 16 * (SIDE * SIDE * 3 * 4 + 8),
    }
    return ExtractConfig(data=(str(root),), out=out, **defaults | settings)


def rows(out: Path) -> dict[tuple[str, str], tuple[object, ...]]:
    """What a reader sees of every input, whatever its place."""
    store = embedx.open(out)
    found = {}
    for split in store.splits:
        loaded = store.load(split)
        columns = [
            loaded.table[name].to_pylist() for name in ("path", "group", "target", "bytes", "mtime_ns", "sha256")
        ]
        for number, key in enumerate(loaded.keys):
            found[split, key] = (loaded.embeddings[number].tobytes(), *(column[number] for column in columns))
    return found


def assert_as_if_made_anew(root: Path, out: Path, fresh: Path) -> None:
    """The store has the rows that a new one has, and is whole."""
    extract(config(root, fresh))
    assert rows(out) == rows(fresh)
    assert list(verify(out)) == []
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".")) == []


def changes(summary: Summary) -> dict[str, int]:
    return {name: count for name, count in (summary.changes or {}).items() if count}


def change_some(root: Path, each: int) -> None:
    """So many inputs are new, changed, gone and renamed, all over the folder."""
    paths = sorted(root.rglob("*.ppm"))
    chosen = random.Random(4).sample(paths, 3 * each)
    for number, path in enumerate(chosen):
        if number < each:
            path.unlink()
        elif number < 2 * each:
            draw(path, 40_000 + number)
        else:
            path.rename(path.with_stem(f"{path.stem}-renamed"))
    for number in range(each):
        draw(paths[number].with_name(f"new-{number}.ppm"), 50_000 + number)


def test_an_update_computes_what_is_new_or_changed_and_nothing_else(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 200), tmp_path / "store"
    extract(config(root, out))
    before = digests(out)
    change_some(root, each=3)
    told = r"3 new \(such as '.*'\), 3 changed \(.*\), 3 gone \(.*\), 3 renamed \(.*\), 191 unchanged; .* --update"
    with pytest.raises(StoreMismatchError, match=told):
        extract(config(root, out))
    assert digests(out) == before and list(verify(out)) == []
    summary = extract(config(root, out, update=True))
    assert changes(summary) == {"new": 3, "changed": 3, "gone": 3, "renamed": 3, "unchanged": 191}
    assert summary.timings["inputs"] == 6 and not summary.up_to_date
    assert len(before.items() & digests(out).items()) > len(before) / 3  # units without a change are as they were
    assert_as_if_made_anew(root, out, tmp_path / "fresh")
    for settings in ({}, {"update": True}, {"retry_rejected": True}):
        assert extract(config(root, out, **settings)).up_to_date


@pytest.mark.soak
def test_an_update_of_5000_inputs_computes_20(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 5000), tmp_path / "store"
    extract(config(root, out))
    change_some(root, each=10)
    summary = extract(config(root, out, update=True))
    assert changes(summary) == {"new": 10, "changed": 10, "gone": 10, "renamed": 10, "unchanged": 4970}
    assert summary.timings["inputs"] == 20
    assert len(embedx.open(out).index()) == 5000
    assert_as_if_made_anew(root, out, tmp_path / "fresh")


@pytest.mark.soak
def test_updates_again_and_again_lose_nothing_and_leave_few_units(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 100), tmp_path / "store"
    extract(config(root, out))
    for round_ in range(6):
        chosen = random.Random(round_).sample(sorted(root.rglob("*.ppm")), 16)
        for path in chosen[:8]:
            path.unlink()
        for number, path in enumerate(chosen[8:]):
            draw(path.with_name(f"{round_}-{number}.ppm"), 1000 * round_ + number + 10_000)
        assert changes(extract(config(root, out, update=True))) == {"new": 8, "gone": 8, "unchanged": 92}
    assert_as_if_made_anew(root, out, tmp_path / "fresh")
    assert len(embedx.open(out).manifest.updates) == 6
    assert len(embedx.open(out).units) <= len(embedx.open(tmp_path / "fresh").units) + 1


def test_inputs_that_move_to_another_class_or_split_are_not_computed_again(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 60), tmp_path / "store"
    extract(config(root, out))
    (root / "train/class-0").rename(root / "train/a-class")  # now another number for each of the classes
    for path in sorted((root / "val/class-1").iterdir()):
        path.rename(root / "train/class-1" / path.name)
    (root / "train/class-2/00002.ppm").rename(root / "val/class-2/00002.ppm")
    summary = extract(config(root, out, update=True))
    assert summary.timings["inputs"] == 0
    assert changes(summary) == {"renamed": 15 + 5 + 1, "relabelled": 60 - 21}
    assert_as_if_made_anew(root, out, tmp_path / "fresh")


def test_files_that_were_touched_or_copied_are_read_and_found_the_same(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 20), tmp_path / "store"
    extract(config(root, out))
    before = digests(out)
    for path in root.rglob("*.ppm"):
        os.utime(path)
    assert extract(config(root, out)).up_to_date
    assert digests(out) == before
    draw(root / "train/class-1/00001.ppm", 777)
    with pytest.raises(StoreMismatchError, match=r"inputs .*: 1 changed \(such as 'class-1/00001.ppm'\), 19 unchanged"):
        extract(config(root, out))


def test_an_unfinished_store_is_updated_too(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 100), tmp_path / "store"
    extract(config(root, out))
    for unit in (1, 3):  # as a run leaves them that was killed between shards and index table
        (out / f"index/train-0000{unit}.parquet").unlink()
    (root / "val/class-0/00000.ppm").unlink()
    summary = extract(config(root, out, update=True))
    assert changes(summary) == {"new": 32, "gone": 1, "unchanged": 67} and summary.timings["inputs"] == 32
    assert_as_if_made_anew(root, out, tmp_path / "fresh")


@pytest.mark.parametrize("lost", ["index/train-00001.parquet", "train/*/shard-00001.safetensors"])
def test_a_store_that_was_updated_is_mended_where_it_is_damaged(tmp_path: Path, lost: str) -> None:
    root, out, weights = folder(tmp_path / "images", 100), tmp_path / "store", tmp_path / "weights.safetensors"
    shutil.copyfile(sample.CHECKPOINT, weights)
    # A backbone without code of its own, of which it is found out in short whether there is something to do.
    settings = config(root, out, backbone=sample.BACKBONE, checkpoint=weights, image_size=32)
    extract(settings)
    change_some(root, each=4)
    extract(dataclasses.replace(settings, update=True))
    before = digests(out)
    assert look_for_work(settings)[0] is not None
    min(out.glob(lost)).unlink()
    assert look_for_work(settings)[0] is None
    summary = extract(settings)
    assert list(changes(summary)) == ["pending", "unchanged"]
    assert summary.timings["inputs"] == changes(summary)["pending"]
    assert digests(out) == before and list(verify(out)) == []


def test_a_rerun_of_a_store_that_has_lost_a_whole_unit_computes_nothing(tmp_path: Path) -> None:
    """The backbone is code, of which only a whole run can tell whether there is something to do."""
    root = tmp_path / "images"
    for number in range(40):
        draw(root / f"{number:05d}.ppm", number)
    settings = config(root, tmp_path / "store", group_key=None)
    extract(settings)
    for number in range(16):
        (root / f"{number:05d}.ppm").unlink()
    assert changes(extract(dataclasses.replace(settings, update=True))) == {"gone": 16, "unchanged": 24}
    before = digests(settings.out)
    for again in (settings, dataclasses.replace(settings, retry_rejected=True, verify_kept=True)):
        assert extract(again).up_to_date and digests(settings.out) == before
    assert list(verify(settings.out)) == []


def test_what_was_stored_under_another_name_is_not_computed_again(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 40), tmp_path / "store"
    extract(config(root, out))
    paths = sorted((root / "train/class-1").iterdir())
    for path, following in zip(reversed(paths[:-1]), reversed(paths[1:]), strict=True):
        path.replace(following)  # the last is gone, the others have moved by one name
    one, other = sorted((root / "val/class-0").iterdir())[:2]
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)
    draw(root / "train/class-2/copy.ppm", 5)  # of one that stands where it stood: cheaper computed than looked for
    summary = extract(config(root, out, update=True))
    assert changes(summary) == {"new": 1, "changed": len(paths) + 1, "gone": 1, "unchanged": 40 - len(paths) - 2}
    assert summary.timings["inputs"] == 1
    assert_as_if_made_anew(root, out, tmp_path / "fresh")


def test_rejected_inputs_are_tried_again_where_that_is_asked_for(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 40), tmp_path / "store"
    broken = [root / "train/class-1/00001.ppm", root / "train/class-2/00002.ppm"]
    whole = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(b"?" * len(whole[path]))
    assert extract(config(root, out)).rejected == 2
    times = broken[0].stat().st_atime_ns, broken[0].stat().st_mtime_ns
    broken[0].write_bytes(whole[broken[0]])
    os.utime(broken[0], ns=times)  # to all appearance nothing has changed, as where a share was away for a while
    assert extract(config(root, out)).up_to_date and extract(config(root, out, update=True)).up_to_date
    summary = extract(config(root, out, retry_rejected=True))
    assert changes(summary) == {"retried": 2, "unchanged": 38}
    assert summary.rejected == 1 and summary.timings["inputs"] == 2
    assert_as_if_made_anew(root, out, tmp_path / "fresh")


def test_an_update_needs_the_recipe_of_the_store(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 8), tmp_path / "store"
    assert extract(config(root, out, update=True)).changes is None  # there is none yet
    draw(root / "val/class-0/new.ppm", 999)
    with pytest.raises(StoreMismatchError, match=r"recipe\.normalize: False → True"):
        extract(config(root, out, update=True, normalize=True))
    with pytest.raises(ConfigError, match="--overwrite begins a store anew, and --update goes on with it"):
        extract(config(root, out, update=True, overwrite=True))


def test_what_an_interrupted_update_left_is_used_or_removed(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 60), tmp_path / "store"
    extract(config(root, out))
    shutil.copytree(out, tmp_path / "old")
    change_some(root, each=2)
    extract(config(root, out, update=True))
    done = digests(out)
    staging = tmp_path / ".store.embedx-new"
    shutil.copytree(out, staging)
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "old", out)
    (staging / "index/train-00002.parquet").unlink()
    summary = extract(config(root, out, update=True))
    assert summary.timings["inputs"] < 4 and digests(out) == done
    shutil.copytree(tmp_path / "old", staging)
    (staging / "manifest.json").unlink()  # as where the old store's removal was interrupted
    assert extract(config(root, out)).up_to_date
    assert not staging.exists() and list(verify(out)) == []


def test_what_an_interrupted_update_has_computed_is_taken_up_by_one_of_other_inputs(tmp_path: Path) -> None:
    root, out, staging = folder(tmp_path / "images", 60), tmp_path / "store", tmp_path / ".store.embedx-new"
    extract(config(root, out))
    shutil.copytree(out, tmp_path / "old")
    for number in range(40):
        draw(root / f"train/class-1/new-{number}.ppm", 50_000 + number)
    extract(config(root, out, update=True))
    out.rename(staging)
    (tmp_path / "old").rename(out)
    table = staging / "index/train-00003.parquet"  # the update was interrupted before it
    lost = sum("new-" in key for key in pq.read_table(table)["key"].to_pylist())
    table.unlink()
    draw(root / "train/class-1/new-1.ppm", 60_000)
    draw(root / "val/class-0/new.ppm", 60_001)
    summary = extract(config(root, out, update=True))
    assert changes(summary) == {"new": 41, "unchanged": 60} and summary.timings["inputs"] in (lost + 1, lost + 2)
    assert_as_if_made_anew(root, out, tmp_path / "fresh")
    assert 0 < lost < 38


def test_what_an_interrupted_run_of_another_recipe_has_computed_is_not_removed(tmp_path: Path) -> None:
    root, out = folder(tmp_path / "images", 8), tmp_path / "store"
    extract(config(root, out))
    extract(config(root, tmp_path / ".store.embedx-new", normalize=True))  # as an interrupted --overwrite leaves it
    draw(root / "val/class-0/new.ppm", 999)
    with pytest.raises(
        StoreMismatchError, match=r"left units of another recipe in .*embedx-new; run that command again"
    ):
        extract(config(root, out, update=True))
    assert list(verify(tmp_path / ".store.embedx-new")) == []


def test_what_was_rejected_for_time_is_tried_once_more_by_the_next_run_alone(tmp_path: Path) -> None:
    """The reasons are put into the index here, as of a run that was short of time or memory; the pictures are sound."""
    root, out = folder(tmp_path / "images", 8), tmp_path / "out"
    for number in (1, 2, 3):
        next(root.rglob(f"{number:05d}.ppm")).write_bytes(b"no picture")
    extract(config(root, out))
    reasons = {1: "no end within --timeout", 2: "decoder crashed: SIGSEGV (tried twice)", 3: "too large for the memory"}
    manifest = Manifest.read(out)
    index = dict(manifest.index)
    for relative in index:
        rows, entry = read_index(out / relative), read_entry(out / relative)
        told = [
            reason and reasons[int(Path(key).stem)]
            for key, reason in zip(rows["key"].to_pylist(), rows["reason"].to_pylist(), strict=True)
        ]
        at = rows.schema.get_field_index("reason")
        write_index(out, rows.set_column(at, rows.schema.field("reason"), pa.array(told, pa.string())), entry)
        index[relative] = hashlib.sha256((out / relative).read_bytes()).hexdigest()
    dataclasses.replace(manifest, index=index).write(out)
    assert list(verify(out)) == []

    again = extract(config(root, out))
    assert changes(again) == {"retried": 1, "unchanged": 7} and (again.rows, again.rejected) == (5, 3)
    found = {row["key"]: row["reason"] for row in embedx.open(out).index("train").to_pylist() if row["reason"]}
    assert {Path(key).stem: reason for key, reason in found.items() if not key.endswith("00001.ppm")} == {
        "00002": reasons[2],
        "00003": reasons[3],
    }
    assert extract(config(root, out)).up_to_date and list(verify(out)) == []
