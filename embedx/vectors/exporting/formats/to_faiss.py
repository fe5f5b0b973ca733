"""faiss: a flat index by the inner product, and a Parquet file of the rows' keys in the order of its numbers.

faiss itself would hold all vectors in memory to write them. A flat index's file is a header and the vectors, so they
are written here block by block, to the same bytes (faiss/impl/index_write.cpp: `write_index_header`, and IndexFlat).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from embedx.vectors.exporting.formats.base import Block, ExportJob, keys_file

_FLAT_INNER_PRODUCT = b"IxFI"
_INNER_PRODUCT = 0
_UNUSED = 1 << 20
"""The value of two fields that faiss no longer uses."""
_HEADER = struct.Struct("<4siqqqBiQ")
"""The kind, D, the number of rows, two unused fields, 1 as it needs no training, the metric, the number of floats."""


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `index.faiss` and `keys.parquet`."""
    header = _HEADER.pack(
        _FLAT_INNER_PRODUCT, job.dim, job.total, _UNUSED, _UNUSED, 1, _INNER_PRODUCT, job.total * job.dim
    )
    with (folder / "index.faiss").open("wb") as file, keys_file(folder, job) as keys:
        file.write(header)
        for block in blocks:
            file.write(block.vectors.data)
            keys.add(block.table)
