"""The interface of the formats: a function that writes the blocks of an export to a folder.

Shapes: n rows of a block, D embedding dimension.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, MutableSequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedx.errors import ConfigError
from embedx.store.format.layout import folder_name
from embedx.vectors.exporting.export_config import ListKind

Vectors = np.ndarray[tuple[int, int], np.dtype[Any]]
VECTOR_COLUMN = "embedding"
"""The column of the vectors, where a format has columns."""


class Block(NamedTuple):
    """Rows of one split, in the store's order."""

    split: str
    start: int
    """The number of the first row, which counts the rows of all splits."""
    table: pa.Table
    """The n rows' columns: `split`, `key`, and the further ones that were asked for."""
    vectors: Vectors
    """The vectors [n, D] in the export's type, contiguous."""


@dataclasses.dataclass(frozen=True)
class ExportJob:
    """The facts of an export that a format may need."""

    schema: pa.Schema
    """The columns of the blocks' tables."""
    dim: int
    """The length of the vectors, D."""
    dtype: np.dtype[Any]
    """The type of the vectors, float32 or float16."""
    rows: dict[str, int]
    """The number of rows by split, in the order of the blocks."""
    list: ListKind
    """The kind of Parquet's lists."""
    recipe: dict[str, Any]
    """The recipe of the store, as JSON."""
    notes: MutableSequence[str] = dataclasses.field(default_factory=lambda: [*()])
    """Remarks on what is not as the store has it, to which a format may add."""

    @property
    def total(self) -> int:
        """The number of rows of all splits."""
        return sum(self.rows.values())

    @property
    def row_bytes(self) -> int:
        """The bytes of one vector."""
        return self.dim * self.dtype.itemsize

    @property
    def with_vectors(self) -> pa.Schema:
        """The columns of the blocks' tables, and that of the vectors; a ConfigError if one has that name already."""
        self.check_names([VECTOR_COLUMN])
        number = pa.field("element", pa.from_numpy_dtype(self.dtype), nullable=False)
        kind = pa.list_(number, self.dim) if self.list == "fixed" else pa.list_(number)
        return self.schema.append(pa.field(VECTOR_COLUMN, kind, nullable=False))

    def check_names(self, vectors: Iterable[str]) -> None:
        """Raises a ConfigError if a column of the index has one of these names, which the vectors are to have."""
        for name in vectors:
            if name in self.schema.names:
                raise ConfigError(
                    f"the store has a column {name!r}, and the vectors are to have that name; choose other columns by "
                    "--columns"
                )

    def table(self, block: Block) -> pa.Table:
        """Returns a block's columns and vectors as one table, whose vectors are not copied."""
        kind = self.with_vectors.field(VECTOR_COLUMN).type
        numbers = pa.array(block.vectors.reshape(-1))
        if self.list == "fixed":
            column = pa.FixedSizeListArray.from_arrays(numbers, type=kind)
        else:
            ends = np.arange(0, len(numbers) + 1, self.dim, dtype=np.int32)
            column = pa.ListArray.from_arrays(pa.array(ends), numbers, type=kind)
        return pa.Table.from_arrays([*block.table.columns, column], schema=self.with_vectors)


class Write(Protocol):
    """Writes an export's blocks to files in a folder; the same blocks give the same bytes.

    What it has opened is closed when it ends, by an error of the blocks too.
    """

    def __call__(self, folder: Path, job: ExportJob, blocks: Iterator[Block]) -> None:
        """Writes the files.

        Args:
            folder: The empty folder to write to.
            job: The facts of the export.
            blocks: The blocks of all rows, those of a split one after the other.

        Raises:
            OSError: If a file can't be written.
        """


def by_split(blocks: Iterator[Block]) -> Iterator[tuple[str, Iterator[Block]]]:
    """Yields each split's name and blocks."""
    return itertools.groupby(blocks, key=lambda block: block.split)


def split_file(split: str) -> str:
    """Returns the beginning of the name of a split's files, which is percent-encoded as the store's folders are."""
    return folder_name(split)


class TableFile:
    """A Parquet file to which tables are added, with pinned options; each table becomes a row group.

    Args:
        path: The path of the file.
        schema: The columns of the tables.

    Raises:
        OSError: If the file can't be written, also by its other methods.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        columns = [name for name in schema.names if name != VECTOR_COLUMN]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            version="2.6",
            data_page_version="1.0",
            compression=dict.fromkeys(columns, "zstd"),  # vectors hardly shrink
            use_dictionary=[name for name in columns if name not in ("key", "path", "sha256")],
            write_statistics=columns,
            write_batch_size=1 << 16,
            write_page_checksum=True,
        )

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the file."""
        self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Adds the rows of a table."""
        self._writer.write_table(table, row_group_size=len(table))


def keys_file(folder: Path, job: ExportJob) -> TableFile:
    """Opens the file for the columns of the blocks, where the vectors are in a file of their own."""
    return TableFile(folder / "keys.parquet", job.schema)
