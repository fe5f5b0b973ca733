"""numpy: one array of all vectors, and a Parquet file of their keys in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embedx.vectors.exporting.formats.base import Block, ExportJob, keys_file


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `embeddings.npy` and `keys.parquet`."""
    with (folder / "embeddings.npy").open("wb") as file, keys_file(folder, job) as keys:
        described = {
            "descr": np.lib.format.dtype_to_descr(job.dtype),
            "fortran_order": False,
            "shape": (job.total, job.dim),
        }
        np.lib.format.write_array_header_1_0(file, described)
        for block in blocks:
            file.write(block.vectors.data)
            keys.add(block.table)
