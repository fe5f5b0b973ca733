"""usearch: an index by cosine similarity, and a Parquet file of the rows' keys in the order of its numbers."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from usearch.index import Index

from embedx.vectors.exporting.formats.base import Block, ExportJob, keys_file

_ROWS = 256
"""The number of rows that are added by one call, for whose end a Ctrl-C waits."""


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `index.usearch` and `keys.parquet`.

    usearch holds all vectors in memory, and links them in one thread, as in several no two runs give the same index. A
    row with NaN or infinity would spoil the links of others: it is left out, and its number stays free.
    """
    without = 0
    index = Index(ndim=job.dim, metric="cos", dtype="f16" if job.dtype == np.float16 else "f32")
    # In the main thread usearch looks for signals by itself, and makes a RuntimeError of a Ctrl-C.
    with keys_file(folder, job) as keys, ThreadPoolExecutor(1) as thread:
        for block in blocks:
            is_finite = np.isfinite(block.vectors).all(axis=1)
            numbers = (block.start + np.flatnonzero(is_finite)).astype(np.uint64)
            vectors = block.vectors[is_finite]
            without += len(block.vectors) - len(numbers)
            for first in range(0, len(numbers), _ROWS):
                own = slice(first, first + _ROWS)
                thread.submit(index.add, numbers[own], vectors[own], threads=1).result()
            keys.add(block.table)
    if without:
        job.notes.append(f"{without:,} rows have NaN or infinity, and are not in the index")
    path = folder / "index.usearch"
    try:
        index.save(path)
    except RuntimeError as error:  # whatever the system has said
        raise OSError(errno.EIO, f"usearch: {error}", str(path)) from error
