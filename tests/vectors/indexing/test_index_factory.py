"""The kind of index by the number of rows, and its sample."""

from __future__ import annotations

import pytest

from embedx.vectors.indexing.faiss_process import FaissProcess
from embedx.vectors.indexing.index_factory import default_factory, sample_rows


def test_each_default_is_one_that_faiss_makes_with_lists_by_its_guidelines() -> None:
    assert default_factory(1) == default_factory(9_999) == "Flat"
    with FaissProcess(threads=1) as faiss:
        for rows in (10_000, 123_456, 1_000_000, 100_000_000):
            lists = int(default_factory(rows).removeprefix("IVF").removesuffix(",SQ8"))
            assert 4 * rows**0.5 - 1 <= lists <= 16 * rows**0.5
            assert 30 * lists <= sample_rows(default_factory(rows), rows, 64) or rows < 100_000
            assert faiss.create(64, default_factory(rows))


@pytest.mark.parametrize(
    ("factory", "rows", "dim", "sample"),
    [
        ("Flat", 500, 8, 500),
        ("PQ8", 10**6, 8, 65_536),
        ("OPQ16_64,IVF4000,PQ16", 10**6, 64, 256_000),
        ("IVF65536_HNSW32,Flat", 10**8, 512, 1_048_576),
        ("IVF99999", 1000, 512, 1000),
        ("IVF9", 10**9, 10**9, 9),
    ],
)
def test_a_sample_has_enough_for_each_list_and_fits_into_memory(factory: str, rows: int, dim: int, sample: int) -> None:
    assert sample_rows(factory, rows, dim) == sample
