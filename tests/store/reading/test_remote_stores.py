"""Stores in buckets, read as a whole: the same as their copies on this machine, and no more bytes than needed."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import embedx
from embedx.errors import ConfigError, NotAStoreError, StoreError, StoreReplacedError
from embedx.names import GENERATION
from embedx.store.format.fetched import OF_ALL_STORES
from embedx.store.format.manifest import Manifest
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.reading.compare import compare
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import NOT_COMPLETE, verify
from embedx.system import file_systems
from embedx.vectors.vector_rows import open_rows
from tests.servers import gcs_server, no_access, s3_server, upload
from tests.store.builders import build_store, write_features

DIM, ROWS = 128, 4000
URL = "s3://bucket/stores"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture(scope="module")
def grouped(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of small shards, one per class, with a rejected input."""
    store = build_store(tmp_path_factory.mktemp("local") / "grouped", {"train": 40, "val": 12})
    upload(client, "bucket", store, "stores/grouped/")
    return store


@pytest.fixture(scope="module")
def large(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 2 MB a unit, of which val has one and train three."""
    generator = torch.Generator().manual_seed(0)
    splits = {
        split: (torch.randn(rows, DIM, generator=generator), [row % 5 for row in range(rows)])
        for split, rows in (("train", 3 * ROWS), ("val", ROWS))
    }
    store = write_features(tmp_path_factory.mktemp("local") / "large", splits, rows_per_unit=ROWS)
    upload(client, "bucket", store, "stores/large/")
    return store


def size_of(store: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in store.glob(pattern))


@pytest.fixture
def own(client: Any, grouped: Path) -> Callable[[str], str]:
    """Puts a copy of the store of small shards into the bucket, under a name of its own."""

    def put(name: str) -> str:
        upload(client, "bucket", grouped, f"stores/{name}/")
        return f"{URL}/{name}"

    return put


def test_a_store_in_a_bucket_is_what_its_copy_on_this_machine_is(grouped: Path) -> None:
    local, there = embedx.open(grouped), embedx.open(f"{URL}/grouped")
    assert isinstance(there.folder, ObjectFolder) and local.fetched is None
    assert repr(there) == repr(local).replace(str(grouped), f"{URL}/grouped")
    assert (there.units, there.splits, there.recipe) == (local.units, local.splits, local.recipe)
    assert there.index().equals(local.index()) and there.column_names() == local.column_names()
    for split in ("train", "val"):
        assert there.groups(split) == local.groups(split)
        for group in (None, "cat"):
            one, other = there.load(split, group), local.load(split, group)
            assert np.array_equal(one.embeddings, other.embeddings) and one.table.equals(other.table)
        for check in (False, True):
            for mine, right in zip(there.iter_shards(split, check=check), local.iter_shards(split), strict=True):
                assert str(mine.path) == str(right.path).replace(str(grouped), f"{URL}/grouped")
                assert mine.tensors.keys() == right.tensors.keys()
                assert all(np.array_equal(mine.tensors[name], right.tensors[name]) for name in mine.tensors)
    keys = ["key-30", "key-1", "key-30"]
    assert np.array_equal(there.rows("train", keys).embeddings, local.rows("train", keys).embeddings)
    with pytest.raises(StoreError, match="key-2' was rejected: broken"):
        there.rows("train", ["key-2"])


def test_one_split_is_fetched_and_no_other(large: Path) -> None:
    store = embedx.open(f"{URL}/large")
    found = store.load("val")
    assert np.array_equal(found.embeddings, embedx.open(large).load("val").embeddings)
    tables = size_of(large, "index/*")
    needed = size_of(large, "manifest.json") + size_of(large, "val/*") + size_of(large, "index/val-*")
    assert store.fetched is not None and needed <= store.fetched.bytes <= needed + tables
    assert store.fetched.requests <= 12
    assert store.fetched.bytes < size_of(large, "train/*") / 2
    before = store.fetched
    store.load("val")
    assert store.fetched == before  # as it is kept


def test_three_rows_are_a_few_ranges(large: Path) -> None:
    store = embedx.open(f"{URL}/large")
    keys = ["key-11000", "key-7", "key-8"]
    assert np.array_equal(store.rows("train", keys).embeddings, embedx.open(large).rows("train", keys).embeddings)
    assert store.fetched is not None
    of_shards = store.fetched.bytes - size_of(large, "index/train-*") - size_of(large, "manifest.json")
    assert of_shards < 100_000 < size_of(large, "train/*") / 50
    assert store.fetched.requests <= 20


def test_a_checked_read_of_a_few_rows_fetches_their_shards_alone(large: Path) -> None:
    store = embedx.open(f"{URL}/large")
    rows = open_rows(store, ["train"], where="key = 'key-11000'")
    assert rows.take([0]).numpy().tobytes() == embedx.open(large).rows("train", ["key-11000"]).embeddings.tobytes()
    assert store.fetched is not None
    shard = size_of(large, "train/shard-00002.safetensors")
    assert shard < store.fetched.bytes < shard + size_of(large, "index/*") + 50_000


@pytest.mark.parametrize("context, workers", [("fork", 2), ("spawn", 1)])
def test_a_dataloader_s_workers_read_a_bucket(grouped: Path, context: str, workers: int) -> None:
    dataset = embedx.open(f"{URL}/grouped").dataset("train")
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        dataset, batch_size=8, shuffle=True, num_workers=workers, multiprocessing_context=context, generator=generator
    )
    rows = torch.cat([batch for batch, _ in loader])
    assert sorted(rows[:, 0].tolist()) == [row for row in range(40) if row != 2]


def test_random_batches_never_fetch_a_shard_twice(large: Path) -> None:
    store = embedx.open(f"{URL}/large")
    dataset, local = store.dataset("train"), embedx.open(large).dataset("train")
    order = np.random.default_rng(0).permutation(len(dataset))[:640].reshape(-1, 32)
    for batch in order.tolist():
        mine, right = dataset.__getitems__(batch), local.__getitems__(batch)
        assert all(torch.equal(a, b) and c == d for (a, c), (b, d) in zip(mine, right, strict=True))
    assert store.fetched is not None
    assert store.fetched.bytes < 2.2 * size_of(large, "train/*") + size_of(large, "index/*")


def test_a_store_is_read_through_a_generation(client: Any, grouped: Path, tmp_path: Path) -> None:
    name = f"{GENERATION}000001-0123abcd"
    copy = tmp_path / "store"
    shutil.copytree(grouped, copy / name)
    (copy / name / "manifest.json").unlink()
    stated = dataclasses.replace(Manifest.read(grouped), generation=name)
    (copy / "manifest.json").write_bytes(stated.encode())
    upload(client, "bucket", copy, "stores/later/")
    store = embedx.open(f"{URL}/later")
    assert np.array_equal(store.load("train").embeddings, embedx.open(grouped).load("train").embeddings)
    assert list(verify(f"{URL}/later")) == []


def test_a_store_that_was_replaced_says_so(
    client: Any, own: Callable[[str], str], tmp_path: Path, grouped: Path
) -> None:
    url = own("replaced")
    store = embedx.open(url)
    assert store.units
    pickled = pickle.dumps(store)
    assert len(pickle.loads(pickled).load("val")) == 11
    upload(client, "bucket", build_store(tmp_path / "other", {"train": 40, "val": 12}, recipe="s"), "stores/replaced/")
    with pytest.raises(StoreReplacedError):
        store.load("train")
    with pytest.raises(StoreReplacedError):
        pickle.loads(pickled)
    assert embedx.open(url).recipe == {"name": "s"}


def test_damage_is_found_and_named_as_on_this_machine(
    client: Any, own: Callable[[str], str], grouped: Path, tmp_path: Path
) -> None:
    url, copy = own("damaged"), tmp_path / "copy"
    shutil.copytree(grouped, copy)

    def change(relative: str, data: bytes | None) -> None:
        if data is None:
            (copy / relative).unlink()
            client.delete_object(Bucket="bucket", Key=f"stores/damaged/{relative}")
        else:
            (copy / relative).write_bytes(data)
            client.put_object(Bucket="bucket", Key=f"stores/damaged/{relative}", Body=data)

    assert list(verify(url)) == []
    shard = (grouped / "train/cat/shard-00001.safetensors").read_bytes()
    change("train/cat/shard-00001.safetensors", shard[:-1] + bytes([shard[-1] ^ 1]))
    change("train/cat/shard-00002.safetensors", shard[:-5])
    change("train/dog/shard-00002.safetensors", None)
    change("train/dog/shard-00009.safetensors", shard)
    with pytest.raises(StoreError, match="sha256 is not the one in its index table"):
        embedx.open(url).load("train", "cat")
    with pytest.raises(StoreError, match="not found"):
        embedx.open(url).load("train", "dog")
    change("index/val-00001.parquet", b"PAR1" * 100)
    faults = [fault.replace(url, "STORE") for fault in verify(url)]
    assert faults == [fault.replace(str(copy), "STORE") for fault in verify(copy)] and len(faults) > 8


def test_verify_fetches_each_file_once(large: Path) -> None:
    OF_ALL_STORES.clear()
    assert list(verify(f"{URL}/large")) == []
    whole = sum(path.stat().st_size for path in large.rglob("*") if path.is_file())
    assert whole <= OF_ALL_STORES.sum().bytes <= whole + 2 * size_of(large, "manifest.json")


def test_stores_are_compared_wherever_they_are(large: Path, grouped: Path) -> None:
    here, there = compare(large, large).to_json(), compare(f"{URL}/large", large).to_json()
    assert there == here | {"a": f"{URL}/large"}


def test_a_store_that_is_not_complete_is_read_as_far_as_it_is(client: Any, grouped: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(grouped, copy)
    (copy / "index" / "train-00003.parquet").unlink()
    dataclasses.replace(Manifest.read(grouped), complete=False, totals={}, index={}).write(copy)
    upload(client, "bucket", copy, "stores/begun/")
    assert len(embedx.open(f"{URL}/begun").load("train")) == len(embedx.open(copy).load("train")) == 31
    assert next(verify(f"{URL}/begun")) == NOT_COMPLETE


@pytest.mark.parametrize(
    "place, kind, words",
    [
        ("s3://no-such-bucket/store", NotAStoreError, "there is no such bucket; check its name"),
        ("s3://bucket/nothing", NotAStoreError, "no manifest.json; give the folder that `embedx extract` wrote"),
        ("s3://bucket/stores/grouped/index", NotAStoreError, "no manifest.json"),
        ("s3://", NotAStoreError, "write s3://BUCKET/NAME"),
        ("nowhere://bucket/store", ConfigError, "unknown scheme 'nowhere'"),
    ],
)
def test_what_is_no_store_is_one_message(grouped: Path, place: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as error:
        embedx.open(place)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_server_that_refuses_or_is_gone_is_one_message(grouped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = embedx.open(f"{URL}/grouped")
    with no_access():
        with pytest.raises(StoreError, match=r"no access .* set credentials in the environment"):
            embedx.open(f"{URL}/grouped")
        with pytest.raises(StoreError, match="no access"):
            store.load("train")
    assert len(store.load("train")) == 39
    monkeypatch.setattr("embedx.system.remote._FIRST_DELAY", 0.01)
    other = embedx.open(f"{URL}/grouped")
    with monkeypatch.context() as patch:
        patch.setitem(os.environ, "AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        file_systems.forget()
        with pytest.raises(StoreError, match="check the network") as error:
            other.load("train")
        assert not isinstance(error.value, StoreReplacedError)
    file_systems.forget()
    assert len(other.load("train")) == 39


def test_a_closed_store_of_a_bucket_holds_nothing_open(grouped: Path) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/dev/fd"))

    with Store.open(f"{URL}/grouped") as store:
        store.load("train")
    del store
    before = descriptors()
    for _ in range(3):
        with Store.open(f"{URL}/grouped") as store:
            store.load("train")
        del store
    assert descriptors() <= before + 2  # connections


def test_a_store_in_google_s_storage_is_read(grouped: Path) -> None:
    with gcs_server("lake") as fs:
        for path in sorted(grouped.rglob("*")):
            if path.is_file():
                fs.pipe_file(f"lake/store/{path.relative_to(grouped)}", path.read_bytes())
        store = embedx.open("gs://lake/store")
        assert np.array_equal(store.load("train").embeddings, embedx.open(grouped).load("train").embeddings)
        assert store.rows("val", ["key-4"]).embeddings.tolist() == [[4.0, 4.0, 4.0]]
        assert list(verify("gs://lake/store")) == []
        with pytest.raises(NotAStoreError, match="has no manifest"):
            embedx.open("gs://lake/nothing")
