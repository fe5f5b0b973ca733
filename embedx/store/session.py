"""One run's hold of a store: lock it, find what is missing, clear away what is half, declare it complete.

begin:   refuse what isn't ours → lock → compare recipe and plan → (overwrite: work in a folder beside it)
         → find the units that are whole → manifest with `complete: false` → remove what an interrupted run left
finish:  sum up the index tables → check inputs = rows + rejected → manifest with `complete: true`
         → (overwrite: exchange the two folders)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from embedx.config import LOCK
from embedx.errors import ConfigError, StoreError, StoreMismatchError
from embedx.store import layout
from embedx.store.files import make_folder
from embedx.store.index import read_entry
from embedx.store.layout import Unit
from embedx.store.links import plain_file
from embedx.store.lock import StoreLock
from embedx.store.manifest import Manifest, existing_store
from embedx.store.replacement import (
    our_shards,
    recover,
    remove_empty_folders,
    remove_store,
    staging_folder,
    take_place,
)
from embedx.store.units import StoreTerms

Mode = Literal["create", "resume", "overwrite"]


class StoreSession:
    """One run's hold of a store, from `begin` to `close`."""

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.out = out
        self.root = out
        """Where this run writes: `out`, or the folder beside it that will replace it."""
        self.manifest = manifest
        self.changes: list[tuple[str, Any, Any]] = []
        """What of the environment has changed since the store was begun: (name, then, now)."""
        self._began = False
        """Whether the store at `root` is of this session's making."""
        self._made: list[Path] = []
        """The folders that this session has made, parents first."""
        self._locks = contextlib.ExitStack()
        self._committed: set[tuple[str, int]] = set()

    @classmethod
    def begin(cls, out: Path, manifest: Manifest, mode: Mode) -> Self:
        """Takes hold of the store at `out`, making it if it isn't there.

        Args:
            out: The output folder.
            manifest: What is to be written there: recipe, plan and environment.
            mode: What to do where there is a store already: refuse (`create`), finish it (`resume`), or
                write another beside it that takes its place once complete (`overwrite`).

        Raises:
            StoreMismatchError: If `out` is not a store, or one of another recipe or plan; nothing is changed.
            StoreLockedError: If another run holds it.
            ConfigError: If the folder can't be made or locked.
        """
        existing_store(out)  # refuses a stranger's folder before anything is written into it
        session = cls(out.resolve(), manifest)  # through a link, so that it is the folder itself that is replaced
        try:
            recover(session.out)
            session._enter(session.out)
            session._choose(mode)
            session._take_stock()
        except ConfigError:
            session.discard()
            session.close()
            raise
        except BaseException:
            session.close()
            raise
        return session

    @property
    def terms(self) -> StoreTerms:
        """What the writer process needs to know of the store."""
        plan = self.manifest.plan
        return StoreTerms(
            self.root,
            self.manifest.fingerprint,
            plan["group_key"] is not None,
            plan["rows_per_unit"],
        )

    @property
    def is_finished(self) -> bool:
        """Whether the store stands complete in its place."""
        return self.manifest.complete and self.root == self.out

    def is_committed(self, unit: Unit) -> bool:
        """Whether the unit had been committed when this session began."""
        return _place(unit) in self._committed

    def set_rows_per_unit(self, rows: int) -> None:
        """States the size of the units, where it was not known when the store was begun."""
        self.manifest = dataclasses.replace(self.manifest, plan={**self.manifest.plan, "rows_per_unit": rows})
        self.manifest.write(self.root)

    def finish(self, timings: Mapping[str, float]) -> Manifest:
        """Declares the store complete, after checking that every input of the plan is in it exactly once.

        Raises:
            StoreError: If inputs = rows + rejected does not hold for a split.
            OSError: If the manifest can't be written.
        """
        totals: dict[str, dict[str, int]] = {split: _no_totals() for split in self.manifest.plan["splits"]}
        index = {}
        for path in layout.index_files(self.root).values():
            entry = read_entry(path)
            of_split = totals.setdefault(entry.split, _no_totals())
            of_split["inputs"] += entry.inputs
            of_split["rows"] += entry.rows
            of_split["rejected"] += entry.rejected
            of_split["units"] += 1
            of_split["shards"] += len(entry.shards)
            of_split["bytes"] += sum(shard.bytes for shard in entry.shards)
            index[f"{layout.INDEX}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        for split, planned in self.manifest.plan["splits"].items():
            if (found := totals[split]["inputs"]) != planned["inputs"]:
                raise StoreError(f"split {split!r} has {planned['inputs']} inputs, but {found} are in the store")
        self.manifest = dataclasses.replace(
            self.manifest, complete=True, totals=totals, index=index, timings=dict(timings)
        )
        self.manifest.write(self.root)
        if self.root != self.out:
            take_place(self.root, self.out)
            self.root = self.out
        return self.manifest

    def discard(self) -> None:
        """Takes back what this session has made, unless something was committed."""
        if layout.index_files(self.root):
            return
        if self._began and self.root.is_dir():
            self._remove_leftovers()
            (self.root / layout.MANIFEST).unlink(missing_ok=True)
            (self.root / LOCK).unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def close(self) -> None:
        """Lets go of the store."""
        self._locks.close()

    def _enter(self, folder: Path) -> None:
        """Makes the folder, if it isn't there, and locks it."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        self._made += reversed(missing)
        try:
            make_folder(folder)
        except OSError as error:
            raise ConfigError(f"--out {folder}: can't be made ({error.strerror}); choose another path") from error
        lock = StoreLock(folder)
        self._locks.callback(lock.release)

    def _choose(self, mode: Mode) -> None:
        """Decides by what is there where this run writes, and from which manifest it goes on."""
        before = existing_store(self.out)  # this time for good, as no other run changes it now
        self._began = before is None
        if before is not None and mode == "overwrite":
            self.root = staging_folder(self.out)
            before = existing_store(self.root)
            # Without the inputs' identity, nothing tells whether what an earlier run left there is of these.
            if before is not None and (not self.manifest.plan["splits"] or _differences(before, self.manifest)):
                remove_store(self.root)
                before = None
            self._began = before is None
            self._enter(self.root)
        if before is None or not (before.complete or layout.index_files(self.root)):
            return  # nothing is there that had to be kept
        if mode == "create":
            raise StoreMismatchError(f"{self.out} is a store already; choose another folder, or overwrite it")
        if differing := _differences(before, self.manifest):
            raise StoreMismatchError(
                f"{self.out} holds a store made otherwise:\n  " + "\n  ".join(differing) + "\nchoose another "
                "folder, give the settings of then, or replace the store with --overwrite"
            )
        now = self.manifest.environment
        self.changes = list(_leaves_that_differ("", before.environment, now))
        later = before.later_environments
        if self.changes and now not in later:
            later = [*later, now]
        self.manifest = dataclasses.replace(before, later_environments=later)

    def _take_stock(self) -> None:
        """Finds the units that are whole; if that is not all, declares the store unfinished and clears it up."""
        found, planned = layout.index_files(self.root), self._planned_inputs()
        self._committed = {place for place, path in found.items() if self._is_whole(path, planned.get(place))}
        if self.manifest.complete and self._committed == found.keys() and self._committed >= planned.keys():
            return
        self.manifest = dataclasses.replace(self.manifest, complete=False, totals={}, index={}, timings={})
        self.manifest.write(self.root)
        for place in found.keys() - self._committed:
            found[place].unlink()
        self._remove_leftovers()

    def _is_whole(self, index_table: Path, inputs: int | None) -> bool:
        """Whether a unit has this recipe, so many inputs, and its shards in full length."""
        try:
            entry = read_entry(index_table)
            sizes = [plain_file(self.root, shard.path).stat().st_size for shard in entry.shards]
        except (StoreError, OSError):
            return False
        return (
            entry.recipe == self.manifest.fingerprint
            and inputs in (None, entry.inputs)
            and sizes == [shard.bytes for shard in entry.shards]
        )

    def _planned_inputs(self) -> dict[tuple[str, int], int]:
        """The inputs that every unit of the plan has; empty where the plan names no splits."""
        plan = self.manifest.plan
        size = plan["rows_per_unit"]
        return {
            _place(Unit(split, start // size)): min(size, planned["inputs"] - start)
            for split, planned in plan["splits"].items()
            for start in range(0, planned["inputs"], size)
        }

    def _remove_leftovers(self) -> None:
        """Removes temporary files and shards of units that were never committed."""
        committed = {path for *place, path in layout.shard_files(self.root) if tuple(place) in self._committed}
        for path in [*layout.temporary_files(self.root), *our_shards(self.root)]:
            if path not in committed:
                path.unlink()
                remove_empty_folders(path.parent, self.root)


def _place(unit: Unit) -> tuple[str, int]:
    return layout.folder_name(unit.split), unit.number


def _no_totals() -> dict[str, int]:
    return dict.fromkeys(("inputs", "rows", "rejected", "units", "shards", "bytes"), 0)


def _differences(old: Manifest, new: Manifest) -> list[str]:
    """What differs in recipe and plan, one phrase each."""
    old_plan, new_plan = ({**one.plan, "splits": {}} for one in (old, new))
    leaves = [
        *_leaves_that_differ("recipe", old.recipe, new.recipe),
        *_leaves_that_differ("plan", old_plan, new_plan),
    ]
    return [
        *(f"{name}: {_short(before)} → {_short(after)}" for name, before, after in leaves),
        *_splits_that_differ(old.plan["splits"], new.plan["splits"]),
    ]


def _splits_that_differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for split in dict.fromkeys([*old, *new]):
        if split not in old:
            yield f"split {split!r} is new"
        elif split not in new:
            yield f"split {split!r} is gone"
        elif old[split]["inputs"] != new[split]["inputs"]:
            yield f"inputs of split {split!r}: {old[split]['inputs']} → {new[split]['inputs']}"
        elif old[split].get("names_sha256") != new[split].get("names_sha256"):
            yield f"split {split!r} has as many inputs, but not the same names, groups and targets"
        elif old[split] != new[split]:
            yield f"input files of split {split!r} were written to since: a size or modification time is another"


def _leaves_that_differ(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _leaves_that_differ(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def _short(value: Any) -> str:
    text = str(value)
    longest = 12 if re.fullmatch(r"[0-9a-f]{64}", text) else 80
    return text if len(text) <= longest else f"{text[:longest]}…"
