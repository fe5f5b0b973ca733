"""Samples in which every stratum is there: each class of each split, in proportion to its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_sample(strata: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Chooses rows at random so that each stratum has its share, and at least one row where the sample has room.

    Args:
        strata: The number of each row's stratum, [N] int64.
        size: The number of rows to choose; all are taken where there are no more.
        seed: The seed of the choice.

    Returns:
        The chosen rows' places, ascending, [min(N, size)] int64.
    """
    count = len(strata)
    if count <= size:
        return np.arange(count)
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    _, first, rows = np.unique(strata[order], return_index=True, return_counts=True)
    rank = np.arange(count) - np.repeat(first, rows)
    turn = np.where(rank == 0, 0, (rank + 0.5) / np.repeat(rows, rows))  # so that n of N rows come before n / N
    larger_first = -np.repeat(rows, rows)
    chosen: NDArray[np.int64] = np.sort(order[np.lexsort([larger_first, turn])[:size]])
    return chosen


def strata_of(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers the distinct combinations of the values of columns, each [N] int64."""
    numbers: NDArray[np.int64] = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, codes = np.unique(column, return_inverse=True)
        _, numbers = np.unique(numbers * (codes.max(initial=0) + 1) + codes, return_inverse=True)
    return numbers
