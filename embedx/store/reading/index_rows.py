"""The index tables of a store: the units that they commit, and their rows as one table."""

from __future__ import annotations

import pyarrow as pa

from embedx.arrow import concat
from embedx.errors import StoreError
from embedx.store.format import layout
from embedx.store.format.index import INDEX_SCHEMA, UnitEntry, read_entry
from embedx.store.format.manifest import Manifest
from embedx.store.format.many_at_once import TABLES_AT_ONCE, many_at_once
from embedx.store.format.store_folder import StoreFolder


def read_units(folder: StoreFolder, manifest: Manifest) -> dict[str, UnitEntry]:
    """Reads the committed units by their index tables' paths, in order; of a complete store those in its manifest.

    Raises:
        StoreError: If an index table is damaged.
    """
    tables = layout.index_tables(folder, manifest.index if manifest.complete else None).values()
    folder.learn_sizes(table.relative for table in tables)
    entries = many_at_once(folder, read_entry, tables, TABLES_AT_ONCE)
    return {table.relative: entry for table, entry in zip(tables, entries, strict=True)}


def concat_rows(tables: list[pa.Table]) -> pa.Table:
    """Joins the rows of index tables; raises a StoreError if their columns do not fit together."""
    try:
        return concat(tables or [INDEX_SCHEMA.empty_table()])
    except pa.ArrowException as error:
        raise StoreError(f"the index tables' columns do not fit together ({error})") from error
