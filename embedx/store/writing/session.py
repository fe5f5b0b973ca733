"""One run's hold of a store: it locks the store, finds what is missing, removes what is half, declares it complete.

begin:   refuse a folder that is no store → lock → choose by the two manifests (see `session_choice`):
         create, resume,
         renew            find the units that are whole → manifest with `complete: false` → remove all others
         replace          the same in a folder beside the store
         compare          nothing yet: the caller compares the inputs, and then calls `resume`, if they are the same
                          after all, or `update`, which works in a folder beside the store and links what stays there
finish:  add up the index tables → check inputs = rows + rejected + unavailable → manifest with `complete: true`
         → exchange the two folders, where this run has worked beside the store
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa

from embedx.errors import ConfigError, StoreMismatchError
from embedx.paths import StorePath
from embedx.store.format import layout
from embedx.store.format.contents import Environment, StoredRecipe
from embedx.store.format.creation import new_token
from embedx.store.format.differences import leaves_that_differ
from embedx.store.format.layout import StoreRoot, StoreTerms, Unit, WriterTerms
from embedx.store.format.manifest import Manifest, existing_store
from embedx.store.format.storage import storage_of
from embedx.store.writing import stock
from embedx.store.writing.checks import Place, place_of
from embedx.store.writing.held_place import held_place
from embedx.store.writing.session_choice import Choice, Holding, Mode, choose, going_on, same_names
from embedx.store.writing.unit_checks import UnitChecks
from embedx.store.writing.unit_journal import JOURNAL_SECONDS
from embedx.store.writing.unit_rows import EarlierUnits, StayingRows


class StoreSession:
    """One run's hold of a store, from `begin` to `close`."""

    def __init__(self, out: StoreRoot, manifest: Manifest, checks: UnitChecks, *, is_shared: bool = False) -> None:
        self.out, self.checks = out, checks
        self.root: StoreRoot = out
        """The folder in which this run writes: `out`, or the folder beside it that will replace it."""
        self.manifest = self._now = manifest
        self.changes: list[tuple[str, Any, Any]] = []
        """The changes of the environment since the store was begun: (name, then, now)."""
        self.needs_comparison = False
        """True if the plan does not tell what is missing, so that `resume` or `update` has to be called."""
        self.earlier = EarlierUnits()
        """The rows that need not be computed, of units that are still to be written."""
        self._before: Manifest | None = None
        """The manifest of the store that was there when this session began, unless it is replaced."""
        self._began = False
        """True if this session has made the store at `root`."""
        self.writer = WriterTerms(new_token() if is_shared else None)
        """The terms of this process; it has a token only among several that write."""
        self.environments: list[dict[str, Any]] = []
        """The different environments of the units of a store that is finished."""
        self._place = held_place(out, self.writer.token)
        self._committed: set[Place] = set()
        self.goes_on = False
        """True if an earlier run has brought rows to disk."""

    @classmethod
    def begin(
        cls, out: StorePath, manifest: Manifest, mode: Mode, *, verify_kept: bool = False, is_shared: bool = False
    ) -> Self:
        """Takes hold of the store at `out`, and makes it if it isn't there.

        Args:
            out: The output folder.
            manifest: The recipe, plan and environment of the run.
            mode: The wish for a store that is there already: refuse it (`create`), finish it (`resume`), or write
                another one beside it that takes its place once complete (`overwrite`).
            verify_kept: True if all units that stay are read and compared with their sha256.
            is_shared: True if other processes will write units too.

        Raises:
            StoreMismatchError: If `out` is not a store, or one of another recipe or plan; nothing is changed.
            StoreLockedError: If another run holds it.
            ConfigError: If the folder can't be made or locked, or several processes can't write there.
        """
        existing_store(out)  # refuses a stranger's folder before anything is written into it
        folder = layout.store_root(out.resolve())  # through a link, so that it is the folder itself that is replaced
        session = cls(folder, manifest, UnitChecks(manifest.fingerprint, thorough=verify_kept), is_shared=is_shared)
        try:
            session._place.hold()
            session._carry_out(mode)
        except BaseException as error:
            if isinstance(error, ConfigError):
                session.discard()
            session.close()
            raise
        return session

    @property
    def terms(self) -> StoreTerms:
        """The terms of the store, as the writer process needs them."""
        plan = self.manifest.plan
        if (size := plan.rows_per_unit) is None:
            raise RuntimeError("set_rows_per_unit() has not been called")
        base = self.out if self.root != self.out else None
        seconds = JOURNAL_SECONDS if plan.splits else None  # no later run could tell whose rows a journal has
        fingerprint, about = self.manifest.fingerprint, self.manifest.about
        return StoreTerms(self.root, fingerprint, plan.grouped, size, base, seconds, about, self.writer)

    @property
    def is_finished(self) -> bool:
        """True if the store stands complete in its place."""
        return self.manifest.complete and self.root == self.out

    def is_committed(self, unit: Unit) -> bool:
        """Tells whether the unit was committed when this session began, or was linked by it."""
        return place_of(unit) in self._committed

    @property
    def inputs_are_the_same(self) -> bool | None:
        """True if every input has the key, group and target of the plan of the store that is there; None: unknown."""
        return self._before is not None and same_names(self._before.plan, self.manifest.plan)

    def goes_on_with(self, store: Manifest) -> bool:
        """Tells whether the store that is there is still this one, with the same index tables."""
        return self._before is not None and (self._before.plan, self._before.index) == (store.plan, store.index)

    @property
    def was_updated(self) -> bool:
        """True if an input's place in the plan no longer tells its unit."""
        return self._before is not None and bool(self._before.updates)

    def find_damaged(self, linked: Iterable[Unit], staying: Iterable[StayingRows]) -> bool:
        """Checks the units of the store at `out` that an update is to take; tells whether damaged ones were found."""
        shards = {path for rows in staying for path in rows.places["shard"].drop_null().unique().to_pylist()}
        damaged = self.checks.damaged_shards(self.out, shards)
        index = self._before.index if self._before is not None else {}
        return bool(damaged or self.checks.find_damaged(self.out, map(place_of, linked), index))

    @property
    def classes_before(self) -> Sequence[str] | None:
        """The names of the classes of the store that is there; None if it does not tell them."""
        return self._before.plan.classes if self._before is not None else None

    def resume(self, *, is_elsewhere: bool) -> None:
        """Goes on with the store as it is, after the caller found that its inputs are those of the plan.

        If the files of some are elsewhere now, the index tables no longer have the paths that the plan states.
        """
        if self._before is not None:
            plan = self.manifest.plan.without_places() if is_elsewhere else self.manifest.plan
            self.manifest = dataclasses.replace(self._before, plan=plan)
        self._take_stock()
        if self.manifest.complete:
            self.manifest.write(self.root)

    def update(
        self,
        counts: Mapping[str, int],
        units: Mapping[Unit, int],
        linked: Mapping[Unit, pa.Table | None],
        staying: Mapping[Unit, StayingRows],
    ) -> None:
        """Begins a store beside this one that will take its place, or goes on with one that is there already.

        Args:
            counts: The counts of inputs by their difference from the store at `out`, for the manifest.
            units: The number of inputs of each unit of the new store.
            linked: The units whose shards stay as they are, each with its index rows if these become others.
            staying: The rows that stay, for the other units.
        """
        if self._before is None:
            raise RuntimeError("there is no store to bring up to date")
        base = hashlib.sha256(storage_of(self.out).read(layout.MANIFEST)).hexdigest()
        updates = [*self._before.updates, {**counts, "base": base}]
        self.manifest = dataclasses.replace(self._before, plan=self.manifest.plan, complete=False, updates=updates)
        self._stage()
        self._take_stock({place_of(unit): inputs for unit, inputs in units.items()})
        if not self.manifest.complete:
            missing = {unit: rows for unit, rows in linked.items() if not self.is_committed(unit)}
            stock.link_units(missing, self.out, self.root, self.manifest.about)
            self._committed.update(map(place_of, missing))
        self.earlier.staying = {unit: rows for unit, rows in staying.items() if not self.is_committed(unit)}

    def set_rows_per_unit(self, rows: int) -> None:
        """States the size of the units, where it was not known when the store was begun."""
        self._write_manifest(plan=dataclasses.replace(self.manifest.plan, rows_per_unit=rows))

    def set_recipe(self, recipe: StoredRecipe, environment: Environment | None = None) -> None:
        """States another recipe, as the first batches have settled it, and the environment if that is another too."""
        if self._committed or self.earlier.units:
            raise StoreMismatchError(f"{self.out} has units of another recipe; replace it with --overwrite")
        self._write_manifest(recipe=recipe, environment=environment or self.manifest.environment)

    def on_commit(self, unit: Unit) -> None:
        """Does nothing: the index tables tell, in the end, which units are committed."""

    def finish(self, timings: Mapping[str, float]) -> Manifest:
        """Declares the store complete, with the timings of the run, if it has every input of the plan exactly once.

        Raises:
            StoreError: If inputs = rows + rejected + unavailable does not hold for a split.
        """
        self._place.check()  # before `clear_up`, which would remove the shards that another run is about to commit
        totals, index, self.environments = stock.add_up(self.root, self.manifest, self.out)
        if self.writer.token is not None:
            stock.clear_up(self.root)
        self._write_manifest(complete=True, totals=totals, index=index, timings=dict(timings))
        if self.root != self.out:
            self.manifest = self._place.replace(self.root, self.manifest, self._before)
            self.root = self.out
        return self.manifest

    @property
    def leftovers(self) -> Sequence[StoreRoot]:
        """The stores that interrupted updates of other inputs have left, in order."""
        return self._place.leftovers(self.root)

    def discard(self) -> None:
        """Takes back what this session has made, unless it has brought rows to disk."""
        stock.take_back(self.root, self._place.made, is_new=self._began)

    def close(self) -> None:
        """Gives the store back."""
        self._place.release()

    def _write_manifest(self, **changes: Any) -> None:
        self._place.check()
        self.manifest = dataclasses.replace(self.manifest, **changes)
        self.manifest.write(self.root)

    def _carry_out(self, mode: Mode) -> None:
        """Chooses what this run does at the output folder, and begins it."""
        before = existing_store(self.out)  # this time for good, as no other run changes it now
        self._began = before is None
        kept = before if mode != "overwrite" else None  # a store that is replaced may be damaged
        holding = Holding() if kept is None else stock.holding(self.out, kept, self.checks)
        choice = choose(self.out, mode, before, self.manifest, holding)
        if choice is Choice.REPLACE:
            self._stage()
        elif before is not None and choice is not Choice.CREATE:
            self._before = before = self._with_environment(before)
            self.needs_comparison = choice is Choice.COMPARE
            if choice is Choice.RESUME:
                self.manifest = before
            elif choice is Choice.RENEW:
                now = self.manifest
                self.manifest = dataclasses.replace(before, plan=now.plan, settings=now.settings)
        if not self.needs_comparison:
            self._take_stock()

    def _stage(self) -> None:
        """Goes on in a folder beside the store; one of other terms that is there makes way (see `make_way`)."""
        recipe = None if self._before is None else self.manifest.fingerprint
        self.manifest = dataclasses.replace(self.manifest, generation="")
        self.root, before = self._place.stage(self.manifest, recipe)
        self._began = before is None
        if before is not None:
            self.manifest = self._with_environment(before)

    def _with_environment(self, before: Manifest) -> Manifest:
        """Returns the manifest with which a run goes on (see `going_on`)."""
        manifest = going_on(before, self._now)
        now = self._now.environment.to_json()
        self.changes = list(leaves_that_differ("", manifest.environment.to_json(), now))
        return manifest

    def _take_stock(self, planned: Mapping[Place, int] | None = None) -> None:
        """Finds the units that are whole; if some are missing, declares the store unfinished and removes all others.

        There should be the units in `planned`, with so many inputs; None takes them from the plan.
        """
        if planned is None:  # after an update the plan does not tell it
            planned = {} if self.manifest.updates else stock.planned_units(self.manifest.plan)
        whole = self.checks.whole_units(self.root, read_tables=not self.manifest.complete)
        found = {place for place, entry in whole.items() if planned.get(place, entry.inputs) == entry.inputs}
        found -= self.checks.find_damaged(self.root, found, self.manifest.index)
        self._committed = found
        self.goes_on = bool(found)
        if self.manifest.complete and found == layout.index_files(self.root).keys() and found >= planned.keys():
            return
        found -= self.checks.find_replaced(self.root, found, self.manifest.index)
        self._committed = found
        self._write_manifest(complete=False, totals={}, index={}, timings={})
        stock.remove_others(self.root, found, planned.keys(), is_shared=self.writer.token is not None)
