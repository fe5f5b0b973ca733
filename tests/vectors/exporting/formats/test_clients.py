"""Every export, read by the program that it is for: its rows, keys and vectors are those of the store, to the bit."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import embedx
from embedx.errors import ConfigError
from tests.store.builders import write_features
from tests.vectors.exports import COUNTS, DIM, ODD_KEYS, build, expected, in_own_process, keys

Export = Callable[..., Path]
COLUMNS = ["split", "key", "index", "path", "offset", "group", "target", "bytes", "mtime_ns", "sha256"]
OWN = ["class", "score", "box"]
INDEX_ORDER = ["index", "path", "offset", "group", "target", "bytes", "mtime_ns", "sha256"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    return build(tmp_path_factory.mktemp("halves") / "store", dtype=torch.float16)


@pytest.fixture
def export(store: Path, tmp_path: Path) -> Export:
    def write(to: str, **settings: Any) -> Path:
        result = embedx.export(settings.pop("store", store), tmp_path / to, to, **settings)
        on_disk = {
            str(path.relative_to(result.out)): path.stat().st_size
            for path in result.out.rglob("*")
            if path.is_file() and path.name != ".embedx-export.json"
        }
        assert result.files == on_disk
        return result.out

    return write


def equal(found: Any, wanted: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    found = np.asarray(found)
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


def query(sql: str) -> duckdb.DuckDBPyRelation:
    relation = duckdb.sql(sql)
    assert relation is not None
    return relation


def test_parquet_is_read_by_pyarrow_pandas_polars_and_duckdb(export: Export) -> None:
    out = export("parquet")
    assert sorted(path.name for path in out.iterdir()) == [".embedx-export.json", "train.parquet", "val.parquet"]
    for split in COUNTS:
        file = out / f"{split}.parquet"
        schema = pq.read_schema(file)
        assert schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), DIM)
        assert schema.names == ["split", "key", *INDEX_ORDER, *OWN, "embedding"]
        frame = pd.read_parquet(file)
        assert equal(np.stack(frame["embedding"]), expected(split)) and list(frame["key"]) == keys(split)
        polars = pl.read_parquet(file)
        assert polars.schema["embedding"] == pl.Array(pl.Float32, DIM)
        assert equal(polars["embedding"].to_numpy(), expected(split)) and polars["key"].to_list() == keys(split)
        found = query(f"select key, embedding::float[{DIM}] e, split from '{file}'").fetchnumpy()
        assert equal(np.stack(found["e"]), expected(split)) and list(found["key"]) == keys(split)
        assert set(found["split"]) == {split}
    train, val = (pq.read_table(out / f"{split}.parquet") for split in COUNTS)
    assert val["class"].null_count == val["box"].null_count == len(val) and train["path"].null_count == len(train)
    assert train["box"][5].as_py() == [6, 1] and train["class"][5].as_py() == 'a\t"0",\nb'
    assert train["target"].to_pylist()[:4] == [None, 1, 2, None]


def test_parquet_in_lists_of_any_size_in_half_precision_and_with_chosen_columns(export: Export) -> None:
    out = export("parquet", list="variable", dtype="float16", columns=["target", "split", "class"], split="val")
    assert [path.name for path in sorted(out.glob("*.parquet"))] == ["val.parquet"]
    table = pq.read_table(out / "val.parquet")
    assert table.column_names == ["split", "key", "target", "class", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float16(), nullable=False))
    wanted = expected("val").astype(np.float16)
    assert equal(np.stack(pd.read_parquet(out / "val.parquet")["embedding"]), wanted)
    assert equal(np.stack(pl.read_parquet(out / "val.parquet")["embedding"].to_list()).astype(np.float16), wanted)
    found = query(f"select embedding from '{out}/val.parquet'").fetchnumpy()
    assert equal(np.stack(found["embedding"]), wanted.astype(np.float32))


def test_embedding_atlas_loads_a_split(export: Export, capsys: pytest.CaptureFixture[str]) -> None:
    load_datasets = importlib.import_module("embedding_atlas.cli").load_datasets

    frame = load_datasets([str(export("parquet") / "train.parquet")])
    assert equal(np.stack(frame["embedding"]), expected("train")) and list(frame["key"]) == keys("train")


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_npy_is_read_by_numpy_also_mapped(export: Export, dtype: Any) -> None:
    out = export("npy", dtype=dtype)
    wanted = expected().astype(dtype or np.float32)
    assert equal(np.load(out / "embeddings.npy"), wanted)
    assert equal(np.load(out / "embeddings.npy", mmap_mode="r"), wanted)
    table = pq.read_table(out / "keys.parquet")
    assert table["key"].to_pylist() == keys() and table.column_names == ["split", "key", *INDEX_ORDER, *OWN]
    assert table["split"].to_pylist() == ["train"] * 89 + ["val"] * 20


def test_normalised_vectors_have_unit_length_and_zeros_stay(export: Export) -> None:
    found = np.load(export("npy", normalize=True) / "embeddings.npy")
    lengths = np.linalg.norm(expected().astype(np.float64), axis=1, keepdims=True)
    wanted = expected() / np.where(lengths == 0, 1, lengths)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-6
    assert (found[6] == 0).all() and (lengths == 0).sum() == 2


def test_csv_is_read_by_csv_pandas_and_duckdb(export: Export) -> None:
    out = export("csv")
    numbers = [f"embedding_{number}" for number in range(DIM)]
    for split in COUNTS:
        file = out / f"{split}.csv"
        with file.open(newline="", encoding="utf-8") as opened:
            head, *lines = csv.reader(opened)
        assert head == ["split", "key", *INDEX_ORDER, *OWN, *numbers]
        assert [line[1] for line in lines] == keys(split)
        assert equal(np.array([line[-DIM:] for line in lines], dtype=np.float32), expected(split))
        frame = pd.read_csv(file, dtype={"key": str}, keep_default_na=False)
        assert list(frame["key"]) == keys(split) and equal(
            frame[numbers].to_numpy().astype(np.float32), expected(split)
        )
        chosen = ", ".join(f"{name}::float {name}" for name in numbers)
        found = query(f"select key, {chosen} from read_csv('{file}', all_varchar=true)").df()
        assert list(found["key"]) == keys(split) and equal(found[numbers].to_numpy(), expected(split))
    frame = pd.read_csv(out / "train.csv", keep_default_na=False)
    assert frame["box"][5] == "[6, 1]" and frame["class"][5] == 'a\t"0",\nb' and frame["score"][1] == "nan"
    assert list(frame["target"][:3]) == ["", "1", "2"]


READ_FAISS = """
import faiss, json, sys, numpy, tempfile
index = faiss.read_index(sys.argv[1])
vectors = index.reconstruct_n(0, index.ntotal)
own = faiss.IndexFlatIP(index.d)
own.add(vectors)
faiss.write_index(own, sys.argv[2])
similarities, numbers = index.search(vectors[:20], 3)
print(json.dumps([type(index).__name__, vectors.tobytes().hex(), numbers.tolist(), similarities.tolist()]))
assert "torch" not in sys.modules
"""


def test_faiss_reads_its_file_and_would_write_the_same_bytes(export: Export, tmp_path: Path) -> None:
    out = export("faiss")
    kind, data, numbers, similarities = in_own_process(READ_FAISS, out / "index.faiss", tmp_path / "own.faiss")
    assert kind == "IndexFlatIP" and bytes.fromhex(data) == expected().tobytes()
    assert (tmp_path / "own.faiss").read_bytes() == (out / "index.faiss").read_bytes()
    assert pq.read_table(out / "keys.parquet")["key"].to_pylist() == keys()
    products = expected()[:20] @ expected().T
    assert np.allclose(similarities, -np.sort(-products, axis=1)[:, :3], rtol=1e-5)
    assert np.allclose(np.take_along_axis(products, np.array(numbers), axis=1), similarities, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lance_and_lancedb_read_a_table_per_split(export: Export, dtype: Any) -> None:
    import lance
    import lancedb

    out = export("lance", dtype=dtype)
    database = lancedb.connect(out)
    for split in COUNTS:
        wanted = expected(split).astype(dtype)
        for table in (lance.dataset(out / f"{split}.lance").to_table(), database.open_table(split).to_arrow()):
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            assert equal(flat.reshape(-1, DIM), wanted) and table["key"].to_pylist() == keys(split)
            assert table["class"].null_count == (len(table) if split == "val" else 0)
    query = expected("train")[30]
    (nearest,) = database.open_table("train").search(query.astype(dtype)).limit(1).to_list()
    assert nearest["key"] == keys("train")[30]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_usearch_reads_its_index(export: Export, dtype: Any) -> None:
    from usearch.index import Index

    out = export("usearch", dtype=dtype)
    index = Index.restore(out / "index.usearch")
    assert index is not None
    assert len(index) == len(keys()) and index.ndim == DIM
    assert equal(index.get(np.arange(len(keys()))), expected().astype(dtype))
    matches = index.search(expected()[30].astype(dtype), 1)
    assert abs(matches.distances[0]) < 1e-3
    if dtype == "float32":
        assert pq.read_table(out / "keys.parquet")["key"][int(matches.keys[0])].as_py() == keys()[30]


def test_rows_that_are_not_finite_are_not_in_usearch_s_index(tmp_path: Path) -> None:
    from usearch.index import Index

    rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    rows[20, 3], rows[100] = torch.nan, torch.inf
    store = write_features(tmp_path / "store", {"all": (rows, [None] * 200)})
    result = embedx.export(store, tmp_path / "out", "usearch", progress=False)
    assert result.notes == ("2 rows have NaN or infinity, and are not in the index",)
    index = Index.restore(result.out / "index.usearch")
    assert index is not None and len(index) == 198 and len(pq.read_table(result.out / "keys.parquet")) == 200
    fine = [row for row in range(200) if row not in (20, 100)]
    assert [int(index.search(rows[row].numpy(), 1).keys[0]) for row in fine] == fine


def test_the_projector_s_rules_give_the_vectors_and_one_line_per_row(export: Export) -> None:
    """As TensorBoard's plugin reads them: lines, split at tabs, and nothing else."""
    out = export("tensorboard")
    config = dict(re.findall(r'(\w+): "([^"]*)"', (out / "projector_config.pbtxt").read_text()))
    with (out / config["tensor_path"]).open() as file:
        found = np.array([list(map(float, line.rstrip("\n").split("\t"))) for line in file], dtype="float32")
    assert equal(found, expected())
    head, *lines = (out / config["metadata_path"]).read_bytes().decode().rstrip("\n").split("\n")
    rows = [line.split("\t") for line in lines]
    assert head.split("\t") == ["split", "key", *INDEX_ORDER, *OWN] and {len(row) for row in rows} == {13}
    unescaped = [re.sub(r"\\(.)", lambda each: {"t": "\t", "n": "\n", "r": "\r"}.get(each[1], each[1]), row[1])
                 for row in rows]  # fmt: skip
    assert unescaped == keys()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_datasets_loads_the_splits(export: Export, tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr("embedx.vectors.exporting.formats.to_hf._FILE_BYTES", 40 * DIM * np.dtype(dtype).itemsize)
    out = export("hf", dtype=dtype)
    assert len(list((out / "data").glob("train-0000?-of-00003.parquet"))) == 3
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == list(COUNTS)
    for split in COUNTS:
        assert loaded[split]["key"][:] == keys(split)
        flat = loaded[split].with_format("arrow")["embedding"][:].combine_chunks().flatten().to_numpy()
        assert equal(flat.reshape(-1, DIM), expected(split).astype(dtype))
    feature = loaded["train"].features["embedding"]
    assert (feature.length, feature.feature.dtype) == (DIM, dtype)
    card = (out / "README.md").read_text()
    assert "- `train`: 89 rows" in card and '      "name": "odd `recipe`"' in card and card.count("## Recipe") == 1


def test_datasets_does_not_take_an_export_for_another_one_of_the_same_name(
    store: Path, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would by its cache, which knows the name of a folder and the head of its card, and not its files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    for source, place in ((store, "a/hf"), (halves, "b/hf"), (store, "b/hf")):
        dtype = np.float16 if source == halves else np.float32
        out = embedx.export(source, tmp_path / place, "hf", overwrite=True, split="val").out
        loaded = datasets.load_dataset(str(out), split="val", cache_dir=str(tmp_path / "cache"))
        flat = loaded.with_format("arrow")["embedding"][:].combine_chunks().flatten().to_numpy()
        assert equal(flat.reshape(-1, DIM), expected("val").astype(dtype))


def test_datasets_has_no_maps(tmp_path: Path) -> None:
    from embedx.vectors.exporting.formats.base import ExportJob
    from embedx.vectors.exporting.formats.to_hf import write

    schema = pa.schema([("key", pa.string()), ("a", pa.list_(pa.map_(pa.string(), pa.int8())))])
    job = ExportJob(schema, 2, np.dtype(np.float32), {"train": 1}, "fixed", {})
    with pytest.raises(ConfigError, match="has no maps, as the column 'a' holds; choose others by --columns"):
        write(tmp_path, job, iter(()))
    assert not any(tmp_path.iterdir())


def test_webdataset_s_rules_give_each_key_its_vector(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """As WebDataset groups the files of a tar: by the name up to the first dot behind the last slash."""
    monkeypatch.setattr("embedx.vectors.exporting.formats.to_webdataset._TAR_BYTES", 40 * (4 * DIM + 3 * 1024))
    out = export("webdataset")
    assert len(list(out.glob("train-00000?.tar"))) == 3
    for split in COUNTS:
        samples: dict[str, dict[str, Any]] = {}
        for path in sorted(out.glob(f"{split}-*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    name, extension = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name, re.DOTALL).groups()
                    data = tar.extractfile(member).read()
                    sample = samples.setdefault(name, {})
                    assert extension not in sample and (not samples or list(samples)[-1] == name)
                    sample[extension] = np.load(io.BytesIO(data)) if extension == "npy" else json.loads(data)
        assert [unquote(name) for name in samples] == keys(split) == [each["json"]["key"] for each in samples.values()]
        assert equal([each["npy"] for each in samples.values()], expected(split))
        assert {each["json"]["split"] for each in samples.values()} == {split}
    assert len(ODD_KEYS) > 10


def test_a_store_in_half_precision_stays_so_where_the_format_can(export: Export, halves: Path) -> None:
    wanted = expected().astype(np.float16)
    assert equal(np.load(export("npy", store=halves) / "embeddings.npy"), wanted)
    numbers = [f"embedding_{number}" for number in range(DIM)]
    frame = pd.read_csv(export("csv", store=halves) / "val.csv", dtype=dict.fromkeys(numbers, np.float32))
    assert equal(frame[numbers].to_numpy(), expected("val").astype(np.float16).astype(np.float32))


def test_datasets_takes_no_split_of_another_name(tmp_path: Path) -> None:
    import torch

    from tests.store.builders import write_features

    store = write_features(tmp_path / "store", {"a b": (torch.ones(3, 2), [0] * 3), "c.d": (torch.ones(3, 2), [0] * 3)})
    with pytest.raises(ConfigError, match="takes no split 'a b'"):
        embedx.export(store, tmp_path / "out", "hf")
    assert list(tmp_path.iterdir()) == [store]
    assert (embedx.export(store, tmp_path / "out", "hf", split="c.d").out / "data").is_dir()
    out = embedx.export(store, tmp_path / "parquet").out
    assert sorted(path.name for path in out.glob("*.parquet")) == ["a b.parquet", "c.d.parquet"]


def test_keys_that_are_equal_or_empty_keep_names_apart(tmp_path: Path) -> None:
    from embedx.vectors.exporting.formats.to_webdataset import _Names

    names = _Names()
    found = [names.of(key, place) for place, key in enumerate(["a.b", "a.b", "", "a~1", "%"])]
    assert found == ["a%2Eb", "a%2Eb~1", "~2", "a%7E1", "%25"]
    assert [unquote(name.partition("~")[0]) for name in found] == ["a.b", "a.b", "", "a~1", "%"]
