"""The flow of an export: which rows and columns, in which type; and what can't be exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import embedx
from embedx.errors import ConfigError, StoreError
from embedx.store.reading.reader import Store
from embedx.vectors.exporting.export_config import FormatName
from tests.store.builders import build_store, write_features
from tests.vectors.exports import DIM, build, contents, expected, key, keys

FORMATS = get_args(FormatName)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("store") / "store")


def read_npy(out: Path) -> tuple[np.ndarray[Any, Any], list[str]]:
    return np.load(out / "embeddings.npy"), pq.read_table(out / "keys.parquet")["key"].to_pylist()


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "lance"])
def test_the_same_store_and_settings_give_the_same_bytes(store: Path, tmp_path: Path, to: Any) -> None:
    once, twice = (contents(embedx.export(store, tmp_path / name, to).out) for name in ("once", "twice"))
    assert once == twice and ".embedx-export.json" in once
    embedx.export(store, tmp_path / "twice", to, overwrite=True, columns="target")
    assert contents(tmp_path / "twice") != once
    embedx.export(Store.open(store), tmp_path / "twice", to, overwrite=True)
    assert contents(tmp_path / "twice") == once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once", "twice"]


def test_rows_are_chosen_by_split_and_condition_in_the_order_asked_for(store: Path, tmp_path: Path) -> None:
    result = embedx.export(store, tmp_path / "a", "npy", split=["val", "train", "val"], where="index % 2 = 1")
    vectors, found = read_npy(result.out)
    wanted = {split: list(range(1, count, 2)) for split, count in (("val", 21), ("train", 90))}
    assert result.rows == {"val": 10, "train": 45} and (result.dim, result.dtype) == (DIM, "float32")
    assert found == [key(number) for numbers in wanted.values() for number in numbers]
    both = dict(zip(zip(["train"] * 89 + ["val"] * 20, keys(), strict=True), expected(), strict=True))
    rows = [both[split, key(number)] for split, numbers in wanted.items() for number in numbers]
    assert np.array_equal(vectors, np.stack(rows))
    mark = json.loads((result.out / ".embedx-export.json").read_text())
    assert mark["settings"]["where"] == "index % 2 = 1" and mark["recipe"] == Store.open(store).manifest.fingerprint
    assert mark["files"] == result.files


def test_a_split_without_rows_that_meet_the_condition_has_no_file(store: Path, tmp_path: Path) -> None:
    result = embedx.export(store, tmp_path / "a", where="index > 50")
    assert result.rows == {"train": 39} and list(result.files) == ["train.parquet"]


@pytest.mark.parametrize("rows", [11, 30, 60])
def test_blocks_end_at_splits_whatever_their_size(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("embedx.vectors.exporting.export._BLOCK_BYTES", 4 * DIM * rows)
    vectors, found = read_npy(embedx.export(store, tmp_path / "npy", "npy").out)
    assert np.array_equal(vectors, expected()) and found == keys()
    out = embedx.export(store, tmp_path / "parquet").out
    for split in ("train", "val"):
        file = pq.ParquetFile(out / f"{split}.parquet")
        assert file.num_row_groups > (split == "train") and file.read()["key"].to_pylist() == keys(split)
        flat = file.read()["embedding"].combine_chunks().flatten().to_numpy()
        assert np.array_equal(flat.reshape(-1, DIM), expected(split))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_types_that_other_programs_lack_become_float32_and_that_is_told(tmp_path: Path, dtype: torch.dtype) -> None:
    result = embedx.export(build(tmp_path / "store", dtype=dtype), tmp_path / "out", "npy")
    name = str(dtype).removeprefix("torch.")
    assert result.notes == (f"the store's vectors are {name}, and are exported as float32",)
    wanted = torch.from_numpy(expected()).to(dtype).float().numpy()
    assert np.array_equal(np.load(result.out / "embeddings.npy"), wanted, equal_nan=True)


def test_numbers_beyond_float16_are_refused_and_not_made_infinite(tmp_path: Path) -> None:
    store = build(tmp_path / "store", value=1e4)
    with pytest.raises(ConfigError, match=r"the vector of '.*' has .*e\+0[67], and float16 ends at 65504; give"):
        embedx.export(store, tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == [store]
    result = embedx.export(store, tmp_path / "out", dtype="float16", normalize=True)
    assert result.dtype == "float16" and result.notes == ()


def test_rows_with_nan_and_infinity_stay_as_they_are_and_become_zeros_when_normalised(tmp_path: Path) -> None:
    rows = torch.tensor([[float("nan"), 1], [float("inf"), 2], [3, 4]])
    store = write_features(tmp_path / "store", {"train": (rows, [0, 0, 0])})
    half = np.load(embedx.export(store, tmp_path / "a", "npy", dtype="float16").out / "embeddings.npy")
    assert np.array_equal(half, rows.numpy(), equal_nan=True)
    unit = np.load(embedx.export(store, tmp_path / "b", "npy", normalize=True).out / "embeddings.npy")
    assert np.allclose(unit, np.array([[0, 0], [0, 0], [0.6, 0.8]]), atol=1e-6)


@pytest.mark.parametrize("to", FORMATS)
def test_a_damaged_shard_gives_one_message_and_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any
) -> None:
    """In the middle of a split, some blocks of which have been written."""
    monkeypatch.setattr("embedx.vectors.exporting.export._BLOCK_BYTES", 4 * DIM * 16)
    store = build(tmp_path / "store")
    shard = sorted((store / "train").iterdir())[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=shard.name) as caught:
        embedx.export(store, tmp_path / "out", to)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == [store]
    assert embedx.export(store, tmp_path / "out", to, split="val").rows == {"val": 20}


def test_of_a_store_that_is_not_complete_the_committed_rows_are_written(tmp_path: Path) -> None:
    result = embedx.export(build(tmp_path / "store", finish=False), tmp_path / "out", "npy")
    vectors, found = read_npy(result.out)
    assert found == keys("train")[:31] and np.array_equal(vectors, expected("train")[:31])


def test_grouped_stores_keep_each_key_at_its_vector(tmp_path: Path) -> None:
    vectors, found = read_npy(embedx.export(build_store(tmp_path / "store", 40), tmp_path / "out", "npy").out)
    assert [float(name.removeprefix("key-")) for name in found] == vectors[:, 0].tolist() and len(found) == 39


def refusals(store: Path, tmp_path: Path) -> list[tuple[dict[str, Any], str]]:
    return [
        ({"split": "vall"}, "unknown split 'vall'; did you mean val?"),
        ({"columns": ["clas"]}, "--columns: unknown column 'clas'; did you mean class?"),
        ({"columns": ["status"]}, "--columns: unknown column 'status'"),
        ({"where": "clas = 'a'"}, "--where clas = 'a'"),
        ({"where": "target = 9"}, "no rows where target = 9"),
        ({"where": "target ="}, "--where target ="),
        ({"name": "layer4"}, "unknown tensor 'layer4'"),
        ({"to": "faiss", "dtype": "float16"}, "--dtype float16: --to faiss has no such numbers; leave it out"),
        ({"to": "npy", "list": "variable"}, "--list variable is for --to parquet and hf; leave it out"),
        ({"out": store / "export"}, "; choose a path outside of it"),
        ({"out": store}, "is in the store"),
        ({"out": Path("/dev/null/x")}, "/dev/null is not a folder"),
        ({"out": tmp_path / "a\nb"}, "a line end"),
    ]


@pytest.mark.parametrize("number", range(13))
def test_what_can_not_be_exported_is_told_at_once(store: Path, tmp_path: Path, number: int) -> None:
    settings, told = refusals(store, tmp_path)[number]
    with pytest.raises(ConfigError) as caught:
        embedx.export(store, **{"out": tmp_path / "out", **settings})
    assert told in str(caught.value) and not any(tmp_path.iterdir())


def test_an_empty_store_maps_and_a_column_with_the_vectors_name_are_refused(tmp_path: Path) -> None:
    empty = build_store(tmp_path / "empty", 3, rejected=(0, 1, 2))
    with pytest.raises(ConfigError, match="has no rows"):
        embedx.export(empty, tmp_path / "out")
    maps = write_features(tmp_path / "maps", {"train": (torch.ones(4, 2, 3), [0] * 4)})
    with pytest.raises(ConfigError, match="--pool avg"):
        embedx.export(maps, tmp_path / "out")
    rows: dict[str, tuple[torch.Tensor, list[int | None]]] = {"train": (torch.ones(4, 2), [0] * 4)}
    named = write_features(tmp_path / "named", rows, names=["x"], column="embedding")
    with pytest.raises(ConfigError, match="has a column 'embedding', and the vectors are to have that name"):
        embedx.export(named, tmp_path / "out")
    assert embedx.export(named, tmp_path / "out", columns="target").rows == {"train": 4}
    other = write_features(tmp_path / "other", rows, names=["x"], column="embedding_1.b")
    assert embedx.export(other, tmp_path / "csv", "csv").rows == {"train": 4}
    with pytest.raises(ConfigError, match=r"no column with a dot in its name, as 'embedding_1\.b' has; choose others"):
        embedx.export(other, tmp_path / "lance", "lance")
    numbered = write_features(tmp_path / "numbered", rows, names=["x"], column="embedding_1")
    with pytest.raises(ConfigError, match="has a column 'embedding_1', and"):
        embedx.export(numbered, tmp_path / "numbered-csv", "csv")
    assert embedx.export(numbered, tmp_path / "numbered-npy", "npy").rows == {"train": 4}


@pytest.mark.parametrize(("to", "library"), [("lance", "lance"), ("usearch", "usearch.index")])
def test_a_missing_library_is_told_with_its_extra(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, library: str
) -> None:
    monkeypatch.delitem(sys.modules, f"embedx.vectors.exporting.formats.to_{to}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf'--to {to} needs a library .* pip install "embedx\[{to}\]"'):
        embedx.export(store, tmp_path / "out", to)
