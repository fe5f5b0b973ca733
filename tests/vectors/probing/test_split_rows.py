"""A split as a dataloader: its rows, kept in memory or streamed, and the names of its classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from embedx.errors import ConfigError, StoreError
from embedx.store.format.contents import StoredSettings
from embedx.store.reading.reader import Store
from embedx.vectors.probing.split_rows import SplitRows, batch_rows, class_names, open_split
from tests.store.builders import build_store, write_features

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
TARGETS = [row % 3 * 2 + 4 for row in range(200)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("store") / "store"
    return Store.open(write_features(out, {"train": (ROWS, TARGETS), "half": (ROWS.half(), TARGETS)}))


@pytest.mark.parametrize("memory", [0, 200 * 5 * 4 - 1, 200 * 5 * 4])
@pytest.mark.parametrize("size", [10, 64, 90, 1000])
def test_the_rows_come_in_order_kept_or_streamed(
    store: Store, memory: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split(store, "train", "embeddings")
    features = SplitRows(split, split.classes, size, memory)
    first = list(features)
    opened = []

    def recorded(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return Store.iter_shards(store, *arguments, **options)

    monkeypatch.setattr(store, "iter_shards", recorded)
    second = list(features)
    assert bool(opened) == (memory < 4000)
    for batches in (first, second):
        assert torch.equal(torch.cat([batch["embeddings"] for batch in batches]), ROWS)
        assert torch.cat([batch["targets"] for batch in batches]).tolist() == [row % 3 for row in range(200)]
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(200))
        assert all(len(batch["index"]) <= size for batch in batches)
    assert len(first) <= 200 / size * 2 + 4 and len(features) == 200


@pytest.mark.parametrize("memory", [0, 10**6])
def test_some_of_the_rows(store: Store, memory: int) -> None:
    split = open_split(store, "half", "embeddings")
    kept = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.3
    features = SplitRows(split, split.classes, 50, memory, kept)
    batches = list(features)
    assert torch.equal(torch.cat([batch["embeddings"] for batch in batches]), ROWS.half()[kept].float())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == kept.nonzero().flatten().tolist()
    assert len(features) == kept.sum() and batches[0]["embeddings"].dtype == torch.float32


def test_a_batch_is_bounded_by_its_embeddings_and_by_its_logits() -> None:
    assert batch_rows(512, 10) == batch_rows(10, 512) == 8192
    assert batch_rows(10**9, 2) == 1


def test_groups_and_rejected_inputs_are_no_hindrance(tmp_path: Path) -> None:
    store = Store.open(build_store(tmp_path / "store", 20, rejected=(2, 9)))
    split = open_split(store, "train", "embeddings")
    rows = torch.cat([batch["embeddings"] for batch in SplitRows(split, split.classes, 7, 0)])
    assert sorted(rows[:, 0].tolist()) == [row for row in range(20) if row not in (2, 9)]
    assert len(split) == 18 and split.targets.tolist().count(-1) == 1


def test_the_first_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    rows = ROWS.clone()
    rows[130, 2], rows[131, 0], rows[140] = float("inf"), float("nan"), torch.tensor([1.0, -1, 1, -1, 0]) * float("inf")
    store = Store.open(write_features(tmp_path / "store", {"train": (rows, TARGETS)}))
    with pytest.raises(StoreError, match=r"3 rows of .*shard-00002\.safetensors have NaN or infinity, .* 'key-130'"):
        open_split(store, "train", "embeddings")


def test_large_numbers_are_finite(tmp_path: Path) -> None:
    store = Store.open(write_features(tmp_path / "store", {"train": (torch.full((4, 9), 3e38), [0, 1, 0, 1])}))
    assert len(open_split(store, "train", "embeddings")) == 4


def test_what_is_not_there_is_told_with_what_is(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown split 'validation'; valid: half, train in"):
        open_split(store, "validation", "embeddings")
    with pytest.raises(ConfigError, match="unknown tensor 'layer4'; valid: embeddings in"):
        open_split(store, "train", "layer4")
    tokens = Store.open(write_features(tmp_path / "tokens", {"train": (torch.zeros(4, 3, 2), [0, 1, 0, 1])}))
    with pytest.raises(ConfigError, match=r"'embeddings' has \[3, 2\] numbers per row, and a probe takes one vector"):
        open_split(tokens, "train", "embeddings")
    empty = Store.open(build_store(tmp_path / "empty", 2, rejected=(0, 1)))
    with pytest.raises(ConfigError, match=r"split 'train' of .* has no rows"):
        open_split(empty, "train", "embeddings")


@pytest.mark.parametrize(
    ("column", "names", "expected"),
    [
        ("class", ["cat", "dog"], ["cat", "dog"]),
        ("species", ["cat", "dog"], ["cat", "dog"]),
        ("colour", ["red", "blue"], ["0", "1"]),
        ("class", ["same", "same"], ["0", "1"]),
        ("class", None, ["0", "1"]),
    ],
)
def test_names_stand_in_a_column_that_has_one_for_each_target(
    tmp_path: Path, column: str, names: list[str] | None, expected: list[str]
) -> None:
    splits = {"train": (torch.zeros(4, 2), [1, 0, 1, 0])}
    store = Store.open(write_features(tmp_path / "store", splits, names=names, column=column))
    settings = StoredSettings(target_column="species")
    store.manifest = dataclasses.replace(store.manifest, settings=settings)
    split = open_split(store, "train", "embeddings")
    assert class_names(split, split.classes) == expected
