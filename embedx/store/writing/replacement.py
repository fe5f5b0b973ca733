"""Puts a new store in the place of an old one, and removes the files of a store that embedx has written.

The new store is written to a folder beside the old one. Once it is complete, a file marks the old one as the
predecessor, and the two folders exchange their names in one step. Then the files that embedx wrote to the old store are
removed, and all others move into the new one. What a kill leaves beside the store is told by the mark: with it, it is
the predecessor, which the next run removes; without it, it is work that has not been finished.

A new store that an interrupted update has begun, of other inputs than those of now, is set aside. The next update takes
from it what it need not compute.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embedx.errors import ConfigError, StoreError, StoreMismatchError
from embedx.names import CHECK_TIMES, INDEX, LOCK, PREDECESSOR
from embedx.store.format import layout
from embedx.store.format.atomic import sync_folder
from embedx.store.format.creation import exchange
from embedx.store.format.index import read_entry
from embedx.store.format.layout import StoredFile, StoreRoot
from embedx.store.format.manifest import Manifest, existing_store
from embedx.store.format.many_at_once import many_at_once
from embedx.store.format.shards import open_shard, read_header
from embedx.store.writing.session_choice import can_continue
from embedx.system.mounts import file_system_of, mounts


def check_replaceable(out: Path) -> None:
    """Raises a ConfigError if no other folder can take the place of `out`."""
    if _is_mount_point(out):
        raise ConfigError(
            f"--out {out} is a mount point, which no other folder can replace, so that --overwrite, --update and "
            f"--retry-rejected don't work on it; keep the store in a folder below it, such as {out / 'store'}"
        )
    if out in (here := Path.cwd(), *here.parents):
        raise ConfigError(
            f"--out {out} is, or holds, the working directory, which would be removed, as another folder replaces it; "
            f"run this from another folder, such as {out.parent}"
        )
    try:
        _try_to_move(out)
    except OSError as error:
        raise ConfigError(
            f"--out {out} can't be renamed ({error.strerror}), so that no other folder can take its place: it is of a "
            "lower layer of an overlay, such as a container's image; copy it into a volume, and go on with the copy"
        ) from error


def is_replaceable(out: StoreRoot) -> bool:
    """Tells whether another store can take the place of `out`."""
    if not isinstance(out, Path):
        return True
    try:
        check_replaceable(out)
    except ConfigError:
        return False
    return True


def _is_mount_point(folder: Path) -> bool:
    # os.path.ismount() sees no bind mounts within a file system
    return folder in mounts() or os.path.ismount(folder)


def _try_to_move(out: Path) -> None:
    """Moves a folder aside and back where that may fail, so that it fails now and not after all the work.

    An overlay moves no folder of its lower layers. If this is ended between the two steps, `recover` moves it back.
    """
    if file_system_of(out) == "overlay" and out.exists():
        out.rename(_set_aside(out))
        _set_aside(out).rename(out)


def take_place(new: Path, out: Path) -> None:
    """Puts a complete new store in the old one's place, and removes the files that embedx wrote to the old one.

    What interrupted updates have left is removed first, as the new store has all that it could give; rows of a split
    that neither store has stay for the update that names it again.
    """
    for folder in leftovers(out):
        if not _has_further_splits(folder, new, out):
            remove_store(folder)
    (out / PREDECESSOR).touch()
    sync_folder(out)
    old = new
    if not exchange(new, out):
        # The file system can't exchange two names; between these two renames only `old` is readable.
        old = _set_aside(out)
        out.rename(old)
        new.rename(out)
    sync_folder(out.parent)
    remove_store(old, rescue_to=out)


def _has_further_splits(folder: Path, new: Path, out: Path) -> bool:
    """Tells whether a store that was set aside has rows of the new one's recipe, in a split of neither other store."""
    try:
        aside, *others = (Manifest.read(path) for path in (folder, new, out))
    except StoreError:
        return False
    known = {layout.folder_name(split) for store in others for split in store.plan.splits}
    splits = {split for files in (layout.index_files, layout.journal_files) for split, _ in files(folder)}
    return aside.fingerprint == others[0].fingerprint and not splits <= known


def leftovers(out: Path) -> list[Path]:
    """Returns the folders of the stores that were set aside, in order."""
    prefix = f".{out.name}.embedx-left-"
    found = (path for path in out.parent.glob(f"{glob.escape(prefix)}*") if path.name.removeprefix(prefix).isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def stage(out: Path, now: Manifest, recipe: str | None) -> tuple[Path, Manifest | None]:
    """Returns the folder beside `out` of the store that will take its place, and the manifest that is there already.

    One of other terms that is there makes way (see `make_way`).
    """
    check_replaceable(out)
    staged = layout.staging_folder(out)
    before = existing_store(staged)
    if before is not None and not can_continue(before, now):
        make_way(out, before, recipe)
        before = None
    return staged, before


def make_way(out: Path, before: Manifest, recipe: str | None) -> None:
    """Sets aside the store that an interrupted run left beside `out`, if it has rows, and removes it otherwise.

    Args:
        out: The folder of the store that both runs are to replace.
        before: The manifest of the store that was left.
        recipe: The fingerprint of the update that comes in its place; None if all is begun anew.

    Raises:
        StoreMismatchError: If it has units of another recipe, which the update can't use.
    """
    staged = layout.staging_folder(out)
    if recipe is None or not (layout.index_files(staged) or layout.journal_files(staged)):
        remove_store(staged)
        return
    if before.fingerprint != recipe:
        raise StoreMismatchError(
            f"an interrupted --overwrite has left units of another recipe in {staged}; run that command again to "
            "finish it, or delete the folder"
        )
    number = int(leftovers(out)[-1].name.rpartition("-")[2]) + 1 if leftovers(out) else 1
    staged.rename(out.parent / f".{out.name}.embedx-left-{number}")
    sync_folder(out.parent)


def recover(out: Path) -> None:
    """Puts the old store back, if an exchange by two renames was interrupted between them."""
    if not out.exists() and _set_aside(out).exists():
        _set_aside(out).rename(out)


def finish_removal(out: Path) -> None:
    """Removes a store that `out` has replaced, if that was interrupted, and marks `out` no longer as replaced itself.

    The store at `out` must be locked. What else a kill may have left in a complete store is removed too.
    """
    for name in (layout.MANIFEST, CHECK_TIMES):
        (out / f".{name}{layout.TEMPORARY_SUFFIX}").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (out / PREDECESSOR).unlink()
        sync_folder(out)
    old = layout.staging_folder(out)
    is_half_removed = (old / LOCK).exists() and not os.path.lexists(old / layout.MANIFEST)
    if is_half_removed or os.path.lexists(old / PREDECESSOR):
        remove_store(old, rescue_to=out)
    if (_set_aside(out) / LOCK).exists():
        remove_store(_set_aside(out), rescue_to=out)
    for folder in (old, _set_aside(out)):  # one that was emptied, and not removed
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_store(root: Path, rescue_to: Path | None = None) -> None:
    """Removes the files that embedx wrote to the store at `root`, and the folder if nothing else is left in it.

    The manifest goes first, so that the rest is known to be half removed, and the lock last, as it shows that the rest
    is embedx's. All other files move to the store `rescue_to`, unless it has something of the same name.
    """
    (root / layout.MANIFEST).unlink(missing_ok=True)
    sync_folder(root)
    (root / PREDECESSOR).unlink(missing_ok=True)
    shards = our_shards(root, named_shards(root), rescue_to)
    tables = (f"{INDEX}/{table.name}" for table in _index_tables(root).values())
    remove_files(root, [*shards, *tables, *layout.temporary_files(root)])
    (root / CHECK_TIMES).unlink(missing_ok=True)
    if rescue_to is not None:
        _move_into(rescue_to, root)
    if all(path.name == LOCK for path in root.iterdir()):  # else the next run that finds the lock goes on
        (root / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            root.rmdir()


def our_shards(root: StoreRoot, named: Mapping[Any, set[str]], successor: StoreRoot | None = None) -> Iterator[str]:
    """Yields the paths of a store's shards: they are `named_shards`, or their header says that they belong there.

    A copy elsewhere in the folder, and a shard of another store below this one, belong to somebody else. A damaged file
    whose place is that of a shard of the successor is a shard too.
    """
    known, others = set().union(*named.values()), []
    for split, _, path in layout.shard_files(root):
        if path in known or (not layout.is_there(root, f"{split}/{layout.MANIFEST}") and _says_it_belongs(path, root)):
            yield path
        else:
            others.append(path)
    if others and successor is not None:
        taken = set().union(*named_shards(successor).values())
        yield from (path for path in others if path in taken)


def named_shards(root: StoreRoot) -> dict[tuple[str, int], set[str]]:
    """Returns the paths of the shards that the index tables of the store at `root` name, by the unit's place."""
    named = {}
    for place, path in _index_tables(root).items():
        with contextlib.suppress(StoreError):
            named[place] = {shard.path for shard in read_entry(path).shards}
    return named


def _move_into(target: Path, folder: Path) -> None:
    """Moves the contents of a folder into another one, unless that has something of the same name."""
    for path in folder.iterdir():
        place = target / path.name
        with contextlib.suppress(OSError):
            if not os.path.lexists(place):
                path.rename(place)
            elif all(each.is_dir() and not each.is_symlink() for each in (path, place)):
                _move_into(place, path)
                path.rmdir()


def remove_files(root: StoreRoot, paths: Iterable[str]) -> None:
    """Removes files of a store, and the folders that are empty then."""
    if not isinstance(root, Path):
        deque(many_at_once(root, root.remove, paths), maxlen=0)
        return
    for path in paths:
        (root / path).unlink()
        _remove_empty_folders((root / path).parent, root)


def _remove_empty_folders(folder: Path, root: Path) -> None:
    """Removes the folder and its parents below `root`, as long as they are empty."""
    with contextlib.suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _says_it_belongs(path: str, root: StoreRoot) -> bool:
    try:
        with open_shard(root / path) as shard:
            header = read_header(shard)
    except StoreError:
        return False
    return layout.can_be_shard(path, layout.Unit(header.split, header.unit), header.group)


def _index_tables(root: StoreRoot) -> dict[tuple[str, int], StoredFile]:
    """Returns the index tables that can be removed; there are none behind a link."""
    try:
        return layout.index_files(root)
    except StoreError:
        return {}


def _set_aside(out: Path) -> Path:
    return out.parent / f".{out.name}.embedx-old"
