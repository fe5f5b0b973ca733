"""One run's hold of a store: lock it, find what is missing, clear away what is half, declare it complete.

begin:   refuse what isn't ours → lock → (overwrite: work in a folder beside it) → compare recipe and plan
         → remove what an interrupted run left → manifest with `complete: false`
finish:  sum up the index tables → check inputs = rows + rejected → manifest with `complete: true`
         → (overwrite: exchange the two folders)
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from embedx.errors import ConfigError, StoreError, StoreMismatchError
from embedx.store import layout
from embedx.store.files import make_folder, sync_folder
from embedx.store.index import read_entry
from embedx.store.layout import Unit
from embedx.store.lock import StoreLock
from embedx.store.manifest import Manifest, is_store
from embedx.store.units import StoreTerms

Mode = Literal["create", "resume", "overwrite"]


class StoreSession:
    """One run's hold of a store, from `begin` to `close`."""

    def __init__(self, out: Path, root: Path, manifest: Manifest, locks: list[StoreLock]) -> None:
        self.out = out
        self.root = root
        self.manifest = manifest
        self.changes: list[tuple[str, Any, Any]] = []
        """What of the environment has changed since the store was begun: (name, then, now)."""
        self._made_folder = False
        self._locks = locks
        self._committed = {(split, unit) for split, unit in layout.index_files(root)}

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
            ConfigError: If the folder can't be made or written.
        """
        refuse_unless_ours(out)
        out = out.resolve()  # through a link, so that it is the folder itself that is replaced
        existing = is_store(out)
        if existing and mode == "create" and (Manifest.read(out).complete or layout.index_files(out)):
            raise StoreMismatchError(f"{out} is a store already; choose another folder, or overwrite it")
        before = Manifest.read(out) if existing and mode == "resume" else manifest
        if before.complete or layout.index_files(out):  # else there is nothing in it to protect
            _refuse_other(out, before, manifest)
        made_folder = not out.exists()
        try:
            make_folder(out)
            locks = [StoreLock(out)]
        except OSError as error:
            raise ConfigError(f"--out {out}: can't be written ({error.strerror}); choose another path") from error
        root = out
        try:
            if existing and mode == "overwrite":
                root = _staging_folder(out)
                # Without the inputs' identity, nothing tells whether what an earlier run left there is of these.
                known = bool(manifest.plan["splits"]) and is_store(root)
                if not (known and not _differences(Manifest.read(root), manifest)):
                    shutil.rmtree(root, ignore_errors=True)
                make_folder(root)
                locks.append(StoreLock(root))
            session = cls(out, root, Manifest.read(root) if is_store(root) else manifest, locks)
            session._made_folder = made_folder
            session.changes = list(_leaves_that_differ("", before.environment, manifest.environment))
            if not session.manifest.complete:
                session._remove_leftovers()
                session.manifest = dataclasses.replace(manifest, complete=False)
                session.manifest.write(root)
        except BaseException:
            for lock in locks:
                lock.release()
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
        return (layout.folder_name(unit.split), unit.number) in self._committed

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
            _take_place(self.root, self.out)
            self.root = self.out
        return self.manifest

    def discard(self) -> None:
        """Takes the store back, where this session has made it and nothing was committed."""
        if not layout.index_files(self.root):
            (self.root / layout.MANIFEST).unlink(missing_ok=True)
            for lock in self._locks:
                lock.path.unlink(missing_ok=True)
            if self._made_folder:
                _remove_empty_folders(self.root, self.root.parent)

    def close(self) -> None:
        """Lets go of the store."""
        for lock in self._locks:
            lock.release()

    def _remove_leftovers(self) -> None:
        """Removes temporary files and shards of units that were never committed."""
        for path in layout.temporary_files(self.root):
            path.unlink()
        for split, unit, path in layout.shard_files(self.root):
            if (split, unit) not in self._committed:
                path.unlink()
                _remove_empty_folders(path.parent, self.root)


def refuse_unless_ours(out: Path) -> None:
    """Refuses a folder with contents that are not a store's.

    Raises:
        StoreMismatchError: If `out` is one.
    """
    if out.is_dir() and not is_store(out) and any(path.name != layout.LOCK for path in out.iterdir()):
        raise StoreMismatchError(
            f"--out {out}: the folder is not empty and not a store; choose another one (embedx writes into no "
            "other folder)"
        )


def _no_totals() -> dict[str, int]:
    return dict.fromkeys(("inputs", "rows", "rejected", "units", "shards", "bytes"), 0)


def _differences(old: Manifest, new: Manifest) -> list[str]:
    """What differs in recipe and plan, as `field: old → new`."""
    return [
        f"{name}: {before} → {after}"
        for part in ("recipe", "plan")
        for name, before, after in _leaves_that_differ(part, getattr(old, part), getattr(new, part))
    ]


def _leaves_that_differ(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _leaves_that_differ(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def _refuse_other(out: Path, old: Manifest, new: Manifest) -> None:
    if differing := _differences(old, new):
        raise StoreMismatchError(
            f"{out} holds a store made otherwise:\n  " + "\n  ".join(differing) + "\nchoose another folder, give "
            "the settings of then, or replace the store with --overwrite"
        )


def _staging_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.embedx-new"


def _take_place(new: Path, out: Path) -> None:
    """Puts a complete new store in the old one's place, and removes what embedx wrote of the old one."""
    old = new
    if not _exchange(new, out):
        # The file system can't exchange two names; between these two renames only `old` is readable.
        old = new.with_name(new.name + "-old")
        out.rename(old)
        new.rename(out)
    sync_folder(out.parent)
    shards = [path for *_, path in layout.shard_files(old)]
    for path in [*layout.index_files(old).values(), *shards, *layout.temporary_files(old)]:
        path.unlink()
    for path in (old / layout.MANIFEST, old / layout.LOCK):
        path.unlink(missing_ok=True)
    for path in sorted(old.rglob("*"), reverse=True):
        _rescue(path, out / path.relative_to(old))
    with contextlib.suppress(OSError):
        old.rmdir()


def _rescue(path: Path, destination: Path) -> None:
    """Moves what embedx did not write into the new store, unless something is there; drops empty folders."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif not os.path.lexists(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            path.rename(destination)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step, by Linux's `renameat2`; False where that can't be done."""
    at_working_directory, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    outcome: int = renameat2(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange)
    return outcome == 0


def _remove_empty_folders(folder: Path, root: Path) -> None:
    with contextlib.suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent
