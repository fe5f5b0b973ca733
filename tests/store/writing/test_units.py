from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors.torch import load_file

from embedx.errors import StoreError
from embedx.store.format.index import read_entry, read_index
from embedx.store.format.layout import StoreTerms, Unit
from embedx.store.format.shards import open_shard, read_header
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.session import StoreSession
from embedx.store.writing.unit_rows import StayingRows
from embedx.store.writing.units import UnitBuffer
from tests.runs import digests
from tests.store.builders import ROWS_PER_UNIT, build_store, commit, manifest, unit_batch, vectors


def test_a_unit_becomes_shards_that_plain_safetensors_reads(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", inputs=8)
    cats = safetensors.torch.load_file(store / "train/cat/shard-00000.safetensors")
    assert cats["index"].tolist() == [1, 3, 5, 7]
    assert torch.equal(cats["embeddings"], vectors(0, 8)[[1, 3, 5, 7]])
    assert cats["targets"].tolist() == [1, -1, 1, 1]
    dogs = safetensors.numpy.load_file(store / "train/dog/shard-00000.safetensors")
    assert dogs["index"].tolist() == [0, 4, 6]  # 2 was rejected
    with open_shard(store / "train/dog/shard-00000.safetensors") as shard:
        header = read_header(shard)
    assert (header.split, header.group, header.unit) == ("train", "dog", 0)


def test_the_index_table_has_every_input_and_says_where_it_went(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", inputs=8)
    path = store / "index/train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    assert [row["key"] for row in rows] == [f"key-{i}" for i in range(8)]
    assert rows[2]["status"] == "rejected" and rows[2]["reason"] == "broken"
    assert rows[2]["shard"] is None and rows[2]["row"] is None
    assert (rows[5]["shard"], rows[5]["row"]) == ("train/cat/shard-00000.safetensors", 2)
    entry = read_entry(path)
    assert (entry.inputs, entry.rows, entry.rejected) == (8, 7, 1)
    assert [(shard.group, shard.rows) for shard in entry.shards] == [("dog", 3), ("cat", 4)]
    for shard in entry.shards:
        assert (store / shard.path).stat().st_size == shard.bytes


def test_a_unit_without_a_single_good_row_has_an_index_table_and_no_shard(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", inputs=8, rejected=tuple(range(8)))
    assert read_entry(store / "index/train-00000.parquet").shards == ()
    assert not (store / "train").exists()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    stores = [build_store(tmp_path / name) for name in ("one", "two")]
    files = [sorted(p.relative_to(s) for p in s.rglob("*.*") if p.suffix != ".json" and p.is_file()) for s in stores]
    assert files[0] == files[1] and len(files[0]) > 4
    for file in files[0]:
        assert (stores[0] / file).read_bytes() == (stores[1] / file).read_bytes()


def test_rows_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    buffer = UnitBuffer(StoreTerms(tmp_path, "r", True, ROWS_PER_UNIT))
    buffer.add(unit_batch(0, 4))
    other_dim = unit_batch(4, 6)._replace(tensors={"embeddings": torch.zeros(2, 5)})
    with pytest.raises(StoreError, match=r"shape \[2, 5\], not \[2, 3\]"):
        buffer.add(other_dim)
    with pytest.raises(StoreError, match="'layer'"):
        buffer.add(unit_batch(4, 6)._replace(tensors={"layer": vectors(4, 6)}))
    with pytest.raises(StoreError, match="more than its 8 rows"):
        buffer.add(unit_batch(4, 10))


def test_groups_that_differ_in_case_alone_have_folders_that_differ_in_more(tmp_path: Path) -> None:
    """And the same ones after an interruption."""
    groups = {row: ("Cat", "cat", "dog")[row % 3] for row in range(16)}
    stores = [build_store(tmp_path / name, 16, rejected=(), groups=groups) for name in ("one", "two")]
    (stores[1] / "index/train-00000.parquet").unlink()
    session = StoreSession.begin(stores[1], manifest({"train": 16}), "resume")
    commit(session, unit_batch(0, 8, groups=groups))
    session.finish({})
    session.close()
    assert digests(stores[0]) == digests(stores[1])
    folders = [path.name for path in (stores[0] / "train").iterdir()]
    assert len({name.lower() for name in folders}) == 3 and {"Cat", "dog"} < set(folders)
    assert list(verify(stores[1])) == []
    assert Store.open(stores[1]).load("train", "cat").keys == [f"key-{row}" for row in range(16) if row % 3 == 1]


def test_rows_that_stay_are_taken_from_the_store_that_is_replaced_and_put_in_order(tmp_path: Path) -> None:
    """However their columns are named, as they have a type of their own."""
    old = build_store(tmp_path / "old", inputs=8, rejected=(2,))
    table = read_index(old / "index/train-00000.parquet")
    kept = StayingRows.of(Unit("train", 0), table.take([0, 2, 5, 7]))
    buffer = UnitBuffer(StoreTerms(tmp_path / "new", "r", True, ROWS_PER_UNIT, old))
    (tmp_path / "new").mkdir()
    buffer.add(kept)
    computed = unit_batch(0, 8)
    buffer.add(
        computed._replace(tensors={"embeddings": vectors(0, 8)[[1, 3, 4, 6]]}, rows=computed.rows.take([1, 3, 4, 6]))
    )
    assert (buffer.commit().rows, buffer.unit) == (7, None)
    cats, dogs = (load_file(tmp_path / f"new/train/{group}/shard-00000.safetensors") for group in ("cat", "dog"))
    assert torch.equal(cats["embeddings"], vectors(0, 8)[[1, 3, 5, 7]])
    assert torch.equal(dogs["embeddings"], vectors(0, 8)[[0, 4, 6]]) and dogs["index"].tolist() == [0, 4, 6]


def test_rows_can_stay_only_where_a_store_is_replaced(tmp_path: Path) -> None:
    table = read_index(build_store(tmp_path / "old", inputs=8) / "index/train-00000.parquet")
    buffer = UnitBuffer(StoreTerms(tmp_path, "r", True, ROWS_PER_UNIT))
    with pytest.raises(StoreError, match="replaces no store"):
        buffer.add(StayingRows.of(Unit("train", 0), table))
