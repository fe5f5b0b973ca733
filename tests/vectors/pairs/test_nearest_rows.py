"""The nearest rows of every row, beside scikit-learn's brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from embedx.store.reading.reader import Store
from embedx.vectors.pairs.nearest_rows import NearestRows, nearest_of_all
from embedx.vectors.pairs.neighbour_facts import best_of
from embedx.vectors.pairs.tiles import UnitBlocks, pairs_of_blocks, tiles
from embedx.vectors.vector_rows import open_rows
from tests.store.builders import write_features

CPU = torch.device("cpu")
ROWS = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 301)[:, None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("stores") / "store"
    return Store.open(write_features(out, {"train": (ROWS, [0] * 300)}, rows_per_unit=47))


@pytest.mark.parametrize("size", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 10])
def test_neighbours_are_those_of_brute_force(store: Store, size: int, k: int) -> None:
    found = nearest_of_all(UnitBlocks([open_rows(store)], CPU, block_rows=size), k)
    reference = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(ROWS.double().numpy())
    distances, places = reference.kneighbors()
    assert (found.places == places).all()
    assert np.abs(1 - found.similarities - distances).max() < 1e-6


def test_rows_that_are_read_again_for_each_tile_have_the_same_neighbours(store: Store) -> None:
    rows = [open_rows(store)]
    kept = nearest_of_all(UnitBlocks(rows, CPU, block_rows=50), 5)
    read = nearest_of_all(UnitBlocks(rows, CPU, block_rows=50, kept_bytes=0), 5)
    assert (kept.places == read.places).all() and (kept.similarities == read.similarities).all()


def test_no_row_is_its_own_neighbour_and_what_is_missing_is_told(tmp_path: Path) -> None:
    path = write_features(tmp_path / "store", {"train": (torch.eye(3), [0] * 3)})
    found = nearest_of_all(UnitBlocks([open_rows(Store.open(path))], CPU), 5)
    assert found.places.tolist() == [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1], [0, 1, -1, -1, -1]]
    assert (found.similarities == 0).all()


def test_of_equal_rows_the_first_ones_are_neighbours(tmp_path: Path) -> None:
    path = write_features(tmp_path / "store", {"train": (torch.ones(9, 4), [0] * 9)})
    blocks = UnitBlocks([open_rows(Store.open(path))], CPU, block_rows=2)
    found = nearest_of_all(blocks, 3)
    assert found.places[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert np.allclose(found.similarities, 1)


def test_a_pass_that_serves_others_too_finds_the_same(store: Store) -> None:
    blocks = UnitBlocks([open_rows(store)], CPU, block_rows=64)
    gathered = NearestRows(blocks.count, 4, CPU)
    for tile in tiles(blocks, pairs_of_blocks(blocks)):
        gathered.see(tile, best_of(tile.similarities))
    assert (gathered.finish().places == nearest_of_all(blocks, 4).places).all()
