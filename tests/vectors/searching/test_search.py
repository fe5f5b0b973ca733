"""The neighbours of queries in a store, with their inputs, and queries that are rows, files and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from embedx.errors import ConfigError
from embedx.store.reading.reader import Store
from embedx.vectors.searching.search import Search
from embedx.vectors.searching.search_config import SearchConfig
from embedx.vectors.searching.search_queries import Queries, joined, queries_of_array, queries_of_file, queries_of_rows
from embedx.vectors.searching.search_result import Answer
from tests.store.builders import build_store, write_features

GENERATOR = torch.Generator().manual_seed(0)
DIM = 6
TRAIN, VAL = torch.randn(100, DIM, generator=GENERATOR), torch.randn(30, DIM, generator=GENERATOR)
TARGETS = [row % 3 for row in range(100)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    splits: dict[str, Any] = {"train": (TRAIN, TARGETS), "val": (VAL, [None] * 30)}
    return Store.open(write_features(tmp_path_factory.mktemp("stores") / "store", splits, names=["ant", "bee", "cow"]))


def answers(store: Store, queries: Queries, **settings: Any) -> list[Answer]:
    return list(Search.open(store, SearchConfig(**settings)).answers(queries))


def similarities(rows: np.ndarray[Any, Any], query: torch.Tensor) -> np.ndarray[Any, Any]:
    a, b = rows.astype(np.float64), query.double().numpy()
    found: np.ndarray[Any, Any] = a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
    return found


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, lambda rows: rows.split != ""),
        ({"split": "val"}, lambda rows: rows.split == "val"),
        ({"where": "class = 'bee'"}, lambda rows: rows["class"] == "bee"),
        (
            {"where": "class in ('ant', 'cow') and index >= 40", "split": ("train",)},
            lambda rows: rows["class"].isin(["ant", "cow"]) & (rows["index"] >= 40),
        ),
        ({"where": "target is null or key like '%7'"}, lambda rows: rows.target.isna() | rows.key.str.endswith("7")),
    ],
)
def test_the_neighbours_are_those_of_the_rows_that_pandas_chooses(
    store: Store, settings: dict[str, Any], chosen: Any
) -> None:
    index = pd.concat([store.index("train").to_pandas(), store.index("val").to_pandas()], ignore_index=True)
    index["vector"] = [*TRAIN.numpy(), *VAL.numpy()]
    rows = index[chosen(index)]
    queries = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    found = answers(store, queries_of_array(queries, "query"), k=7, **settings)
    for number, (query, answer) in enumerate(zip(queries, found, strict=True)):
        assert answer.query == f"query[{number}]"
        values = similarities(np.stack(rows.vector.tolist()), query)
        expected = rows.assign(similarity=values).sort_values("similarity", ascending=False, kind="stable").head(7)
        assert [(each.split, each.key) for each in answer.neighbours] == list(
            expected[["split", "key"]].itertuples(index=False, name=None)
        )
        assert [each.target for each in answer.neighbours] == [
            None if pd.isna(target) else target for target in expected.target
        ]
        assert np.allclose([each.similarity for each in answer.neighbours], expected.similarity, rtol=0, atol=1e-12)


def test_a_row_is_not_its_own_neighbour_unless_that_is_wanted(store: Store) -> None:
    queries = queries_of_rows(store, ["train:key-5", "val:key-5"], "embeddings")
    assert torch.equal(queries.vectors, torch.stack([TRAIN[5], VAL[5]]))
    for answer, split in zip(answers(store, queries, k=200), ("train", "val"), strict=True):
        assert answer.query == f"{split}:key-5"
        assert len(answer.neighbours) == 129 and (split, "key-5") not in {(n.split, n.key) for n in answer.neighbours}
    for answer, split in zip(answers(store, queries, with_self=True), ("train", "val"), strict=True):
        first = answer.neighbours[0]
        assert (first.split, first.key) == (split, "key-5") and first.similarity == pytest.approx(1, abs=1e-15)


def test_a_row_may_be_of_a_split_that_is_not_searched(store: Store) -> None:
    (answer,) = answers(store, queries_of_rows(store, ["train:key-5"], "embeddings"), split="val", k=50)
    assert len(answer.neighbours) == 30 and {each.split for each in answer.neighbours} == {"val"}


def test_neighbours_have_paths_and_groups(tmp_path: Path) -> None:
    store = Store.open(build_store(tmp_path / "store", 20))
    (answer,) = answers(store, queries_of_rows(store, ["key-7"], "embeddings"), k=20)
    assert answer.query == "train:key-7" and len(answer.neighbours) == 17  # one is rejected, one zero, one the query
    for each in answer.neighbours:
        number = int(each.key.removeprefix("key-"))
        assert (each.path, each.group) == (f"/images/{number}.jpg", "cat" if number % 2 else "dog")


def test_half_precision_stores_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    values = torch.randn(200, DIM, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.float16, torch.bfloat16):
        out = tmp_path / str(dtype)
        store = Store.open(write_features(out, {"all": (values.to(dtype), [0] * 200)}))
        (answer,) = answers(store, queries_of_array(values[0].to(dtype), "query"), k=9)
        expected = similarities(values.to(dtype).float().numpy(), values[0].to(dtype))
        order = np.argsort(-expected, kind="stable")[:9]
        assert [each.number for each in answer.neighbours] == order.tolist()
        assert np.allclose([each.similarity for each in answer.neighbours], expected[order], rtol=0, atol=1e-12)


def test_a_key_may_have_colons_and_the_only_split_need_not_be_named(tmp_path: Path) -> None:
    columns = {"train": (TRAIN[:3], [0, 0, 0])}
    one = Store.open(write_features(tmp_path / "one", columns))
    for text in ("key-1", "train:key-1"):
        assert queries_of_rows(one, [text], "embeddings").names == ["train:key-1"]
    odd = Store.open(write_features(tmp_path / "odd", {"a": (TRAIN[:3], [0] * 3), "a:key-1": (VAL[:3], [0] * 3)}))
    assert queries_of_rows(odd, ["a:key-1"], "embeddings").rows == (("a", "key-1"),)
    assert queries_of_rows(odd, ["a:key-1:key-2"], "embeddings").rows == (("a:key-1", "key-2"),)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_of_vectors(tmp_path: Path, dtype: type) -> None:
    array: np.ndarray[Any, Any] = VAL.numpy().astype(dtype)
    np.save(tmp_path / "several.npy", array)
    np.save(tmp_path / "one.npy", array[4])
    np.save(tmp_path / "columns.npy", np.asfortranarray(array))
    for name in ("several", "columns"):
        found = queries_of_file(tmp_path / f"{name}.npy")
        assert np.array_equal(found.vectors.numpy(), array.astype(np.float32))
        assert found.names[7] == f"--vector {tmp_path}/{name}.npy[7]" and found.rows == found.paths == (None,) * 30
    one = queries_of_file(tmp_path / "one.npy")
    assert one.names == [f"--vector {tmp_path}/one.npy"] and one.vectors.shape == (1, DIM)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 3, 4), np.float32), r"has the shape \[2, 3, 4\]"),
        (np.zeros((2, 3), np.int64), "the type int64"),
        (np.float32(3), r"has the shape \[\]"),
        (np.empty((0, 3), np.float32), r"has the shape \[0, 3\]"),
        (np.array([{}]), "Object arrays cannot be loaded"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, array: Any, told: str) -> None:
    np.save(tmp_path / "queries.npy", array)
    with pytest.raises(ConfigError, match=told):
        queries_of_file(tmp_path / "queries.npy")


def test_a_file_that_is_none_of_numpys(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no numbers")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", a=VAL, b=VAL)
    np.save(tmp_path / "cut.npy", VAL.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-9])
    for name in ("text.npy", "empty.npy", "several.npz", "cut.npy", "gone.npy", "."):
        with pytest.raises(ConfigError, match=r"can.t be read .*numpy\.save writes it"):
            queries_of_file(tmp_path / name)


def test_every_query_that_can_not_be_compared_is_told() -> None:
    array = torch.ones(3, DIM)
    array[0], array[2, 1] = 0, torch.nan
    huge = queries_of_array(np.full(DIM, 1e300), "huge")
    with pytest.raises(ConfigError) as error:
        joined([queries_of_array(array, "given"), queries_of_array(torch.ones(7), "long"), huge], DIM)
    zero, nan, long, infinite = error.value.faults
    assert "given[0] is all zeros" in zero and "given[2] has NaN or infinity" in nan
    assert "long has 7 numbers, and the store's vectors have 6" in long and "huge has NaN or infinity" in infinite
    with pytest.raises(ConfigError, match="there is no query"):
        joined([Queries([], torch.empty(0, 0))], DIM)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("train:key-999", "no key 'key-999' in split 'train'"),
        ("key-1", "names no split; give SPLIT:KEY, and one of these splits: train, val"),
        ("test:key-1", "names no split"),
        ("train:", "no key '' in split 'train'"),
    ],
)
def test_a_row_that_is_not_there(store: Store, row: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        queries_of_rows(store, [row], "embeddings")


def test_a_rejected_input_has_no_neighbours(tmp_path: Path) -> None:
    store = Store.open(build_store(tmp_path / "store", 12))
    with pytest.raises(ConfigError, match="its input was rejected: broken"):
        queries_of_rows(store, ["train:key-2"], "embeddings")
