"""Inputs that lie next to one another in a file are read at once, and give what they give one by one."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from embedx.data.decoding.features import FeatureDecoder
from embedx.data.loading.batches import Batches
from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.orders import Order, Orders
from embedx.data.plan import SplitPlan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.base import Run
from embedx.data.sources.feature_files import FeatureFile, RowReader
from embedx.data.sources.kinds import SourceOptions
from embedx.values import MAX_BYTES

NUMBERS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
ENTRIES = ("reasons", "unavailable", "bytes", "sha256")


class CountingReader(RowReader):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[int, int]] = []
        self.rows: list[int | None] = []

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        self.rows.append(offset)
        return super().read(path, offset, size, most)

    def read_run(self, path: bytes, first: int, count: int, most: int = MAX_BYTES) -> Run:
        self.runs.append((first, count))
        return super().read_run(path, first, count, most)


class LoneReader:
    """Reads rows one by one only."""

    def __init__(self) -> None:
        self._reader = RowReader()

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        return self._reader.read(path, offset, size, most)


def orders_of(*places: tuple[Path, Sequence[int]]) -> Orders:
    rows = [(path, offset) for path, offsets in places for offset in offsets]
    return Orders.listed([Order(row, os.fsencode(path), offset, 20) for row, (path, offset) in enumerate(rows)])


def both(orders: Orders, shape: tuple[int, ...] = (5,), **settings: Any) -> tuple[dict[str, Any], CountingReader]:
    """Loads a batch by runs, and checks that it is the one that its rows give one by one."""
    reader = CountingReader()
    batch = Batches(reader, FeatureDecoder(shape), 4, **settings).__getitems__(orders)
    alone = Batches(LoneReader(), FeatureDecoder(shape), 4, **settings).__getitems__(orders)
    assert batch["features"].numpy().tobytes() == alone["features"].numpy().tobytes()
    assert {name: batch[name] for name in ENTRIES} == {name: alone[name] for name in ENTRIES}
    return batch, reader


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_run_is_read_at_once_and_each_of_its_rows_is_hashed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    np.save(path, NUMBERS) if suffix == "npy" else save_file({"embeddings": NUMBERS}, path)
    batch, reader = both(orders_of((path, range(3, 33))))
    assert reader.runs == [(3, 30)] and reader.rows == []
    assert batch["features"].shape == (32, 5)
    assert np.array_equal(batch["features"][:30], NUMBERS[3:33]) and not batch["features"][30:].any()
    content = io.BytesIO()
    np.save(content, NUMBERS[7])
    assert batch["sha256"][4] == hashlib.sha256(content.getvalue()).hexdigest()
    assert batch["bytes"] == [len(content.getvalue())] * 30


def test_rows_of_two_files_in_turn_are_as_many_runs_as_there_are(tmp_path: Path) -> None:
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(a, NUMBERS)
    np.save(b, -NUMBERS)
    batch, reader = both(orders_of((a, range(4)), (b, range(4, 8)), (a, [9]), (b, [8]), (a, range(10, 13))))
    assert reader.runs == [(0, 4), (4, 4), (10, 3)] and reader.rows == [9, 8]
    expected = np.concatenate([NUMBERS[:4], -NUMBERS[4:8], NUMBERS[9:10], -NUMBERS[8:9], NUMBERS[10:13]])
    assert np.array_equal(batch["features"][:13], expected)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "<i8", "|u1", "|b1", "<c8", ">i2", "<M8[s]"])
def test_a_run_of_any_type_is_what_its_rows_are(tmp_path: Path, kind: str) -> None:
    with np.errstate(all="ignore"):
        numbers = (NUMBERS * 1e300).astype(kind) if kind == "<f8" else (NUMBERS * 9).astype("<i8").astype(kind)
    np.save(tmp_path / "rows.npy", numbers)
    both(orders_of((tmp_path / "rows.npy", range(40))))


@pytest.mark.parametrize("shape", [(10, 4, 5), (40, 5)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_run_of_any_layout_is_what_its_rows_are(tmp_path: Path, shape: tuple[int, ...], order: Any) -> None:
    numbers = np.array(NUMBERS.reshape(shape), order=order)
    np.save(tmp_path / "rows.npy", numbers)
    batch, _ = both(orders_of((tmp_path / "rows.npy", range(1, 9))), numbers.shape[1:])
    assert np.array_equal(batch["features"][:8], numbers[1:9])


def test_where_a_row_of_a_run_has_a_fault_each_has_its_own_reason(tmp_path: Path) -> None:
    path, cut, gone = tmp_path / "rows.npy", tmp_path / "cut.npy", tmp_path / "gone.npy"
    np.save(path, NUMBERS)
    cut.write_bytes(path.read_bytes()[:-4])
    batch, _ = both(orders_of((path, [37, 38, 39, 40, 41])))
    assert [reason is None for reason in batch["reasons"]] == [True] * 3 + [False] * 2
    batch, _ = both(orders_of((cut, range(3)), (path, range(3)), (gone, range(3))))
    assert ["no features can be read" in (reason or "") for reason in batch["reasons"]] == [True] * 3 + [False] * 3 + [
        True
    ] * 3
    batch, _ = both(orders_of((path, range(3))), max_bytes=100)
    assert all("--max-bytes" in reason for reason in batch["reasons"])
    batch, _ = both(orders_of((path, range(3))), (6,))
    assert batch["reasons"] == ["features of shape [5], not [6]"] * 3


def split_of(*paths: Path, reader: Any = None) -> SplitPlan:
    sources = parse_data([f"all={path}" for path in paths], SourceOptions(content="features"))
    split = build_plan(sources, None).splits["all"]
    return split if reader is None else SplitPlan("all", split.table, reader)


def loaded(split: SplitPlan, units: Sequence[range], **settings: Any) -> dict[str, Any]:
    """The rows of a loader's batches, joined."""
    batches = list(SplitLoader(split, units, FeatureDecoder((5,)), batch_size=4, **settings))
    joined = {name: [value for batch in batches for value in batch[name]] for name in (*ENTRIES, "keys")}
    rows = np.concatenate([batch["features"][: len(batch["index"])].numpy() for batch in batches])
    return {**joined, "rows": rows, "sizes": [len(batch["index"]) for batch in batches]}


def test_no_batch_of_rows_crosses_a_unit_s_end_and_several_forward_passes_are_one_batch(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", NUMBERS)
    found = loaded(split_of(tmp_path / "rows.npy"), [range(24), range(24, 40)], workers=0)
    assert found["sizes"] == [24, 16] and np.array_equal(found["rows"], NUMBERS)


class CuttingReader(RowReader):
    """Cuts a file short once it has mapped it, so that touching the rest ends the process."""

    def _open(self, path: bytes) -> FeatureFile:
        file = super()._open(path)
        if b"cut" in path and os.path.getsize(path) > 4096:
            os.truncate(path, 4096)
        return file


class ChangingReader(RowReader):
    """Has a file overwritten right behind the reading of a run."""

    def read_run(self, path: bytes, first: int, count: int, most: int = MAX_BYTES) -> Run:
        run = super().read_run(path, first, count, most)
        with open(path, "r+b") as file:
            file.seek(-NUMBERS.nbytes, os.SEEK_END)
            file.write(bytes(NUMBERS.nbytes))
        return run


def test_the_rows_are_those_of_the_sha256_though_the_file_changes_meanwhile(tmp_path: Path) -> None:
    np.save(tmp_path / "changing.npy", NUMBERS)
    orders = orders_of((tmp_path / "changing.npy", range(len(NUMBERS))))
    batch = Batches(ChangingReader(), FeatureDecoder((5,)), 4).__getitems__(orders)
    assert np.array_equal(batch["features"].numpy()[: len(NUMBERS)], NUMBERS)
    for row, digest in zip(NUMBERS, batch["sha256"], strict=True):
        content = io.BytesIO()
        np.save(content, row)
        assert digest == hashlib.sha256(content.getvalue()).hexdigest()


@pytest.mark.timeout(90)
def test_a_file_that_is_cut_short_while_it_is_read_costs_its_own_rows_alone(tmp_path: Path) -> None:
    many = np.random.default_rng(1).normal(size=(2000, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", NUMBERS)
    np.save(tmp_path / "cut.npy", many)
    split = split_of(tmp_path / "a.npy", tmp_path / "cut.npy", reader=CuttingReader())
    found = loaded(split, [range(2040)], workers=1)
    assert found["reasons"][:40] == [None] * 40 and np.array_equal(found["rows"][:40], NUMBERS)
    assert all("no features can be read from it" in reason for reason in found["reasons"][40:])
    assert not found["rows"][40:].any()


class HangingReader(RowReader):
    """Never comes back from row 7."""

    def read(self, path: bytes, offset: int | None, size: int | None, most: int = MAX_BYTES) -> bytes:
        if offset == 7:
            time.sleep(600)
        return super().read(path, offset, size, most)

    def read_run(self, path: bytes, first: int, count: int, most: int = MAX_BYTES) -> Run:
        if first <= 7 < first + count:
            time.sleep(600)
        return super().read_run(path, first, count, most)


@pytest.mark.timeout(90)
def test_a_row_of_a_run_that_never_ends_is_found(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", NUMBERS)
    split = split_of(tmp_path / "rows.npy", reader=HangingReader())
    found = loaded(split, [range(20), range(20, 40)], workers=1, timeout=1)
    assert found["reasons"] == [None] * 7 + ["no end of reading it within --timeout"] + [None] * 32
    assert found["unavailable"] == [row == 7 for row in range(40)]
    expected = NUMBERS.copy()
    expected[7] = 0
    assert np.array_equal(found["rows"], expected)
