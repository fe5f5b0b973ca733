"""Parquet: a file per split, with the index's columns and a column of the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedx.vectors.exporting.formats.base import Block, ExportJob, TableFile, by_split, split_file


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `train.parquet` and so on."""
    for split, own in by_split(blocks):
        with TableFile(folder / f"{split_file(split)}.parquet", job.with_vectors) as file:
            for block in own:
                file.add(job.table(block))
