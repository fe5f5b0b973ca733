from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from embedx.errors import StoreError
from embedx.store.format.contents import SplitTerms, SplitTotals
from embedx.store.format.index import read_entry, read_index, write_index
from embedx.store.format.manifest import Manifest
from embedx.store.reading.reader import Store
from embedx.store.reading.verify import verify
from embedx.store.writing.session import StoreSession
from tests.store.builders import build_store, commit, manifest, restate, unit_batch


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path / "store")


def faults(store: Path) -> str:
    return "\n".join(verify(store))


def test_a_whole_store_has_no_faults(store: Path) -> None:
    assert faults(store) == ""


def flips(store: Path, count: int, generator: random.Random) -> Iterator[tuple[Path, int]]:
    """Flips random bits over all bytes of all files, one at a time: (file, bit)."""
    files = [path for path in sorted(store.rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    for path in generator.choices(files, sizes, k=count):
        data = path.read_bytes()
        bit = generator.randrange(8 * len(data))
        path.write_bytes(flipped(data, bit))
        yield path, bit
        path.write_bytes(data)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def found(store: Path) -> str:
    """What `embedx verify` tells, be it of a manifest with which nothing can be compared."""
    try:
        return faults(store)
    except StoreError as error:
        return str(error)


def assert_every_flip_is_found(store: Path, count: int, seed: int) -> None:
    print(f"seed {seed}")
    kinds = set()
    for path, bit in flips(store, count, random.Random(seed)):
        assert path.name in found(store), f"bit {bit} of {path}"
        kinds.add(path.suffix)
    assert kinds == {".json", ".parquet", ".safetensors"} and faults(store) == ""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two splits, groups, targets and a rejected input, in some files of every kind."""
    return build_store(tmp_path / "small", {"train": 12, "val/1": 5})


def test_every_flipped_bit_is_found(small: Path) -> None:
    assert_every_flip_is_found(small, 50, seed=4)


@pytest.mark.soak
def test_every_one_of_many_flipped_bits_is_found(small: Path) -> None:
    assert_every_flip_is_found(small, 400, seed=5)


def test_a_flipped_bit_is_found_in_every_part_of_a_header(small: Path) -> None:
    shard, table, manifest = (
        small / name for name in ("train/cat/shard-00000.safetensors", "index/train-00001.parquet", "manifest.json")
    )
    length = int.from_bytes(shard.read_bytes()[:8], "little")
    footer = table.stat().st_size - 8 - int.from_bytes(table.read_bytes()[-8:-4], "little")
    text = manifest.read_bytes()
    places = {
        shard: [0, 7, 8, 8 + length // 2, 8 + length - 1, 8 + length, shard.stat().st_size - 1],
        table: [0, 4, footer, footer + 1, -12, -8, -5, -4, -1],
        manifest: [0, text.index(b" "), text.index(b"\n"), text.index(b"true"), text.index(b'"sha256"') + 12, -1],
    }
    for path, positions in places.items():
        data = path.read_bytes()
        for position in positions:
            path.write_bytes(flipped(data, 8 * (position % len(data)) + position % 8))
            assert path.name in found(small), f"byte {position} of {path}"
        path.write_bytes(data)
    assert faults(small) == ""


def test_a_manifest_written_otherwise_is_found_though_it_says_the_same(small: Path) -> None:
    path = small / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert faults(small) == "manifest.json: its bytes are not those that embedx wrote; the file was changed"


def test_missing_and_extra_files_are_found(store: Path) -> None:
    shard = store / "train/cat/shard-00000.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    assert "train/cat/shard-00000.safetensors: missing" in faults(store)
    shard.write_bytes(data)
    (store / "train/cat/shard-00007.safetensors").write_bytes(data)
    assert "shard-00007.safetensors: no index table names it" in faults(store)
    (store / "train/cat/shard-00007.safetensors").unlink()
    (store / "index/train-00001.parquet").unlink()
    found = faults(store)
    assert "index/train-00001.parquet: missing" in found
    assert "manifest.json says 12 inputs, found 8" in found


STRANGERS = {
    "train/cat/shard-00007.safetensors": "no index table names it",
    "deep/in/folders/of/others/x.safetensors": "no index table names it",
    "Copy.PARQUET": "none of the index tables",
    "index/train-000001.parquet": "none of the index tables",
    "index/train-٠٠٠٠٢.parquet": "none of the index tables",
    "index/notes.txt": "none of the index tables",
    "index/train-00002.parquet": "it is not in manifest.json",
    "index/.train-00002.parquet.embedx-tmp": "left behind",
    "train/cat/.shard-00002.safetensors.embedx-tmp": "left behind",
    ".manifest.json.embedx-tmp": "left behind",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_that_nothing_names_is_found(store: Path, name: str) -> None:
    for harmless in ("notes.txt", "train/cat/.hidden", "model.bin"):
        (store / harmless).write_text("somebody's own")
    assert faults(store) == ""
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(b"x")
    said = faults(store)
    assert f"{name}: {STRANGERS[name]}" in said or f"{name}: it is {STRANGERS[name]}" in said


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train/cat/shard-00001.safetensors", "train/dog/shard-00001.safetensors"),
        ("train/cat/shard-00000.safetensors", "val%2F1/cat/shard-00000.safetensors"),
        ("index/train-00000.parquet", "index/train-00001.parquet"),
        ("index/train-00000.parquet", "index/val%2F1-00000.parquet"),
    ],
)
def test_swapped_files_are_found(small: Path, one: str, other: str) -> None:
    swap(small / one, small / other)
    said = faults(small)
    assert f"{one}: the sha256" in said and f"{other}: the sha256" in said
    restate(small)
    for check, refusal in ((True, r"the sha256 is not|it belongs to"), (False, r"not the shard that|it belongs to")):
        with pytest.raises(StoreError, match=refusal):
            for split in ("train", "val/1"):
                Store.open(small).load(split, check=check)


def test_files_of_another_store_of_the_same_recipe_are_found(small: Path, tmp_path: Path) -> None:
    other = build_store(tmp_path / "other", {"train": 12, "val/1": 5}, rejected=(4,))
    for name in ("train/cat/shard-00000.safetensors", "train/dog/shard-00000.safetensors", "index/train-00000.parquet"):
        swap(small / name, other / name)
        for store in (small, other):
            # Files of the same content are of either store.
            assert (name in faults(store)) == ((small / name).read_bytes() != (other / name).read_bytes())
        swap(small / name, other / name)


def test_a_manifest_that_does_not_add_up_is_found(store: Path) -> None:
    whole = Manifest.read(store)
    for name, found in whole.totals["train"].to_json().items():
        totals = {"train": whole.totals["train"].replacing(**{name: found + 1})}
        dataclasses.replace(whole, totals=totals).write(store)
        assert faults(store) == f"split 'train': manifest.json says {found + 1} {name}, found {found}"
    val = dataclasses.replace(SplitTotals.of(()), rows=1)
    dataclasses.replace(whole, totals=whole.totals | {"val": val}).write(store)
    assert "split 'val': manifest.json says 1 rows, found 0" in faults(store)
    dataclasses.replace(whole, plan=dataclasses.replace(whole.plan, splits={"train": SplitTerms(13)})).write(store)
    assert faults(store) == "split 'train': the plan in manifest.json has 13 inputs, found 12"


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        ("target", "its targets are not those of its index table"),
        ("sha256", "its inputs are not those of its index table, by their sha256"),
        ("index", "its rows are not those of its index table"),
    ],
)
def test_an_index_table_that_says_other_than_its_shards_is_found(store: Path, column: str, fault: str) -> None:
    """Every checksum is right, as after a run that took damaged rows for good ones; readers refuse it too."""
    path = store / "index/train-00001.parquet"
    rows, entry = read_index(path), read_entry(path)
    other = {"target": [1024, 1024, 1024, 1024], "sha256": ["1" * 64] * 4, "index": [11, 10, 9, 8]}[column]
    place = rows.schema.get_field_index(column)
    write_index(store, rows.set_column(place, rows.field(place), [other]), entry)
    was = Manifest.read(store)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    dataclasses.replace(was, index=was.index | {"index/train-00001.parquet": digest}).write(store)
    assert faults(store).splitlines() == [f"train/{group}/shard-00001.safetensors: {fault}" for group in ("dog", "cat")]
    if column != "target":
        with pytest.raises(StoreError, match="and its index table disagree"):
            Store.open(store).load("train")


def test_rows_that_are_nan_are_named(tmp_path: Path) -> None:
    session = StoreSession.begin(tmp_path / "store", manifest({"train": 8}), "create")
    batch = unit_batch(0, 8)
    batch.tensors["embeddings"][5, 1] = torch.nan
    commit(session, batch)
    session.finish({})
    session.close()
    found = faults(tmp_path / "store")
    assert "NaN" in found and "key-5" in found
    command = [sys.executable, "-m", "embedx", "verify", str(tmp_path / "store")]
    stderr = subprocess.run(command, capture_output=True, text=True).stderr
    assert "no damage, but rows that are not finite" in stderr and "--verify-kept" not in stderr
    was = Manifest.read(tmp_path / "store")
    settings = dataclasses.replace(was.settings, allow_nonfinite=True)
    dataclasses.replace(was, settings=settings).write(tmp_path / "store")
    assert faults(tmp_path / "store") == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_a_row_with_infinity_is_named_and_one_of_the_largest_numbers_is_not(tmp_path: Path, dtype: torch.dtype) -> None:
    session = StoreSession.begin(tmp_path / "store", manifest({"train": 8}), "create")
    batch = unit_batch(0, 8)
    values = batch.tensors["embeddings"].to(dtype)
    values[2] = torch.finfo(dtype).max
    values[5, 1] = -torch.inf
    commit(session, batch._replace(tensors={"embeddings": values}))
    session.finish({})
    session.close()
    assert re.findall("[0-9]+ rows|key-[0-9]", faults(tmp_path / "store")) == ["1 rows", "key-5"]


def test_units_that_do_not_go_together_are_found(tmp_path: Path) -> None:
    """Each is whole by itself; the second has another type, and a key of the first."""
    session = StoreSession.begin(tmp_path / "store", manifest({"train": 16}), "create")
    for start in (0, 8):
        batch = unit_batch(start, start + 8)
        if start:
            batch.tensors["embeddings"] = batch.tensors["embeddings"].half()
            keys = pa.array(["key-3", *batch.rows["key"].to_pylist()[1:]])
            batch = batch._replace(rows=batch.rows.set_column(2, "key", keys))
        commit(session, batch)
    session.finish({})
    session.close()
    assert faults(tmp_path / "store").splitlines() == [
        *(
            f"train/{group}/shard-00001.safetensors: 'embeddings' is float16 [N, 3], "
            "but float32 [N, 3] in train/dog/shard-00000.safetensors"
            for group in ("dog", "cat")
        ),
        "split 'train': the key 'key-3' occurs more than once",
    ]


def test_an_unfinished_store_is_told(tmp_path: Path) -> None:
    StoreSession.begin(tmp_path / "store", manifest({"train": 8}), "create").close()
    assert "not complete" in faults(tmp_path / "store")
