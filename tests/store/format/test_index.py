from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.errors import StoreError
from embedx.store.format import index
from embedx.store.format.index import PARQUET_OPTIONS, UnitEntry, read_index, write_index
from embedx.store.untrusted.parquet_size import extent
from tests.store.builders import build_store, unit_batch

ENTRY = UnitEntry("train", 0, "r", 8, 0, 8, ())


def rows(count: int = 8, /, **metadata: Any) -> pa.Table:
    table = unit_batch(0, count, rejected=tuple(range(count))).rows
    table = table.add_column(9, "shard", pa.nulls(count, pa.string())).add_column(
        10, "row", pa.nulls(count, pa.int64())
    )
    for name, values in metadata.items():
        table = table.append_column(name, pa.array(values) if isinstance(values, list) else values)
    return table


METADATA: dict[str, Any] = {
    "text": ["the same caption of some length"] * 8,
    "texts": [["cat", "dog"], ["cat"], [], None, ["a longer one"], ["cat"], [], []],
    "struct": [{"a": "x", "b": 1}] * 8,
    "structs": [[{"a": "x", "b": ["y", "z"]}]] * 8,
    "dictionary": pa.array(["red", "blue"] * 4).dictionary_encode(),
    "map": pa.array([[("a", "b"), ("c", "d")]] * 8, pa.map_(pa.string(), pa.string())),
    "decimal": pa.array(range(8)).cast(pa.decimal128(30, 2)),
    "number": [0.5] * 8,
    "binary": [b"0123"] * 8,
    "nothing": pa.nulls(8),
}


def test_the_parquet_options_are_pinned_and_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other file has pyarrow's defaults, which are the same with the versions that were supported at first."""
    given: list[dict[str, Any]] = []

    def write_table(table: pa.Table, sink: Any, **options: Any) -> None:
        given.append(options)
        original(table, sink, **options)
        few = {name: options[name] for name in ("compression", "use_dictionary")}
        original(table, tmp_path / "by default", store_schema=True, **few)

    original = pq.write_table
    monkeypatch.setattr(pq, "write_table", write_table)
    write_index(tmp_path, rows(**METADATA), ENTRY)
    repetitive = [name for name in rows(**METADATA).column_names if name not in ("key", "path", "sha256")]
    packed = {"compression": "zstd", "compression_level": 1, "use_dictionary": repetitive}
    assert given == [PARQUET_OPTIONS | packed]
    assert (PARQUET_OPTIONS["version"], PARQUET_OPTIONS["data_page_version"]) == ("2.6", "1.0")
    path = tmp_path / "index/train-00000.parquet"
    assert path.read_bytes() == (tmp_path / "by default").read_bytes()
    assert read_index(path).num_rows == 8


@pytest.mark.parametrize(
    "options",
    [{"data_page_version": "2.0"}, {"use_dictionary": False, "column_encoding": {"row": "DELTA_BINARY_PACKED"}}],
)
def test_pages_that_embedx_does_not_write_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = build_store(tmp_path / "store") / "index/train-00000.parquet"
    pq.write_table(pq.read_table(path), path, compression="zstd", **options)
    with pytest.raises(StoreError, match="not a readable index table"):
        read_index(path)


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("count", [1, 2000])
def test_the_writer_s_account_of_a_file_is_the_reader_s_or_a_little_more(name: str, count: int) -> None:
    table = pa.concat_tables([rows(**{name: METADATA[name]})] * count).combine_chunks()
    for repetitive in ([column for column in table.column_names if column not in ("key", "path", "sha256")], []):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **PARQUET_OPTIONS, compression="zstd", use_dictionary=repetitive or False)
        data = sink.getvalue().to_pybytes()
        own, found = index._own_extent(table.select(repetitive), data), extent(data)
        assert found.most <= own.most < 1.1 * found.most + 4000 and found.row <= own.row < found.row + 100


def test_a_table_with_different_texts_in_lists_is_packed(tmp_path: Path) -> None:
    captions = [[sha256(f"{number} {word}".encode()).hexdigest() for word in range(5)] for number in range(200)]
    write_index(tmp_path, rows(200, captions=captions), ENTRY._replace(inputs=200, rejected=200))
    footer = pq.read_metadata(tmp_path / "index/train-00000.parquet")
    assert {footer.row_group(0).column(number).compression for number in range(footer.num_columns)} == {"ZSTD"}
    assert read_index(tmp_path / "index/train-00000.parquet")["captions"].to_pylist() == captions
