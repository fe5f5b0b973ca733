"""The pairs of rows in a tile that are as similar as a threshold demands, decided the same way in tiles of any size.

Shapes: N rows, [n, m] similarities of a tile, r of its rows and c of its columns, D embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embedx.vectors.pairs.tiles import Tile

TIE = 1e-9
"""The part of a similarity by which it may miss the threshold, so that equal vectors are within a threshold of 1."""
_CHUNK_NUMBERS = 2**22
"""The numbers of each side that are multiplied at once where pairs are few; they take 32 MiB."""
_FEW = 64
"""Pairs are multiplied one by one where fewer than one in so many of a tile's part is in doubt."""


Exact = Callable[[NDArray[np.int64]], Tensor]
"""Returns vectors [n, D] float64 of unit length by their numbers."""
Best = tuple[Tensor, Tensor]
"""The largest similarity of each row [n], and of each column [m], of a tile."""


class ClosePairs(NamedTuple):
    """Some rows of a tile, and some of its columns, and which of them are close."""

    rows: NDArray[np.int64]
    """The rows' numbers [r], ascending."""
    columns: NDArray[np.int64]
    """The columns' numbers [c], ascending."""
    is_close: NDArray[np.bool_]
    """True for the pairs of them that are close [r, c]; all other pairs of the tile are not."""


def rounding(dim: int) -> float:
    """Returns more than the error of a float32 product of two vectors [D] of unit length: at least 1e-5.

    The rounding of D sums and products grows like a random walk, by sqrt(D) * 2^-24; this is four times that.
    """
    return max(1e-5, 2**-22 * math.sqrt(dim))


def is_within(similarities: Tensor, threshold: float) -> Tensor:
    """Tells which float64 similarities are within a threshold."""
    return similarities >= threshold - TIE


def close_pairs(tile: Tile, threshold: float, dim: int, exact: Exact, best: Best) -> ClosePairs | None:
    """Finds the pairs of a tile that are within a threshold; None if there are none.

    A product in float32 decides unless it is within `rounding` of the threshold, where one in float64 does. So the
    decision depends neither on the tile's size nor on the machine, save for similarities within 1e-15 of
    threshold - TIE.

    Args:
        tile: The tile of similarities.
        threshold: The smallest cosine similarity of a close pair.
        dim: The length of the vectors, D.
        exact: The function that returns vectors [n, D] float64 of unit length by their numbers.
        best: The largest similarities of the tile's rows and columns.
    """
    margin = rounding(dim)
    rows, columns = ((each >= threshold - margin).nonzero().squeeze(1) for each in best)
    if not len(rows):
        return None
    similarities = tile.similarities
    if len(rows) < len(similarities):
        similarities = similarities[rows]
    if len(columns) < similarities.shape[1]:
        similarities = similarities[:, columns]
    is_close = similarities >= threshold + margin
    unsure = (similarities >= threshold - margin) & ~is_close
    numbers = rows.cpu().numpy() + tile.row, columns.cpu().numpy() + tile.column
    if unsure.any():
        _decide(is_close, unsure, numbers, threshold, exact)
    return ClosePairs(*numbers, is_close.cpu().numpy())


def _decide(
    is_close: Tensor, unsure: Tensor, numbers: tuple[NDArray[np.int64], ...], threshold: float, exact: Exact
) -> None:
    """Sets those of the unsure pairs [r, c] to close that are, by products in float64."""
    rows, columns = (unsure.any(dim=dim).nonzero().squeeze(1) for dim in (1, 0))
    part = unsure[rows][:, columns]
    first, second = (exact(own[at.cpu().numpy()]) for own, at in zip(numbers, (rows, columns), strict=True))
    if _FEW * int(part.sum()) > part.numel():
        is_close[rows[:, None], columns] |= part & is_within(first @ second.T, threshold)
        return
    pairs = part.nonzero()
    for some in pairs.split(max(1, _CHUNK_NUMBERS // first.shape[1])):
        products = (first[some[:, 0]] * second[some[:, 1]]).sum(dim=1)
        is_close[rows[some[:, 0]], columns[some[:, 1]]] = is_within(products, threshold)
