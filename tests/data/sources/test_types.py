"""Columns of every type end to end: extracted, updated by a row, read, verified and compared."""

from __future__ import annotations

import datetime
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import embedx
from embedx import ExtractConfig, sample
from embedx.arrow import concat, plain, spell
from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.store.reading.compare import compare
from embedx.store.reading.verify import verify
from tests.data.sources.abilities import CASTS_STRUCTS, WRITES_VIEWS

pytestmark = pytest.mark.usefixtures("one_thread")

OF_PARQUET: dict[str, pa.Array] = {
    "large_string": pa.array(["x", None, "y"], pa.large_string()),
    "dictionary": pa.array(["x", None, "y"]).dictionary_encode(),
    "dictionary_of_numbers": pa.array([1, None, 2]).dictionary_encode(),
    "nested_dictionary": pa.array(
        [{"a": "x"}, None, {"a": "y"}], pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))])
    ),
    "decimal": pa.array([Decimal("2.50"), None, Decimal("1.00")], pa.decimal128(5, 2)),
    "duration": pa.array([1, None, 2], pa.duration("s")),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "zoned": pa.array([1, None, 2], pa.timestamp("us", "Europe/Berlin")),
    "seconds": pa.array([1, None, 2], pa.timestamp("s")),
    "time_of_seconds": pa.array([1, None, 2], pa.time32("s")),
    "milliseconds": pa.array([datetime.date(2024, 1, 1), None, datetime.date(2024, 1, 2)], pa.date64()),
    "nan": pa.array([float("nan"), None, -0.0]),
    "half": pa.array([np.float16(1), None, np.float16(2)], pa.float16()),
    "nothing": pa.nulls(3),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "list_of_null": pa.array([[], None, [None]], pa.list_(pa.null())),
}
"""A column of three rows for each type that Parquet tables have."""
if WRITES_VIEWS:  # older versions of pyarrow write none of these
    OF_PARQUET |= {
        "pairs": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
        "string_view": pa.array(["x", None, "y"], pa.string_view()),
        "binary_view": pa.array([b"\xff", None, b"y"], pa.binary_view()),
        "list_view": pa.array([[1], None, []], pa.list_view(pa.int64())),
        "nested_view": pa.array([{"a": ["x"]}, None, {"a": []}], pa.struct([("a", pa.list_(pa.string_view()))])),
    }


def config(out: Path, *data: str, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "weights": "sample",
        "batch_size": 4,
        "workers": 0,
        "out": out,
    }
    return ExtractConfig(**defaults | {"data": data} | settings)


def pictures(folder: Path) -> list[str]:
    """Four images in a folder, by their names."""
    found = (
        sorted((sample.IMAGES / "val").rglob("*.jpg"))[:4]
        or sorted(path for path in (sample.IMAGES / "val").rglob("*") if path.is_file())[:4]
    )
    for number, path in enumerate(found):
        shutil.copy(path, folder / f"{number}{path.suffix}")
    return [f"{number}{path.suffix}" for number, path in enumerate(found)]


def same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other) or str(one) == str(other)


def test_columns_of_every_type_are_stored_updated_and_read(tmp_path: Path) -> None:
    names, table = pictures(tmp_path), tmp_path / "t.parquet"
    rows = pa.table({"path": names[:3], **OF_PARQUET})
    pq.write_table(rows, table)
    extract(config(tmp_path / "before", f"train={table}"))
    more = pa.Table.from_pylist([{"path": names[3]}], rows.select(["path"]).schema)
    pq.write_table(pa.concat_tables([plain(rows), more], promote_options="default"), table)
    shutil.copytree(tmp_path / "before", tmp_path / "store")
    extract(config(tmp_path / "store", f"train={table}", update=True))
    assert list(verify(tmp_path / "store")) == []
    index = embedx.open(tmp_path / "store").index()
    for name, column in OF_PARQUET.items():
        given, found = [*plain(pa.table({"x": column}))["x"].to_pylist(), None], index[name].to_pylist()
        assert all(map(same, given, found)), (name, given, found)
    both = compare(tmp_path / "before", tmp_path / "store")
    assert both.overlap["train"].compared == 3
    again = extract(config(tmp_path / "store", f"train={table}"))
    assert again.up_to_date


def test_types_that_differ_between_splits_and_runs_work_everywhere(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    for number, plates in enumerate([("01", "2"), ("A1", "x")]):
        rows = "".join(f"{names[number * 2 + row]},{plate},{number}\n" for row, plate in enumerate(plates))
        (tmp_path / f"{number}.csv").write_text(f"path,plate,label\n{rows}")
    data = (f"train={tmp_path}/0.csv", f"val={tmp_path}/1.csv")
    extract(config(tmp_path / "store", *data))
    assert list(verify(tmp_path / "store")) == []
    assert embedx.open(tmp_path / "store").index()["plate"].to_pylist() == ["01", "2", "A1", "x"]
    (tmp_path / "1.csv").write_text(f"path,plate,label\n{names[2]},5,1\n")
    extract(config(tmp_path / "store", *data, update=True, max_gone=1.0))
    assert list(verify(tmp_path / "store")) == []
    assert list(map(str, embedx.open(tmp_path / "store").index()["plate"].to_pylist())) == ["1", "2", "5"]
    assert compare(tmp_path / "store", tmp_path / "store").overlap["val"].compared == 1


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "month_day_nano_interval"),
        (
            pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array(["x"])]),
            "dense_union<0: string=0>",
        ),
    ],
)
def test_what_no_index_table_can_hold_is_refused_by_name_and_type(values: pa.Array, kind: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n')
    (source,) = parse_data([str(tmp_path / "t.jsonl")]).values()
    wide = type(source)((*source.metadata, "x"), source.reader, lambda: source.scan().append_column("x", values))
    with pytest.raises(ConfigError) as caught:
        build_plan({"all": wide}, None)
    assert f"'x' is {kind}, which an index table can't hold; make it text, or leave it out" in str(caught.value)


def test_structs_without_fields_are_null_wherever_they_stand() -> None:
    empty = pa.struct([])
    columns = {
        "alone": pa.array([{}, None], empty),
        "inside": pa.array([{"a": {}, "b": 1}, None], pa.struct([("a", empty), ("b", pa.int64())])),
        "listed": pa.array([[{}, {}], None], pa.list_(empty)),
        "mapped": pa.array([[("k", {})], None], pa.map_(pa.string(), empty)),
    }
    table = plain(pa.table(columns))
    assert table["alone"].to_pylist() == [None, None] and table["listed"].to_pylist() == [[None, None], None]
    assert table["inside"].to_pylist() == [{"a": None, "b": 1}, None]
    assert table["mapped"].to_pylist() == [[("k", None)], None]
    runs = plain(pa.table({"x": pc.run_end_encode(pa.array(["a", "a", None]))}))
    assert runs["x"].to_pylist() == ["a", "a", None] and runs["x"].type == pa.string()


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (pa.array([1]), pa.array([1.5]), pa.float64()),
        (pa.array([1]), pa.array(["x"]), pa.string()),
        (pa.array([2**60 + 1]), pa.array([1.5]), pa.string()),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), pa.string()),
        (pa.array([True]), pa.array([1]), pa.string()),
        (pa.array([datetime.date(2024, 1, 1)]), pa.array(["x"]), pa.string()),
        (
            pa.array([{"a": 1}]),
            pa.array([{"b": "x"}]),
            pa.struct([("a", pa.int64()), ("b", pa.string())]) if CASTS_STRUCTS else pa.string(),
        ),
        (pa.array([{"a": 1}]), pa.array([{"a": "x"}]), pa.string()),
        (pa.array([[1]]), pa.array([1]), pa.string()),
        (pa.nulls(1), pa.array([[1]]), pa.list_(pa.int64())),
    ],
)
def test_tables_get_a_common_type_or_text(one: pa.Array, other: pa.Array, kind: pa.DataType) -> None:
    for first, second in ((one, other), (other, one)):
        joined = concat([pa.table({"x": first}), pa.table({"x": second})])["x"]
        if kind == pa.string():
            assert joined.to_pylist() == [spell(pa.chunked_array([part]))[0].as_py() for part in (first, second)]
        else:
            pairs = zip(joined.to_pylist(), first.to_pylist() + second.to_pylist(), strict=True)
            assert all(a == b or {**a, **b} == a for a, b in pairs)
        assert set(str(joined.type)) == set(str(kind))
