"""One run's hold of a store: lock it, find what is missing, clear away what is half, declare it complete.

begin:   refuse what isn't ours → lock → compare recipe and plan → (overwrite: work in a folder beside it)
         → find the units that are whole → manifest with `complete: false` → remove what an interrupted run left
         Where the inputs are others than those of the store, nothing is done yet: the caller compares them, and either
         resumes (they are the same after all) or updates (in a folder beside it, to which what stays is linked).
finish:  sum up the index tables → check inputs = rows + rejected → manifest with `complete: true`
         → (overwrite: exchange the two folders)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa

from embedx.errors import ConfigError, StoreError, StoreMismatchError, is_refusal, output_error
from embedx.names import INDEX, LOCK
from embedx.store.format import layout
from embedx.store.format.atomic import link_or_copy, make_folder, sync_folder
from embedx.store.format.contents import PlanTerms, SplitTotals, StoredRecipe
from embedx.store.format.differences import differences_of, leaves_that_differ
from embedx.store.format.index import UnitEntry, read_entry
from embedx.store.format.layout import StoreTerms, Unit
from embedx.store.format.manifest import Manifest, existing_store
from embedx.store.format.no_follow import regular_file
from embedx.store.writing.lock import StoreLock
from embedx.store.writing.replacement import (
    check_replaceable,
    finish_removal,
    our_shards,
    recover,
    remove_empty_folders,
    remove_store,
    take_place,
)

_MEANWHILE = "while the run went on; run again, and what is missing is written"

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
        self.needs_comparison = False
        """Whether the plan does not tell what is missing; then `resume` or `update` is still to be called."""
        self.staying: dict[Unit, pa.Table] = {}
        """Of units that are still to be written, the rows that the store's predecessor has (see UnitBatch.rows)."""
        self._environment = manifest.environment
        self._before: Manifest | None = None
        """The manifest of the store that was there when this session began."""
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
            finish_removal(session.out)
            session._choose(mode)
            if not session.needs_comparison:
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
        if plan.rows_per_unit is None:
            raise RuntimeError("set_rows_per_unit() has not been called")
        return StoreTerms(
            self.root,
            self.manifest.fingerprint,
            plan.grouped,
            plan.rows_per_unit,
            base=self.out if self.root != self.out else None,
        )

    @property
    def is_finished(self) -> bool:
        """Whether the store stands complete in its place."""
        return self.manifest.complete and self.root == self.out

    def is_committed(self, unit: Unit) -> bool:
        """Whether the unit had been committed when this session began."""
        return _place(unit) in self._committed

    @property
    def inputs_are_the_same(self) -> bool:
        """Whether key, group and target of every input are those of the plan that the store was begun with."""
        return self._before is not None and _names(self._before.plan) == _names(self.manifest.plan)

    @property
    def was_updated(self) -> bool:
        """Whether the place of an input in the plan does not tell its unit any more."""
        return self._before is not None and bool(self._before.updates)

    @property
    def has_rejected(self) -> bool:
        """Whether the store at `out` has rejected inputs."""
        return any(read_entry(path).rejected for path in self.whole_units().values())

    def whole_units(self) -> dict[Unit, Path]:
        """The units of the store at `out` that are whole, and their index tables."""
        return {
            Unit(entry.split, entry.unit): path
            for path in layout.index_files(self.out).values()
            if (entry := self._whole_entry(path, self.out)) is not None
        }

    def resume(self) -> None:
        """Goes on with the store as it is, as its inputs turned out to be those of the plan."""
        if self._before is not None:
            self.manifest = dataclasses.replace(self._before, plan=self.manifest.plan)
        self._take_stock()
        if self.manifest.complete:
            self.manifest.write(self.root)

    def update(
        self,
        counts: Mapping[str, int],
        units: Mapping[Unit, int],
        linked: Iterable[Unit],
        staying: Mapping[Unit, pa.Table],
    ) -> None:
        """Begins a store beside this one that will take its place, or goes on with one that is there already.

        Args:
            counts: What is different from the store at `out`, as the manifest tells it.
            units: All units of the new store, with their inputs.
            linked: Those of them that are there already, and stay as they are.
            staying: For the others, the rows that stay (see UnitBatch.rows).

        Raises:
            OSError: If it can't be written.
        """
        if self._before is None:
            raise RuntimeError("there is no store to bring up to date")
        base = hashlib.sha256((self.out / layout.MANIFEST).read_bytes()).hexdigest()
        updates = [*self._before.updates, {**counts, "base": base}]
        self.manifest = dataclasses.replace(self._before, plan=self.manifest.plan, complete=False, updates=updates)
        self._stage()
        self._take_stock({_place(unit): inputs for unit, inputs in units.items()})
        if not self.manifest.complete:
            self._link([unit for unit in linked if not self.is_committed(unit)])
        self.staying = {unit: rows for unit, rows in staying.items() if not self.is_committed(unit)}

    def set_rows_per_unit(self, rows: int) -> None:
        """States the size of the units, where it was not known when the store was begun."""
        self.manifest = dataclasses.replace(
            self.manifest, plan=dataclasses.replace(self.manifest.plan, rows_per_unit=rows)
        )
        self.manifest.write(self.root)

    def set_recipe(self, recipe: StoredRecipe) -> None:
        """States another recipe, as it turned out that it can't be that of the beginning.

        Raises:
            StoreMismatchError: If something of that one is committed already.
        """
        if self._committed or self.staying:
            raise StoreMismatchError(f"{self.out} has units of another recipe; replace it with --overwrite")
        self.manifest = dataclasses.replace(self.manifest, recipe=recipe)
        self.manifest.write(self.root)

    def finish(self, timings: Mapping[str, float]) -> Manifest:
        """Declares the store complete, after checking that every input of the plan is in it exactly once.

        Raises:
            StoreError: If inputs = rows + rejected does not hold for a split.
            OSError: If the manifest can't be written.
        """
        units: dict[str, list[UnitEntry]] = {split: [] for split in self.manifest.plan.splits}
        index = {}
        for path in layout.index_files(self.root).values():
            entry = self._whole_entry(path, self.root)
            if entry is None:
                raise StoreError(f"{path}: its shards are gone, or cut off, {_MEANWHILE}")
            units.setdefault(entry.split, []).append(entry)
            index[f"{INDEX}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        totals = {split: SplitTotals.of(of_split) for split, of_split in units.items()}
        for split, planned in self.manifest.plan.splits.items():
            if (found := totals[split].inputs) != planned.inputs:
                raise StoreError(
                    f"split {split!r} has {planned.inputs} inputs, but {found} are in the store {self.out}; if "
                    f"something was removed {_MEANWHILE}"
                )
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
            raise output_error(folder, "can't be made", error, is_store=False) from error
        lock = StoreLock(folder)
        self._locks.callback(lock.release)

    def _choose(self, mode: Mode) -> None:
        """Decides by what is there where this run writes, and from which manifest it goes on."""
        before = existing_store(self.out)  # this time for good, as no other run changes it now
        self._began = before is None
        if before is not None and mode == "overwrite":
            self._stage()
            return
        if before is None or not (before.complete or layout.index_files(self.root)):
            return  # nothing is there that had to be kept
        if mode == "create":
            raise StoreMismatchError(f"{self.out} is a store already; choose another folder, or overwrite it")
        if differing := differences_of(before, self.manifest):
            raise StoreMismatchError(
                f"{self.out} holds a store made otherwise:\n  " + "\n  ".join(differing) + "\nchoose another "
                "folder, give the settings of then, or replace the store with --overwrite"
            )
        self._before = self._later(before)
        plan = self.manifest.plan
        if (before.plan.splits, before.plan.classes) != (plan.splits, plan.classes) or (
            before.updates and not self._stands_as_stated(before)
        ):
            self.needs_comparison = True
        else:
            self.manifest = self._before

    def _stage(self) -> None:
        """Goes on in a folder beside the store, that will take its place; what is there of other terms is removed."""
        check_replaceable(self.out)
        self.root = layout.staging_folder(self.out)
        before = existing_store(self.root)
        # Without the inputs' identity, nothing tells whether what an earlier run left there is of these.
        if before is not None and (
            not self.manifest.plan.splits
            or (before.recipe, before.plan, before.updates)
            != (self.manifest.recipe, self.manifest.plan, self.manifest.updates)
        ):
            remove_store(self.root)
            before = None
        self._began = before is None
        self._enter(self.root)
        if before is not None:
            self.manifest = self._later(before)

    def _later(self, before: Manifest) -> Manifest:
        """The manifest with which a run goes on, which tells of the environment that it does so in."""
        now = self._environment
        self.changes = list(leaves_that_differ("", before.environment.to_json(), now.to_json()))
        later = before.later_environments
        if self.changes and now not in later:
            later = [*later, now]
        return dataclasses.replace(before, later_environments=later)

    def _stands_as_stated(self, manifest: Manifest) -> bool:
        """Whether the store is complete, and has all the units that its manifest names."""
        whole = {layout.index_path(unit) for unit in self.whole_units()}
        return manifest.complete and whole == set(manifest.index)

    def _link(self, units: Sequence[Unit]) -> None:
        """Takes units over as they are, as a second name of their files: their shards first, as in every commit."""
        tables = [layout.index_path(unit) for unit in units]
        shards = [shard.path for table in tables for shard in read_entry(self.out / table).shards]
        for paths in (shards, tables):
            for path in paths:
                make_folder((self.root / path).parent, below=self.root)
                link_or_copy(self.out / path, self.root / path)
            for folder in dict.fromkeys((self.root / path).parent for path in paths):
                sync_folder(folder)
        self._committed.update(_place(unit) for unit in units)

    def _take_stock(self, planned: Mapping[tuple[str, int], int] | None = None) -> None:
        """Finds the units that are whole; if that is not all, declares the store unfinished and clears it up.

        Args:
            planned: The units that there should be, with their inputs; None: as the plan says.
        """
        found = layout.index_files(self.root)
        if planned is None:
            planned = self._planned_inputs()
        self._committed = {
            place
            for place, path in found.items()
            if (entry := self._whole_entry(path, self.root)) is not None and planned.get(place) in (None, entry.inputs)
        }
        if self.manifest.complete and self._committed == found.keys() and self._committed >= planned.keys():
            return
        self.manifest = dataclasses.replace(self.manifest, complete=False, totals={}, index={}, timings={})
        self.manifest.write(self.root)
        for place in found.keys() - self._committed:
            found[place].unlink()
        self._remove_leftovers()

    def _whole_entry(self, index_table: Path, root: Path) -> UnitEntry | None:
        """What a unit's index table says of it; None if it has another recipe, or not all its shards in full length."""
        try:
            entry = read_entry(index_table)
            sizes = [regular_file(root, shard.path).stat().st_size for shard in entry.shards]
        except (StoreError, OSError) as error:
            if is_refusal(error) or is_refusal(error.__cause__):
                raise  # it may be whole, and must not be removed
            return None
        whole = entry.recipe == self.manifest.fingerprint and sizes == [shard.bytes for shard in entry.shards]
        return entry if whole else None

    def _planned_inputs(self) -> dict[tuple[str, int], int]:
        """The inputs that every unit has; empty where the plan does not say it."""
        plan = self.manifest.plan
        if self.manifest.updates:
            return {}
        size = plan.rows_per_unit or 1  # known wherever there are splits
        return {
            _place(Unit(split, start // size)): min(size, planned.inputs - start)
            for split, planned in plan.splits.items()
            for start in range(0, planned.inputs, size)
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


def _names(plan: PlanTerms) -> tuple[Any, ...]:
    """What of a plan tells whether its inputs have the same keys, groups and targets."""
    return {split: (one.inputs, one.names_sha256) for split, one in plan.splits.items()}, plan.classes
