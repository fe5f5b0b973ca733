"""The place of a store that one run holds, and where another store may replace the one that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from embedx.errors import output_error
from embedx.paths import StorePath
from embedx.store.format.atomic import make_folder
from embedx.store.format.creation import check_creation
from embedx.store.format.layout import StoreRoot, staging_folder, store_root
from embedx.store.format.manifest import Manifest
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.writing import generations, replacement
from embedx.store.writing.bucket_hold import BucketHold, check_bucket
from embedx.store.writing.lock import StoreLock


class HeldPlace(Protocol):
    """A place that this process alone holds, from `hold` to `release`."""

    made: list[Path]
    """The folders that were made for it, parents first."""

    def hold(self) -> None:
        """Takes hold of the place, and ends what a killed run has begun there.

        Raises:
            StoreLockedError: If another run holds it.
            ConfigError, StoreError: If it can't be made or held.
        """

    def check(self) -> None:
        """Raises a StoreError if another run has taken the place over."""

    def stage(self, now: Manifest, recipe: str | None) -> tuple[StoreRoot, Manifest | None]:
        """Returns where the store is written that will take the old one's place, and the manifest that is there.

        Args:
            now: The manifest of the run.
            recipe: The fingerprint of an update; None if all is begun anew.

        Raises:
            ConfigError: If no other store can take the place.
            StoreMismatchError: If an interrupted run has left units of another recipe, which an update can't use.
        """

    def replace(self, new: StoreRoot, manifest: Manifest, before: Manifest | None) -> Manifest:
        """Puts a complete new store in the old one's place, and removes the old one.

        Args:
            new: The folder of the new store.
            manifest: The manifest of the new store.
            before: The manifest of the old store; None if nothing of it stays.

        Returns:
            The manifest as it stands in the place.
        """

    def leftovers(self, root: StoreRoot) -> Sequence[StoreRoot]:
        """Returns the stores that interrupted updates have left, but for the one at `root`, in order."""

    def release(self) -> None:
        """Gives the place back."""


class HeldFolder:
    """A folder of this machine; a new store is written beside it, and exchanged for it.

    Args:
        out: The folder of the store.
        token: The name of this process among several that write the store; None if it is the only one.
    """

    def __init__(self, out: Path, token: str | None) -> None:
        self.out, self.token = out, token
        self.made: list[Path] = []
        self._locks = contextlib.ExitStack()

    def hold(self) -> None:
        """Locks the folder, which is made if it isn't there."""
        replacement.recover(self.out)
        self._enter(self.out)
        replacement.finish_removal(self.out)

    def check(self) -> None:
        """Does nothing, as a lock is held until its process ends."""

    def stage(self, now: Manifest, recipe: str | None) -> tuple[StoreRoot, Manifest | None]:
        """Returns the folder beside the store, which is made and locked."""
        staged, before = replacement.stage(self.out, now, recipe)
        self._enter(staged)
        return staged, before

    def replace(self, new: StoreRoot, manifest: Manifest, before: Manifest | None) -> Manifest:
        """Exchanges the two folders."""
        if isinstance(new, Path):
            replacement.take_place(new, self.out)
        return manifest

    def leftovers(self, root: StoreRoot) -> Sequence[StoreRoot]:
        """Returns the folders that were set aside."""
        return replacement.leftovers(self.out)

    def release(self) -> None:
        """Unlocks the folders."""
        self._locks.close()

    def _enter(self, folder: Path) -> None:
        """Makes the folder, if it isn't there, and locks it."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        self.made += reversed(missing)
        try:
            make_folder(folder)
        except OSError as error:
            raise output_error(folder, "can't be made", error, is_store=False) from error
        lock = StoreLock(folder)
        self._locks.callback(lock.release)
        if self.token is not None:
            check_creation(folder, self.token)


class HeldBucket:
    """A place in a bucket; a new store is written to a generation, which the manifest then names.

    Args:
        out: The folder of the store.
    """

    def __init__(self, out: ObjectFolder) -> None:
        self.out = out
        self.made: list[Path] = []
        self._hold: BucketHold | None = None

    def hold(self) -> None:
        """Checks the bucket's server, and takes the hold."""
        check_bucket(self.out.path)
        self._hold = BucketHold(self.out)
        generations.finish_removal(self.out)

    def check(self) -> None:
        """Raises a StoreError if the hold was taken over."""
        if self._hold is not None:
            self._hold.check()

    def stage(self, now: Manifest, recipe: str | None) -> tuple[StoreRoot, Manifest | None]:
        """Returns a generation: the one that an interrupted run of the same terms has begun, or a new one."""
        return generations.stage(self.out, now, recipe)

    def replace(self, new: StoreRoot, manifest: Manifest, before: Manifest | None) -> Manifest:
        """Exchanges the manifest."""
        if not isinstance(new, ObjectFolder):
            return manifest
        self.check()
        stays = partial(generations.further_splits, new=manifest, out=before)
        return generations.take_place(new, self.out, manifest, stays)

    def leftovers(self, root: StoreRoot) -> Sequence[StoreRoot]:
        """Returns the other generations that were begun."""
        return [folder for folder in generations.leftovers(self.out) if str(folder) != str(root)]

    def release(self) -> None:
        """Gives the hold back."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None


def staged_store(out: StorePath) -> StoreRoot | None:
    """Returns the store that an interrupted run has begun to put in the place of another one; None if there is none."""
    root = store_root(out)
    if isinstance(root, Path):
        return staging_folder(root)
    return next(iter(reversed(generations.leftovers(root))), None)


def interrupted_stores(out: StorePath) -> list[StoreRoot]:
    """Returns the stores that interrupted runs have begun, or set aside, beside the one at `out`."""
    root = store_root(out)
    if isinstance(root, Path):
        return [*filter(os.path.lexists, (staging_folder(root), *replacement.leftovers(root)))]
    return [*generations.leftovers(root)]


def held_place(out: StoreRoot, token: str | None) -> HeldPlace:
    """Returns the place of a store, which is not held yet; `token` as of HeldFolder."""
    return HeldBucket(out) if isinstance(out, ObjectFolder) else HeldFolder(out, token)
