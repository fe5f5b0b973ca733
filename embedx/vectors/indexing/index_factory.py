"""The kind of index that fits a number of rows, and the sample that it is trained with.

It follows faiss's own guidelines (https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index): an
inverted file of 4 * sqrt(N) to 16 * sqrt(N) lists, trained with 30 to 256 vectors a list. For more than a million rows
they advise 65,536 lists and more, which take hours to train on few cores; here it stays with 4 * sqrt(N).

The vectors in it have a byte a number: the store has the exact ones, by which candidates are compared, and a quarter of
the bytes is read, checked and held in memory.
"""

from __future__ import annotations

import math
import re

import numpy as np

_FEW_ROWS = 10_000
"""The number of rows below which exact search takes milliseconds."""
_PER_LIST = 64
"""The vectors of the sample for each list; below 39 faiss warns of poor lists."""
_LEAST_SAMPLE = 65_536
"""The vectors of the sample at least, as codes are trained too."""
_SAMPLE_BYTES = 2 * 1024**3
_LISTS = re.compile(r"IVF(\d{1,9})")


def default_factory(rows: int) -> str:
    """Returns the description, in the words of faiss's `index_factory`, of an index of so many rows."""
    return "Flat" if rows < _FEW_ROWS else f"IVF{round(4 * math.sqrt(rows))},SQ8"


def sample_rows(factory: str, rows: int, dim: int) -> int:
    """Returns the number of rows to train an index with: at most 2 GiB of vectors, but one for each list.

    Args:
        factory: The description of the index.
        rows: The number of rows that there are, N.
        dim: The length of the vectors, D.
    """
    lists = max(map(int, _LISTS.findall(factory)), default=0)
    most = _SAMPLE_BYTES // (dim * np.float32().itemsize)
    return min(rows, max(lists * _PER_LIST, _LEAST_SAMPLE), max(1, most, lists))
