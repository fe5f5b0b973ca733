"""The checks of one run on the units that stay: by their sizes always, and by their sha256 where it matters or is due.

Rows that are read to be written again are always checked by sha256. Units that stay as they are would take hours to
read in a large store, so each is read once in a while: a file of the store has the times.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from embedx.errors import StoreError, is_refusal
from embedx.names import CHECK_TIMES
from embedx.store.format.index import OK, UnitEntry, read_index, read_whole
from embedx.store.format.layout import StoredFile, StoreRoot, Unit, index_files, index_path
from embedx.store.format.open_folder import open_folder
from embedx.store.format.storage import storage_of
from embedx.store.format.typed_json import parse_json, typed
from embedx.store.writing.checks import Place, place_of, whole_units

AGE_SECONDS = 30 * 86_400.0
"""The time after which a unit is due to be read again; disks that scrub themselves take about as long."""
BYTES_PER_RUN = 1024**3
"""The bytes of due units that one run reads: 1 to 4 seconds, by the processor; a nightly run stays quick."""
_SKEW_SECONDS = 86_400.0
"""The time by which another machine's clock may be ahead; times beyond are not believed."""


class UnitChecks:
    """The checks of one run.

    Args:
        recipe: The fingerprint of the recipe.
        thorough: True if all units are due, as with `--verify-kept`.
    """

    def __init__(self, recipe: str, *, thorough: bool = False) -> None:
        self.told: dict[str, None] = {}
        """A sentence for each damaged unit that was found; its rows are computed again."""
        self._recipe = recipe
        self._thorough = thorough
        self._results: dict[str, bool] = {}
        """The units that were read, by their index tables' places: True for those that were found whole."""
        self._left: dict[str, float] = {}
        """The bytes of due units that this run may still read, by the store's folder."""

    def whole_units(self, root: StoreRoot, *, read_tables: bool = False) -> dict[Place, UnitEntry]:
        """Returns the units that are whole (see `checks.whole_units`), but for those that were found damaged."""
        whole = whole_units(root, self._recipe, read_tables=read_tables, tell=self.told.setdefault)
        return {place: entry for place, entry in whole.items() if self._results.get(str(_table(root, entry)), True)}

    def whole_tables(self, root: StoreRoot) -> list[StoredFile]:
        """Returns the index tables of the units that are whole; their rows can be read."""
        files = index_files(root)
        return [files[place] for place in self.whole_units(root, read_tables=True)]

    def damaged_shards(self, root: StoreRoot, shards: Iterable[str]) -> set[str]:
        """Reads the units that have these shards, and returns the shards of the damaged ones."""
        wanted = set(shards)
        units = (unit for unit in self.whole_units(root).values() if any(one.path in wanted for one in unit.shards))
        return {shard.path for unit in units if not self._is_right(root, unit) for shard in unit.shards}

    def failures(self, root: StoreRoot) -> list[tuple[str, str]]:
        """Returns the status and the reason of each input without a row in the units that are whole."""
        files, whole = index_files(root), self.whole_units(root)
        places = [place for place, entry in whole.items() if entry.rejected or entry.unavailable]
        rows = [row for place in places for row in read_index(files[place], ["status", "reason"]).to_pylist()]
        return [(row["status"], row["reason"]) for row in rows if row["status"] != OK]

    def find_damaged(self, root: StoreRoot, places: Iterable[Place], index: Mapping[str, str]) -> set[Place]:
        """Reads those of the units that are due, and returns the places of the damaged ones.

        Args:
            root: The folder of the store.
            places: The places of the units that stay as they are.
            index: The sha256 of the store's index tables; none of an unfinished store, all of whose units are due,
                beginning with the last, as the machine may have failed.
        """
        whole, now = self.whole_units(root), time.time()
        staying = [whole[place] for place in places if place in whole]
        times = _read_times(root)
        written_at = _writing_times(root)
        last = {_name(unit): _last_time(written_at, unit, times.get(_name(unit), 0.0), now) for unit in staying}
        due = [unit for unit in staying if self._thorough or not index or now - last[_name(unit)] > AGE_SECONDS]
        left = self._left.get(str(root), math.inf if self._thorough else BYTES_PER_RUN)
        checked, damaged = {}, set()
        for unit in sorted(due, key=lambda unit: last[_name(unit)], reverse=not index):
            if left <= 0:
                break
            left -= sum(shard.bytes for shard in unit.shards)
            if self._is_right(root, unit, index.get(_name(unit))):
                checked[_name(unit)] = now
            else:
                damaged.add(place_of(Unit(unit.split, unit.unit)))
        self._left[str(root)] = left
        if checked:
            write_times(root, {name: times[name] for name in last.keys() & times.keys()} | checked)
        return damaged

    def find_replaced(self, root: StoreRoot, places: Iterable[Place], index: Mapping[str, str]) -> set[Place]:
        """Returns the places of units whose table is not the one of a complete store, before its digests are dropped.

        A whole unit of an older store, which somebody has put back, is told by them alone.
        """
        whole = self.whole_units(root)
        known = {place: index[_name(whole[place])] for place in places if _name(whole[place]) in index}
        found = set()
        for place, sha256 in known.items():
            if damage := _table_damage(_table(root, whole[place]), sha256):
                found.add(place)
                self.told[f"{damage}; the {whole[place].inputs:,} rows of its unit are computed again"] = None
        return found

    def _is_right(self, root: StoreRoot, unit: UnitEntry, table_sha256: str | None = None) -> bool:
        """Reads a unit's files, unless this run has done so, and tells whether they are as they were written."""
        table = str(_table(root, unit))
        if table not in self._results:
            damage = next(_damages(root, unit, table_sha256), None)
            self._results[table] = damage is None
            if damage is not None:
                self.told[f"{damage}; the {unit.inputs:,} rows of its unit are computed again"] = None
        return self._results[table]


def carry_over(source: StoreRoot, target: StoreRoot) -> None:
    """Gives a store that takes units of another one the times at which these were checked."""
    if times := _read_times(source):
        write_times(target, times)


def write_times(root: StoreRoot, times: Mapping[str, float]) -> None:
    """Writes the time of the last check of each unit, by the path of its index table."""
    storage_of(root).put(CHECK_TIMES, [json.dumps(times, indent=1, sort_keys=True).encode()])


def _read_times(root: StoreRoot) -> dict[str, float]:
    """Returns the times of the last checks; none if they can't be read, so that the files' own times count."""
    try:
        times: dict[str, float] = typed(parse_json(storage_of(root).read(CHECK_TIMES)), dict[str, float])
    except (OSError, ValueError, StoreError):
        return {}
    return times


def _last_time(written_at: Callable[[str], float], unit: UnitEntry, checked: float, now: float) -> float:
    """Returns the time at which a unit was last checked or written, 0 if neither can be believed."""
    paths = [shard.path for shard in unit.shards] or [_name(unit)]
    written = min(map(written_at, paths))
    return max((one for one in (checked, written) if one <= now + _SKEW_SECONDS), default=0.0)


def _writing_times(root: StoreRoot) -> Callable[[str], float]:
    """Returns the function that tells when a file was written, by its path in the store; 0 if nobody knows it."""
    if isinstance(root, Path):
        return lambda path: (root / path).stat().st_mtime
    times = {path: stated.modified or 0.0 for path, stated in root.stated().items()}
    return lambda path: times.get(path, 0.0)


def _table_damage(table: StoredFile, sha256: str | None) -> str | None:
    """Returns a phrase if an index table is not as it was written, or has another sha256 than one that is known."""
    try:
        if read_whole(table)[1] != sha256 and sha256 is not None:
            return f"{table} is damaged (its sha256 is not the one in the manifest)"
    except StoreError as error:
        if is_refusal(error.__cause__):
            raise
        return str(error)
    return None


def _damages(root: StoreRoot, unit: UnitEntry, table_sha256: str | None) -> Iterator[str]:
    """Yields a phrase for each file of a unit that is not as it was written."""
    if damage := _table_damage(_table(root, unit), table_sha256):
        yield damage
    folder = open_folder(root)
    for shard in unit.shards:
        file = folder / shard.path
        try:
            digest = file.sha256()
        except OSError as error:
            raise StoreError(f"{file}: can't be read ({error.strerror})") from error
        if digest != shard.sha256:
            yield f"{file} is damaged (its sha256 is not the one in its index table)"


def _name(unit: UnitEntry) -> str:
    return index_path(Unit(unit.split, unit.unit))


def _table(root: StoreRoot, unit: UnitEntry) -> StoredFile:
    return root / _name(unit)
