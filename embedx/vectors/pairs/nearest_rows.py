"""The nearest rows of every row: exact, by cosine similarity, tile by tile.

Shapes: N rows, k neighbours, [n, m] similarities of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedx.vectors.countdown import Countdown
from embedx.vectors.pairs.close_pairs import Best
from embedx.vectors.pairs.neighbour_facts import best_of
from embedx.vectors.pairs.tiles import Tile, UnitBlocks, pairs_of_blocks, tiles

_NONE = -2.0


class NearestOfAll(NamedTuple):
    """The nearest rows of every row."""

    places: NDArray[np.int64]
    """The numbers of the neighbours, the nearest first and of equal ones the first, [N, k] int64; -1 for none."""
    similarities: NDArray[np.float32]
    """Their cosine similarities, [N, k] float32; 0 for none."""


class NearestRows:
    """Gathers the nearest rows tile by tile.

    Args:
        count: The number of rows, N.
        k: The number of neighbours of each.
        device: The device of the tiles.
    """

    def __init__(self, count: int, k: int, device: torch.device) -> None:
        self._values = torch.full((count, k), _NONE, device=device)
        self._places = torch.full((count, k), -1, dtype=torch.int64, device=device)

    def see(self, tile: Tile, best: Best) -> None:
        """Takes in a tile, with the largest similarities of its rows and columns."""
        self._improve(tile.row, tile.similarities, tile.column, best[0])
        if tile.row != tile.column:
            self._improve(tile.column, tile.similarities.T, tile.row, best[1])

    def _improve(self, start: int, similarities: Tensor, first: int, largest: Tensor) -> None:
        """Takes in those that are nearer than the farthest neighbour so far: most rows have none in most tiles."""
        own = slice(start, start + len(similarities))
        values, places = self._values[own], self._places[own]
        better = (largest > values[:, -1]).nonzero().squeeze(1)
        if not len(better):
            return
        k = values.shape[1]
        found, columns = similarities[better].topk(min(k, similarities.shape[1]), dim=1)
        best, order = torch.cat([values[better], found], dim=1).topk(k, dim=1)
        values[better] = best
        places[better] = torch.cat([places[better], columns + first], dim=1).gather(1, order)

    def finish(self) -> NearestOfAll:
        """Returns the neighbours that were found."""
        values, places = self._values.cpu().numpy(), self._places.cpu().numpy()
        places[values == _NONE] = -1
        order = np.lexsort((places, -values), axis=1)
        places, values = np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1)
        return NearestOfAll(places, np.where(places < 0, np.float32(0), values.clip(-1, 1)))


def nearest_of_all(blocks: UnitBlocks, k: int, countdown: Countdown | None = None) -> NearestOfAll:
    """Finds the nearest rows of every row among all others; the same ones for the same rows, device and threads.

    Args:
        blocks: The rows to compare.
        k: The number of neighbours of each.
        countdown: The receiver of progress, which counts the pairs of rows.
    """
    found = NearestRows(blocks.count, k, blocks.device)
    for tile in tiles(blocks, pairs_of_blocks(blocks)):
        found.see(tile, best_of(tile.similarities))
        if countdown is not None:
            countdown.add(tile.similarities.numel())
    return found.finish()
