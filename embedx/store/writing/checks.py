"""Checks of a store's units against what was written: the whole ones stay, and all others are computed again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeAlias

from embedx.errors import StoreError, is_refusal
from embedx.store.format import layout
from embedx.store.format.index import UnitEntry, read_entry, read_whole
from embedx.store.format.layout import StoredFile, StoreRoot, Unit
from embedx.store.format.many_at_once import many_at_once
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.format.open_folder import open_folder

Place: TypeAlias = tuple[str, int]
"""The folder name of a unit's split and the unit's number, which its file names tell."""


def place_of(unit: Unit) -> Place:
    """Returns the unit's place."""
    return layout.folder_name(unit.split), unit.number


def whole_units(
    root: StoreRoot, recipe: str, *, read_tables: bool = False, tell: Callable[[str], None] = lambda damage: None
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
    found: dict[Place, UnitEntry] = {}
    tables = layout.index_files(root)
    if not tables:
        return found
    size_of = _sizes(root)
    entries = many_at_once(root, lambda table: _entry_or_error(table, read_tables), tables.values())
    for place, entry in zip(tables, entries, strict=True):
        try:
            if isinstance(entry, Exception):
                raise entry
            if entry.recipe != recipe:
                continue
            damage = next(_damages(root, size_of, entry), None)
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


def _entry(table: StoredFile, whole: bool) -> UnitEntry:
    entry = read_entry(table)
    return read_whole(table)[0] if whole or entry.rejected or entry.unavailable else entry


def _entry_or_error(table: StoredFile, whole: bool) -> UnitEntry | Exception:
    try:
        return _entry(table, whole)
    except (StoreError, OSError) as error:
        return error


def _sizes(root: StoreRoot) -> Callable[[str], int | None]:
    """Returns the function that tells a file's number of bytes, by its path in the store; None if there is none."""
    if isinstance(root, ObjectFolder):
        sizes = {path: stated.size for path, stated in root.stated().items()}  # one request lists a thousand
        return sizes.get
    folder = open_folder(root)
    return lambda path: (folder / path).size() if os.path.lexists(root / path) else None


def _damages(root: StoreRoot, size_of: Callable[[str], int | None], entry: UnitEntry) -> Iterator[str]:
    """Yields a phrase for each of a unit's shards that is not there in full length."""
    for shard in entry.shards:
        if (size := size_of(shard.path)) is None:
            yield f"{root / shard.path} is missing"
        elif size != shard.bytes:
            yield f"{root / shard.path} is damaged ({size:,} bytes, and not {shard.bytes:,})"
