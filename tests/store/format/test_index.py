from __future__ import annotations

import contextlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.errors import StoreError
from embedx.store.format import index_file
from embedx.store.format.index import UnitEntry, read_entry, read_index, write_index
from embedx.store.format.index_file import PARQUET_OPTIONS
from embedx.store.format.seal import encode_sealed as encode
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


def test_the_parquet_options_are_pinned_and_change_no_byte_but_for_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other file has pyarrow's defaults, which are the same with the versions that were supported at first."""
    given: list[dict[str, Any]] = []

    def encode_sealed(table: pa.Table, **options: Any) -> bytes:
        given.append(options)
        few = {name: options[name] for name in ("row_group_size", "compression", "use_dictionary")}
        by_default.append(encode(table, **few, store_schema=True, write_page_checksum=True))
        return encode(table, **options)

    by_default: list[bytes] = []
    monkeypatch.setattr(index_file, "encode_sealed", encode_sealed)
    write_index(tmp_path, rows(**METADATA), ENTRY)
    repetitive = [name for name in rows(**METADATA).column_names if name not in ("key", "path", "sha256")]
    packed = {"compression": "zstd", "compression_level": 1, "use_dictionary": repetitive}
    assert given == [PARQUET_OPTIONS | packed]
    assert (PARQUET_OPTIONS["version"], PARQUET_OPTIONS["data_page_version"]) == ("2.6", "1.0")
    path = tmp_path / "index/train-00000.parquet"
    assert [path.read_bytes()] == by_default
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
        own, found = index_file._own_extent(table.select(repetitive), data), extent(data)
        assert found.most <= own.most < 1.1 * found.most + 4000 and found.row <= own.row < found.row + 100


def test_a_table_with_different_texts_in_lists_is_packed(tmp_path: Path) -> None:
    captions = [[sha256(f"{number} {word}".encode()).hexdigest() for word in range(5)] for number in range(200)]
    write_index(tmp_path, rows(200, captions=captions), ENTRY._replace(inputs=200, rejected=200))
    footer = pq.read_metadata(tmp_path / "index/train-00000.parquet")
    assert {footer.row_group(0).column(number).compression for number in range(footer.num_columns)} == {"ZSTD"}
    assert read_index(tmp_path / "index/train-00000.parquet")["captions"].to_pylist() == captions


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An index table of three rows, one of which is rejected."""
    return build_store(tmp_path / "small", inputs=3) / "index/train-00000.parquet"


def test_the_seal_holds_what_anybody_can_compute_from_the_file(small: Path) -> None:
    data = small.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    body, footer = pq.read_metadata(small).metadata[b"embedx.seal"].split()
    assert sha256(data[:start]).hexdigest() == body.decode()
    assert sha256(data[start:].replace(footer, b"0" * 64)).hexdigest() == footer.decode()


def assert_each_flip_is_refused_or_without_effect(path: Path, step: int) -> None:
    """Flips every `step`-th bit of an index table, one at a time."""
    entry, table, data = read_entry(path), read_index(path), path.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(data), step):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        with contextlib.suppress(StoreError):
            assert read_entry(path) == entry, f"bit {bit} of byte {bit // 8}"
        with contextlib.suppress(StoreError):
            assert read_index(path).equals(table, check_metadata=True), f"bit {bit} of byte {bit // 8}"
            continue
        refused += 1
    assert refused == len(range(0, 8 * len(data), step))


def test_flipped_bits_of_an_index_table_are_refused(small: Path) -> None:
    assert_each_flip_is_refused_or_without_effect(small, 487)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_single_flipped_bit_of_an_index_table_is_refused(small: Path) -> None:
    assert_each_flip_is_refused_or_without_effect(small, 1)


def test_pages_have_checksums_that_any_reader_can_check(small: Path) -> None:
    """The first page begins behind the magic; a flip in it is found by pyarrow alone."""
    data = bytearray(small.read_bytes())
    chunk = pq.read_metadata(small).row_group(0).column(2)
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    with pytest.raises(OSError, match=r"CRC|checksum"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


def test_a_seal_can_t_be_taken_off(small: Path) -> None:
    """The description says that there is one, under a name that can't be another."""
    data = small.read_bytes()
    for taken in (data.replace(b"embedx.seal", b"embedx.sea1"), data.replace(b'"sealed":true', b'"sealec":true')):
        assert taken != data
        small.write_bytes(taken)
        for read in (read_entry, read_index):
            with pytest.raises(StoreError, match=r"its seal is damaged|must have"):
                read(small)
