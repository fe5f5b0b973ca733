"""Counts the rows that an unfinished store has, so that nothing has to be computed for them again."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from embedx.errors import StoreError, StoreReplacedError
from embedx.store.format.journal import records
from embedx.store.format.layout import Unit, folder_name, index_path, journals
from embedx.store.format.store_folder import StoreFile
from embedx.store.reading.reader import Store


def count_kept(store: Store) -> int:
    """Counts the inputs of the committed units, and of the journals of those that are planned."""
    committed = sum(unit.inputs for unit in store.units.values())
    splits = {folder_name(split): split for split in store.manifest.plan.splits}
    begun = {
        Unit(splits[folder], number): files
        for (folder, number), files in journals(store.folder).items()
        if folder in splits
    }
    return committed + sum(
        _count_rows(files, unit, store.manifest.fingerprint)
        for unit, files in begun.items()
        if index_path(unit) not in store.units
    )


def _count_rows(journals: Sequence[StoreFile], unit: Unit, recipe: str) -> int:
    """Counts the inputs in the whole records of a unit's journals; one that was computed twice is one."""
    keys: list[pa.ChunkedArray] = []
    for journal in journals:
        try:
            keys.extend(record.rows["key"] for record in records(journal, unit, recipe))
        except StoreReplacedError:
            raise
        except StoreError:  # the next run says so
            pass
    chunks = [chunk for column in keys for chunk in column.chunks]
    return int(pc.count_distinct(pa.chunked_array(chunks, pa.string())).as_py())
