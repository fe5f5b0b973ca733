"""The nearest rows equal a brute force by numpy in float64: numbers, similarities, ties, and rows of no use."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from embedx.store.reading.reader import Store
from embedx.vectors.searching import float32_similarities
from embedx.vectors.searching import nearest as nearest_module
from embedx.vectors.searching.nearest import nearest
from embedx.vectors.vector_rows import VectorRows, open_rows
from tests.store.builders import write_features

DIM = 12


def rows_of(folder: Path, rows: torch.Tensor, *, rows_per_unit: int = 64) -> VectorRows:
    store = write_features(folder / "store", {"train": (rows, [0] * len(rows))}, rows_per_unit=rows_per_unit)
    return open_rows(Store.open(store), check=False)


def brute_force(
    rows: torch.Tensor, query: torch.Tensor, k: int, left_out: int | None = None
) -> list[tuple[int, float]]:
    """The numbers and similarities of the k nearest rows; equal similarities in the order of their numbers."""
    a, b = rows.numpy().astype(np.longdouble), query.numpy().astype(np.longdouble)
    with np.errstate(all="ignore"):
        similarities = (a @ b / np.sqrt((a * a).sum(axis=1)) / np.sqrt((b * b).sum())).astype(np.float64)
    found = [(-value, number) for number, value in enumerate(similarities) if np.isfinite(value) and number != left_out]
    return [(number, -value) for value, number in sorted(found)[:k]]


def check(rows: VectorRows, values: torch.Tensor, queries: torch.Tensor, k: int) -> None:
    found = list(nearest(rows, queries, k))
    assert len(found) == len(queries)
    for query, each in zip(queries, found, strict=True):
        expected = brute_force(values, query, k)
        assert each.numbers.tolist() == [number for number, _ in expected]
        assert np.abs(each.similarities - [value for _, value in expected]).max(initial=0) < 1e-12


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of blocks, pieces, batches of queries and pairs: as they are, or so small that there are many."""
    if request.param == "small blocks":
        row = 4 * DIM
        for name, size in {"_BLOCK_BYTES": 30 * row, "_MOST_QUERIES": 3, "_PAIRS": 5}.items():
            monkeypatch.setattr(nearest_module, name, size)
        for name, size in {"_PIECE_BYTES": 3 * row, "_TASK_BYTES": 7 * row}.items():
            monkeypatch.setattr(float32_similarities, name, size)


@pytest.mark.parametrize("k", [1, 10, 500, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_nearest_rows_are_those_of_a_brute_force(tmp_path: Path, blocks: None, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(k)
    values = torch.randn(500, DIM, generator=generator).to(dtype)
    queries = torch.randn(8, DIM, generator=generator)
    check(rows_of(tmp_path, values), values.float(), queries, k)


def test_equal_rows_come_in_the_order_of_their_numbers(tmp_path: Path, blocks: None) -> None:
    """A hundred copies of each of three rows, and multiples of them by powers of two, which have the same direction."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, DIM, generator=generator).repeat(100, 1)
    values *= 2.0 ** torch.randint(-3, 4, (300, 1), generator=generator)
    rows = rows_of(tmp_path, values)
    for number, each in enumerate(nearest(rows, values[:3], 40)):
        assert each.numbers.tolist() == list(range(number, 120, 3))
        assert np.abs(each.similarities - 1).max() < 1e-15


def test_rows_that_are_zero_or_not_finite_are_near_to_nothing(tmp_path: Path, blocks: None) -> None:
    values = torch.randn(80, DIM, generator=torch.Generator().manual_seed(0))
    values[3], values[40, 5], values[41, 0], values[79] = 0, torch.nan, torch.inf, 0
    rows = rows_of(tmp_path, values)
    check(rows, values, values[10:14], 100)
    assert all(len(each.numbers) == 76 for each in nearest(rows, values[10:14], 100))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-25, 3e-23, 1e-22, 1e-16, 1e17, 1e25, 2e37])
def test_very_large_and_very_small_rows_have_the_similarity_of_their_direction(
    tmp_path: Path, blocks: None, scale: float
) -> None:
    values = torch.randn(90, DIM, generator=torch.Generator().manual_seed(0))
    values[::2] *= scale
    values = values.clamp(-3e38, 3e38)
    check(rows_of(tmp_path, values), values, torch.cat([values[1:4], values[20:23]]), 10)


def test_nearly_equal_rows_are_in_their_exact_order(tmp_path: Path, blocks: None) -> None:
    """Rows whose similarities differ by less than float32 can tell."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, DIM, generator=generator)
    values = query + 1e-5 * torch.randn(400, DIM, generator=generator)
    check(rows_of(tmp_path, values), values, query, 20)


def test_a_row_is_left_out_for_its_own_query_alone(tmp_path: Path, blocks: None) -> None:
    values = torch.randn(100, DIM, generator=torch.Generator().manual_seed(0))
    found = list(nearest(rows_of(tmp_path, values), values[[5, 5, 99]], 7, left_out=[5, None, 99]))
    for query, left_out, each in zip((5, 5, 99), (5, None, 99), found, strict=True):
        expected = brute_force(values, values[query], 7, left_out)
        assert each.numbers.tolist() == [number for number, _ in expected]


def test_one_row_and_no_other_query(tmp_path: Path) -> None:
    values = torch.ones(1, DIM)
    rows = rows_of(tmp_path, values)
    check(rows, values, torch.arange(1, DIM + 1).float()[None], 3)
    (alone,) = nearest(rows, values, 3, left_out=[0])
    assert alone.numbers.tolist() == []
    assert list(nearest(rows, torch.empty(0, DIM), 3)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 40])
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int
) -> None:
    """The store has 128 MB of float32 numbers, and blocks of 4 MB; most of the growth are buffers of the allocator."""
    monkeypatch.setattr(nearest_module, "_BLOCK_BYTES", 4 * 1024**2)
    values = torch.randn(1000, 256, generator=torch.Generator().manual_seed(0)).to(dtype).repeat(125, 1)
    rows = rows_of(tmp_path, values, rows_per_unit=16384)
    queries = torch.randn(count, 256)
    list(nearest(rows, queries[:1], 10))  # makes threads, and maps the shards
    own, end = [own_memory()], threading.Event()

    def sample() -> None:
        while not end.wait(0.002):
            own.append(own_memory())

    sampler = threading.Thread(target=sample)
    sampler.start()
    found = list(nearest(rows, queries, 10))
    end.set()
    sampler.join()
    assert len(found) == count and max(own) - own[0] < 64 * 1024**2


def own_memory() -> int:
    """The bytes of memory that are this process's own: mapped files are left out."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_the_same_rows_and_similarities_to_the_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, 64, generator=generator)
    rows, queries = rows_of(tmp_path, values, rows_per_unit=2000), torch.randn(20, 64, generator=generator)
    pairs = zip(nearest(rows, queries, 10), nearest(rows, queries, 10, device=torch.device("cuda")), strict=True)
    for here, there in pairs:
        assert np.array_equal(here.numbers, there.numbers) and np.array_equal(here.similarities, there.similarities)
