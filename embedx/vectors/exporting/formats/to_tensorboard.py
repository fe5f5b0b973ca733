r"""TensorBoard's projector: vectors and metadata as tables with tabs, and the file that names them.

The projector splits lines at tabs and line ends, whatever stands around them. So these, and backslashes, are escaped in
the metadata as `\t`, `\n`, `\r` and `\\`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from embedx.arrow import spell
from embedx.vectors.exporting.formats.base import Block, ExportJob

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_CONFIG = """\
embeddings {
  tensor_name: "embeddings"
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"
}
"""


def write(folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
    """Writes `vectors.tsv`, `metadata.tsv`, whose first line has the columns' names, and `projector_config.pbtxt`."""
    (folder / "projector_config.pbtxt").write_text(_CONFIG)
    schema = pa.schema([(str(number), pa.float32()) for number in range(job.dim)])
    options = csv.WriteOptions(include_header=False, delimiter="\t")
    with (
        csv.CSVWriter(folder / "vectors.tsv", schema, write_options=options) as vectors,
        (folder / "metadata.tsv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as metadata,
    ):
        metadata.write(_line(job.schema.names))
        for block in blocks:
            columns = [pa.array(column) for column in np.ascontiguousarray(block.vectors.T)]
            vectors.write_table(pa.Table.from_arrays(columns, schema=schema))
            rows = zip(*(spell(column).to_pylist() for column in block.table.columns), strict=True)
            metadata.writelines(map(_line, rows))


def _line(values: Iterable[str | None]) -> str:
    return "\t".join("" if value is None else value.translate(_ESCAPES) for value in values) + "\n"
