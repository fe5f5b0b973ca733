"""The nearest rows of a store to queries, by an approximate index; their similarities are exact.

The index names candidates, more than are wanted. Their similarities are then computed from the store's own vectors, as
the exact search does it, and tell which are the nearest. So an approximate search may miss rows, and never gives a row
a wrong similarity or rank.

Shapes: Q queries, D embedding dimension, k neighbours, p pairs of a query and a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from embedx.errors import StoreError
from embedx.store.reading.reader import Store
from embedx.vectors.indexing.ann_file import AnnIndex, DepthSetting, index_file
from embedx.vectors.indexing.faiss_jobs import Floats, Numbers
from embedx.vectors.indexing.faiss_process import FaissProcess
from embedx.vectors.searching.nearest import Nearest, pair_similarities
from embedx.vectors.vector_rows import VectorRows, unit_length

_CANDIDATES = 4
"""The candidates for each neighbour: codes of a byte a number, or less, mix up those that are nearly as near."""
_MOST_QUERIES = 128
_MOST_FOUND = 2**20
"""The number of candidates that a batch of queries may have."""
_PAIRS = 8192
"""The number of candidates that are read at once; with 512 numbers each they take 16 MiB, and twice that in float64."""


def approximate_nearest(
    rows: VectorRows,
    index: AnnIndex,
    queries: Tensor,
    k: int,
    *,
    left_out: Sequence[int | None] | None = None,
    threads: int | None = None,
) -> Iterator[Nearest]:
    """Yields the k nearest rows to each query that the index finds, in the queries' order.

    Args:
        rows: All rows of the index's splits, in its order.
        index: The index, as `open_ann_index` gives it.
        queries: The vectors [Q, D], each finite and not all zeros.
        k: The largest number of neighbours of a query.
        left_out: The number of the row, or None, that is no neighbour of each query; None leaves out none.
        threads: The number of threads of faiss; None takes the number of cores.

    Raises:
        ConfigError: If faiss is not installed.
        StoreReplacedError: If another store has taken this one's place.
        StoreError: If the index's file or a shard is damaged.
    """
    with FaissProcess(threads) as faiss:
        read_checked(faiss, rows.store, index)
        yield from found_by(faiss, rows, index.facts.indexed, index.facts.depth, queries, k, left_out)


def read_checked(faiss: FaissProcess, store: Store, index: AnnIndex) -> None:
    """Reads an index of a store into the process of faiss.

    Raises:
        StoreError: If its file is gone, is no regular file or behind a link, or has another sha256 than its facts say.
    """
    try:
        stored = index_file(store, index.folder, index.facts.file)
        with stored.open() as file:
            stored.folder.bring(file)
            is_right = faiss.read(file, index.facts.sha256)
    except OSError as error:
        raise StoreError(f"{index.path}: can't be read ({error.strerror}); run `embedx index --overwrite`") from error
    if not is_right:
        raise StoreError(f"{index.path} is damaged (its sha256 is another); run `embedx index --overwrite`")


def found_by(
    faiss: FaissProcess,
    rows: VectorRows,
    indexed: int,
    depth: DepthSetting | None,
    queries: Tensor,
    k: int,
    left_out: Sequence[int | None] | None = None,
) -> Iterator[Nearest]:
    """Yields what `approximate_nearest` does, of an index that the process of faiss has.

    Args:
        faiss: The process that has the index.
        rows: All rows of the index's splits, in its order.
        indexed: The number of rows in the index.
        depth: The parameter that says how much of the index is looked at, if it has one.
        queries: The vectors [Q, D], each finite and not all zeros.
        k: The largest number of neighbours of a query.
        left_out: The number of the row, or None, that is no neighbour of each query; None leaves out none.
    """
    without = np.array([-1 if number is None else number for number in left_out or [None] * len(queries)])
    wanted = min(indexed, k + 1)  # one more, as one may be left out
    candidates = min(indexed, _CANDIDATES * wanted)
    size = max(1, min(_MOST_QUERIES, _MOST_FOUND // candidates))
    for start in range(0, len(queries), size):
        own = queries[start : start + size]
        numbers = _candidates(faiss, unit_length(own.float()).numpy(), candidates, wanted, depth)
        if numbers.max(initial=-1) >= len(rows):
            raise StoreError(f"the index of {rows.store.path} names rows that are not there; run `embedx index` again")
        is_meant = (numbers >= 0) & (numbers != without[start : start + size, None])
        yield from _ranked(rows, own, numbers, is_meant, k)


def _candidates(
    faiss: FaissProcess, queries: Floats, candidates: int, wanted: int, depth: DepthSetting | None
) -> Numbers:
    """Returns the numbers [Q, candidates] of the rows that the index finds, -1 where there are no more.

    Where the lists that are looked at have fewer rows than are wanted, more of them are.
    """
    setting = None if depth is None else (depth.name, depth.value)
    numbers = faiss.search(queries, candidates, setting)[1]
    value = 0 if depth is None else depth.value
    while depth is not None and value < depth.most and (few := (numbers >= 0).sum(axis=1) < wanted).any():
        value = min(2 * value, depth.most)
        numbers[few] = faiss.search(queries[few], candidates, (depth.name, value))[1]
    return numbers


def _ranked(
    rows: VectorRows,
    queries: Tensor,
    numbers: Numbers,
    is_meant: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    k: int,
) -> Iterator[Nearest]:
    """Yields the k nearest of each query's candidates, by their exact similarities."""
    query, place = is_meant.nonzero()
    number = numbers[query, place]
    units = unit_length(queries.double())
    similarity = np.empty(len(number))
    for start in range(0, len(number), _PAIRS):
        part = slice(start, start + _PAIRS)
        distinct, at = np.unique(number[part], return_inverse=True)
        vectors = rows.take(distinct)[torch.from_numpy(at)]
        similarity[part] = pair_similarities(units[torch.from_numpy(query[part])], vectors).numpy()
    order = np.lexsort([number, -similarity, query])
    ends = np.searchsorted(query[order], np.arange(1, len(queries)))
    for own in np.split(order, ends):
        yield Nearest(number[own[:k]], similarity[own[:k]])
