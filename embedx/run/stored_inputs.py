"""The inputs of a store's rows, to be read again."""

from __future__ import annotations

import pyarrow as pa

from embedx.data.plan import PLAN_COLUMNS, SplitPlan
from embedx.data.sources.base import Reader, as_path


def plan_of_rows(split: str, rows: pa.Table, reader: Reader) -> SplitPlan:
    """Returns rows of the index, with INPUT_COLUMNS, as a plan of a split."""
    paths = [as_path(path) for path in rows["path"].to_pylist()]
    table = rows.rename_columns({"bytes": "size"}).select(PLAN_COLUMNS)
    table = table.set_column(PLAN_COLUMNS.index("path"), "path", pa.array(paths, pa.binary()))
    return SplitPlan(split, table, reader)
