"""CSV: a file per split, with the index's columns and a column per number of the vectors.

Each number is the shortest text that reads back as the same float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from embedx.arrow import spell
from embedx.vectors.exporting.formats.base import VECTOR_COLUMN, Block, ExportJob, by_split, split_file


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `train.csv` and so on: texts are quoted, a null is nothing at all, and an empty text is two quotes."""
    numbers = [(f"{VECTOR_COLUMN}_{number}", pa.float32()) for number in range(job.dim)]
    job.check_names(name for name, _ in numbers)
    spelled = [(field.name, _type(field.type)) for field in job.schema]
    schema = pa.schema([*spelled, *numbers])
    for split, own in by_split(blocks):
        with csv.CSVWriter(folder / f"{split_file(split)}.csv", schema) as file:
            for block in own:
                columns = [
                    column if column.type == kind else spell(column)
                    for column, (_, kind) in zip(block.table.columns, spelled, strict=True)
                ]
                columns += map(pa.array, np.ascontiguousarray(block.vectors.T))
                file.write_table(pa.Table.from_arrays(columns, schema=schema))


def _type(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which a column is written: that of numbers and truths, and else text."""
    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind if is_plain and kind != pa.float16() else pa.string()
