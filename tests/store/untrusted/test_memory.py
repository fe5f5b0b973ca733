"""Stores that are small on disk and ask for much memory: each reader takes as much as in proportion to the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch

import embedx
from embedx.cli.info import _description
from embedx.errors import ConfigError, StoreError
from embedx.store.format.index import UnitEntry, in_order, read_entry, read_index, write_index
from embedx.store.reading.verify import verify
from embedx.vectors.probing.confusion_plot import confusion_png
from embedx.vectors.probing.linear import check_memory
from tests.store.builders import build_store, restate, write_features

MIB = 1 << 20
CLASSES, TESTED = 10_000, 200
RESET = Path("/proc/self/clear_refs")


def peak_of(action: Callable[[], object]) -> int:
    """The bytes by which this process grew at most during an action."""

    def kilobytes(name: str) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[name].split()[0])

    try:
        RESET.write_text("5")
    except OSError as error:
        pytest.skip(f"this system does not tell how much memory an action takes ({error})")
    before = kilobytes("VmRSS")
    action()
    return (kilobytes("VmHWM") - before) * 1024


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each row is of a class of its own, whose number may be as large as 2^62."""
    rows = torch.randn(CLASSES, 4, generator=torch.Generator().manual_seed(0)).half()
    targets = [2**62 // CLASSES * number for number in range(CLASSES)]
    out = tmp_path_factory.mktemp("many") / "store"
    tested = rows[:TESTED].flip(0), targets[:TESTED]
    return write_features(out, {"train": (rows, targets), "val": tested}, rows_per_unit=5000)


def test_a_probe_of_many_classes_takes_no_square_of_them(many_classes: Path) -> None:
    results = []
    config = embedx.ProbeConfig(method="knn", k=1)
    assert peak_of(lambda: results.append(embedx.probe(many_classes, config))) < 512 * MIB < CLASSES**2 * 8
    (result,) = results
    assert (result.test_rows, len(result.classes), result.confusion) == (TESTED, CLASSES, None)
    wrong = sum(mistake.rows for mistake in result.mistakes)
    assert wrong == TESTED - sum(each.correct for each in result.classes) > 100
    assert len(result.to_json()["mistakes"]) == 100
    assert confusion_png(result).startswith(b"\x89PNG")


def test_every_reader_of_a_small_store_takes_little(many_classes: Path) -> None:
    store = embedx.open(many_classes)
    for read in (
        lambda: store.load("train"),
        lambda: store.index(),
        lambda: store.dataset("train")[5],
        lambda: list(store.iter_shards(check=True)),
        lambda: list(verify(many_classes)),
        lambda: embedx.compare(many_classes, many_classes),
        lambda: _description(store),
    ):
        assert peak_of(read) < 64 * MIB


def test_a_head_that_the_machine_can_t_hold_is_refused_before_it_is_fitted() -> None:
    check_memory(1000, 4096)
    with pytest.raises(ConfigError, match=r"10,000,000 classes x 1,000 numbers takes .*; choose fewer .*--method knn"):
        check_memory(10_000_000, 1000)


def test_one_long_row_that_is_named_many_times_is_not_laid_out(tmp_path: Path) -> None:
    """Index rows pack well: a table of a few kilobytes can name a row of 4 MiB so often that it makes 80 GB."""
    store = build_store(tmp_path / "store", 8, rejected=(), group_key=None)
    table, shard = store / "index/train-00000.parquet", store / "train/shard-00000.safetensors"
    rows, entry = read_index(table), read_entry(table)
    with safetensors.safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
    tensors = {"embeddings": torch.zeros(1, 2**20), "index": torch.zeros(1, dtype=torch.int64)}
    safetensors.torch.save_file(tensors, shard, metadata=metadata)
    many = pa.concat_tables([rows.slice(0, 1)] * 20_000).combine_chunks()
    write_index(store, in_order(many), UnitEntry(**{**entry._asdict(), "inputs": len(many), "rows": len(many)}))
    with pytest.raises(StoreError, match="and its index table disagree"):
        embedx.open(restate(store)).load("train", check=False)
