from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import embedx
from embedx.errors import StoreError
from tests.store.builders import build_store, vectors

OK_ROWS = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]


@pytest.fixture
def store(tmp_path: Path) -> embedx.Store:
    return embedx.open(build_store(tmp_path / "store", inputs=12))


def test_load_gives_a_split_in_plan_order_with_its_inputs(store: embedx.Store) -> None:
    rows = store.load("train")
    assert rows.keys == [f"key-{row}" for row in OK_ROWS]
    assert isinstance(rows.embeddings, np.ndarray) and rows.embeddings.dtype == np.float32
    assert np.array_equal(rows.embeddings, vectors(0, 12)[OK_ROWS].numpy())
    assert rows.groups == ["cat" if row % 2 else "dog" for row in OK_ROWS]
    assert rows.targets.tolist() == [-1 if row == 3 else row % 2 for row in OK_ROWS]
    assert len(rows) == len(OK_ROWS)


def test_load_gives_a_group_and_torch(store: embedx.Store) -> None:
    rows = store.load("train", "cat", framework="torch")
    assert torch.equal(rows.embeddings, vectors(0, 12)[[1, 3, 5, 7, 9, 11]])
    assert isinstance(rows.targets, torch.Tensor)
    assert store.splits == ["train"] and store.groups("train") == ["dog", "cat"]


def test_rows_without_a_group_can_be_told_and_had(tmp_path: Path) -> None:
    store = embedx.open(build_store(tmp_path / "store", inputs=8, rejected=(), groups={1: None, 6: None}))
    assert store.groups("train") == ["dog", embedx.NO_GROUP, "cat"]
    assert store.load("train", embedx.NO_GROUP).keys == ["key-1", "key-6"]
    assert [shard.group for shard in store.iter_shards("train", embedx.NO_GROUP)] == [None]
    assert len(store.load("train")) == 8
    ungrouped = embedx.open(build_store(tmp_path / "ungrouped", group_key=None))
    assert ungrouped.groups("train") == []


def test_a_split_whose_inputs_are_all_rejected_says_so(tmp_path: Path) -> None:
    store = embedx.open(build_store(tmp_path / "store", inputs=3, rejected=(0, 1, 2)))
    with pytest.raises(StoreError, match="has no rows, as its 3 inputs gave none"):
        store.load("train")


def test_iter_shards_maps_every_shard(store: embedx.Store) -> None:
    shards = list(store.iter_shards("train", framework="torch"))
    assert [(shard.group, len(shard.tensors["index"])) for shard in shards] == [
        ("dog", 3),
        ("cat", 4),
        ("dog", 2),
        ("cat", 2),
    ]
    for shard in store.iter_shards():
        assert np.array_equal(shard.tensors["embeddings"][:, 0], shard.tensors["index"])


def test_the_index_has_rejected_inputs_too(store: embedx.Store) -> None:
    index = store.index("train")
    assert len(index) == 12
    assert index.filter(pc.equal(index["status"], "rejected"))["key"].to_pylist() == ["key-2"]
    assert len(store.index()) == 12


def test_unknown_names_are_answered_with_the_nearest(store: embedx.Store) -> None:
    with pytest.raises(StoreError, match="did you mean train"):
        store.load("trian")
    with pytest.raises(StoreError, match="did you mean cat"):
        store.load("train", "cats")
    with pytest.raises(StoreError, match="valid: embeddings"):
        store.load("train", name="layer4")
    with pytest.raises(StoreError, match="is not a store"):
        embedx.open(store.path / "train")


def test_what_has_no_index_table_does_not_exist(store: embedx.Store) -> None:
    (store.path / "index/train-00001.parquet").unlink()
    with pytest.raises(StoreError, match=r"train-00001.parquet: can't be read"):
        embedx.open(store.path).load("train")
    dataclasses.replace(store.manifest, complete=False, index={}).write(store.path)
    rows = embedx.open(store.path).load("train")
    assert rows.keys == [f"key-{row}" for row in OK_ROWS if row < 8]


def test_a_store_without_groups(tmp_path: Path) -> None:
    store = embedx.open(build_store(tmp_path / "plain", group_key=None))
    assert store.groups("train") == []
    assert (store.path / "train/shard-00001.safetensors").is_file()
    assert np.array_equal(store.load("train").embeddings[:, 0], OK_ROWS)


def test_a_store_and_its_rows_say_what_they_are(store: embedx.Store) -> None:
    assert repr(store) == f"Store({str(store.path)!r}, complete, train: 11 rows)" and len(store) == 11
    assert re.fullmatch(r"Embeddings\(11 rows of \d+ float32\)", repr(store.load("train")))
    assert repr(store.load("train", framework="torch")) == repr(store.load("train"))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_rows_are_found_by_their_keys(store: embedx.Store, framework: Literal["numpy", "torch"]) -> None:
    keys = ["key-7", "key-0", "key-11", "key-0"]
    found, everything = store.rows("train", keys, framework=framework), store.load("train", framework=framework)
    assert found.keys == everything[keys].keys == keys
    assert np.array_equal(found.embeddings, vectors(0, 12)[[7, 0, 11, 0]])
    assert np.array_equal(everything[keys].embeddings, found.embeddings)
    assert np.array_equal(everything["key-7"], found.embeddings[0])
    assert store.rows("train", "key-11", framework=framework).keys == ["key-11"]
    with pytest.raises(StoreError, match="the key 'key-2' was rejected: "):
        store.rows("train", ["key-1", "key-2"])
    with pytest.raises(StoreError, match="the key 'no' is not there"):
        store.rows("train", ["no"])
    with pytest.raises(KeyError, match="no"):
        everything["no"]


def test_pandas_gets_the_index_and_the_rows(store: embedx.Store) -> None:
    frame, rows = store.to_pandas(), store.load("train")
    assert frame["key"].tolist() == [f"key-{row}" for row in range(12)] and frame["status"].tolist().count("ok") == 11
    frame = rows.to_pandas()
    assert np.array_equal(np.stack(frame["embedding"]), rows.embeddings) and frame["key"].tolist() == rows.keys


def test_the_names_of_columns_are_read_from_footers_alone(store: embedx.Store) -> None:
    names = store.index().column_names
    path = list(store.units)[-1]
    data = bytearray((store.path / path).read_bytes())
    data[100] ^= 1
    (store.path / path).write_bytes(data)
    changed = embedx.open(store.path)
    assert changed.column_names() == changed.column_names(["train"]) == names and changed.column_names(["val"]) == []
    with pytest.raises(StoreError, match="the sha256 is not the one"):
        changed.index()
    data[-100] ^= 1
    (store.path / path).write_bytes(data)
    with pytest.raises(StoreError, match=r"\.parquet: not a readable index table"):
        changed.column_names()
