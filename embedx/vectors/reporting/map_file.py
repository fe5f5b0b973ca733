"""Places on a map that were computed elsewhere: `--map FILE`.

Shapes: N rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.errors import ConfigError
from embedx.vectors.npy_file import read_npy


def read_places(path: Path, rows: pa.Table) -> NDArray[np.float64]:
    """Reads a place for each row.

    Args:
        path: A file of numpy, with an array [N, 2] in the order of the rows; or of Parquet or CSV, with the columns
            `key`, `x`, `y`, and `split` where the same key is in several splits.
        rows: The N rows, with the columns `split` and `key`.

    Returns:
        The places [N, 2] float64; NaN for a row that the file lacks.

    Raises:
        ConfigError: If the file can't be read, or has none of the rows.
    """
    try:
        found = read_npy(path, "--map") if path.suffix == ".npy" else _read_table(path, rows)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--map {path}: can't be read ({reason}); give a .npy file of two numbers a row, or a .parquet or .csv "
            "file with the columns key, x, y"
        ) from error
    if found.shape != (len(rows), 2):
        raise ConfigError(
            f"--map {path}: is of shape {list(found.shape)}, and the report has {len(rows)} rows; give two numbers a "
            "row, in the order of the store, or a .parquet or .csv file with the columns key, x, y"
        )
    if found.dtype.kind not in "biuf":
        raise ConfigError(f"--map {path}: is of the type {found.dtype}; give two numbers a row, such as float32")
    found = found.astype(np.float64)
    found = np.where(np.isfinite(found).all(axis=1, keepdims=True), found, np.nan)
    if np.isnan(found).all():
        raise ConfigError(f"--map {path}: has a place for none of the rows; its keys must be those of the store")
    return found


def _read_table(path: Path, rows: pa.Table) -> NDArray[np.float64]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
    else:
        import pyarrow.csv as pv

        options = pv.ConvertOptions(column_types={"key": pa.string(), "split": pa.string()})
        table = pv.read_csv(path, convert_options=options)
    names = ["split", "key"] if "split" in table.column_names else ["key"]
    wanted, there = _joined(rows, names), _joined(table, names)
    if pc.count_distinct(there).as_py() < len(there):
        raise ValueError(f"a {' and '.join(names)} stands there twice")
    at = pc.index_in(wanted, value_set=there)
    columns = [pc.cast(table[name], pa.float64()).take(at).to_numpy(zero_copy_only=False) for name in ("x", "y")]
    return np.stack(columns, axis=1)


def _joined(table: pa.Table, names: list[str]) -> pa.Array:
    """Returns one text per row that stands for its values in these columns."""
    columns = [table[name].combine_chunks().cast(pa.string()) for name in names]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\0")
