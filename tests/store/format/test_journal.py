from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from embedx.errors import StoreError
from embedx.store.format.journal import encode_record, records
from embedx.store.format.layout import Unit, journal_files, journal_path
from tests.store.builders import unit_batch

UNIT = Unit("train", 0)
RANGES = ((0, 3), (3, 5), (5, 8))


def write(root: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, list[int]]:
    """A journal of three records, and where each ends."""
    data, ends = b"", []
    for start, stop in RANGES:
        batch = unit_batch(start, stop, rejected=(4,))
        tensors = {name: tensor.to(dtype) for name, tensor in batch.tensors.items()}
        data += b"".join(encode_record(UNIT, "r", tensors, batch.rows))
        ends.append(len(data))
    path = root / journal_path(UNIT)
    path.write_bytes(data)
    return path, ends


def keys(path: Path, recipe: str = "r") -> list[list[str]]:
    return [record.rows["key"].to_pylist() for record in records(path, UNIT, recipe)]


WHOLE = [[f"key-{row}" for row in range(*part)] for part in RANGES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_a_journal_is_read_back_by_embedx_and_by_the_libraries_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    path, ends = write(tmp_path, dtype)
    assert journal_files(tmp_path) == {("train", 0): [path]}
    found = list(records(path, UNIT, "r"))
    assert [record.end for record in found] == ends
    data = path.read_bytes()
    for (start, stop), record in zip(RANGES, found, strict=True):
        batch = unit_batch(start, stop, rejected=(4,))
        lengths = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little")
        digest, body, data = data[16:48], data[48 : 48 + sum(lengths)], data[48 + sum(lengths) :]
        assert hashlib.sha256(body).digest() == digest
        rows = pa.ipc.open_stream(body[: lengths[0]]).read_all()
        assert json.loads(rows.schema.metadata[b"embedx"])["recipe"] == "r"
        assert rows.equals(batch.rows) and record.rows.equals(batch.rows)
        tensors = safetensors.torch.load(body[lengths[0] :])
        assert torch.equal(tensors["embeddings"], batch.tensors["embeddings"].to(dtype))
        assert tensors["index"].tolist() == list(range(start, stop))
        assert record.load().keys() == {"embeddings"}
        assert torch.equal(record.load()["embeddings"], tensors["embeddings"])
    assert data == b""


def test_a_record_that_is_cut_off_anywhere_is_ignored_and_those_before_it_are_not(tmp_path: Path) -> None:
    path, ends = write(tmp_path)
    data = path.read_bytes()
    for length in (0, 1, 47, 48, 49, ends[0] - 1, ends[0], ends[0] + 7, ends[1] - 1, ends[1] + 100, ends[2] - 1):
        path.write_bytes(data[:length])
        assert keys(path) == WHOLE[: sum(end <= length for end in ends)], length


@pytest.mark.parametrize("place", [20, 60, 500, -10])
def test_a_damaged_record_and_all_behind_it_are_not_used(tmp_path: Path, place: int) -> None:
    path, ends = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[place % (ends[1] - ends[0]) + ends[0]] ^= 1
    path.write_bytes(data)
    found: list[list[str]] = []
    with pytest.raises(StoreError, match="its sha256 is wrong"):
        found.extend(record.rows["key"].to_pylist() for record in records(path, UNIT, "r"))
    assert found == WHOLE[:1]


def test_the_journal_of_another_recipe_or_unit_and_a_link_are_not_used(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    with pytest.raises(StoreError, match="it is of ShardHeader"):
        keys(path, recipe="other")
    with pytest.raises(StoreError, match="it is of ShardHeader"):
        list(records(path, Unit("train", 1), "r"))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        keys(path)
