"""Small files that say they are large: a reader's memory stays in proportion to what is there."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from embedx.errors import StoreError
from embedx.recipe import canonical_json
from embedx.store.format.index import _METADATA_KEY, read_entry, read_index, write_index
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from tests.store.builders import build_store, restate

MIB = 1024**2
POOLS: list[pa.MemoryPool] = []
"""They must outlive what was allocated from them."""
TABLE, SHARD = "index/train-00000.parquet", "train/shard-00000.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path / "store", 8, rejected=(), group_key=None)


def peak_of(action: Callable[[], Any]) -> int:
    """The bytes that Arrow held at once, at most, during an action."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        action()
    finally:
        pa.set_memory_pool(pa.default_memory_pool())
    return pool.max_memory()


def refused(store: Path, read: Callable[[Store], object]) -> None:
    with pytest.raises(StoreError):
        read(Store.open(restate(store)))


def rewrite(store: Path, rows: int, columns: dict[str, list[str]], **options: Any) -> Path:
    """Gives the index table so many rows, the same in every column but for `columns`, and says so in its metadata."""
    path = store / TABLE
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[_METADATA_KEY]) | {"inputs": rows, "rows": rows}
    first = table.slice(0, 1).to_pylist()[0] | {"row": 0}
    repeated = {field.name: pa.repeat(pa.scalar(first[field.name], field.type), rows) for field in table.schema}
    schema = table.schema.with_metadata({_METADATA_KEY: canonical_json(metadata)})
    pq.write_table(pa.table(repeated | columns, schema=schema), path, **options)
    return path


BOMBS: dict[str, Callable[[Path], Path]] = {
    "runs of equal values": lambda store: rewrite(store, 400_000, {}, compression="zstd"),
    "a long text in a dictionary": lambda store: rewrite(store, 1000, {"reason": ["x" * 100_000] * 1000}),
    "a long text, packed": lambda store: rewrite(
        store, 1, {"reason": ["x" * 48 * MIB]}, compression="zstd", use_dictionary=False
    ),
    "texts that begin like the last one": lambda store: rewrite(
        store,
        1000,
        {"reason": ["x" * 100_000] * 1000},
        use_dictionary=False,
        column_encoding={"reason": "DELTA_BYTE_ARRAY"},
    ),
    "a list of many": lambda store: with_column(
        store, pa.ListArray.from_arrays([0] * 8 + [8_000_000], pa.nulls(8_000_000, pa.int64()))
    ),
    "wide numbers that are not there": lambda store: with_column(store, pa.nulls(8, pa.binary(16 * MIB))),
}


def with_column(store: Path, column: pa.Array) -> Path:
    path = store / TABLE
    pq.write_table(pq.read_table(path).append_column("more", column), path, compression="zstd")
    return path


@pytest.mark.parametrize("kind", BOMBS)
def test_an_index_table_is_not_unpacked_beyond_what_it_can_honestly_hold(store: Path, kind: str) -> None:
    path = BOMBS[kind](store)
    assert path.stat().st_size < MIB
    reads: list[Callable[[Store], object]]
    reads = [lambda store: store.index(), lambda store: store.load("train"), lambda _: read_index(path)]
    for read in reads:
        assert peak_of(partial(refused, store, read)) < 8 * MIB
    assert peak_of(lambda: list(verify(store))) < 8 * MIB
    assert peak_of(lambda: pq.ParquetFile(path).read(use_threads=False)) > 40 * MIB  # it is a bomb


def test_what_packs_too_well_is_written_so_that_it_can_be_read(store: Path) -> None:
    table, entry = pq.read_table(store / TABLE), read_entry(store / TABLE)
    text = "the same for all " * 50_000
    write_index(store, table.append_column("note", pa.array([text] * 8)), entry)
    assert Store.open(restate(store)).load("train").table["note"].to_pylist() == [text] * 8
    assert not [fault for fault in verify(store) if "readable" in fault]


def test_metadata_of_any_type_is_written_and_read(store: Path) -> None:
    table, entry = pq.read_table(store / TABLE), read_entry(store / TABLE)
    columns: dict[str, pa.Array] = {
        "nothing": pa.nulls(8),
        "truth": pa.array([True, None] * 4),
        "small": pa.array(range(8), pa.int8()),
        "real": pa.array([0.5] * 8, pa.float32()),
        "time": pa.array([0] * 8, pa.timestamp("us", "UTC")),
        "money": pa.array([1] * 8, pa.decimal128(30, 2)),
        "code": pa.array([b"1234"] * 8, pa.binary(4)),
        "class": pa.array(["a", "b"] * 4).dictionary_encode(),
        "tags": pa.array([["x", "y"], None, [], ["z"]] * 2),
        "place": pa.array([{"x": 1, "names": ["n"]}] * 8),
        "counts": pa.array([[("k", 1)]] * 8, pa.map_(pa.string(), pa.int64())),
        "large": pa.array(["text"] * 8, pa.large_string()),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    write_index(store, table, entry)
    read = read_index(store / TABLE)
    assert read.select(table.column_names).to_pylist() == table.to_pylist()


def test_columns_of_nothing_that_no_reader_would_take_are_not_written(store: Path) -> None:
    table, entry = pq.read_table(store / TABLE), read_entry(store / TABLE)
    before = (store / TABLE).read_bytes()
    nothing = pa.ListArray.from_arrays([0] * 8 + [5_000_000], pa.nulls(5_000_000, pa.int64()))
    with pytest.raises(StoreError, match="leave out nearly empty metadata"):
        write_index(store, table.append_column("nothing", nothing), entry)
    assert (store / TABLE).read_bytes() == before


def shard(store: Path, tensors: dict[str, torch.Tensor]) -> None:
    with safetensors.safe_open(store / SHARD, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, store / SHARD, metadata=metadata)


SHARDS = {
    "rows of nothing": {"embeddings": torch.zeros(2**40, 0), "index": torch.zeros(0, dtype=torch.int64)},
    "rows of nothing beside rows": {
        "embeddings": torch.zeros(8, 3),
        "index": torch.arange(8),
        "more": torch.zeros(8, 2**40, 0),
    },
    "one number": {"embeddings": torch.zeros(()), "index": torch.arange(8)},
    "fewer rows": {"embeddings": torch.zeros(7, 3), "index": torch.arange(7)},
    "rows of another number": {"embeddings": torch.zeros(8, 3), "index": torch.arange(9)},
    "another type": {"embeddings": torch.zeros(8, 3), "index": torch.arange(8, dtype=torch.int32)},
    "no index": {"embeddings": torch.zeros(8, 3)},
    "no embeddings": {"index": torch.arange(8)},
    "no rows": {"embeddings": torch.zeros(0, 3), "index": torch.zeros(0, dtype=torch.int64)},
}


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_of_tensors_that_are_none_is_refused(store: Path, kind: str) -> None:
    shard(store, SHARDS[kind])
    refused(store, lambda store: store.load("train", check=False))
    assert any(SHARD in fault for fault in verify(store))


def test_a_shard_s_header_that_says_it_is_huge_is_refused(store: Path) -> None:
    data = (store / SHARD).read_bytes()
    for length in (len(data), 2**40, 2**63, 2**64 - 1):
        (store / SHARD).write_bytes(struct.pack("<Q", length) + data[8:])
        refused(store, lambda store: store.load("train", check=False))


def test_rows_are_not_made_from_what_shards_of_other_shapes_promise(tmp_path: Path) -> None:
    """One has a long row, the other many short ones: together they would be 2 TB."""
    store = build_store(tmp_path / "store", 8, rejected=())
    for group, tensor in (("dog", torch.zeros(4, 2**17)), ("cat", torch.zeros(4, 1))):
        path = store / f"train/{group}/shard-00000.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, index = file.metadata(), file.get_tensor("index")
        safetensors.torch.save_file({"embeddings": tensor, "index": index}, path, metadata=metadata)
    with pytest.raises(StoreError, match="disagree"):
        Store.open(store).load("train", check=False)
