"""Writes a store's manifest anew from its index tables and shards, all of which are checked against their digests.

What no row tells (the recipe, the group key, the rows of a unit) stands in every index table; those of an older embedx
lack it, and another store of the same recipe gives it. The inputs' order is left for the next run to compare.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from embedx.errors import ConfigError, DamagedUnitsError, NotAStoreError, StoreError, StoreMismatchError, is_refusal
from embedx.paths import StorePath, store_path
from embedx.recipe import fingerprint
from embedx.store.format import layout
from embedx.store.format.contents import PlanTerms, SplitTerms, StoredRecipe
from embedx.store.format.index import UnitEntry, read_about, read_index, read_whole
from embedx.store.format.manifest import Manifest
from embedx.store.format.open_folder import open_folder
from embedx.store.format.shards import has_inputs, read_header
from embedx.store.format.storage import storage_of
from embedx.store.format.store_folder import StoreFile, StoreFolder
from embedx.store.reading.stored_rows import open_named_shard
from embedx.store.writing import stock
from embedx.store.writing.checks import Place
from embedx.store.writing.lock import StoreLock


@dataclasses.dataclass(frozen=True)
class Repair:
    """The result of `repair`."""

    store: Path
    manifest: str
    """The state of the manifest that was there: `whole`, or the message that says what is wrong with it."""
    units: int
    """The number of whole units."""
    rows: int
    damaged: tuple[str, ...]
    """A sentence for each damaged unit, which was removed."""
    wrote: bool
    """True if the manifest was written anew."""
    complete: bool
    """True if no input that the store is known to have had is missing."""


class _Found(NamedTuple):
    """The units of a store, by their places."""

    whole: dict[Place, tuple[StoreFile, UnitEntry, np.ndarray[Any, np.dtype[np.int64]]]]
    """The index table, its description and the numbers of its inputs in the plan."""
    damaged: dict[Place, str]
    """A sentence on the damage of each."""


def repair(path: str | StorePath, *, like: str | StorePath | None = None, drop_damaged: bool = False) -> Repair:
    """Checks all units of a store, and writes its manifest anew if that is gone or damaged.

    Args:
        path: The folder of the store.
        like: The path of another store of the same recipe, group key and shard size; None takes these from the index
            tables.
        drop_damaged: Whether damaged units are removed, so that the next run computes them again.

    Raises:
        NotAStoreError: If there is no index table.
        DamagedUnitsError: If some are damaged, and not to be removed; nothing was changed.
        ConfigError: If nothing tells the recipe.
        StoreLockedError: If another run holds the store.
    """
    place = store_path(path) if isinstance(path, str) else path
    if not isinstance(place, Path):
        raise ConfigError(
            f"{path} is in a bucket, and only a store on this machine is repaired; copy it here with the bucket's own "
            "program, repair the copy, and copy that to another place in the bucket"
        )
    root = place.resolve()
    if not layout.index_files(root):
        raise NotAStoreError(
            f"{path} has no index table, from which its manifest could be written; give the folder that "
            "`embedx extract` wrote, or extract into another one"
        )
    lock = StoreLock(root)
    try:
        return _repair(root, like, drop_damaged)
    finally:
        lock.release()


def _repair(root: Path, like: str | StorePath | None, drop_damaged: bool) -> Repair:
    before, state = _manifest(root)
    found = _units(root, before)
    if found.damaged and not drop_damaged:
        count, units = len(found.damaged), len(found.damaged) + len(found.whole)
        are = "is" if count == 1 else "are"
        raise DamagedUnitsError(
            [
                f"{root}: {count} of its {units} units {are} damaged, and nothing was changed; add --drop-damaged to "
                "remove what is left of them, so that the next `embedx extract` computes them again",
                *(f"  {damage}" for damage in found.damaged.values()),
            ]
        )
    manifest = before or _new_manifest(root, found, like)
    _remove(root, found)
    if found.damaged and before is not None:
        manifest = dataclasses.replace(before, complete=False, totals={}, index={}, timings={})
    if before is None and _is_complete(root, manifest, found):
        totals, index, _ = stock.add_up(root, manifest, root)
        manifest = dataclasses.replace(manifest, complete=True, totals=totals, index=index)
    wrote = before != manifest
    if wrote:
        manifest.write(root)
    entries = [entry for _, entry, _ in found.whole.values()]
    rows, damaged = sum(entry.rows for entry in entries), tuple(found.damaged.values())
    return Repair(root, state, len(entries), rows, damaged, wrote, manifest.complete)


def _manifest(root: Path) -> tuple[Manifest | None, str]:
    """Returns the manifest, or None, and its state in words."""
    try:
        return Manifest.read(root), "whole"
    except NotAStoreError:
        return None, f"{layout.MANIFEST} is gone"
    except StoreError as error:
        if is_refusal(error.__cause__):
            raise
        return None, str(error)


def _units(root: Path, manifest: Manifest | None) -> _Found:
    """Checks each unit down to the last byte."""
    found = _Found({}, {})
    folder = open_folder(root)
    for place, table in layout.index_tables(folder).items():
        try:
            entry, sha256 = read_whole(table)
            if manifest is not None and manifest.complete and manifest.index.get(table.relative) != sha256:
                raise StoreError(f"{table}: the sha256 is not the one in {layout.MANIFEST}")
            found.whole[place] = (table, entry, _check_shards(folder, table, entry))
        except (StoreError, OSError) as error:
            if is_refusal(error) or is_refusal(error.__cause__):
                raise
            found.damaged[place] = str(error)
    for name in manifest.index if manifest is not None else ():
        for place, table in layout.index_tables(folder, [name]).items():
            if place not in found.whole:
                found.damaged.setdefault(place, f"{table}: missing")
    return found


def _check_shards(folder: StoreFolder, table: StoreFile, entry: UnitEntry) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = read_index(table, ["index", "shard", "row", "sha256"])
    for shard in entry.shards:
        with open_named_shard(folder, entry, shard, check=True) as opened:
            own = rows.filter(pc.equal(rows["shard"], shard.path)).sort_by("row")
            if own["row"].to_pylist() != list(range(shard.rows)) or not has_inputs(read_header(opened), own):
                raise StoreError(f"{folder.path / shard.path}: its rows are not those of its index table")
    numbers: np.ndarray[Any, np.dtype[np.int64]] = rows["index"].to_numpy()
    return numbers


def _new_manifest(root: Path, found: _Found, like: str | StorePath | None) -> Manifest:
    """Returns an unfinished manifest that goes with the whole units."""
    tables = {entry.recipe: table.relative for table, entry, _ in found.whole.values()}
    if not tables:
        raise StoreError(f"{root}: its units are all damaged; delete it, and run `embedx extract` again")
    if len(tables) > 1:
        one, other, *_ = tables.values()
        raise StoreError(
            f"{root}: its units are of {len(tables)} recipes, such as {one} and {other}; move the index tables of all "
            "recipes but one elsewhere, and repair it again"
        )
    about = _about(root, found, next(iter(tables)), like)
    try:
        terms = {name: about[name] for name in ("group_key", "rows_per_unit")}
        plan = PlanTerms.from_json({**terms, "splits": {}})
        recipe = StoredRecipe.from_json(about["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{root}: its index tables don't tell the terms of the store ({error})") from error
    paths = [shard.path for _, entry, _ in found.whole.values() for shard in entry.shards]
    if any(path.count("/") != (2 if plan.grouped else 1) for path in paths):
        raise StoreMismatchError(
            f"{root}: its shards lie as in a store {'without' if plan.grouped else 'with'} a group key, other than by "
            f"--like {like}; give one that `embedx extract` wrote with the same --group-key"
        )
    splits: dict[str, SplitTerms] = {}
    for _, entry, _ in found.whole.values():
        before = splits[entry.split].inputs if entry.split in splits else 0
        splits[entry.split] = SplitTerms(before + entry.inputs)
    updates = [] if _is_as_planned(found, plan.rows_per_unit or 1) else [{"repaired": len(found.whole)}]
    return Manifest(recipe, dataclasses.replace(plan, splits=splits), updates=updates)


def _is_as_planned(found: _Found, size: int) -> bool:
    """Tells whether an input's number tells its unit, as in a store that no update has changed."""
    last: dict[str, int] = {}
    for _, entry, _ in found.whole.values():
        last[entry.split] = max(entry.unit, last.get(entry.split, 0))
    return all(
        np.array_equal(numbers, entry.unit * size + np.arange(len(numbers)))
        and (len(numbers) == size or (len(numbers) < size and entry.unit == last[entry.split]))
        for _, entry, numbers in found.whole.values()
    )


def _about(root: Path, found: _Found, recipe: str, like: str | StorePath | None) -> Any:
    """Returns the terms that the rows don't tell, of this recipe's fingerprint."""
    if like is not None:
        other = Manifest.read(open_folder(like))
        if other.fingerprint != recipe:
            raise StoreMismatchError(
                f"--like {like} has another recipe (fingerprint {other.fingerprint[:12]}) than the units of {root} "
                f"({recipe[:12]}); give a store that was made with the same settings, the resolved ones too"
            )
        return {"recipe": other.recipe.to_json(), **other.plan.to_json()}
    for table, _, _ in found.whole.values():
        about = read_about(table)
        if isinstance(about, dict) and fingerprint(about.get("recipe")) == recipe:
            return about
    raise ConfigError(
        f"{root}: its index tables are of an older embedx, which don't tell the recipe; embed any input with the same "
        "settings into another folder, and give that by --like FOLDER"
    )


def _remove(root: Path, found: _Found) -> None:
    """Removes the damaged units: first the index tables, so that what is left is no unit."""
    tables = layout.index_tables(open_folder(root))
    for place in found.damaged.keys() & tables.keys():
        storage_of(root).remove(tables[place].relative)
    if found.damaged:
        stock.remove_others(root, found.whole.keys(), layout.journal_files(root).keys())


def _is_complete(root: Path, manifest: Manifest, found: _Found) -> bool:
    """Tells whether nothing is known to be missing or under way.

    A store that was updated took its place when it was complete, and has gaps where inputs went.
    """
    numbers: dict[str, list[np.ndarray[Any, np.dtype[np.int64]]]] = {}
    for _, entry, own in found.whole.values():
        numbers.setdefault(entry.split, []).append(own)
    whole = all(np.array_equal(np.sort(np.concatenate(own)), np.arange(sum(map(len, own)))) for own in numbers.values())
    return (whole or bool(manifest.updates)) and not found.damaged and not layout.journal_files(root)
