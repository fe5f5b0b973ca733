"""Places on a map that were computed elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pytest

from embedx.errors import ConfigError
from embedx.vectors.reporting.map_file import read_places

ROWS = pa.table({"split": ["train", "train", "val"], "key": ["a", "1", "a"]})


def test_an_array_in_the_order_of_the_rows(tmp_path: Path) -> None:
    places = np.array([[1, 2], [3, np.inf], [5, 6]])
    np.save(tmp_path / "places.npy", places.astype(np.float32))
    expected = np.array([[1, 2], [np.nan] * 2, [5, 6]])
    assert np.array_equal(read_places(tmp_path / "places.npy", ROWS), expected, equal_nan=True)


@pytest.mark.parametrize("name", ["places.csv", "places.parquet"])
def test_a_table_by_key_or_by_split_and_key(name: str, tmp_path: Path) -> None:
    table = polars.DataFrame({"y": [6, 4], "key": ["1", "a"], "x": [0.5, 1]})
    write(table, tmp_path / name)
    assert read_places(tmp_path / name, ROWS).tolist() == [[1, 4], [0.5, 6], [1, 4]]
    write(table.with_columns(key=polars.lit("a"), split=polars.Series(["val", "train"])), tmp_path / name)
    found = read_places(tmp_path / name, ROWS)
    assert np.array_equal(found, np.array([[1, 4], [np.nan] * 2, [0.5, 6]]), equal_nan=True)


def write(table: polars.DataFrame, path: Path) -> None:
    table.write_csv(path) if path.suffix == ".csv" else table.write_parquet(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("key,x\na,1\n", "can't be read"),
        ("key,x,y\na,1,one\n", "can't be read"),
        ("key,x,y\na,1,2\na,1,3\n", "a key stands there twice"),
        ("key,x,y\nb,1,2\n", "has a place for none of the rows"),
        ("", "can't be read"),
    ],
)
def test_a_table_that_does_not_fit_is_told(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "places.csv").write_text(content)
    with pytest.raises(ConfigError, match=told):
        read_places(tmp_path / "places.csv", ROWS)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3,), (0, 2)])
def test_an_array_of_another_shape_is_told(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "places.npy", np.ones(shape))
    with pytest.raises(ConfigError, match="and the report has 3 rows"):
        read_places(tmp_path / "places.npy", ROWS)


def test_an_array_of_objects_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "places.npy", np.array([["a", None]] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="can't be read"):
        read_places(tmp_path / "places.npy", ROWS)


@pytest.mark.parametrize("dtype", ["complex64", "U1", "V8"])
def test_an_array_of_no_numbers_is_told(dtype: str, tmp_path: Path) -> None:
    np.save(tmp_path / "places.npy", np.zeros((3, 2), dtype))
    with pytest.raises(ConfigError, match="is of the type"):
        read_places(tmp_path / "places.npy", ROWS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04"])
def test_a_file_that_is_no_array_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "places.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--map .*can't be read"):
        read_places(tmp_path / "places.npy", ROWS)
