"""A table as a file: Parquet, CSV or JSON lines, by its suffix."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa

from embedx.errors import output_error
from embedx.store.format.atomic import write_atomic


def write_table(table: pa.Table, out: Path) -> None:
    """Writes a table to a file that appears whole or not at all.

    Args:
        table: The table, of plain types.
        out: The path of the file, which ends in .parquet, .csv or .jsonl.

    Raises:
        ConfigError: If it can't be written there.
        StoreError: If the disk is full or failing.
    """
    try:
        write_atomic(out.absolute(), _encoded(table, out.suffix))
    except OSError as error:
        raise output_error(out, "can't be written", error, is_store=False) from error


def _encoded(table: pa.Table, suffix: str) -> bytes:
    file = io.BytesIO()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, file, compression="zstd")
    elif suffix == ".csv":
        import pyarrow.csv as pc

        pc.write_csv(table, file)
    else:
        for batch in table.to_batches(max_chunksize=10_000):
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in batch.to_pylist())
    return file.getvalue()
