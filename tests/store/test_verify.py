from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from embedx.store.manifest import Manifest
from embedx.store.session import StoreSession
from embedx.store.units import UnitBuffer
from embedx.store.verify import verify
from tests.store.builders import build_store, manifest, unit_batch


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path / "store")


def faults(store: Path) -> str:
    return "\n".join(verify(store))


def test_a_whole_store_has_no_faults(store: Path) -> None:
    assert faults(store) == ""


def test_a_flipped_bit_is_found_in_shard_and_index_table(store: Path) -> None:
    for file in ("train/cat/shard-00000.safetensors", "index/train-00000.parquet"):
        data = (store / file).read_bytes()
        for position in range(0, len(data), max(1, len(data) // 25)):
            (store / file).write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            assert file in faults(store), f"byte {position} of {file}"
        (store / file).write_bytes(data)
    assert faults(store) == ""


def test_missing_and_extra_files_are_found(store: Path) -> None:
    shard = store / "train/cat/shard-00000.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    assert "train/cat/shard-00000.safetensors: missing" in faults(store)
    shard.write_bytes(data)
    (store / "train/cat/shard-00007.safetensors").write_bytes(data)
    assert "shard-00007.safetensors: no index table names it" in faults(store)
    (store / "train/cat/shard-00007.safetensors").unlink()
    (store / "index/train-00001.parquet").unlink()
    found = faults(store)
    assert "index/train-00001.parquet: missing" in found
    assert "manifest.json says 12 inputs, found 8" in found


def test_swapped_shards_are_found(store: Path) -> None:
    cat, dog = (store / f"train/{group}/shard-00001.safetensors" for group in ("cat", "dog"))
    one, other = cat.read_bytes(), dog.read_bytes()
    cat.write_bytes(other)
    dog.write_bytes(one)
    assert faults(store).count("sha256") == 2


def test_a_manifest_that_does_not_add_up_is_found(store: Path) -> None:
    whole = Manifest.read(store)
    for name, found in whole.totals["train"].items():
        totals = {"train": whole.totals["train"] | {name: found + 1}}
        dataclasses.replace(whole, totals=totals).write(store)
        assert faults(store) == f"split 'train': manifest.json says {found + 1} {name}, found {found}"
    dataclasses.replace(whole, totals=whole.totals | {"val": {"rows": 1}}).write(store)
    assert "split 'val': manifest.json says 1 rows, found 0" in faults(store)
    dataclasses.replace(whole, plan=whole.plan | {"splits": {"train": {"inputs": 13}}}).write(store)
    assert faults(store) == "split 'train': the plan in manifest.json has 13 inputs, found 12"


def test_rows_that_are_nan_are_named(tmp_path: Path) -> None:
    session = StoreSession.begin(tmp_path / "store", manifest({"train": 8}), "create")
    batch = unit_batch(0, 8)
    batch.tensors["embeddings"][5, 1] = torch.nan
    buffer = UnitBuffer(session.terms, batch.unit)
    buffer.add(batch)
    buffer.commit()
    session.finish({})
    session.close()
    found = faults(tmp_path / "store")
    assert "NaN" in found and "key-5" in found


def test_units_that_do_not_go_together_are_found(tmp_path: Path) -> None:
    """Each is whole by itself; the second has another type, and a key of the first."""
    session = StoreSession.begin(tmp_path / "store", manifest({"train": 16}), "create")
    for start in (0, 8):
        batch = unit_batch(start, start + 8)
        if start:
            batch.tensors["embeddings"] = batch.tensors["embeddings"].half()
            keys = pa.array(["key-3", *batch.rows["key"].to_pylist()[1:]])
            batch = batch._replace(rows=batch.rows.set_column(2, "key", keys))
        buffer = UnitBuffer(session.terms, batch.unit)
        buffer.add(batch)
        buffer.commit()
    session.finish({})
    session.close()
    assert faults(tmp_path / "store").splitlines() == [
        *(
            f"train/{group}/shard-00001.safetensors: 'embeddings' is float16 [N, 3], "
            "but float32 [N, 3] in train/dog/shard-00000.safetensors"
            for group in ("dog", "cat")
        ),
        "split 'train': the key 'key-3' stands there more than once",
    ]


def test_an_unfinished_store_is_told(tmp_path: Path) -> None:
    StoreSession.begin(tmp_path / "store", manifest({"train": 8}), "create").close()
    assert "not complete" in faults(tmp_path / "store")
