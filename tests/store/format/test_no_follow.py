"""Links in a store, laid by a stranger: nothing outside of the store is read, written or removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from embedx.errors import ConfigError, StoreError
from embedx.store.format import layout
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.session import StoreSession
from embedx.store.writing.units import UnitBuffer
from tests.store.builders import build_store, commit, manifest, unit_batch

INDEX, SHARD = "index/train-00000.parquet", "train/cat/shard-00000.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path / "store")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def link_out(store: Path, name: str) -> Path:
    """Moves what is there out of the store, to where a link leads from its place."""
    outside = store.parent / "outside"
    outside.mkdir()
    target = outside / Path(name).name
    shutil.move(store / name, target)
    (store / name).symlink_to(target)
    return outside


@pytest.mark.parametrize("name", [SHARD, "train/cat", "train", INDEX, "index", "manifest.json"])
def test_no_link_is_followed_for_reading(store: Path, name: str) -> None:
    link_out(store, name)
    for read in (
        lambda: Store.open(store).load("train"),
        lambda: Store.open(store).load("train", "cat"),
        lambda: list(Store.open(store).iter_shards()),
    ):
        with pytest.raises(StoreError, match=f"{store / name} is a link"):
            read()
    try:
        said = "\n".join(verify(store))
    except StoreError as error:
        said = str(error)
    assert f"{store / name} is a link" in said


@pytest.mark.parametrize("name", [SHARD, INDEX, "manifest.json"])
def test_a_pipe_is_not_waited_for(store: Path, name: str) -> None:
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(StoreError, match="is not a regular file"):
        Store.open(store).load("train")


def test_the_store_itself_may_be_a_link(store: Path) -> None:
    (store.parent / "link").symlink_to(store)
    assert len(Store.open(store.parent / "link").load("train")) == 11
    assert list(verify(store.parent / "link")) == []


@pytest.mark.parametrize("name", ["train", "train/cat", "index"])
def test_nothing_is_written_or_removed_behind_a_link(store: Path, name: str) -> None:
    outside = link_out(store, name)
    (store / "stray").symlink_to(outside)  # as deep as groups are
    if (store / INDEX).is_file() and not (store / "index").is_symlink():
        (store / INDEX).unlink()
    before = contents(outside)
    assert not [path for *_, path in layout.shard_files(store) if (store / path).resolve().is_relative_to(outside)]
    with pytest.raises(StoreError, match="is a link"):
        session = StoreSession.begin(store, manifest({"train": 12}), "resume")
        commit(session, unit_batch(0, 8))
    assert contents(outside) == before


@pytest.mark.parametrize("name", ["train", "train/cat", "index", SHARD, INDEX])
def test_an_overwritten_store_leaves_what_its_links_lead_to(store: Path, name: str) -> None:
    outside = link_out(store, name)
    before = contents(outside)
    session = StoreSession.begin(store, manifest({"train": 8}, recipe="new"), "overwrite")
    commit(session, unit_batch(0, 8))
    session.finish({})
    session.close()
    assert contents(outside) == before and before
    assert len(Store.open(store).load("train")) == 8


@pytest.mark.parametrize("name", ["index/.train-00001.parquet.embedx-tmp", ".manifest.json.embedx-tmp"])
def test_a_temporary_name_laid_as_a_link_is_not_written_through(store: Path, name: str) -> None:
    outside = store.parent / "mine.txt"
    outside.write_text("mine")
    (store / "index/train-00001.parquet").unlink()
    (store / name).symlink_to(outside)
    session = StoreSession.begin(store, manifest({"train": 12}), "resume")
    commit(session, unit_batch(8, 12))
    session.finish({})
    session.close()
    assert outside.read_text() == "mine" and list(verify(store)) == []


def test_a_lock_laid_as_a_link_empties_no_file(store: Path) -> None:
    outside = store.parent / "mine.txt"
    outside.write_text("mine")
    (store / ".embedx.lock").unlink()
    (store / ".embedx.lock").symlink_to(outside)
    with pytest.raises(ConfigError, match="can't be locked"):
        StoreSession.begin(store, manifest({"train": 12}), "resume")
    assert outside.read_text() == "mine"


def test_a_folder_named_like_a_shard_is_one_of_a_group(tmp_path: Path) -> None:
    name = "shard-00000.safetensors"
    store = build_store(tmp_path / "store", 8, rejected=(), groups=dict.fromkeys(range(8), name))
    (store / "index/train-00000.parquet").unlink()
    session = StoreSession.begin(store, manifest({"train": 8}), "resume")
    assert not (store / "train").exists()
    batch = unit_batch(0, 8, groups=dict.fromkeys(range(8), name))
    buffer = UnitBuffer(session.terms)
    buffer.add(batch)
    assert buffer.commit().shards[0].path == f"train/{name}/{name}"
    session.close()
