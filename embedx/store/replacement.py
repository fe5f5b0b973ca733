"""How a new store takes the place of an old one, and what of a store is embedx's to remove.

The new store is written to a folder beside the old one. Once it is complete the two folders exchange their names in
one step; then what embedx wrote of the old store is removed, and what others put there moves into the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from embedx.config import LOCK
from embedx.errors import StoreError
from embedx.store import layout
from embedx.store.files import sync_folder
from embedx.store.index import read_entry
from embedx.store.shards import open_shard, read_header


def staging_folder(out: Path) -> Path:
    """Where the store that is to replace `out` is written."""
    return out.parent / f".{out.name}.embedx-new"


def take_place(new: Path, out: Path) -> None:
    """Puts a complete new store in the old one's place, and removes what embedx wrote of the old one."""
    old = new
    if not _exchange(new, out):
        # The file system can't exchange two names; between these two renames only `old` is readable.
        old = _set_aside(out)
        out.rename(old)
        new.rename(out)
    sync_folder(out.parent)
    remove_store(old, rescue_to=out)


def recover(out: Path) -> None:
    """Puts the old store back, where an exchange by two renames was interrupted between them."""
    if not out.exists() and _set_aside(out).exists():
        _set_aside(out).rename(out)


def finish_removal(out: Path) -> None:
    """Removes what is left of a store that `out` has replaced, where that was interrupted; `out` has to be locked."""
    old = staging_folder(out)
    if (old / LOCK).exists() and not os.path.lexists(old / layout.MANIFEST):
        remove_store(old, rescue_to=out)
    if (_set_aside(out) / LOCK).exists():
        remove_store(_set_aside(out), rescue_to=out)


def remove_store(root: Path, rescue_to: Path | None = None) -> None:
    """Removes what embedx wrote to the store at `root`, and the folder if nothing else is left in it.

    First the manifest, so that the rest is known to be one, and last the lock, by which it is known to be embedx's.

    Args:
        root: The store.
        rescue_to: A store that takes over what others put there, except where something of that name is.
    """
    (root / layout.MANIFEST).unlink(missing_ok=True)
    sync_folder(root)
    for path in [*our_shards(root), *_index_tables(root), *layout.temporary_files(root)]:
        path.unlink()
    for path in sorted(root.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif (
                path != root / LOCK
                and rescue_to is not None
                and not os.path.lexists(rescue := rescue_to / path.relative_to(root))
            ):
                rescue.parent.mkdir(parents=True, exist_ok=True)
                path.rename(rescue)
    (root / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        root.rmdir()


def our_shards(root: Path) -> Iterator[Path]:
    """The shards at `root` that embedx wrote: those that say so themselves, and those that an index table names."""
    named: set[Path] = set()
    for path in _index_tables(root):
        with contextlib.suppress(StoreError):
            named.update(root / shard.path for shard in read_entry(path).shards)
    for *_, path in layout.shard_files(root):
        if path in named or _has_our_header(path):
            yield path


def remove_empty_folders(folder: Path, root: Path) -> None:
    """Removes `folder` and its parents below `root`, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _has_our_header(path: Path) -> bool:
    try:
        with open_shard(path) as shard:
            read_header(shard)
    except StoreError:
        return False
    return True


def _index_tables(root: Path) -> list[Path]:
    """Those that can be removed: none behind a link."""
    try:
        return list(layout.index_files(root).values())
    except StoreError:
        return []


def _set_aside(out: Path) -> Path:
    return out.parent / f".{out.name}.embedx-old"


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step, by Linux's `renameat2`; False where that can't be done."""
    at_working_directory, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    outcome: int = renameat2(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange)
    return outcome == 0
