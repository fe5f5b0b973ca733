"""Rows that somebody should look at, beside what numpy and scikit-learn find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from embedx.store.reading.reader import Store
from embedx.vectors.pairs.nearest_rows import NearestOfAll, nearest_of_all
from embedx.vectors.pairs.tiles import UnitBlocks
from embedx.vectors.reporting import findings
from embedx.vectors.reporting.findings import Measured
from embedx.vectors.reporting.labels import Labels
from embedx.vectors.vector_rows import open_rows
from tests.store.builders import write_features

GENERATOR = torch.Generator().manual_seed(0)
TARGETS = np.arange(120) % 3
CENTRES = 4 * torch.eye(3, 12)
ROWS = CENTRES[torch.from_numpy(TARGETS)] + 0.3 * torch.randn(120, 12, generator=GENERATOR)
ROWS[50] = -torch.ones(12)  # far from all


def neighbours_of(path: Path, rows: torch.Tensor, k: int = 10) -> NearestOfAll:
    store = Store.open(write_features(path / "store", {"train": (rows, [0] * len(rows))}))
    return nearest_of_all(UnitBlocks([open_rows(store)], torch.device("cpu")), k)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> NearestOfAll:
    return neighbours_of(tmp_path_factory.mktemp("stores"), ROWS)


def labels(targets: np.ndarray) -> Labels:
    return Labels("class", targets.astype(np.int64), ("ant", "bee", "cat"))


def test_outlier_scores_are_the_mean_distances_of_brute_force(near: NearestOfAll) -> None:
    reference = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(ROWS.double().numpy())
    expected = reference.kneighbors()[0].mean(axis=1)
    scores = findings.outlier_scores(near)
    assert np.abs(scores - expected).max() < 1e-6
    found = findings.outliers(scores, np.arange(120) + 1000)
    low, high = np.quantile(expected, [0.25, 0.75])
    outside = np.flatnonzero(expected > high + 1.5 * (high - low))
    assert set(found.rows) == set((outside + 1000).tolist()) and found.rows[0] == 1050
    assert (found.total, found.looked_at) == (len(outside), 120)
    assert found.texts[0] == f"mean cosine distance {expected[50]:.3f}"


def test_rows_without_neighbours_are_no_outliers(tmp_path: Path) -> None:
    scores = findings.outlier_scores(neighbours_of(tmp_path, ROWS[:1]))
    assert np.isnan(scores).all() and findings.outliers(scores, np.arange(1)).total == 0
    assert findings.outliers(np.zeros(0, np.float32), np.arange(0)).total == 0


def test_planted_labels_are_contradicted_and_no_others(near: NearestOfAll) -> None:
    planted = TARGETS.copy()
    planted[[7, 30, 77]] = (planted[[7, 30, 77]] + 1) % 3
    found = findings.contradicted(near, labels(planted), np.arange(120))
    assert {*found.rows} - {50} == {7, 30, 77} and found.looked_at == 120
    assert all("10 of 10 neighbours are" in text or "9 of 10 neighbours are" in text for text in found.texts)
    words = dict(zip(found.rows, found.texts, strict=True))
    assert words[30].endswith("ant") and words[7].endswith("bee")


def test_a_small_class_is_judged_by_as_many_neighbours_as_it_has_rows(tmp_path: Path) -> None:
    """Four rows are close to each other, among a hundred of another class: ten votes would contradict them all."""
    rows = torch.cat([CENTRES[:1] + 0.5 * torch.randn(100, 12, generator=GENERATOR), CENTRES[:1].repeat(4, 1)])
    rows[100:, 11] = 1 + torch.arange(4) / 50
    targets = np.array([0] * 100 + [1] * 4)
    found = findings.contradicted(neighbours_of(tmp_path, rows), labels(targets), np.arange(104))
    assert found.total == 0 and found.looked_at == 104


def test_rows_without_a_label_neither_vote_nor_are_judged(near: NearestOfAll) -> None:
    none = findings.contradicted(near, labels(np.full(120, -1)), np.arange(120))
    assert (none.total, none.looked_at) == (0, 0)
    some = findings.contradicted(near, labels(np.where(np.arange(120) < 60, TARGETS, -1)), np.arange(120))
    assert some.looked_at <= 60 and {*some.rows} <= {50}


def test_constant_rows_and_those_that_are_not_finite(tmp_path: Path) -> None:
    rows = ROWS[:40].clone()
    rows[3], rows[5] = 0, 7
    rows[8, 2], rows[9, 0] = torch.nan, -torch.inf
    path = write_features(tmp_path / "store", {"train": (rows, [0] * 40)}, rows_per_unit=6)
    found, has_direction = findings.degenerate(open_rows(Store.open(path)))
    assert found.rows == (8, 9, 3, 5) and (found.total, found.looked_at) == (4, 40)
    assert found.texts == ("has NaN or infinity",) * 2 + ("all numbers are equal",) * 2
    assert np.flatnonzero(~has_direction).tolist() == [3, 8, 9]


IMAGES = [Measured(row, 300 + row, 200, 0.5, 100.0 + row) for row in range(20)]


def test_dark_blurry_tiny_and_odd_shaped_images() -> None:
    images = [
        *IMAGES,
        Measured(20, 300, 200, 0.02, 90.0),
        Measured(21, 300, 200, 0.14, 9.0),
        Measured(22, 300, 200, 0.5, 3.0),
        Measured(23, 40, 30, 0.5, 90.0),
        Measured(24, 900, 200, 0.5, 90.0),
    ]
    for find, rows in (
        (findings.dark, (20, 21)),
        (findings.blurry, (22,)),
        (findings.tiny, (23,)),
        (findings.odd_shaped, (24,)),
    ):
        found = find(images)
        looked_at = 23 if find is findings.blurry else 25
        assert found.rows == rows and (found.total, found.looked_at) == (len(rows), looked_at)
        assert find([]).total == 0
    assert findings.odd_shaped(images).texts == ("900 x 200 pixels",)


def test_where_all_images_are_small_none_is_tiny() -> None:
    assert findings.tiny([Measured(row, 32, 32, 0.5, 100.0) for row in range(9)]).total == 0
