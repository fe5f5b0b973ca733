"""Readers beside a writer that puts one store after another in one place: no row gets the embedding of the other."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pickle
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import embedx
from embedx.errors import StoreError, StoreReplacedError
from embedx.store.format.layout import staging_folder
from embedx.store.format.manifest import Manifest
from embedx.store.format.open_folder import LocalFolder
from embedx.store.reading.verify import verify
from embedx.store.writing.replacement import take_place
from tests.store.builders import write_features

ROWS = 24


def write(out: Path, first: int) -> Path:
    """A store whose row of the key `key-i` is full of `first` + i, and whose target is `first`."""
    values = torch.arange(first, first + ROWS, dtype=torch.float32)[:, None].repeat(1, 4)
    return write_features(out, {"train": (values, [first] * ROWS)}, rows_per_unit=8)


def check(rows: embedx.Embeddings) -> int:
    """Compares each embedding with what its own index row says; returns the store that they are of."""
    (first,) = set(rows.targets.tolist())
    assert [value - first for value in rows.embeddings[:, 0].tolist()] == [int(key[4:]) for key in rows.keys]
    return int(first)


def load(path: Path) -> None:
    rows = embedx.open(path).load("train")
    assert len(rows) == ROWS
    check(rows)


def load_again_and_again(path: Path) -> None:
    """A store that is open stays the one that it is."""
    store = embedx.open(path)
    first = check(store.load("train", check=False))
    with contextlib.suppress(StoreReplacedError):
        for _ in range(20):
            assert check(store.rows("train", ["key-3", "key-20", "key-9"])) == first
            values = np.concatenate([shard.tensors["embeddings"] for shard in store.iter_shards()])
            assert values[:, 0].tolist() == [first + row for row in range(ROWS)]


def look_over(path: Path) -> None:
    assert list(verify(path)) == []
    embedx.compare(path, path.parent / "a")


def exchange(folder: Path, times: int, readers: list[Callable[[Path], None]]) -> Counter[str]:
    """Exchanges the store for another one so often, beside a thread for each reader; returns what came of the reads."""
    stores = [write(folder / name, first) for name, first in (("a", 1000), ("b", 5000))]
    out = folder / "store"
    shutil.copytree(stores[0], out)
    outcomes: Counter[str] = Counter()
    done = threading.Event()

    def read_on(reader: Callable[[Path], None]) -> None:
        while not done.is_set():
            try:
                reader(out)
                outcomes[f"{reader.__name__}: right"] += 1
            except StoreReplacedError:
                outcomes[f"{reader.__name__}: replaced"] += 1
            except BaseException as error:  # noqa: BLE001  (what it is, the test says)
                outcomes[f"{reader.__name__}: {type(error).__name__}: {error}"[:300]] += 1

    threads = [threading.Thread(target=read_on, args=[reader]) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, times + 1):
            shutil.copytree(stores[number % 2], staging_folder(out), copy_function=os.link)
            take_place(staging_folder(out), out)
            time.sleep(0.005)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    return outcomes


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_a_thousand_exchanges_give_no_reader_a_wrong_pair(tmp_path: Path, times: int) -> None:
    outcomes = exchange(tmp_path, times, [load, load_again_and_again, look_over])
    others = {text: count for text, count in outcomes.items() if not text.endswith((": right", ": replaced"))}
    assert not others, outcomes
    assert outcomes["load: right"] and outcomes["load: replaced"] and outcomes["load_again_and_again: right"], outcomes


def replace(out: Path, first: int) -> None:
    take_place(write(staging_folder(out), first), out)


def test_a_store_that_is_open_is_never_another_one(tmp_path: Path) -> None:
    out = write(tmp_path / "store", 1000)
    store, dataset = embedx.open(out), embedx.open(out).dataset("train")
    rows, shards = store.load("train"), list(store.iter_shards())
    sent = pickle.dumps(dataset)
    assert pickle.loads(sent)[0][0].tolist() == [1000.0] * 4
    (out / "index" / "mine.txt").write_text("keeps the folder of the old store from going")
    replace(out, 5000)
    assert check(rows) == 1000 and shards[0].tensors["embeddings"][0, 0] == 1000  # what was read stays
    for read in (
        lambda: store.load("train"),
        lambda: store.rows("train", ["key-3"]),
        lambda: list(store.iter_shards()),
        lambda: dataset[0],
        lambda: pickle.loads(sent)[0],
        lambda: embedx.probe(store, embedx.ProbeConfig(train="train", test="val")),
    ):
        with pytest.raises(StoreReplacedError, match=r"store was replaced while it was being read; open it again"):
            read()
    assert check(embedx.open(out).load("train")) == 5000


def test_an_unfinished_store_that_is_being_removed_does_not_look_smaller(tmp_path: Path) -> None:
    out = write(tmp_path / "store", 1000)
    dataclasses.replace(Manifest.read(out), complete=False, index={}).write(out)
    store = embedx.open(out)
    out.rename(tmp_path / "removed")
    write(out, 5000)
    (tmp_path / "removed" / "index" / "train-00002.parquet").unlink()
    with pytest.raises(StoreReplacedError):
        store.load("train")


def test_a_run_that_changes_the_store_in_its_place_is_told_apart_from_damage(tmp_path: Path) -> None:
    out = write(tmp_path / "store", 1000)
    store, other = embedx.open(out), embedx.open(out)
    (out / "index" / "train-00001.parquet").unlink()
    with pytest.raises(StoreError, match="No such file") as damage:
        other.load("train")
    assert not isinstance(damage.value, StoreReplacedError)
    dataclasses.replace(store.manifest, complete=False, index={}).write(out)
    with pytest.raises(StoreReplacedError):
        store.load("train")
    assert len(embedx.open(out).load("train")) == ROWS - 8


def test_a_complete_store_s_tables_and_loaded_shards_are_checked_by_their_sha256(tmp_path: Path) -> None:
    out = write(tmp_path / "store", 1000)
    shard = out / "train" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    store = embedx.open(out)
    for read in (lambda: store.load("train"), lambda: list(store.iter_shards(check=True))):
        with pytest.raises(StoreError, match=r"shard-00001.safetensors: the sha256 is not the one in its index table"):
            read()
    assert len(store.load("train", check=False)) == len(store.dataset("train")) == ROWS
    table = out / "index" / "train-00002.parquet"
    shutil.copy(write(tmp_path / "other", 5000) / "index" / "train-00002.parquet", table)
    with pytest.raises(StoreError, match=r"train-00002.parquet: the sha256 is not the one in manifest.json"):
        store.index("train")


@pytest.mark.parametrize("descriptors", ["/dev/fd", "/nowhere"])
def test_shards_are_mapped_on_systems_without_paths_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: str
) -> None:
    monkeypatch.setattr("embedx.store.format.open_folder._DESCRIPTORS", descriptors)
    out = write(tmp_path / "store", 1000)
    file = LocalFolder(out) / "train/shard-00000.safetensors"
    assert check(embedx.open(out).load("train")) == 1000
    with file.open() as opened:
        replace(out, 5000)
        if descriptors == "/dev/fd":
            with file.path_of(opened) as path:
                assert Path(path).read_bytes() == opened.read()
        else:
            with pytest.raises(StoreReplacedError), file.path_of(opened):
                pass


def test_a_store_holds_one_descriptor_until_it_is_closed(tmp_path: Path) -> None:
    out = write(tmp_path / "store", 1000)
    gc.collect()
    gc.disable()
    before = set(os.listdir("/dev/fd"))
    with embedx.open(out) as store:
        store.load("train")
        assert len(set(os.listdir("/dev/fd"))) == len(before) + 1
    with pytest.raises(StoreError, match="the store was closed; open it again"):
        store.load("train")
    kept = embedx.open(out)
    kept.load("train")
    assert list(verify(out)) == [] and embedx.compare(out, out).drift["embeddings"].worst == 0
    del kept
    gc.enable()
    assert set(os.listdir("/dev/fd")) == before
