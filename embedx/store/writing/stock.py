"""The units of a store: those that the plan asks for, their sums, their links, and the removal of all other files."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from embedx.errors import StoreError
from embedx.names import INDEX, LOCK
from embedx.store.format import layout
from embedx.store.format.atomic import link_or_copy, make_folder, sync_folder
from embedx.store.format.contents import PlanTerms, SplitTotals
from embedx.store.format.hardware import distinct
from embedx.store.format.index import UnitEntry, in_order, read_entry, read_whole, write_index
from embedx.store.format.layout import StoreRoot, Unit
from embedx.store.format.manifest import Manifest
from embedx.store.format.many_at_once import many_at_once
from embedx.store.format.storage import copy_files, storage_of
from embedx.store.writing.checks import Place, place_of, whole_units
from embedx.store.writing.replacement import named_shards, our_shards, remove_files
from embedx.store.writing.session_choice import Holding
from embedx.store.writing.unit_checks import UnitChecks, carry_over

_MEANWHILE = "something may have removed files during the run; run the same command again to write what is missing"


def holding(root: StoreRoot, manifest: Manifest, checks: UnitChecks) -> Holding:
    """Looks up what the store at `root`, which has this manifest, has on disk.

    Of a store that was updated, the units that are due are read, as what is damaged of it has to be compared: the rows
    of a missing unit are not told by its number.
    """
    tables = layout.index_files(root)
    is_whole = manifest.complete and bool(manifest.updates)  # else it is not asked for
    if manifest.updates:
        whole = checks.whole_units(root)
        damaged = checks.find_damaged(root, whole, manifest.index)
        is_whole = is_whole and {layout.index_path(Unit(one.split, one.unit)) for one in whole.values()} == set(
            manifest.index
        )
        is_whole = is_whole and not damaged
    return Holding(bool(tables), bool(layout.journal_files(root)), is_whole)


def planned_units(plan: PlanTerms) -> dict[Place, int]:
    """Returns the number of inputs in each unit of a plan."""
    size = plan.rows_per_unit or 1  # a plan without it has no splits
    return {
        place_of(Unit(split, start // size)): min(size, terms.inputs - start)
        for split, terms in plan.splits.items()
        for start in range(0, terms.inputs, size)
    }


class Sums(NamedTuple):
    """The facts that all index tables of a store give together."""

    totals: dict[str, SplitTotals]
    """The sums over each split."""
    tables: dict[str, str]
    """The sha256 of every index table, by its path in the store."""
    environments: list[dict[str, Any]]
    """The different environments of the units (see `hardware.distinct`)."""


def add_up(root: StoreRoot, manifest: Manifest, out: StoreRoot) -> Sums:
    """Adds up the index tables at `root`, each checked in full, and compares the splits' inputs with the plan."""
    whole = whole_units(root, manifest.fingerprint)
    units: dict[str, list[UnitEntry]] = {split: [] for split in manifest.plan.splits}
    index = {}
    tables = layout.index_files(root)
    for place in tables.keys() - whole.keys():
        raise StoreError(f"{tables[place]}: it is damaged, or shards of it are gone or cut off; {_MEANWHILE}")
    for entry, digest in many_at_once(root, read_whole, tables.values()):
        units.setdefault(entry.split, []).append(entry)
        index[layout.index_path(Unit(entry.split, entry.unit))] = digest
    totals = {split: SplitTotals.of(entries) for split, entries in units.items()}
    for split, planned in manifest.plan.splits.items():
        if (found := totals[split].inputs) != planned.inputs:
            raise StoreError(
                f"split {split!r} has {planned.inputs} inputs, but {found} are in the store {out}; {_MEANWHILE}"
            )
    return Sums(totals, index, distinct(itertools.chain.from_iterable(units.values())))


def remove_others(root: StoreRoot, committed: Set[Place], planned: Set[Place], *, is_shared: bool = False) -> None:
    """Removes temporary files, and the index tables and shards of units that are not committed.

    The journals of those that are planned stay. In a store that several processes write, so do shards that no index
    table names: a process that was paused may be about to commit them. `clear_up` removes them once all is committed.
    """
    named = named_shards(root)  # before the tables go, as a damaged shard is known by its table alone
    shards = set().union(*named.values()) if is_shared else our_shards(root, named)
    ours = [*layout.temporary_files(root), *shards]
    for place, table in layout.index_files(root).items():
        if place not in committed:
            remove_files(root, [f"{INDEX}/{table.name}"])
    kept = {path for place in committed for path in named.get(place, ())}
    for place, journals in layout.journal_files(root).items():
        kept.update(journal.name for journal in journals if place in planned - committed)
    remove_files(root, (path for path in ours if path not in kept))


def clear_up(root: StoreRoot) -> None:
    """Removes what several processes have left beside the index tables and their shards, once all are committed."""
    remove_others(root, layout.index_files(root).keys(), set())


def take_back(root: StoreRoot, made: Sequence[Path], *, is_new: bool) -> None:
    """Removes a store that has no rows on disk.

    Args:
        root: The folder of the store.
        made: The folders that were made for it, parents first.
        is_new: True if the store was begun by this run.
    """
    if layout.index_files(root) or layout.journal_files(root):
        return
    if is_new and not (isinstance(root, Path) and not root.is_dir()):
        remove_others(root, set(), set())
        for name in (layout.MANIFEST, LOCK):
            storage_of(root).remove(name)
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()


def link_units(units: Mapping[Unit, pa.Table | None], source: StoreRoot, target: StoreRoot, about: str) -> None:
    """Gives the files of units a second name in another store: first the shards, as in every commit.

    A unit with a table gets an index table of these rows, beside the same shards; `about` is the new store's.
    """
    entries = {unit: read_entry(source / layout.index_path(unit)) for unit in units}
    shards = {shard.path: shard.sha256 for entry in entries.values() for shard in entry.shards}
    _link(shards, source, target, shards.__getitem__)
    tables = [layout.index_path(unit) for unit, rows in units.items() if rows is None]
    _link(tables, source, target, lambda path: read_whole(source / path)[1])
    for unit, rows in units.items():
        if rows is not None:
            write_index(target, in_order(rows), entries[unit], about)
    if units:
        carry_over(source, target)


def _link(paths: Iterable[str], source: StoreRoot, target: StoreRoot, sha256_of: Callable[[str], str]) -> None:
    if not (isinstance(source, Path) and isinstance(target, Path)):
        copy_files(paths, source, target, sha256_of)
        return
    for path in paths:
        make_folder((target / path).parent, below=target)
        link_or_copy(source / path, target / path, partial(sha256_of, path))
    for folder in dict.fromkeys((target / path).parent for path in paths):
        sync_folder(folder)
