"""The folder of a store in a bucket: which ranges are fetched, what is kept, and how much that was."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from embedx.errors import StoreError
from embedx.paths import BucketPath
from embedx.store.format.object_copy import REQUEST_BYTES, ObjectCopy
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.format.shard_parts import WantedRows
from embedx.store.format.shards import ShardHeader, encode_shard, open_shard
from tests.servers import s3_server

ROWS, DIM = 4096, 256
HEADER = ShardHeader(1, "train", None, 0, "r")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server() as client:
        client.create_bucket(Bucket="bucket")
        yield client


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return torch.arange(ROWS * DIM, dtype=torch.float32).reshape(ROWS, DIM)


@pytest.fixture(scope="module")
def shard(client: Any, vectors: torch.Tensor) -> bytes:
    tensors = {"embeddings": vectors, "index": torch.arange(ROWS)}
    _, parts = encode_shard("train/shard-00000.safetensors", tensors, HEADER)
    data = b"".join(parts)
    client.put_object(Bucket="bucket", Key="store/train/shard-00000.safetensors", Body=data)
    return data


def folder() -> ObjectFolder:
    return ObjectFolder(BucketPath("s3://bucket/store"), "")


def test_a_few_rows_of_a_shard_take_a_few_ranges(shard: bytes, vectors: torch.Tensor) -> None:
    store = folder()
    rows = np.array([7, 8, 4000])
    with open_shard(store / "train/shard-00000.safetensors", wanted=WantedRows("embeddings", rows)) as opened:
        assert opened.get_tensor("embeddings")[rows].equal(vectors[rows])
    assert store.fetched.bytes < 20_000 < len(shard)
    assert store.fetched.requests == 4  # the size, the header, rows 7 and 8, row 4000
    with open_shard(store / "train/shard-00000.safetensors", wanted=WantedRows("embeddings", rows)) as opened:
        assert opened.get_tensor("embeddings")[rows].equal(vectors[rows])
    assert store.fetched.requests == 4  # as the copy has them


def test_rows_that_cost_as_much_as_the_shard_bring_all_of_it(shard: bytes, vectors: torch.Tensor) -> None:
    store = folder()
    for start in range(0, 100, 10):
        rows = np.arange(start, ROWS, 512)
        with open_shard(store / "train/shard-00000.safetensors", wanted=WantedRows("embeddings", rows)) as opened:
            assert opened.get_tensor("embeddings")[rows].equal(vectors[rows])
    assert store.fetched.bytes <= len(shard) + 20_000
    assert store.fetched.requests < 20
    with open_shard(store / "train/shard-00000.safetensors", sha256=hashlib.sha256(shard).hexdigest()) as opened:
        assert opened.get_tensor("embeddings").equal(vectors)
    assert store.fetched.bytes <= len(shard) + 20_000  # as all is there


def test_another_sha256_is_refused(shard: bytes) -> None:
    with pytest.raises(StoreError, match="sha256 is not the one"):
        open_shard(folder() / "train/shard-00000.safetensors", sha256="0" * 64)


def test_a_copy_takes_no_more_room_than_what_was_brought_and_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = 1 << 40  # as a stranger's index table may say
    asked: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return b"x" * (stop - start)

    copy = ObjectCopy(size, fetch)
    copy.bring([(10, 20), (15, 30), (size - 5, size), (7, 7)])
    assert sorted(asked) == [(10, 30), (size - 5, size)] and copy.held == 25
    assert copy.read(12, 40) == b"x" * 28 and sorted(asked)[1] == (30, 40)
    copy.bring([(0, 20 + REQUEST_BYTES)])
    assert copy.held == 20 + REQUEST_BYTES + 5
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_says_it_is_long_is_not_believed(client: Any) -> None:
    data = (99_000_000).to_bytes(8, "little") + b"{" * (REQUEST_BYTES * 2)
    client.put_object(Bucket="bucket", Key="store/train/shard-00001.safetensors", Body=data)
    store = folder()
    with pytest.raises(StoreError, match="not a readable shard"):
        open_shard(store / "train/shard-00001.safetensors", wanted=WantedRows("embeddings", np.array([1])))
    assert store.fetched.bytes <= len(data)


def test_the_end_of_a_table_is_fetched_once(client: Any) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    client.put_object(Bucket="bucket", Key="store/index/train-00000.parquet", Body=data)
    store = folder()
    with store.open_file("index/train-00000.parquet") as opened:
        opened.seek(-8, 2)
        assert opened.read(8) == data[-8:]
        opened.seek(-5000, 2)
        assert opened.read() == data[-5000:]
        assert (store.fetched.bytes, store.fetched.requests) == (65536, 2)  # with its size
        opened.seek(-100_000, 2)
        assert opened.read() == data[-100_000:]
    assert (store.fetched.bytes, store.fetched.requests) == (100_000, 3)
    assert store.read("index/train-00000.parquet") == data
    assert (store.fetched.bytes, store.fetched.requests) == (300_000, 4)
    assert store.read("index/train-00000.parquet") == data
    assert store.fetched.requests == 4


def test_what_is_written_or_removed_is_read_anew(client: Any) -> None:
    store = folder()
    for text in (b"one", b"three"):
        store.put("index/train-00007.parquet", [text])
        assert store.read("index/train-00007.parquet") == text
        with store.open_file("index/train-00007.parquet") as opened:
            assert opened.read() == text
    store.remove("index/train-00007.parquet")
    with pytest.raises(StoreError, match="not found"):
        store.read("index/train-00007.parquet")


def test_an_object_that_is_shorter_than_it_was_said_is_told(client: Any) -> None:
    key = "store/train/shard-00002.safetensors"
    client.put_object(Bucket="bucket", Key=key, Body=b"x" * 1_000_000)
    store = folder()
    assert store.size_of("train/shard-00002.safetensors") == 1_000_000
    client.put_object(Bucket="bucket", Key=key, Body=b"x" * 600_000)
    with pytest.raises(StoreError, match="600000 bytes"):
        (store / "train/shard-00002.safetensors").sha256()


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = ObjectCopy(1 << 20, lambda start, stop: b"x" * (stop - start))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="TMPDIR"):
        copy.bring()


def test_a_copy_can_be_mapped_by_a_library(shard: bytes, vectors: torch.Tensor) -> None:
    store = folder()
    with (store / "train/shard-00000.safetensors").open() as opened:
        store.bring(opened)
        with store.path_of("train/shard-00000.safetensors", opened) as path, safe_open(path, framework="pt") as tensors:
            found = tensors.get_tensor("embeddings")
    del store, opened
    assert found.equal(vectors)
