"""Values of guessed types beside the texts that stand for them in a source, such as `01`, `2.50` or `NA`."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from embedx.arrow import spell

WRITTEN = "\0written"
"""The ending of a column beside one of a guessed type: the text of each value that is spelled in another way than Arrow
spells values of that type; null elsewhere. The plan decides where it counts."""


def as_written(column: pa.ChunkedArray, written: pa.ChunkedArray | None) -> pa.ChunkedArray:
    """Returns the texts of a column as they stand in its source, given those that `differing` found."""
    text = spell(column)
    return text if written is None else pc.coalesce(written, text)


def written_text(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Returns the texts of a column as they stand in its source, which a WRITTEN column beside it may tell."""
    beside = name + WRITTEN
    return as_written(table[name], table[beside] if beside in table.column_names else None)


def differing(texts: Mapping[str, pa.ChunkedArray], table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Returns the texts, by column, that are not the spelling of the table's values: null where they are, or are empty.

    A column of which all are is left out.
    """
    found = {}
    for name, column in texts.items():
        same = pc.fill_null(pc.or_kleene(pc.equal(column, ""), pc.equal(column, spell(table[name]))), False)
        column = pc.if_else(same, None, column)
        if column.null_count < len(column):
            found[name] = column
    return found
