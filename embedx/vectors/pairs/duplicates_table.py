"""The rows of the groups of duplicates as a table.

Shapes: N rows, G of them in groups.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedx.vectors.pairs.duplicates_config import Keep
from embedx.vectors.pairs.sides import Sides
from embedx.vectors.pairs.stars import NONE
from embedx.vectors.pairs.tiles import UnitBlocks

_CHUNK_NUMBERS = 2**22


def is_equal(codes: NDArray[np.int64], representative: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tells which rows [N] have the bytes of their representative, or are one."""
    is_same: NDArray[np.bool_] = (codes == codes[representative]) & (codes != NONE)
    is_same |= representative == np.arange(len(codes))
    return is_same


def duplicates_table(representative: NDArray[np.int64], sides: Sides, blocks: UnitBlocks, keep: Keep) -> pa.Table:
    """Lists the rows of all groups, group by group, as `DuplicatesResult.table` describes.

    Args:
        representative: The number of each row's representative [N] int64.
        sides: The rows that were compared.
        blocks: The vectors of these rows.
        keep: The choice of the row of a group that is marked.
    """
    size = np.bincount(representative, minlength=len(representative))
    chosen = np.flatnonzero(size[representative] > 1)
    chosen = chosen[np.lexsort([chosen, representative[chosen]])]
    centres, equal = representative[chosen], is_equal(sides.codes, representative)[chosen]
    columns = pa.concat_tables([rows.table.select(["key", "split", "path", "bytes"]) for rows in sides.rows])
    of_rows = columns.take(pa.array(chosen))
    _, first, group = np.unique(centres, return_index=True, return_inverse=True)
    kept = first if keep == "first" else _largest(of_rows["bytes"], group, first)
    stores = np.array([part.store for part in sides.parts], dtype=np.int64)
    return pa.table(
        {
            "group": pa.array(group, pa.int64()),
            "representative": columns["key"].take(pa.array(centres)),
            "key": of_rows["key"],
            "split": of_rows["split"],
            "similarity": pa.array(_similarities(chosen, centres, equal, blocks)),
            "equal": pa.array(equal),
            "keep": pa.array(np.isin(np.arange(len(chosen)), kept)),
            "path": of_rows["path"],
            "store": pa.array(stores[sides.part_of[chosen]]),
        }
    )


def _largest(sizes: pa.ChunkedArray, group: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the place of the row with the largest file in each group; of equal ones the first."""
    order = np.lexsort([np.arange(len(group)), -sizes.fill_null(0).to_numpy(), group])
    found: NDArray[np.int64] = order[first]
    return found


def _similarities(
    chosen: NDArray[np.int64], centres: NDArray[np.int64], equal: NDArray[np.bool_], blocks: UnitBlocks
) -> NDArray[np.float64]:
    """Computes the similarity [G] float64 of each row to its representative, in float64."""
    found = np.ones(len(chosen))
    places = np.flatnonzero(~equal)
    chunk = max(1, _CHUNK_NUMBERS // blocks.dim)
    for start in range(0, len(places), chunk):
        own = places[start : start + chunk]
        products = (blocks.exact(chosen[own]) * blocks.exact(centres[own])).sum(dim=1)
        found[own] = products.clamp(-1, 1).cpu().numpy()
    return found
