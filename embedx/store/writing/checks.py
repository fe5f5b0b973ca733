"""Checks of a store's units against what was written: the whole ones stay, and all others are computed again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from embedx.errors import StoreError, is_refusal
from embedx.store.format import layout
from embedx.store.format.index import UnitEntry, read_entry, read_whole
from embedx.store.format.layout import Unit
from embedx.store.format.open_folder import StoreFolder

Place: TypeAlias = tuple[str, int]
"""The folder name of a unit's split and the unit's number, which its file names tell."""


def place_of(unit: Unit) -> Place:
    """Returns the unit's place."""
    return layout.folder_name(unit.split), unit.number


def whole_units(
    root: Path, recipe: str, *, read_tables: bool = False, tell: Callable[[str], None] = lambda damage: None
) -> dict[Place, UnitEntry]:
    """Returns the units of this recipe that are whole, with the descriptions in their index tables.

    Args:
        root: The folder of the store.
        recipe: The recipe's fingerprint.
        read_tables: True if each index table is checked in full, as its rows will be used; those with inputs without
            a row always are, as their reasons are read.
        tell: The function that is told of each damaged unit, in a sentence.

    Raises:
        StoreError: If the machine refuses to read a file; the unit may be whole then, and must not be removed.
    """
    found = {}
    for place, table in layout.index_files(root).items():
        try:
            entry = _entry(table, read_tables)
            if entry.recipe != recipe:
                continue
            damage = next(_damages(root, entry), None)
        except (StoreError, OSError) as error:
            if is_refusal(error) or is_refusal(error.__cause__):
                raise
            tell(f"{error}; the rows of its unit are computed again")
            continue
        if damage is None:
            found[place] = entry
        else:
            tell(f"{damage}; the {entry.inputs:,} rows of its unit are computed again")
    return found


def _entry(table: Path, whole: bool) -> UnitEntry:
    entry = read_entry(table)
    return read_whole(table)[0] if whole or entry.rejected or entry.unavailable else entry


def _damages(root: Path, entry: UnitEntry) -> Iterator[str]:
    """Yields a phrase for each of a unit's shards that is not there in full length."""
    folder = StoreFolder(root)
    for shard in entry.shards:
        if not os.path.lexists(root / shard.path):
            yield f"{root / shard.path} is missing"
        elif (size := (folder / shard.path).size()) != shard.bytes:
            yield f"{root / shard.path} is damaged ({size:,} bytes, and not {shard.bytes:,})"
