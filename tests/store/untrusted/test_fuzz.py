"""Stores that nobody would write: whatever is in the files, a reader gives its rows or a StoreError."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedx.errors import StoreError
from embedx.recipe import fingerprint
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from tests.store.builders import build_store, restate

MANIFEST, TABLE, SHARD = "manifest.json", "index/train-00000.parquet", "train/cat/shard-00000.safetensors"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([-1, 0, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PROFILE = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield build_store(Path(folder) / "store", {"train": 8, "val": 3})


def read_in_every_way(path: Path) -> None:
    """Raises whatever is no StoreError."""
    with contextlib.suppress(StoreError):
        list(verify(path))
    with changed(path / MANIFEST, (path / MANIFEST).read_bytes()):
        try:
            store = Store.open(restate(path))
            splits = store.splits
        except StoreError:
            return
        read_splits(store, splits)


def read_splits(store: Store, splits: list[str]) -> None:
    for split in (None, *splits):
        with contextlib.suppress(StoreError):
            store.index(split).to_pydict()
        with contextlib.suppress(StoreError):
            for shard in store.iter_shards(split):
                assert np.isnan(shard.tensors["embeddings"]).sum() >= 0  # reads all, and no sum overflows
    for split in splits:
        for group in (None, *store.groups(split)):
            with contextlib.suppress(StoreError):
                rows = store.load(split, group, check=False)
                assert len(rows.keys) == len(rows.groups) == len(rows.embeddings)
                assert rows.targets is None or len(rows.targets) == len(rows)


@contextlib.contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def spoiled(data: bytes, generator: random.Random) -> bytes:
    """Bits flipped, cut, spliced, overwritten with extremes, or nothing but noise."""
    out = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 8])):
        at = generator.randrange(len(out) + 1)
        # Headers are where the sense is: the first and the last bytes are hit more often.
        at = generator.choice([at, min(at, 300), max(at, len(out) - generator.randrange(1, 4000)) % (len(out) + 1)])
        size = generator.choice([1, 2, 4, 8, 64])
        match generator.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << generator.randrange(8)
            case 1:
                out[at : at + size] = generator.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * size
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = generator.randbytes(size)
            case 4:
                begin = generator.randrange(len(out) + 1)
                out[at : at + size] = out[begin : begin + size]
            case 5 if generator.random() < 0.3:
                del out[at:]
    return bytes(out) if generator.random() < 0.98 else generator.randbytes(generator.randrange(200))


def fuzz_bytes(whole: Path, name: str, seed: int, count: int) -> None:
    generator = random.Random(seed)
    data = (whole / name).read_bytes()
    for _ in range(count):
        with changed(whole / name, spoiled(data, generator)):
            read_in_every_way(whole)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at a place in it; no value at all for `...`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = with_value(copy[path[0]], path[1:], new)
    return copy


def altered(draw: st.DrawFn, value: Any) -> Any:
    place = draw(st.sampled_from(list(nodes(value))[1:]))
    return with_value(value, place, draw(st.just(...) | JSON))


@st.composite
def manifests(draw: st.DrawFn, whole: bytes) -> bytes:
    """With one value changed, and most with a checksum that is right again."""
    contents = altered(draw, json.loads(whole))
    if draw(st.integers(0, 9)) and "sha256" in contents:
        del contents["sha256"]
        if draw(st.integers(0, 9)) and "recipe" in contents:
            contents["fingerprint"] = fingerprint(contents["recipe"])
        contents["sha256"] = fingerprint(contents)
    return json.dumps(contents).encode()


@st.composite
def tables(draw: st.DrawFn, path: Path) -> bytes:
    """With one value of its metadata changed, or a column of another type, order or content."""
    table = pq.read_table(path)
    name = draw(st.sampled_from(table.column_names))
    position = table.column_names.index(name)
    match draw(st.integers(0, 5)):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.set_column(position, name, pa.nulls(len(table), table.schema.field(name).type))
        case 2:
            table = table.set_column(position, name, pa.array([draw(st.integers(-5, 2**62))] * len(table)))
        case 3:
            table = table.append_column(draw(st.sampled_from(table.column_names)), table[name])
        case 4:
            table = table.take(pa.array(draw(st.lists(st.integers(0, len(table) - 1), max_size=20)), pa.int64()))
        case _:
            metadata = altered(draw, json.loads(table.schema.metadata[b"embedx"]))
            table = table.replace_schema_metadata({b"embedx": json.dumps(metadata)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@st.composite
def shards(draw: st.DrawFn, path: Path) -> bytes:
    """With one value of its header changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["embedx"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return safetensors.torch.save(tensors, metadata={"embedx": json.dumps(altered(draw, header))})


def fuzz_values(whole: Path, count: int) -> None:
    data = st.one_of(
        manifests((whole / MANIFEST).read_bytes()).map(lambda data: (MANIFEST, data)),
        tables(whole / TABLE).map(lambda data: (TABLE, data)),
        shards(whole / SHARD).map(lambda data: (SHARD, data)),
    )

    @settings(PROFILE, max_examples=count)
    @given(data)
    def readers_take_it(file: tuple[str, bytes]) -> None:
        with changed(whole / file[0], file[1]):
            read_in_every_way(whole)

    readers_take_it()


@pytest.mark.parametrize("name", [MANIFEST, TABLE, SHARD])
def test_damaged_bytes_are_rows_or_a_store_error(whole: Path, name: str) -> None:
    fuzz_bytes(whole, name, seed=1, count=15)


def test_values_of_any_kind_are_rows_or_a_store_error(whole: Path) -> None:
    fuzz_values(whole, 30)


@pytest.mark.soak
@pytest.mark.parametrize("name", [MANIFEST, TABLE, SHARD])
def test_much_damage_is_rows_or_a_store_error(whole: Path, name: str) -> None:
    print("seed 2, 250 inputs")
    fuzz_bytes(whole, name, seed=2, count=250)


@pytest.mark.soak
def test_many_values_are_rows_or_a_store_error(whole: Path) -> None:
    print("derandomized, 200 inputs")
    fuzz_values(whole, 200)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "1" * 5000, "[" * 100_000, '{"a":' * 100_000, '{"recipe": {}, "recipe": {}}', "NaN", "1e999"],
)
def test_json_that_is_no_manifest_is_refused(whole: Path, text: str) -> None:
    with changed(whole / MANIFEST, text.encode("utf-8", "surrogatepass")), pytest.raises(StoreError, match=MANIFEST):
        Store.open(whole)
