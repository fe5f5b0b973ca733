"""Stores whose manifest is gone or damaged: it is written anew, and the owner's next run goes on as if nothing was."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import embedx
from embedx import ExtractConfig
from embedx.cli.app import run
from embedx.errors import ConfigError, NotAStoreError, StoreError, StoreLockedError, StoreMismatchError
from embedx.run.extract import extract
from embedx.store.format.index import read_entry, read_index
from embedx.store.format.layout import MANIFEST
from embedx.store.format.manifest import Manifest
from embedx.store.reading.verify import verify
from embedx.store.writing.lock import StoreLock
from embedx.store.writing.repair import repair
from tests.run.test_kept_splits import images
from tests.run.test_update import config
from tests.runs import digests
from tests.store.builders import build_store


def flip(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


SPOILED: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": lambda path: flip(path, path.stat().st_size // 3),
}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """Two splits, the first in two units, in groups, with classes."""
    root = tmp_path_factory.mktemp("extracted")
    data = images(root, "train", "bd", 20), images(root, "val", "b", 5, first=100)
    settings = dataclasses.replace(config(root, root / "store"), data=data, group_key="class")
    extract(settings)
    return settings


@pytest.fixture
def settings(extracted: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """The same with a store of its own."""
    shutil.copytree(extracted.out, tmp_path / "store")
    return dataclasses.replace(extracted, out=tmp_path / "store")


def shards(store: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(store).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_manifest_is_written_anew_and_the_next_run_finds_all_there(settings: ExtractConfig, kind: str) -> None:
    store = settings.out
    before, files = Manifest.read(store), shards(store)
    SPOILED[kind](store / MANIFEST)
    with pytest.raises(StoreError, match="embedx repair"):
        embedx.open(store)
    with pytest.raises(ConfigError, match="embedx repair"):
        extract(settings)
    done = repair(store)
    assert done.wrote and done.complete and (done.units, done.rows, done.damaged) == (3, 25, ())
    assert list(verify(store)) == []
    found = Manifest.read(store)
    assert (found.recipe, found.totals, found.index, found.updates) == (before.recipe, before.totals, before.index, [])
    assert extract(settings).up_to_date and shards(store) == files and list(verify(store)) == []
    after = Manifest.read(store)
    assert (after.plan, after.complete, after.settings.stated["data"]) == (before.plan, True, list(settings.data))
    assert extract(settings).up_to_date and not repair(store).wrote


def test_a_damaged_shard_stays_until_its_unit_may_be_dropped_and_is_computed_again(settings: ExtractConfig) -> None:
    store, files = settings.out, shards(settings.out)
    shard = next(name for name in files if name.startswith("train/") and "00001" in name)
    (store / MANIFEST).unlink()
    flip(store / shard)
    there = digests(store)
    with pytest.raises(StoreError, match=rf"(?s)1 of its 3 units is damaged, .*--drop-damaged.*{shard}"):
        repair(store)
    assert digests(store) == there
    done = repair(store, drop_damaged=True)
    assert (done.units, len(done.damaged), done.complete) == (2, 1, False) and shard in done.damaged[0]
    assert not (store / "index/train-00001.parquet").exists() and not (store / shard).exists()
    summary = extract(settings)
    assert summary.timings["inputs"] == 4 and shards(store) == files and list(verify(store)) == []


def test_other_inputs_than_those_of_a_repaired_store_are_still_told_apart(
    settings: ExtractConfig, tmp_path: Path
) -> None:
    data = images(tmp_path, "train", "bd", 20), images(tmp_path, "val", "b", 5, first=100)
    settings = dataclasses.replace(settings, data=data)
    (settings.out / MANIFEST).unlink()
    (settings.out / "index/train-00001.parquet").unlink()
    assert repair(settings.out).units == 2
    images(tmp_path, "train", "a", 1)  # the first in the plan, which moves all others
    before = digests(settings.out)
    with pytest.raises(StoreMismatchError, match=r"5 new .*--update"):
        extract(settings)
    assert digests(settings.out) == before
    assert extract(dataclasses.replace(settings, update=True)).timings["inputs"] == 5
    assert list(verify(settings.out)) == [] and len(embedx.open(settings.out)) == 26


def test_a_damaged_table_of_a_store_whose_manifest_is_whole_is_dropped_too(settings: ExtractConfig) -> None:
    store, files = settings.out, shards(settings.out)
    flip(store / "index/val-00000.parquet", 100)
    done = repair(store, drop_damaged=True)
    assert (done.manifest, done.wrote, done.complete) == ("whole", True, False) and "val-00000" in done.damaged[0]
    assert extract(settings).timings["inputs"] == 5
    assert shards(store) == files and list(verify(store)) == []


def test_an_updated_store_goes_on_by_comparing_its_inputs(settings: ExtractConfig, tmp_path: Path) -> None:
    data = images(tmp_path, "train", "bd", 20), images(tmp_path, "val", "b", 5, first=100)
    settings = dataclasses.replace(settings, data=data, update=True)
    (tmp_path / "train/b/000.ppm").unlink()
    images(tmp_path, "train", "a", 3, first=300)
    extract(settings)
    (settings.out / MANIFEST).unlink()
    files = shards(settings.out)
    assert repair(settings.out).complete and list(verify(settings.out)) == []
    assert extract(dataclasses.replace(settings, update=False)).up_to_date
    assert shards(settings.out) == files and list(verify(settings.out)) == []


def test_without_index_tables_nothing_can_be_known(settings: ExtractConfig) -> None:
    shutil.rmtree(settings.out / "index")
    (settings.out / MANIFEST).unlink()
    before = digests(settings.out)
    with pytest.raises(NotAStoreError, match="has no index table, from which its manifest could be written"):
        repair(settings.out)
    assert digests(settings.out) == before


def test_units_of_two_recipes_are_told_apart_by_their_owner(settings: ExtractConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(settings, out=tmp_path / "other", dtype="float16")
    extract(other)
    for name in ("val", "index/val-00000.parquet"):
        move = shutil.rmtree if (settings.out / name).is_dir() else Path.unlink
        move(settings.out / name)
        (other.out / name).rename(settings.out / name)
    (settings.out / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"of 2 recipes, such as index/train-00001.parquet and index"):
        repair(settings.out)
    (settings.out / "index/val-00000.parquet").rename(tmp_path / "elsewhere.parquet")
    assert repair(settings.out).units == 2


def test_a_store_of_an_older_embedx_takes_the_recipe_from_another_store(tmp_path: Path) -> None:
    store = shutil.copytree(Path(__file__).parents[1] / "golden/unsealed", tmp_path / "store")
    before = Manifest.read(store)
    like = shutil.copytree(store, tmp_path / "like")
    (store / MANIFEST).unlink()
    with pytest.raises(ConfigError, match=r"of an older embedx, which don't tell the recipe; .* by --like FOLDER"):
        repair(store)
    with pytest.raises(StoreMismatchError, match=r"--like .* has another recipe"):
        repair(store, like=build_store(tmp_path / "other", recipe="other"))
    assert repair(store, like=like).complete and list(verify(store)) == []
    assert Manifest.read(store).recipe == before.recipe and Manifest.read(store).totals == before.totals


def test_what_is_whole_or_held_is_left_alone(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store")
    before = digests(store)
    assert not repair(store).wrote and digests(store) == before
    lock = StoreLock(store)
    with pytest.raises(StoreLockedError):
        repair(store)
    lock.release()


def test_each_index_table_has_the_terms_that_rows_do_not_tell(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store")
    table = store / "index/train-00001.parquet"
    about = json.loads(pq.read_metadata(table).metadata[b"embedx.store"])
    assert about == {"recipe": {"name": "r"}, "group_key": "class", "rows_per_unit": 8}
    assert read_entry(table).inputs == len(read_index(table)) == 4


def test_the_command_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = build_store(tmp_path / "store")
    (store / MANIFEST).unlink()
    (store / "train/cat/shard-00001.safetensors").write_bytes(b"short")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedx", "repair", str(store), *arguments])
        return run(), *capfd.readouterr()

    code, out, err = call()
    assert (code, out) == (1, "") and "1 of its 2 units is damaged" in err and "--drop-damaged" in err
    assert err.splitlines()[-1].startswith(f"  {store}/train/cat/shard-00001.safetensors: ")
    code, out, err = call("--drop-damaged")
    assert code == 0 and out.count("\n") == 1 and "train/cat/shard-00001.safetensors" in out
    assert "manifest.json is gone" in err and "written anew, for 1 unit with 7 rows" in err
    code, out, _ = call("--json")
    assert code == 0 and json.loads(out)["wrote"] is False
