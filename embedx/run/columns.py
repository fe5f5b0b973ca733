"""Compares the columns of a plan that every source has with those of the stored rows in the inputs' slots.

Shapes: N inputs of a split's plan, K rows of the store. Positions of rows are int64, -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.data.plan import SplitPlan
from embedx.data.sources.base import paths_as_text
from embedx.run.metadata import Flags, Positions

_NO_NUMBER, _NO_TEXT = -1, "\0"


def may_have_changed(split: SplitPlan, stored: pa.Table, slot: Positions) -> Flags:
    """Returns [N], True where size or modification time differ; a size that is unknown does not count."""
    size, mtime = numbers(split.table["size"]), numbers(split.table["mtime_ns"])
    old_size, old_mtime = at(numbers(stored["bytes"]), slot), at(numbers(stored["mtime_ns"]), slot)
    may: Flags = ((size != old_size) & (size != _NO_NUMBER) & (old_size != _NO_NUMBER)) | (mtime != old_mtime)
    return may


def labels_differ(split: SplitPlan, stored: pa.Table, slot: Positions, renamed: Sequence[int]) -> Flags:
    """Returns [N], True where group or target differ, or the target is a class that has been renamed."""
    old = stored.select(["group", "target"]).take(pa.array(slot, mask=slot < 0))
    target = numbers(split.table["target"])
    differ = _texts_differ(split.table["group"], old["group"]) | (target != numbers(old["target"]))
    found: Flags = differ | np.isin(target, renamed)
    return found


def renamed_classes(now: Sequence[str], then: Sequence[str]) -> list[int]:
    """Returns the numbers of the classes that have another name now."""
    return [number for number, names in enumerate(zip_longest(now, then)) if names[0] != names[1]]


def places_differ(split: SplitPlan, stored: pa.Table, slot: Positions) -> Flags:
    """Returns [N], True where path or offset differ."""
    old = stored.select(["path", "offset"]).take(pa.array(slot, mask=slot < 0))
    offsets = numbers(split.table["offset"]) != numbers(old["offset"])
    differ: Flags = _texts_differ(paths_as_text(split.table["path"]), old["path"]) | offsets
    return differ


def _texts_differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Flags:
    unequal: Flags = pc.not_equal(pc.fill_null(one, _NO_TEXT), pc.fill_null(other, _NO_TEXT)).to_numpy()
    return unequal


def numbers(column: pa.ChunkedArray) -> Positions:
    """Returns a column of integers, -1 for one that is missing."""
    found: Positions = pc.fill_null(column, _NO_NUMBER).to_numpy()
    return found


def at(values: NDArray[Any], rows: Positions) -> NDArray[Any]:
    """Returns the values at these positions, and anything at -1."""
    return values[rows] if len(values) else np.zeros(len(rows), values.dtype)
