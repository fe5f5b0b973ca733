"""The label of each row: the name of its class, or else its group.

Shapes: N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.arrow import spell
from embedx.store.format.manifest import Manifest

NONE = -1
"""The number of the label of a row without one."""
NAME_COLUMNS = ("class", "label", "cls")
"""The columns that may hold the classes' names, besides that of `embedx extract --target-column`."""


class Labels(NamedTuple):
    """The labels of rows."""

    kind: str
    """`class` or `group`; empty where the rows have neither."""
    codes: NDArray[np.int64]
    """The number of each row's label, [N] int64; NONE where it has none."""
    names: tuple[str, ...]
    """The labels, the most frequent first, and of equally frequent ones in the order of their names."""

    def of(self, row: int) -> str:
        """Returns the label of a row, or an empty text."""
        code = int(self.codes[row])
        return "" if code == NONE else self.names[code]

    def texts(self, rows: NDArray[np.int64]) -> pa.Array:
        """Returns the labels of rows by their numbers [n], null for a row without one."""
        codes = self.codes[rows]
        return pa.array(self.names, pa.string()).take(pa.array(codes, mask=codes == NONE))


def labels_of(table: pa.Table, manifest: Manifest) -> Labels:
    """Finds the labels of rows.

    Args:
        table: The rows of the index, with the columns `target` and `group`, and those of NAME_COLUMNS that are there.
        manifest: The manifest of their store, which may state the classes' names.
    """
    targets = table["target"]
    if targets.null_count < len(targets):
        return _labels("class", _class_names(table, manifest))
    if table["group"].null_count < len(table):
        return _labels("group", table["group"])
    return Labels("", np.full(len(table), NONE, np.int64), ())


def _class_names(table: pa.Table, manifest: Manifest) -> pa.ChunkedArray:
    """Returns each row's class as text: as the plan names it, or a column with one name per target, or its number."""
    targets, stated = table["target"], manifest.plan.classes
    if stated and pc.min(targets).as_py() >= 0 and pc.max(targets).as_py() < len(stated):
        return pa.chunked_array([pa.array(stated, pa.string()).take(targets.combine_chunks())])
    for column in (manifest.settings.target_column, *NAME_COLUMNS):
        if column in table.column_names and column != "target" and table[column].null_count < len(table):
            pairs = pa.table({"target": targets, "name": spell(table[column])}).group_by(["target", "name"])
            found = pairs.aggregate([])
            if all(len(found) == len(pc.unique(found[each])) for each in ("target", "name")):
                return spell(table[column])
    return spell(targets)


def _labels(kind: str, texts: pa.ChunkedArray) -> Labels:
    codes, names = most_frequent_first(texts)
    return Labels(kind, codes, names)


def most_frequent_first(texts: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers texts [N] by how frequent they are; returns the numbers [N], NONE for a null, and the names."""
    coded = texts.combine_chunks().dictionary_encode()
    found = coded.indices.fill_null(NONE).to_numpy(zero_copy_only=False).astype(np.int64)
    names = coded.dictionary.to_pylist()
    counts = np.bincount(found[found != NONE], minlength=len(names))
    order = sorted(range(len(names)), key=lambda number: (-counts[number], names[number]))
    numbers = np.full(len(names) + 1, NONE, np.int64)  # the last one is that of NONE
    numbers[order] = np.arange(len(names))
    return numbers[found], tuple(names[number] for number in order)
