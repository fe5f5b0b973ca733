"""Lance: a dataset per split, in a folder that LanceDB opens as a database with a table per split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa

from embedx.errors import ConfigError
from embedx.vectors.exporting.formats.base import Block, ExportJob, by_split, split_file


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `train.lance` and so on; Lance draws the names of the files in it, and notes the time.

    Raises:
        ConfigError: If Lance does not take a column's name.
    """
    ConfigError.check(
        [
            f"--to lance: Lance takes no column with a dot in its name, as {name!r} has; choose others by --columns"
            for name in job.schema.names
            if "." in name
        ]
    )
    for split, own in by_split(blocks):
        errors: list[BaseException] = []
        reader = pa.RecordBatchReader.from_batches(job.with_vectors, _batches(job, own, errors))
        try:
            lance.write_dataset(reader, str(folder / f"{split_file(split)}.lance"))
        except OSError as error:
            if errors:
                raise errors[0] from error
            raise _with_number(error) from error


def _with_number(error: OSError) -> OSError:
    """Returns an error of Lance with the system's number of it, which stands in its text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else error


def _batches(job: ExportJob, blocks: Iterator[Block], errors: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """Yields the blocks as Arrow has them, and keeps their error, of which Lance would only tell the text."""
    try:
        for block in blocks:
            yield from job.table(block).to_batches()
    except BaseException as error:
        errors.append(error)
        raise
