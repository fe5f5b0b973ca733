"""How a new store takes the place of an old one, and what of a store is embedx's to remove.

The new store is written to a folder beside the old one. Once it is complete the two folders exchange their names in
one step; then what embedx wrote of the old store is removed, and what others put there moves into the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from embedx.errors import ConfigError, StoreError
from embedx.names import LOCK
from embedx.store.format import layout
from embedx.store.format.atomic import sync_folder
from embedx.store.format.index import read_entry
from embedx.store.format.shards import open_shard, read_header


def check_replaceable(out: Path) -> None:
    """Checks that another folder can take the place of `out`.

    Raises:
        ConfigError: If not.
    """
    if _is_mount_point(out):
        raise ConfigError(
            f"--out {out} is a mount point, whose place no other folder can take, so that --overwrite, --update and "
            f"--retry-rejected can't work on it; keep the store in a folder of its own below it, as {out / 'store'}"
        )
    if out in (here := Path.cwd(), *here.parents):
        raise ConfigError(
            f"--out {out} is, or holds, the working directory, which would be one that is removed afterwards, as "
            f"another folder takes its place; run this from elsewhere, such as {out.parent}"
        )


def _is_mount_point(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # os.path.ismount() sees no bind mounts within a file system
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            place = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])
            if place == os.fsencode(folder):
                return True
    return os.path.ismount(folder)


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
    old = layout.staging_folder(out)
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
        remove_empty_folders(path.parent, root)
    if rescue_to is not None:
        _move_into(rescue_to, root)
    (root / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        root.rmdir()


def our_shards(root: Path) -> Iterator[Path]:
    """The shards of the store at `root`: those that an index table names, and those that say that they belong there.

    A copy elsewhere in the folder, or a shard of another store below this one, is somebody's own.
    """
    named: set[Path] = set()
    for path in _index_tables(root):
        with contextlib.suppress(StoreError):
            named.update(root / shard.path for shard in read_entry(path).shards)
    for split, _, path in layout.shard_files(root):
        if path in named or (not os.path.lexists(root / split / layout.MANIFEST) and _says_it_belongs(path, root)):
            yield path


def _move_into(target: Path, folder: Path) -> None:
    """Moves what is in a folder into another, except where something of that name is."""
    for path in folder.iterdir():
        place = target / path.name
        with contextlib.suppress(OSError):
            if not os.path.lexists(place):
                path.rename(place)
            elif all(each.is_dir() and not each.is_symlink() for each in (path, place)):
                _move_into(place, path)
                path.rmdir()


def remove_empty_folders(folder: Path, root: Path) -> None:
    """Removes `folder` and its parents below `root`, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _says_it_belongs(path: Path, root: Path) -> bool:
    try:
        with open_shard(path) as shard:
            header = read_header(shard)
    except StoreError:
        return False
    return layout.can_be_shard(path.relative_to(root).as_posix(), layout.Unit(header.split, header.unit), header.group)


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
