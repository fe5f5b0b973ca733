"""The map of a report: deterministic, with clusters kept together, for any number of rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from embedx.errors import ConfigError
from embedx.store.reading.reader import Store
from embedx.vectors.pairs.tiles import UnitBlocks
from embedx.vectors.reporting import map_layout
from embedx.vectors.reporting.map_layout import lay_out
from embedx.vectors.vector_rows import open_rows
from tests.store.builders import write_features

CLASSES = 5
GENERATOR = torch.Generator().manual_seed(0)
TARGETS = torch.arange(400) % CLASSES
ROWS = 3 * torch.randn(CLASSES, 24, generator=GENERATOR)[TARGETS] + torch.randn(400, 24, generator=GENERATOR)


def blocks_of(path: Path, rows: torch.Tensor) -> UnitBlocks:
    store = Store.open(write_features(path / "store", {"train": (rows, [0] * len(rows))}))
    return UnitBlocks([open_rows(store)], torch.device("cpu"))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> UnitBlocks:
    return blocks_of(tmp_path_factory.mktemp("stores"), ROWS)


def purity(places: np.ndarray) -> float:
    """The share of the five nearest points in the plane that are of the same class."""
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((TARGETS.numpy()[distances.argsort(axis=1)[:, :5]] == TARGETS.numpy()[:, None]).mean())


@pytest.mark.parametrize("landmarks", [400, 150])
def test_clusters_stay_together_and_the_same_rows_give_the_same_places(
    blocks: UnitBlocks, landmarks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_layout, "LANDMARKS", landmarks)
    told: list[float] = []
    places, words = lay_out(blocks, TARGETS.numpy(), "tsne", 3, told.append)
    assert trustworthiness(ROWS.numpy(), places, n_neighbors=10, metric="cosine") > 0.9
    assert purity(places) > 0.99
    assert words == ("t-SNE" if landmarks == 400 else "t-SNE of 150 rows, the others placed among them")
    assert told[-1] == 1.0 and max(told) == 1.0
    again, _ = lay_out(blocks, TARGETS.numpy(), "tsne", 3)
    assert again.tobytes() == places.tobytes()


def test_pca_is_that_of_numpy(blocks: UnitBlocks) -> None:
    places, words = lay_out(blocks, TARGETS.numpy(), "pca", 0)
    unit = (ROWS / ROWS.norm(dim=1, keepdim=True)).double().numpy()
    left, values, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    assert words == "PCA" and np.abs(np.abs(places) - np.abs(left[:, :2] * values[:2])).max() < 1e-4


@pytest.mark.soak
def test_umap_keeps_clusters_too(blocks: UnitBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_layout, "LANDMARKS", 300)
    places, words = lay_out(blocks, TARGETS.numpy(), "umap", 0)
    assert purity(places) > 0.95 and words == "UMAP of 300 rows, the others placed among them"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 10, 31])
def test_few_rows_are_laid_out(count: int, tmp_path: Path) -> None:
    places, words = lay_out(blocks_of(tmp_path, ROWS[:count]), np.zeros(count, np.int64), "tsne", 0)
    assert places.shape == (count, 2) and np.isfinite(places).all()
    assert len(np.unique(places.round(9), axis=0)) == count
    assert words == ("t-SNE" if count >= 8 else f"PCA, as {count} rows are too few for t-SNE")


def test_equal_rows_lie_at_one_place(tmp_path: Path) -> None:
    places, _ = lay_out(blocks_of(tmp_path, torch.ones(40, 6)), np.zeros(40, np.int64), "tsne", 0)
    assert (places == places[0]).all()


def test_vectors_of_one_number_are_laid_out(tmp_path: Path) -> None:
    places, _ = lay_out(blocks_of(tmp_path, torch.arange(-20.0, 21)[:, None] + 0.5), np.zeros(41, np.int64), "pca", 0)
    assert np.isfinite(places).all()


@pytest.mark.parametrize(("method", "module", "extra"), [("tsne", "openTSNE", "report"), ("umap", "umap", "umap")])
def test_a_library_that_is_missing_is_told_with_the_ways_out(
    blocks: UnitBlocks, method: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as Python notes a module that can't be imported
    with pytest.raises(ConfigError, match=rf'pip install "embedx\[{extra}\]", or give --map pca'):
        lay_out(blocks, TARGETS.numpy(), method, 0)
    assert lay_out(blocks, TARGETS.numpy(), "pca", 0)[1] == "PCA"
