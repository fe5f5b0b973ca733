"""Facts about each row's neighbours: the similarity of the nearest one, and the splits that have a duplicate of it.

Shapes: N rows, P parts, [n, m] similarities of a tile.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedx.vectors.pairs.close_pairs import Best, ClosePairs
from embedx.vectors.pairs.stars import NONE
from embedx.vectors.pairs.tiles import Tile


class NeighbourFacts:
    """Gathers the facts tile by tile.

    Args:
        part_of: The place of each row's part [N] int64.
        parts: The number of parts, P.
        device: The device of the tiles.
    """

    def __init__(self, part_of: NDArray[np.int64], parts: int, device: torch.device) -> None:
        self._part_of = part_of
        self._best = torch.full((len(part_of),), -2.0, device=device)
        self.has_duplicate_in = np.zeros((len(part_of), parts), dtype=np.bool_)
        """True where a part has a duplicate of a row [N, P]."""

    @property
    def nearest(self) -> NDArray[np.float32]:
        """The largest similarity of each row to another one [N] float32; -2 where it met none."""
        found: NDArray[np.float32] = self._best.cpu().numpy()
        return found

    def see(self, tile: Tile, best: Best) -> None:
        """Takes in the largest similarities of a tile."""
        for start, values in zip((tile.row, tile.column), best, strict=True):
            own = self._best[start : start + len(values)]
            torch.maximum(own, values, out=own)

    def add(self, close: ClosePairs) -> None:
        """Takes in the pairs within the threshold."""
        self._add(close.rows, close.columns, close.is_close)
        self._add(close.columns, close.rows, close.is_close.T)

    def add_equal_bytes(self, codes: NDArray[np.int64], compared: Iterable[tuple[int, int]]) -> None:
        """Takes in the rows with equal bytes, which are close and have the similarity 1.

        Args:
            codes: The numbers of the rows' bytes [N] int64: equal for equal bytes, NONE where they are unknown.
            compared: The pairs of parts that are compared, each in both orders.
        """
        rows = np.flatnonzero(codes != NONE)
        if not len(rows):
            return
        _, own, counts = np.unique(codes[rows], return_inverse=True, return_counts=True)
        is_shared = counts[own] > 1
        rows, own = rows[is_shared], own[is_shared]
        _, own = np.unique(own, return_inverse=True)
        parts = self._part_of[rows]
        in_parts = np.zeros((own.max(initial=-1) + 1, self.has_duplicate_in.shape[1]), dtype=np.int64)
        np.add.at(in_parts, (own, parts), 1)
        for part, other in compared:
            at = parts == part
            has_other = in_parts[own[at], other] > (part == other)
            equal = rows[at][has_other]
            self.has_duplicate_in[equal, other] = True
            self._best[torch.from_numpy(equal).to(self._best.device)] = 1.0

    def _add(self, rows: NDArray[np.int64], columns: NDArray[np.int64], is_close: NDArray[np.bool_]) -> None:
        parts = self._part_of[columns]
        for part in np.unique(parts).tolist():
            has_one = is_close[:, parts == part].any(axis=1)
            self.has_duplicate_in[rows[has_one], part] = True


def best_of(similarities: Tensor) -> Best:
    """Returns the largest similarity of each row [n] and column [m] of a tile."""
    return similarities.amax(dim=1), similarities.amax(dim=0)
