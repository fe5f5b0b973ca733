"""The recall of an approximate index against exact search, and how much of it searches look at to reach that.

Recall is the share of the 10 nearest rows that a search finds, itself left out; a row as near as the tenth counts, so
that copies of a row are not held against it. Each way to search is measured on the same rows.

Shapes: Q queries, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from embedx.heartbeat import Heartbeat
from embedx.vectors.indexing.ann_file import NEIGHBOURS, DepthSetting
from embedx.vectors.indexing.ann_search import found_by
from embedx.vectors.indexing.faiss_jobs import Depth, Numbers
from embedx.vectors.indexing.faiss_process import FaissProcess
from embedx.vectors.searching.nearest import nearest
from embedx.vectors.vector_rows import VectorRows

ROWS = 1000
"""The number of rows whose neighbours are searched."""
_WORTH = 0.005
"""The gain of recall for which a search that does not reach what is wanted still looks at more."""


class Recall(NamedTuple):
    """The recall of an index."""

    value: float
    """The share of the nearest rows that are found."""
    rows: int
    """The number of rows whose neighbours were searched."""
    depth: DepthSetting | None
    """The parameter that says how much of the index is looked at, if it has one."""


def measure_recall(
    faiss: FaissProcess,
    rows: VectorRows,
    usable: Numbers,
    wanted: float,
    seed: int,
    device: torch.device | None,
    heartbeat: Heartbeat,
) -> Recall:
    """Looks for the least depth that reaches a recall, by doubling it, and returns it with the recall.

    Where none reaches it, it is the least that comes nearly as far as any.

    Args:
        faiss: The process that has the index.
        rows: All rows of the index's splits, in its order.
        usable: The numbers of the rows in the index.
        wanted: The recall to reach.
        seed: The random seed of the rows whose neighbours are searched.
        device: The device of the exact search; None takes the CPU.
        heartbeat: The receiver of progress.
    """
    chosen = np.random.default_rng(seed).choice(len(usable), min(ROWS, len(usable)), replace=False)
    numbers = usable[chosen]
    queries, left_out = rows.take(numbers), numbers.tolist()
    exact = [
        found.similarities
        for found in nearest(rows, queries, NEIGHBOURS, left_out=left_out, device=device, heartbeat=heartbeat)
    ]

    def recall_at(depth: DepthSetting | None) -> float:
        heartbeat.say("measuring recall" + ("" if depth is None else f" with {depth.name} {depth.value}"))
        searches = found_by(faiss, rows, len(usable), depth, queries, NEIGHBOURS, left_out)
        hits = [
            int((found.similarities >= truth[-1]).sum()) if len(truth) else 0
            for truth, found in zip(exact, searches, strict=True)
        ]
        there = sum(map(len, exact))
        return sum(hits) / there if there else 1.0

    depth = faiss.depth()
    if depth is None:
        return Recall(recall_at(None), len(numbers), None)
    return _least(depth, wanted, len(numbers), recall_at)


def _least(depth: Depth, wanted: float, rows: int, recall_at: Callable[[DepthSetting], float]) -> Recall:
    tried: list[Recall] = []
    value = 1
    while not tried or (tried[-1].value < wanted and value < depth.most):
        value = min(2 * value, depth.most) if tried else value
        setting = DepthSetting(depth.name, value, depth.most)
        tried.append(Recall(recall_at(setting), rows, setting))
    best = max(recall.value for recall in tried)
    enough = wanted if best >= wanted else best - _WORTH
    return next(recall for recall in tried if recall.value >= enough)
