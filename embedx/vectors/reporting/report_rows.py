"""The rows of a report: those that are compared with one another, those on the map, and what each of them is.

Shapes: N rows, C compared rows, M points.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedx.store.format.index import INPUT_COLUMNS
from embedx.store.reading.reader import Store
from embedx.vectors.reporting.findings import Found, degenerate
from embedx.vectors.reporting.labels import NAME_COLUMNS, Labels, labels_of
from embedx.vectors.reporting.report_columns import chosen_columns
from embedx.vectors.reporting.report_config import ReportConfig
from embedx.vectors.reporting.strata import strata_of, stratified_sample
from embedx.vectors.vector_rows import VectorRows, open_rows

Integers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ReportRows:
    """The rows of a report."""

    rows: VectorRows
    columns: tuple[str, ...]
    """The columns to show besides embedx's own."""
    splits: tuple[str, ...]
    split_codes: Integers
    """The place of each row's split, [N] int64."""
    labels: Labels
    compared: Integers
    """The numbers of the rows that are compared with one another, ascending, [C] int64."""
    has_direction: NDArray[np.bool_]
    """True for each row that can be compared, [N] bool."""
    degenerate: Found

    @cached_property
    def strata(self) -> Integers:
        """The stratum of each row, its label in its split, [N] int64."""
        return strata_of(self.split_codes, self.labels.codes)

    def subset(self, numbers: Integers) -> VectorRows:
        """Returns some of the rows, by their numbers."""
        return dataclasses.replace(self.rows, table=self.rows.table.take(pa.array(numbers, pa.int64())))


def open_report_rows(store: Store, config: ReportConfig) -> ReportRows:
    """Opens the rows of a store, reads every vector once, and chooses those to compare.

    Raises:
        ConfigError: If there is no such split, tensor or column, the condition can't be met, or there are no rows.
        StoreError: If a file is damaged.
    """
    splits = [*config.split] or store.splits
    columns = chosen_columns(store, splits, config.color)
    names = [name for name in (store.manifest.settings.target_column, *NAME_COLUMNS) if name]
    rows = open_rows(
        store,
        config.split,
        name=config.name,
        where=config.where,
        columns=[*INPUT_COLUMNS, *names, *columns],
    )
    found, has_direction = degenerate(rows)
    there = pa.array(splits, pa.string())
    codes = pc.index_in(rows.table["split"], value_set=there).to_numpy().astype(np.int64)
    labels = labels_of(rows.table, store.manifest)
    usable = np.flatnonzero(has_direction)
    sampled = stratified_sample(strata_of(codes, labels.codes)[usable], config.compare, config.seed)
    return ReportRows(rows, tuple(columns), tuple(splits), codes, labels, usable[sampled], has_direction, found)
