"""The vectors of a store, block by block and by their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from embedx.errors import ConfigError, StoreError
from embedx.store.reading.reader import Store
from embedx.vectors.vector_rows import VectorRows, open_rows, unit_length
from tests.store.builders import build_store, write_features

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(200, 5, generator=GENERATOR)
OTHERS = torch.randn(30, 5, generator=GENERATOR)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("store") / "store"
    splits: dict[str, tuple[torch.Tensor, list[int | None]]]
    splits = {"train": (ROWS, [row % 3 for row in range(200)]), "val": (OTHERS, [None] * 30)}
    return Store.open(write_features(out, splits))


def all_of(rows: VectorRows, size: int = 50) -> torch.Tensor:
    parts = list(rows.blocks(size))
    assert [start for start, _ in parts] == np.cumsum([0, *(len(part) for _, part in parts[:-1])]).tolist()
    assert all(0 < len(part) <= size and part.dtype == torch.float32 for _, part in parts)
    return torch.cat([part for _, part in parts])


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_all_rows_in_order(store: Store, size: int) -> None:
    rows = open_rows(store)
    assert torch.equal(all_of(rows, size), torch.cat([ROWS, OTHERS]))
    assert rows.table["key"].to_pylist() == [f"key-{row}" for row in [*range(200), *range(30)]]
    assert rows.table["split"].to_pylist() == ["train"] * 200 + ["val"] * 30
    assert (len(rows), rows.dim) == (230, 5)


def test_splits_in_the_order_that_is_asked_for(store: Store) -> None:
    rows = open_rows(store, ["val", "train"], columns=["target", "no-such-column"])
    assert torch.equal(all_of(rows), torch.cat([OTHERS, ROWS]))
    assert rows.table["target"].to_pylist() == [None] * 30 + [row % 3 for row in range(200)]
    assert rows.table["no-such-column"].null_count == 230


def test_a_split_that_is_named_twice_is_read_once(store: Store) -> None:
    assert len(open_rows(store, ["val", "train", "val"])) == 230


def test_rows_that_meet_a_condition(store: Store) -> None:
    rows = open_rows(store, where="target = 2 and split = 'train'")
    assert torch.equal(all_of(rows), ROWS[2::3])
    assert rows.table["key"].to_pylist() == [f"key-{row}" for row in range(2, 200, 3)]


def test_rows_by_their_numbers(store: Store) -> None:
    rows = open_rows(store)
    assert torch.equal(rows.take([199, 0, 201, 0]), torch.stack([ROWS[199], ROWS[0], OTHERS[1], ROWS[0]]))
    assert rows.take([]).shape == (0, 5)


def test_groups_and_rejected_inputs_leave_each_key_at_its_vector(tmp_path: Path) -> None:
    store = Store.open(build_store(tmp_path / "store", 40, rejected=(2, 17)))
    rows = open_rows(store)
    numbers = [int(key.removeprefix("key-")) for key in rows.table["key"].to_pylist()]
    assert sorted(numbers) == [row for row in range(40) if row not in (2, 17)]
    assert all_of(rows)[:, 0].tolist() == numbers == rows.take(range(38))[:, 0].tolist()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"splits": ["vall"]}, "unknown split 'vall'"),
        ({"name": "layer9"}, "'layer9'"),
        ({"where": "target = 9"}, "no rows where target = 9"),
        ({"where": "tarket = 9"}, "tarket"),
    ],
)
def test_what_is_not_there_is_told(store: Store, options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_rows(store, **options)


def test_maps_are_no_vectors(tmp_path: Path) -> None:
    store = Store.open(write_features(tmp_path / "store", {"train": (torch.ones(4, 2, 3), [0] * 4)}))
    with pytest.raises(ConfigError, match="--pool avg"):
        open_rows(store)


def test_a_damaged_shard_is_found_before_its_first_row_is_used(tmp_path: Path) -> None:
    path = write_features(tmp_path / "store", {"train": (ROWS, [0] * 200)})
    shard = sorted((path / "train").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    rows = open_rows(Store.open(path))
    with pytest.raises(StoreError, match=shard.name):
        all_of(rows)
    assert len(all_of(open_rows(Store.open(path), check=False))) == 200


def test_the_index_and_the_shards_are_what_other_readers_see(store: Store) -> None:
    rows = open_rows(store, ["train"])
    tables = sorted((store.path / "index").glob("train-*.parquet"))
    read = [(row["shard"], row["row"], row["key"]) for table in tables for row in pq.read_table(table).to_pylist()]
    shards = {name: load_file(store.path / name)["embeddings"] for name in {shard for shard, _, _ in read}}
    assert torch.equal(torch.stack([shards[shard][row] for shard, row, _ in read]), all_of(rows))
    assert [key for _, _, key in read] == rows.table["key"].to_pylist()


def test_unit_length() -> None:
    rows = torch.tensor(
        [[3.0, 4.0], [1e30, -1e30], [1e-30, 0], [0, 0], [float("nan"), 1], [float("inf"), 1]], dtype=torch.float32
    )
    half = 0.5**0.5
    expected = torch.tensor([[0.6, 0.8], [half, -half], [1, 0], [0, 0], [0, 0], [0, 0]])
    assert torch.allclose(unit_length(rows), expected)
