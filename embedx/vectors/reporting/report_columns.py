"""The columns of a map: those by which its points are coloured, and those that are shown of a point.

Shapes: M points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.arrow import spell
from embedx.errors import ConfigError, unknown
from embedx.store.format.index import INDEX_SCHEMA
from embedx.store.reading.reader import Store
from embedx.vectors.reporting.labels import NONE, most_frequent_first
from embedx.vectors.reporting.report_data import Categories, Numbers

_MOST_NAMES = 1_000
"""The most names of a column of categories; the rows of others share one."""
_MOST_OWN = 12
"""The most of the source's own columns that are taken without being asked for."""
_LONGEST = 300
"""The longest text of a cell, in letters."""
_OTHERS, _NOTHING = "(others)", "(none)"


def chosen_columns(store: Store, splits: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Returns the columns to show besides embedx's own: those that are asked for, or else the source's first ones.

    Raises:
        ConfigError: If the index has no such column.
    """
    there = [name for name in store.column_names(splits) if name != "status"]  # which is `ok` for every row
    ConfigError.check([unknown("column", name, there, hint=f"in {store.path}") for name in asked if name not in there])
    return list(asked) or [name for name in there if name not in INDEX_SCHEMA.names][:_MOST_OWN]


def colour_of(column: pa.ChunkedArray) -> Categories | Numbers:
    """Returns a column [M] as numbers, if it has some, and else as categories."""
    kind = column.type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and column.null_count < len(column):
        values = pc.cast(column, pa.float64(), safe=False).to_numpy()
        with np.errstate(over="ignore"):
            return Numbers(values.astype(np.float32))
    return categories(*most_frequent_first(texts_of(column)))


def categories(codes: NDArray[np.int64], names: Sequence[str]) -> Categories:
    """Returns numbers [M] of names, NONE for a point without one, as categories of at most a thousand names."""
    kept = list(names)
    if len(kept) > _MOST_NAMES:
        kept = [*kept[: _MOST_NAMES - 1], _OTHERS]
        codes = np.minimum(codes, _MOST_NAMES - 1)
    if (codes == NONE).any():
        codes = np.where(codes == NONE, len(kept), codes)
        kept.append(_NOTHING)
    return Categories(codes.astype(np.uint16), tuple(kept))


def is_equal(column: pa.ChunkedArray, texts: pa.Array) -> bool:
    """Tells whether the values of a column [M] are these texts [M], with nulls at the same places."""
    same: bool = spell(column).cast(pa.string()).equals(pa.chunked_array([texts]))
    return same


def texts_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the values of a column as texts, of which very long ones are cut."""
    texts = spell(column).cast(pa.string())
    is_long = pc.greater(pc.utf8_length(texts), _LONGEST)
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(texts, 0, _LONGEST), "…", "")
    return pc.if_else(is_long, cut, texts)


def shown(column: pa.ChunkedArray) -> list[str]:
    """Returns the values of a column [M] as texts, an empty one for a null."""
    texts: list[str] = pc.fill_null(texts_of(column), "").to_pylist()
    return texts
