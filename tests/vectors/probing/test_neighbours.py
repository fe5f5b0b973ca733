"""The nearest neighbours' vote, against scikit-learn's brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from embedx.engine.state import Batch
from embedx.vectors.probing.neighbours import NearestNeighbours

pytestmark = pytest.mark.usefixtures("one_thread")


def batches(rows: Tensor, targets: Tensor, size: int) -> list[Batch]:
    pieces = zip(rows.split(size), targets.split(size), strict=True)
    return [{"embeddings": x, "targets": y} for x, y in pieces]


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("size", [500, 64, 3])
def test_the_votes_are_scikit_learn_s_however_the_neighbours_are_cut(k: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(500, 8, generator=generator), torch.randint(0, 5, (500,), generator=generator)
    queries = torch.randn(60, 8, generator=generator)
    votes = NearestNeighbours(batches(rows, targets, size), 5, k, 0.07)(queries)["votes"]
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(rows.numpy(), targets.numpy())
    torch.testing.assert_close(votes, torch.tensor(reference.predict_proba(queries.numpy())), rtol=1e-4, atol=1e-6)


def test_a_low_temperature_leaves_the_vote_to_the_nearest_and_does_not_vanish() -> None:
    rows = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    votes = NearestNeighbours(batches(rows, torch.tensor([0, 1, 1]), 2), 2, 3, 1e-6)(torch.tensor([[1.0, 0.0]]))
    assert votes["votes"].tolist() == [[1.0, 0.0]]


def test_a_row_of_zeros_is_like_nothing() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    votes = NearestNeighbours(batches(rows, torch.tensor([0, 1]), 2), 2, 1, 0.07)
    assert votes(torch.tensor([[2.0, 2.0]]))["votes"].tolist() == [[0.0, 1.0]]
    assert votes(torch.tensor([[0.0, 0.0]]))["votes"].isfinite().all()
