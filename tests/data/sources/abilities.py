"""What the installed pyarrow can do, where its versions differ."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def _can(work: Callable[[], Any]) -> bool:
    try:
        work()
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return False
    return True


WRITES_VIEWS = _can(lambda: pq.write_table(pa.table({"a": pa.array(["b"], pa.string_view())}), io.BytesIO()))
"""True if a column of views can be written to Parquet."""
CASTS_STRUCTS = _can(lambda: pa.array([{"b": 1}]).cast(pa.struct({"b": pa.int64(), "c": pa.int64()})))
"""True if structs with different fields can be brought to a common type; they become text where not."""

needs_views = pytest.mark.skipif(not WRITES_VIEWS, reason="this pyarrow writes no views to Parquet")
