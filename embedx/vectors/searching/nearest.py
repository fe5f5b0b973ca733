"""The nearest rows of a store to queries, exactly, by cosine similarity, block by block.

Shapes: Q queries, N rows, n rows of a block, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedx.heartbeat import SILENT, Heartbeat
from embedx.vectors.countdown import Countdown
from embedx.vectors.searching.float32_similarities import float32_similarities
from embedx.vectors.vector_rows import VectorRows, unit_length

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
Reals = np.ndarray[tuple[int], np.dtype[np.float64]]

_BLOCK_BYTES = 32 * 1024**2
"""The size of the blocks that are looked through at once."""
_MOST_QUERIES = 128
_MOST_FOUND = 2**22
"""The number of neighbours that a batch of queries may have."""
_PAIRS = 4096
"""The number of pairs whose similarity is computed at once in float64; 512 numbers of them take 32 MiB."""
_NONE_YET = -2.0
"""A similarity below all there are."""


class Nearest(NamedTuple):
    """The nearest rows to one query, the nearest first; of equal ones that with the lower number."""

    numbers: Numbers
    """[k] the rows' numbers, which count the rows that were searched from 0; fewer than k if there are no more."""
    similarities: Reals
    """[k] the cosine similarities, from -1 to 1, computed in float64."""


def nearest(
    rows: VectorRows,
    queries: Tensor,
    k: int,
    *,
    left_out: Sequence[int | None] | None = None,
    device: torch.device | None = None,
    heartbeat: Heartbeat = SILENT,
) -> Iterator[Nearest]:
    """Yields the k nearest rows to each query, in the queries' order; the rows are read once for every 128 queries.

    Products in float32 tell which rows may be among the nearest, by the bound of their error. The similarities of those
    are computed in float64, each pair by itself, so that equal vectors have equal similarities and the result does not
    depend on blocks, on the other queries, or on the device.

    A row of zeros, or with NaN or infinity, is near to nothing.

    Args:
        rows: The N rows to search.
        queries: The vectors [Q, D], each finite and not all zeros.
        k: The largest number of neighbours of a query.
        left_out: The number of the row, or None, that is no neighbour of each query; None leaves out none.
        device: The device of the products in float32; None takes the CPU.
        heartbeat: The receiver of progress.

    Raises:
        StoreReplacedError: If another store has taken this one's place.
        StoreError: If a file is damaged.
    """
    block_rows = max(1, _BLOCK_BYTES // (torch.float32.itemsize * rows.dim))
    size = max(1, min(_MOST_QUERIES, _MOST_FOUND // min(k, len(rows) or 1)))
    title = f"comparing {len(queries):,} queries with {len(rows):,} rows"
    countdown = Countdown(heartbeat, title, len(rows) * len(queries))
    without = [-1 if number is None else number for number in left_out or [None] * len(queries)]
    for start in range(0, len(queries), size):
        own = queries[start : start + size].double()
        best = _Best(own, k, np.array(without[start : start + size]), device or torch.device("cpu"))
        for first, block in rows.blocks(block_rows):
            best.offer(first, block)
            countdown.add(len(block) * len(own))
        yield from best.result()


class _Best:
    """The best rows so far of a batch of queries.

    Args:
        queries: The vectors [Q, D] float64, each finite and not all zeros.
        k: The number of rows to keep of each query.
        left_out: The number [Q] of the row that each query must not have, or -1.
        device: The device of the products.
    """

    def __init__(self, queries: Tensor, k: int, left_out: Numbers, device: torch.device) -> None:
        self._queries = unit_length(queries)
        self._on_device = self._queries.float().to(device)
        self._k = k
        self._left_out = left_out
        self._floor = torch.full((len(queries),), _NONE_YET)
        """A product in float32 below which a row is none of the best."""
        # Of a product of two unit vectors: D roundings of products and sums, as many of the length, and some; and those
        # of TF32, which a program may have allowed on CUDA.
        self._error = (2 * queries.shape[1] + 8) * 2.0**-24 + (2.0**-9 if device.type == "cuda" else 0)
        self._found: list[tuple[Numbers, Numbers, Reals]] = [_NOTHING]
        """The query, the row's number and the similarity of each pair."""
        self._count = 0
        """The number of pairs since the best were chosen."""

    def offer(self, first: int, block: Tensor) -> None:
        """Takes up the rows [n, D] float32 of a block that may be among the best; the first row has the number."""
        similarities = float32_similarities(self._on_device, block)
        floor = self._floor.to(similarities.device)
        if block.shape[0] > self._k + 1 and self._floor.min() == _NONE_YET:
            # One more than k, as one may be left out; both this one's similarity and another's are not exact.
            floor = floor.maximum(similarities.topk(self._k + 1).values[:, -1] - 2 * self._error)
        query, row = (similarities >= floor[:, None]).nonzero().cpu().unbind(1)
        is_wanted = row + first != torch.from_numpy(self._left_out)[query]
        query, row = query[is_wanted], row[is_wanted]
        if not len(query):
            return
        exact = torch.cat(
            [
                pair_similarities(self._queries[of_query], block[of_row])
                for of_query, of_row in zip(query.split(_PAIRS), row.split(_PAIRS), strict=True)
            ]
        )
        self._found.append((query.numpy(), (row + first).numpy(), exact.numpy()))
        self._count += len(query)
        if self._floor.min() == _NONE_YET or self._count > max(_PAIRS, self._k * len(self._queries)):
            self._choose()

    def result(self) -> Iterator[Nearest]:
        """Yields the best rows of each query."""
        self._choose()
        ((query, number, similarity),) = self._found
        ends = np.searchsorted(query, np.arange(1, len(self._queries)))
        for numbers, similarities in zip(np.split(number, ends), np.split(similarity, ends), strict=True):
            yield Nearest(numbers, similarities)

    def _choose(self) -> None:
        """Drops all but the k best pairs of each query, and raises the floor."""
        query, number, similarity = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        order = np.lexsort([number, -similarity, query])
        query, number, similarity = query[order], number[order], similarity[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        last = rank == self._k - 1
        self._floor[torch.from_numpy(query[last])] = torch.from_numpy(similarity[last]).float() - self._error
        kept = rank < self._k
        self._found, self._count = [(query[kept], number[kept], similarity[kept])], 0


_NOTHING = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))


def pair_similarities(queries: Tensor, rows: Tensor) -> Tensor:
    """Returns the similarity [n] float64 of each of the unit vectors [n, D] float64 to its row [n, D], pair by pair."""
    exact: Tensor = rows.double()
    exact /= exact.abs().amax(dim=1, keepdim=True)
    products = (queries * exact).sum(dim=1)
    exact = products / torch.linalg.vector_norm(exact, dim=1)
    return exact.clamp(-1, 1)
