"""Cosine similarities of queries to rows in float32, at the speed at which the memory gives the rows.

Shapes: Q queries, n rows of a block, D embedding dimension.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedx.system.machine import cores
from embedx.vectors.vector_rows import unit_length

_FEW = 4
"""The number of queries up to which dot products, one after the other, are quicker than a matrix product."""
_PIECE_BYTES = 512 * 1024
"""The size of the pieces whose products and lengths are computed one after the other, all but the first of which find
the numbers in the processor's cache."""
_TASK_BYTES = 4 * 1024**2
"""The size of the pieces that one thread takes at once."""
_LOWEST, _HIGHEST = 1e-15, 1e18
"""The lengths between which no square of a number that matters overflows or vanishes in float32."""


def float32_similarities(queries: Tensor, block: Tensor) -> Tensor:
    """Returns the cosine similarities [Q, n] float32 of unit vectors to rows; minus infinity for a row of no use.

    The rows are not scaled before they are multiplied: with few queries, that would take longer than all else.

    Args:
        queries: The unit vectors [Q, D] float32, on the device that is to compute.
        block: The rows [n, D] float32 on the CPU; of no use is one of zeros, or with NaN or infinity.
    """
    if queries.device.type == "cpu" and len(queries) <= _FEW:
        similarities, lengths = _by_dot_products(queries, block)
    else:
        rows = block.to(queries.device)
        similarities, lengths = queries @ rows.T, torch.linalg.vector_norm(rows, dim=1)
    similarities /= lengths
    is_odd = ~((lengths > _LOWEST) & (lengths < _HIGHEST))
    if is_odd.any():
        odd = is_odd.nonzero().flatten()
        scaled = unit_length(block[odd.cpu()])
        is_usable = (scaled != 0).any(dim=1)
        similarities[:, odd] = torch.where(is_usable, queries.cpu() @ scaled.T, -torch.inf).to(queries.device)
    return similarities


def _by_dot_products(queries: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Returns products [Q, n] and lengths [n], computed by a thread per core that reads each piece of the rows once."""
    products, squares = np.empty((len(queries), len(block)), np.float32), np.empty(len(block), np.float32)
    rows: np.ndarray[Any, Any] = block.numpy()
    size, task = (max(1, size // rows[0].nbytes) for size in (_PIECE_BYTES, _TASK_BYTES))

    def compute(first: int) -> None:
        with np.errstate(all="ignore"):
            for start in range(first, min(first + task, len(rows)), size):
                part = slice(start, min(start + size, first + task))
                for query, out in zip(queries.numpy(), products, strict=True):
                    np.vecdot(rows[part], query, out=out[part])
                np.vecdot(rows[part], rows[part], out=squares[part])

    list(_threads().map(compute, range(0, len(rows), task)))
    return torch.from_numpy(products), torch.from_numpy(squares).sqrt_()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="search")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has no threads
